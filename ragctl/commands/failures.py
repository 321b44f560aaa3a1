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
    r"""List the documents that are not in the index because something failed.

    \b
    Example:
      ragctl failures configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.ingest import reading_ledger
    from ragctl.state import open_state

    with reading_ledger(open_state(experiment), experiment.store.index) as ledger:
        failures = ledger.failures()

    def show() -> None:
        for failure in failures:
            typer.echo(f"{failure.document} ({failure.stage}, {failure.attempts} times): {failure.error}")
        if not failures:
            typer.echo("no failures")

    output.result(
        {"schema": "ragctl.failures/1", "failures": [asdict(failure) for failure in failures]}, show
    )
