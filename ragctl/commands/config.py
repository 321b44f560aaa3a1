from __future__ import annotations

import json

import typer

from ragctl.commands.options import Config, Json, LogJson, Quiet, Set, Verbose, load, setup

app = typer.Typer(help="Check and show experiment files.", no_args_is_help=True)


@app.command("check")
def check_command(
    config: Config,
    overrides: Set = None,
    *,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Check an experiment file and the files that it names; every fault is listed at once.

    \b
    Example:
      ragctl config check configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.check import check

    check(experiment, config)
    output.result(
        {"schema": "ragctl.config-check/1", "config": str(config), "valid": True},
        lambda: typer.echo(f"{config}: a valid experiment"),
    )


@app.command("show")
def show_command(
    config: Config,
    overrides: Set = None,
    *,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Print the experiment as ragctl understands it: defaults filled in, paths absolute, secrets masked.

    \b
    Example:
      ragctl config show configs/samples.yaml --set chunking.size=500
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    import yaml

    from ragctl.loading import masked

    resolved = masked(experiment)
    output.result(
        {"schema": "ragctl.config-show/1", "experiment": resolved},
        lambda: typer.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), nl=False),
    )


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of experiment files, for editors.

    \b
    Example:
      ragctl config schema > configs/experiment.schema.json
    """
    from ragctl.loading import schema

    typer.echo(json.dumps(schema(), indent=2))
