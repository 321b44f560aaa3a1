from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

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
    from ragctl.indexes import Resource


def command(
    config: Config,
    overrides: Set = None,
    *,
    index: Index = None,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Turn an index of S3 Vectors to ENHANCED, with text search, in place."
        ),
    ] = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Make the experiment's index, or check that the one that is there is right.

    \b
    Examples:
      ragctl create-index configs/samples.yaml
      ragctl create-index configs/s3vectors-bedrock.yaml --upgrade
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiments = load_each(config, overrides, index)
    resources = [
        resource for one in experiments for resource in perform(one, upgrade=upgrade, dry_run=dry_run)
    ]

    def show() -> None:
        for resource in resources:
            typer.echo(f"index {resource.name}: {resource.action} ({resource.status})")
        if not resources:
            typer.echo("no tenant has a document, so there is no index to make")

    output.result(
        {"schema": "ragctl.create-index/1", "resources": [asdict(resource) for resource in resources]}, show
    )


def perform(experiment: Experiment, *, upgrade: bool, dry_run: bool) -> list[Resource]:
    """Make the index, or those of its tenants."""
    from ragctl import indexes
    from ragctl.adapters import open_embedder, open_store, s3vectors_store
    from ragctl.state import open_state
    from ragctl.tenants import indexes_wanted

    embedder = open_embedder(experiment)
    resources = []
    for one in indexes_wanted(experiment, open_state(experiment), enter=not dry_run):
        if upgrade:
            resources.append(indexes.upgrade(one, s3vectors_store(one), embedder, dry_run=dry_run))
            continue
        store = open_store(one)
        try:
            resources.append(indexes.create(one, store, embedder, dry_run=dry_run))
        finally:
            store.close()
    return resources
