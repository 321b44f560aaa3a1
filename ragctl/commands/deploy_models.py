from __future__ import annotations

import typer

from ragctl.commands.options import Config, Json, LogJson, Quiet, Set, Verbose, load, setup


def command(
    config: Config,
    overrides: Set = None,
    *,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    r"""Deploy the experiment's SageMaker models, or check that those that are there are right.

    \b
    Example:
      ragctl deploy-models configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.errors import ConfigError

    sections = {"embedding": experiment.embedding, "generation": experiment.generation}
    for role, section in sections.items():
        if section.kind == "sagemaker":
            raise ConfigError(f"{role}: this version does not deploy models yet; set {role}.endpoint")
    kinds = ", ".join(f"{role} is {section.kind}" for role, section in sections.items())
    output.result(
        {"schema": "ragctl.deploy-models/1", "resources": []},
        lambda: typer.echo(f"this experiment has nothing to deploy: {kinds}"),
    )
