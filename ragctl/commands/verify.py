from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ragctl.commands.events import printable
from ragctl.commands.options import (
    Config,
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
    from ragctl.verify import Drift

KEYS_SHOWN = 5


def command(
    config: Config,
    overrides: Set = None,
    *,
    index: Index = None,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Documents to look into (200).", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Look into every document.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Put right exactly what is off.")] = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Hold source, ledger and index against one another.

    \b
    Exit status:
      0 all agree, 3 something is off (after --repair: still off)
    \b
    Examples:
      ragctl verify configs/samples.yaml
      ragctl verify configs/samples.yaml --full --repair
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiments = load_each(config, overrides, index)
    from ragctl.errors import ConfigError, PartialFailure
    from ragctl.verify import SAMPLE

    if full and sample is not None:
        raise ConfigError("--full and --sample exclude one another")
    depth = None if full else sample or SAMPLE
    drifts: dict[str, Drift] = {}
    spent = 0.0
    for one in experiments:
        drifts[one.store.index], spent = _verify(one, depth, spent, repair=repair)
    output.results(
        {name: drift.to_json() for name, drift in drifts.items()}, lambda name: _show(name, drifts[name])
    )
    if not all(drift.is_clean for drift in drifts.values()):
        raise PartialFailure(
            "source, ledger and index do not agree", hint=_hint(list(drifts.values()), repaired=repair)
        )


def _verify(experiment: Experiment, sample: int | None, spent: float, *, repair: bool) -> tuple[Drift, float]:
    """What is off; and what of budget.ingest_usd is spent, `spent` by the indexes before."""
    from secrets import token_hex

    from ragctl.ingest import IngestOptions, Progress, ingest
    from ragctl.state import open_state
    from ragctl.verify import repair as repair_drift
    from ragctl.verify import verify

    state = open_state(experiment)
    seed = token_hex(8)  # one, so that what was repaired is looked at again
    drift = verify(experiment, state, sample=sample, seed=seed)
    if repair and not drift.is_clean and not drift.index:
        repair_drift(experiment, state, drift)
        done = ingest(experiment, state, IngestOptions(spent_usd=spent), Progress())
        spent = done.bill.of_cap if done.bill else spent
        drift = verify(experiment, state, sample=sample, seed=seed)
    return drift, spent


def _hint(drifts: list[Drift], *, repaired: bool) -> str:
    """What helps: a repair does not change what the index was made for, nor mend a document that fails."""
    if any(drift.index for drift in drifts):
        return "name another index in store.index, or remove this one: ragctl teardown CONFIG --index"
    if any(drift.failed for drift in drifts) and (
        repaired or not any(drift.is_repairable for drift in drifts)
    ):
        return "ragctl failures CONFIG says what fails, and why; every ingest tries it again"
    return "ragctl verify CONFIG --repair"


def _show(index: str, drift: Drift) -> None:
    typer.echo(
        f"{index}: {drift.documents:,} documents in {drift.chunks:,} chunks, {drift.looked_at:,} documents looked into, "
        f"{drift.embedded:,} vectors compared with the embedder's"
    )
    kept = frozenset(drift.failed_in_index)
    absent = [document for document in drift.failed if document not in kept]
    for name, items in (
        ("missing from the index", drift.missing),
        ("orphaned in the index", drift.orphaned),
        ("changed since the last ingest", drift.stale),
        ("with wrong text or metadata", drift.wrong_metadata),
        ("with a vector of another embedder", drift.wrong_vector),
        ("failed, and their old versions answer", drift.failed_in_index),
        ("failed, and no version is known to be in the index", absent),
        ("settings", drift.index),
    ):
        if items:
            shown = ", ".join(items[:KEYS_SHOWN]) + (" ..." if len(items) > KEYS_SHOWN else "")
            typer.echo(f"  {name}: {len(items):,}: {printable(shown)}")
    if drift.is_clean:
        typer.echo("source, ledger and index agree")
