from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragctl.commands import events
from ragctl.commands.options import (
    Config,
    Index,
    Json,
    LogJson,
    Output,
    Quiet,
    Set,
    Verbose,
    load_each,
    setup,
    shown,
)
from ragctl.commands.recording import recording
from ragctl.commands.signals import stopping_on_signals

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.ingest import IngestOptions, IngestResult
    from ragctl.saved_plan import SavedPlan

FAILURES_SHOWN = 20
STOP_WITHIN_S = 30.0  # of the first signal: a call that hangs is left to itself, which is safe


def command(
    config: Config,
    overrides: Set = None,
    *,
    index: Index = None,
    max_delete: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Largest share of documents that may be removed; 1.0 for all.",
            show_default=False,
        ),
    ] = None,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Look into every file, not at size and time.")
    ] = False,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Only files that failed before.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only if all is as it was for this plan: ragctl plan CONFIG --save FILE",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Wait for another run to end, for example 10m.", show_default=False
        ),
    ] = "0s",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be done, in files, and do nothing; in documents: ragctl plan."
        ),
    ] = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Bring the index up to date with the sources: add, replace and remove what changed.

    \b
    Examples:
      ragctl ingest configs/samples.yaml
      ragctl ingest configs/samples.yaml --dry-run
      ragctl ingest configs/samples.yaml --set chunking.size=500 --set store.index=small
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiments = load_each(config, overrides, index)
    if not dry_run:
        _prepare(experiments[0])
    from ragctl.durations import seconds
    from ragctl.ingest import IngestOptions

    saved = _saved(plan, checksum=checksum, only_failed=only_failed)
    options = IngestOptions(dry_run, max_delete, checksum, only_failed, seconds(wait, "--wait"), saved)
    done = {result.index: (result, run) for result, run in perform(experiments, options, output)}
    output.results(
        {index: result.to_json(run) for index, (result, run) in done.items()},
        lambda index: show(*done[index], output),
    )
    conclude([result for result, _ in done.values()])


def _prepare(experiment: Experiment) -> None:
    """Start what workers need before all else where this is surely a first ingest, which has files to parse."""
    from ragctl.state import ledger_name
    from ragctl.tenancy import has_index_each

    if experiment.state.startswith("s3://") or has_index_each(experiment):
        return  # it takes longer to know
    if not Path(experiment.state, ledger_name(experiment.store.index)).exists():
        from ragctl.workers import prepare

        prepare(experiment)


def _saved(plan: Path | None, *, checksum: bool, only_failed: bool) -> SavedPlan | None:
    from ragctl.errors import ConfigError
    from ragctl.saved_plan import SavedPlan

    if plan is None:
        return None
    if checksum or only_failed:
        raise ConfigError("--plan goes with neither --checksum nor --only-failed: the plan was made without")
    return SavedPlan.read(plan)


def perform(
    experiments: Sequence[Experiment], options: IngestOptions, output: Output
) -> Iterator[tuple[IngestResult, str | None]]:
    """Ingest into one index after the other, until told to stop; the budget is one for all."""
    spent = 0.0
    for experiment in experiments:
        result, run = _ingest(experiment, replace(options, spent_usd=spent), output)
        yield result, run
        if _stopped(result):
            return
        spent = result.bill.of_cap if result.bill else 0.0


def _stopped(result: IngestResult) -> bool:
    """Whether it ended before everything was done."""
    return result.interrupted or result.over_budget or result.gave_up


def _ingest(
    experiment: Experiment, options: IngestOptions, output: Output
) -> tuple[IngestResult, str | None]:
    from ragctl.commands.progress import IngestDisplay
    from ragctl.ingest import Progress, ingest
    from ragctl.state import open_state

    progress = Progress()
    display = IngestDisplay(progress, output)
    state = open_state(experiment)
    try:
        with stopping_on_signals(progress.stopping, STOP_WITHIN_S):
            if options.dry_run:
                return ingest(experiment, state, options, progress, display.tick), None
            with recording("ingest", experiment) as run:
                result = ingest(experiment, state, options, progress, display.tick)
                run.finish("interrupted" if _stopped(result) else "done", result.payload())
                return result, str(run.path)
    finally:
        display.close()
        if not options.dry_run:
            events.ending.setdefault("indexes", {})[experiment.store.index] = asdict(progress.counts)


def show(result: IngestResult, run: str | None, output: Output) -> None:
    from ragctl.sources.listing import not_read

    c = result.counts
    left_out = not_read(result.ignored) if result.ignored else None
    if result.dry_run:
        p = result.planned
        assert p is not None
        typer.echo(
            f"would add {p.add:,} files, look into {p.check:,}, leave {p.keep:,} alone and remove {p.delete:,} "
            f"({p.delete_documents:,} documents)"
        )
        if left_out:
            typer.echo(f"  {left_out}")
        return
    idle = not (c.added or c.changed or c.deleted or c.failed or c.empty or c.removed or c.written)
    if idle and _stopped(result):
        how = "interrupted" if result.interrupted else "stopped"
        typer.echo(f"{result.index}: {how} before anything was saved; the next run carries on")
        return
    if idle:
        typer.echo(
            f"{result.index}: nothing to do, {result.documents:,} documents in {result.chunks:,} chunks"
            + (f"; {left_out}" if left_out else "")
        )
        return
    parts = [
        f"{number:,} {name}"
        for name, number in (
            ("added", c.added),
            ("changed", c.changed),
            ("unchanged", c.unchanged),
            ("deleted", c.deleted),
            ("empty", c.empty),
            ("failed", c.failed),
        )
        if number
    ]
    typer.echo(f"{result.index}: {', '.join(parts)} documents in {result.seconds:.1f} s")
    reused = f", {c.reused + c.cached:,} reused" if c.reused or c.cached else ""
    gone = f", {c.removed:,} deleted" if c.removed else ""
    typer.echo(
        f"  chunks: {c.embedded:,} embedded{reused}, {c.written:,} written{gone}, {result.chunks:,} in the index"
    )
    if left_out:
        typer.echo(f"  {left_out}")
    if result.interrupted:
        typer.echo("  interrupted; what was done is saved, and the next run carries on")
    if result.restored:
        typer.echo("  the index had lost chunks; they are back")
    for failure in result.failures[:FAILURES_SHOWN]:
        output.complain(f"  failed: {failure.document} ({failure.stage}): {failure.error}")
    if len(result.failures) > FAILURES_SHOWN:
        output.complain(f"  and {len(result.failures) - FAILURES_SHOWN:,} more: ragctl failures CONFIG")
    if run:
        typer.echo(f"  report: {shown(run)}")


def conclude(results: Sequence[IngestResult]) -> None:
    """Raise what the runs end with."""
    from ragctl.errors import PartialFailure, Refused

    if any(result.interrupted for result in results):
        raise typer.Exit(130)
    if any(result.over_budget for result in results):
        raise Refused(
            "budget.ingest_usd is reached: the command stopped before it would have gone past it; what it did is saved",
            hint="run the command again to go on, with a budget as large again; or raise budget.ingest_usd",
        )
    failed = sum(len(result.failures) for result in results)
    if any(result.gave_up for result in results):
        raise PartialFailure(
            f"gave up: {failed:,} failed, a larger share than ingest.fail_threshold allows; what was done is saved",
            hint="ragctl failures CONFIG lists them; run the command again to go on with the rest",
        )
    if failed:
        raise PartialFailure(
            f"{failed:,} failed; the index is consistent and keeps the old versions of what failed",
            hint="ragctl failures CONFIG lists them; ragctl ingest CONFIG --only-failed tries them again",
        )
