from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

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
    Yes,
    confirm,
    load,
    setup,
)
from ragctl.commands.recording import Attempt, recording_if_possible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragctl.config import Experiment
    from ragctl.indexes import Resource
    from ragctl.removal import Removal


def command(
    config: Config,
    overrides: Set = None,
    *,
    models: Annotated[bool, typer.Option("--models", help="The models that deploy-models made.")] = False,
    index: Annotated[bool, typer.Option("--index", help="The index and its ledger.")] = False,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="NAME", help="Of several indexes, this one.", show_default=False),
    ] = None,
    bucket: Annotated[
        bool, typer.Option("--bucket", help="The vector bucket, when it is ours and empty then.")
    ] = False,
    state: Annotated[
        bool,
        typer.Option("--state", help="Leases and records of what is gone, and the embedding cache."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="All that this experiment made, but for the embedding cache.")
    ] = False,
    expired: Annotated[
        bool,
        typer.Option("--expired", help="Models past their time, in the whole account and region."),
    ] = False,
    orphans: Annotated[
        bool,
        typer.Option("--orphans", help="What failed or no endpoint uses, in the whole account and region."),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Remove what this experiment made. Sources and run reports are never touched.

    \b
    Examples:
      ragctl teardown configs/samples.yaml --index --dry-run
      ragctl teardown configs/s3vectors-jumpstart.yaml --models --yes
      ragctl teardown configs/s3vectors-bedrock.yaml --all --yes
      ragctl teardown configs/s3vectors-jumpstart.yaml --expired --orphans --yes
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl import removal

    scope = removal.Scope(
        models=models,
        index=index,
        only=only,
        bucket=bucket,
        state=state,
        everything=everything,
        expired=expired,
        orphans=orphans,
    )
    plan = removal.plan(experiment, scope)
    resources, record = plan.resources, Attempt()
    going = [f"{resource.type} {resource.name}" for resource in resources if resource.action == "delete"]
    if going and not dry_run:
        confirm(f"Remove {', '.join(going)}?", yes=yes)
        resources, record = _carry_out(experiment, plan, output)
    document = {
        "schema": "ragctl.teardown/1",
        "run": record.path,
        "resources": [asdict(resource) for resource in resources],
    }
    output.result(document, lambda: _show(resources, record.path))
    scope.refuse_what_is_left(resources)
    if record.fault is not None:
        raise record.fault


def _carry_out(experiment: Experiment, plan: Removal, output: Output) -> tuple[list[Resource], Attempt]:
    """What became of the plan. That no report can be written keeps nothing up that is paid for by the hour."""
    from ragctl.commands.deploy_models import teller
    from ragctl.teardown import UNSETTLED

    with recording_if_possible("teardown", experiment) as record:
        resources = plan.carry_out(teller(output))
        left = any(resource.action in UNSETTLED for resource in resources)
        words = {"resources": [asdict(resource) for resource in resources]}
        record.finish("failed" if left else "done", words)
    return resources, record


def _show(resources: Sequence[Resource], run: str | None) -> None:
    if not resources:
        typer.echo("there is nothing to remove")
    for resource in resources:
        action = "would delete" if resource.action == "delete" else resource.action
        status = f" ({resource.status})" if resource.status else ""
        typer.echo(f"{resource.type} {resource.name}: {action}{status}")
    if run is not None:
        typer.echo(f"run: {run}")
