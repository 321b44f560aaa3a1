from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
)

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.deploy_plan import Step
    from ragctl.forecast import Forecast
    from ragctl.plan_costs import Line
    from ragctl.sampling import Amount


def command(
    config: Config,
    overrides: Set = None,
    *,
    index: Index = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Count every file; by default more than 2,000 or 200 MB are sampled."),
    ] = False,
    embed_rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="TEXTS", help="Texts that the embedder does in a second.", show_default=False
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the plan, for ingest --plan.", show_default=False),
    ] = None,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Say what ingest and deploy-models would do, what it costs and how long it takes. Nothing is changed.

    \b
    Examples:
      ragctl plan configs/samples.yaml
      ragctl plan configs/s3vectors-bedrock.yaml --set prices.embedding=0.02 --full
      ragctl plan configs/samples.yaml --save plan.json && ragctl ingest configs/samples.yaml --plan plan.json
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiments = load_each(config, overrides, index)
    from ragctl import cost, plan_costs, saved_plan
    from ragctl.state import open_state

    experiment = experiments[0]
    forecasts = _forecasts(experiments, output, full=full)
    steps, fault = _steps(experiment)
    prices = cost.load(open_state(experiment))
    lines = plan_costs.lines(experiment, forecasts, prices, steps, embed_rate=embed_rate)
    if fault is not None:
        lines.append(plan_costs.Line("endpoints", "hour", None, fault))
    document = {
        "schema": saved_plan.SCHEMA,
        "indexes": {forecast.index: forecast.to_json() for forecast in forecasts},
        "models": [_model(step) for step in steps],
        "cost": [line.to_json() for line in lines],
        "budget": _budget(experiment, lines),
        "minutes": plan_costs.minutes(forecasts, embed_rate),
    }
    if save is not None:
        saved_plan.save(save, document, {forecast.index: forecast.world for forecast in forecasts})
    output.result(document, lambda: _show(document, forecasts, lines))


def _forecasts(experiments: Sequence[Experiment], output: Output, *, full: bool) -> list[Forecast]:
    from ragctl.commands.progress import IngestDisplay
    from ragctl.figures import Sampling
    from ragctl.forecast import forecast
    from ragctl.ingest import Progress
    from ragctl.state import open_state

    progress = Progress()
    display = IngestDisplay(progress, output, done="counted")
    sampling = None if full else Sampling()
    try:
        return [
            found
            for one in experiments
            for found in forecast(one, open_state(one), sampling, progress, display.tick)
        ]
    finally:
        display.close()


def _steps(experiment: Experiment) -> tuple[Sequence[Step], str | None]:
    """What deploy-models would do; where it would be refused, or cannot say, why."""
    from ragctl.deploy_plan import wants_models
    from ragctl.errors import RagctlError

    if not wants_models(experiment):
        return (), None
    from ragctl.deploy import deploy
    from ragctl.deploy_plan import tools

    try:
        return deploy(experiment, tools(experiment), dry_run=True).steps, None
    except RagctlError as error:
        return (), f"deploy-models would end with: {error.message}"


def _model(step: Step) -> dict[str, Any]:
    return {
        "role": step.role,
        "action": step.action,
        "endpoint": step.endpoint,
        "instance_type": step.instance_type or None,
        "instance_count": step.instance_count,
        "usd_per_hour": step.usd_per_hour,
    }


def _budget(experiment: Experiment, lines: Sequence[Line]) -> dict[str, Any] | None:
    """Whether an ingest stays within its budget; null where that is not known for sure."""
    cap = experiment.budget.ingest_usd if experiment.budget else None
    if cap is None:
        return None
    from ragctl.plan_costs import once

    total = once([line for line in lines if line.item in ("embedding", "puts")])
    unsure = total is None or total.low <= cap < total.high
    return {"ingest_usd": cap, "enough": None if total is None or unsure else total.high <= cap}


# --- for people ------------------------------------------------------------------------------------------


def _show(document: dict[str, Any], forecasts: Sequence[Forecast], lines: Sequence[Line]) -> None:
    for forecast in forecasts:
        typer.echo("\n".join(_described(forecast)))
    for model in document["models"]:
        kind = f", {model['instance_count']} x {model['instance_type']}" if model["instance_type"] else ""
        typer.echo(f"{model['role']}: {model['action']} endpoint {model['endpoint']}{kind}")
    typer.echo("cost")
    width = max(len(line.item) for line in lines)
    for line in lines:
        typer.echo(f"  {line.item:{width}}  {_priced(line)}")
    budget = document["budget"]
    if budget is not None:
        enough = {True: "is enough", False: "is not enough: ingest stops there", None: "may or may not do"}
        typer.echo(f"budget: ${budget['ingest_usd']:g} {enough[budget['enough']]}")
    typer.echo(f"time: {_timed(document['minutes'])}")


def _described(forecast: Forecast) -> Iterator[str]:
    files, figures = forecast.files, forecast.figures
    yield (
        f"index {forecast.index}: {files.add:,} files to add, {files.check:,} to look into, {files.keep:,} "
        f"to leave alone, {files.delete:,} to remove"
    )
    if figures.sample is not None:
        drawn, of = figures.sample
        yield f"  estimated from {drawn:,} of {of:,} files, with 95 % intervals; --full counts all"
    documents = [f"{_number(amount)} {name}" for name, amount in figures.documents.items() if amount.high > 0]
    yield f"  documents: {', '.join(documents) or 'none'}"
    chunks = figures.chunks
    yield (
        f"  chunks: {_number(chunks['written'])} to write, {_number(chunks['embedded'])} to embed with "
        f"{_number(figures.tokens)} tokens, {_number(chunks['total'])} in the index then"
    )
    for note in forecast.notes:
        yield f"  {note}"


def _number(amount: Amount) -> str:
    if amount.is_exact:
        return f"{amount.value:,.0f}"
    return f"{amount.value:,.0f} ({amount.low:,.0f} to {amount.high:,.0f})"


def _priced(line: Line) -> str:
    if line.usd is None:
        return f"unknown: {line.why}"
    usd = line.usd
    span = "" if usd.is_exact else f" ({_usd(usd.low)} to {_usd(usd.high)})"
    day = f", {_usd(24 * usd.value)} a day" if line.per == "hour" else ""
    per = "once" if line.per == "once" else f"per {line.per}"
    read = f", read {line.read.isoformat()}" if line.read else ""
    return f"{_usd(usd.value)}{span} {per}{day}  [{line.why}{read}]"


def _usd(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.2g}"


def _timed(minutes: dict[str, float | None]) -> str:
    put, embedding = minutes["put"], minutes["embedding"]
    parts = [
        "embedding unknown without --embed-rate"
        if embedding is None
        else f"embedding {embedding:,.1f} minutes",
        "putting has no known limit" if put is None else f"putting at least {put:,.1f} minutes",
    ]
    return ", ".join(parts)
