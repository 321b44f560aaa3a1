from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ragctl.commands.events import printable
from ragctl.commands.options import Config, Json, LogJson, Quiet, Set, Verbose, load, setup

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.manifest import Failure


def command(
    config: Config,
    overrides: Set = None,
    *,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """List the documents that failed: they are not in the index, or only as they were before.

    \b
    Example:
      ragctl failures configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    failures, unfilled = _failures(experiment)

    def show() -> None:
        for failure, in_index in failures:
            kept = "; an old version is in the index" if in_index else ""
            line = f"{failure.document} ({failure.stage}, {failure.attempts} times{kept}): {failure.error}"
            typer.echo(printable(line))
        if not failures:
            typer.echo("no failures are known" if unfilled else "no failures")

    output.result(
        {
            "schema": "ragctl.failures/1",
            "failures": [{**asdict(failure), "in_index": in_index} for failure, in_index in failures],
            "without_ledger": unfilled,
        },
        show,
    )


def _failures(experiment: Experiment) -> tuple[list[tuple[Failure, bool]], list[str]]:
    """Those that the ledgers keep, and the files that no tenant's index takes, each with whether an old version is in
    the index; and the indexes without a ledger.
    """
    from ragctl import tenancy
    from ragctl.indexes import named
    from ragctl.ingest import list_sources, reading_ledger
    from ragctl.matching import warn_unless_filled
    from ragctl.state import open_state
    from ragctl.tenants import strays

    state = open_state(experiment)
    found: list[tuple[Failure, bool]] = []
    unfilled: list[str] = []
    for each in named(experiment):
        for one in tenancy.per_index(each, state):
            with reading_ledger(state, one.store.index) as ledger:
                found += [(failure, ledger.holds(failure)) for failure in ledger.failures()]
                if not warn_unless_filled(ledger, one.store.index):
                    unfilled.append(one.store.index)
    if tenancy.has_index_each(experiment):
        found += [(failure, False) for failure in strays(experiment, list_sources(experiment))]
    return found, unfilled
