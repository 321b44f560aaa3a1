from __future__ import annotations

import threading
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragctl.commands.options import (
    Config,
    DryRun,
    Json,
    LogJson,
    Output,
    Quiet,
    Set,
    Verbose,
    load,
    setup,
)
from ragctl.commands.signals import stopping_on_signals

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.deploy import Begin, Outcome


def command(
    config: Config,
    overrides: Set = None,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Update endpoints that differ, while they serve.")
    ] = False,
    accept_eula: Annotated[
        bool, typer.Option("--accept-eula", help="You have read the models' licenses and accept them.")
    ] = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Deploy the experiment's SageMaker models, or check that those that are there are right.

    \b
    Examples:
      ragctl deploy-models configs/s3vectors-jumpstart.yaml --dry-run
      ragctl deploy-models configs/s3vectors-jumpstart.yaml --set deployment.expires_after=8h
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    eulas = [f"deployment.{role}.accept_eula=true" for role in ("embedding", "generation", "reranking")]
    experiment = load(config, [*(overrides or ()), *(eulas if accept_eula else ())])
    from ragctl.deploy_plan import wants_models

    if not wants_models(experiment):
        _show_nothing(experiment, output)
        return
    outcome, run = perform(experiment, output, replace=replace, dry_run=dry_run)
    document = {"schema": "ragctl.deploy-models/1", "run": run, **payload(outcome)}
    output.result(document, lambda: show(outcome, run))


def _show_nothing(experiment: Experiment, output: Output) -> None:
    sections = {"embedding": experiment.embedding, "generation": experiment.generation}
    kinds = ", ".join(f"{role} is {section.kind}" for role, section in sections.items())
    output.result(
        {"schema": "ragctl.deploy-models/1", "resources": []},
        lambda: typer.echo(f"this experiment has nothing to deploy: {kinds}"),
    )


def perform(
    experiment: Experiment,
    output: Output,
    *,
    replace: bool,
    dry_run: bool,
    begin: Begin = lambda *_: None,
) -> tuple[Outcome, str | None]:
    """What became of the models, and where the record of the run is. `begin`: see `deploy`; a dry run begins nothing."""
    from ragctl import deployment
    from ragctl.commands.recording import recording
    from ragctl.deploy import Interrupted, deploy
    from ragctl.deploy_plan import tools
    from ragctl.lease import hold

    means = tools(experiment)
    if dry_run:
        return deploy(experiment, means, replace_differing=replace, dry_run=True), None
    stop = threading.Event()
    with (
        recording("deploy-models", experiment) as run,
        hold(means.state, deployment.lease_name(experiment.name), "deploy-models"),
        stopping_on_signals(stop),
    ):
        try:
            outcome = deploy(
                experiment, means, replace_differing=replace, stop=stop, tell=teller(output), begin=begin
            )
        except Interrupted:
            raise KeyboardInterrupt from None
        run.finish("done", payload(outcome))
    return outcome, str(run.path)


def teller(output: Output) -> Any:
    """Prints what happens with the minutes since the start: endpoints take their time."""
    started = monotonic()

    def tell(text: str) -> None:
        output.say(f"{(monotonic() - started) / 60:5.1f} min  {text}")

    return tell


def payload(outcome: Outcome) -> dict[str, Any]:
    """What run.json keeps of it."""
    return {
        "resources": [asdict(resource) for resource in outcome.resources],
        "models": {
            step.role: {
                "endpoint": step.endpoint,
                "instance_type": step.instance_type or None,
                "instance_count": step.instance_count,
                "usd_per_hour": step.usd_per_hour,
            }
            for step in outcome.steps
        },
    }


def show(outcome: Outcome, run: str | None) -> None:
    from ragctl.cost import per_hour

    for resource in outcome.resources:
        typer.echo(f"{resource.type} {resource.name}: {resource.action}")
    for step in outcome.steps:
        instances = f"{step.instance_count} x {step.instance_type}, " if step.instance_type else ""
        typer.echo(f"{step.role}: {instances}{per_hour(step.usd_per_hour)}")
        for difference in step.differences:
            typer.echo(f"  {difference}")
    expires = {model.expires for model in (outcome.record.models.values() if outcome.record else ())} - {None}
    if expires:
        typer.echo(f"expires {min(filter(None, expires))}")
    if run is not None:
        typer.echo(f"run: {run}")
