from __future__ import annotations

from dataclasses import asdict

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
    """Look at everything that the experiment needs, and change nothing.

    Each line is ok, missing, or unknown with the reason.

    \b
    Exit status:
      0 nothing is missing, 8 something is
    \b
    Example:
      ragctl doctor configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.doctor import examine
    from ragctl.errors import ServiceError

    findings = []
    for finding in examine(experiment, config):
        findings.append(finding)
        if not output.json:  # each as it is found: some take a while
            typer.echo(f"{finding.status:<8} {finding.check}: {finding.detail}")
    output.result(
        {"schema": "ragctl.doctor/1", "checks": [asdict(finding) for finding in findings]}, lambda: None
    )
    missing = [finding.check for finding in findings if finding.status == "missing"]
    if missing:
        raise ServiceError(f"{len(missing)} of {len(findings)} checks miss something: {', '.join(missing)}")
