from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from ragctl.commands.options import (
    Config,
    DryRun,
    Index,
    Json,
    LogJson,
    Quiet,
    Set,
    Verbose,
    load_each,
    setup,
)

if TYPE_CHECKING:
    from ragctl.config import Experiment

app = typer.Typer(help="The ledger of an index: what ragctl knows to be in it.", no_args_is_help=True)


@app.command("rebuild")
def rebuild_command(
    config: Config,
    overrides: Set = None,
    *,
    index: Index = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Make a lost or damaged ledger anew from the index alone; no service then embeds anything twice.

    \b
    Example:
      ragctl ledger rebuild configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiments = load_each(config, overrides, index)
    rebuilt = {one.store.index: _rebuild(one, dry_run=dry_run) for one in experiments}
    output.results(rebuilt, lambda name: _show(rebuilt[name]))


def _rebuild(experiment: Experiment, *, dry_run: bool) -> dict[str, Any]:
    from ragctl.rebuild import rebuild
    from ragctl.state import open_state

    documents, chunks = rebuild(experiment, open_state(experiment), dry_run=dry_run)
    return {
        "schema": "ragctl.ledger-rebuild/1",
        "index": experiment.store.index,
        "documents": documents,
        "chunks": chunks,
        "dry_run": dry_run,
    }


def _show(rebuilt: Mapping[str, Any]) -> None:
    would = "would rebuild" if rebuilt["dry_run"] else "rebuilt"
    typer.echo(
        f"{rebuilt['index']}: ledger {would}: {rebuilt['documents']:,} documents in {rebuilt['chunks']:,} chunks"
    )
