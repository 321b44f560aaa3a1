from __future__ import annotations

from dataclasses import asdict

import typer

from ragctl.commands.options import Config, DryRun, Json, LogJson, Quiet, Set, Verbose, load, setup


def command(
    config: Config,
    overrides: Set = None,
    *,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    r"""Make the experiment's index, or check that the one that is there is right.

    \b
    Example:
      ragctl create-index configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl import indexes
    from ragctl.adapters import open_embedder, open_store

    store = open_store(experiment)
    try:
        resource = indexes.create(experiment, store, open_embedder(experiment), dry_run=dry_run)
    finally:
        store.close()
    output.result(
        {"schema": "ragctl.create-index/1", "resources": [asdict(resource)]},
        lambda: typer.echo(f"index {resource.name}: {resource.action} ({resource.status})"),
    )
