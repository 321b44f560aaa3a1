from __future__ import annotations

import typer

from ragctl.commands.options import Config, DryRun, Json, LogJson, Quiet, Set, Verbose, load, setup

app = typer.Typer(help="The ledger of an index: what ragctl knows to be in it.", no_args_is_help=True)


@app.command("rebuild")
def rebuild_command(
    config: Config,
    overrides: Set = None,
    *,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    r"""Make a lost or damaged ledger anew from the index alone; the next ingest embeds nothing twice.

    \b
    Example:
      ragctl ledger rebuild configs/samples.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.rebuild import rebuild
    from ragctl.state import open_state

    documents, chunks = rebuild(experiment, open_state(experiment), dry_run=dry_run)
    index = experiment.store.index
    would = "would rebuild" if dry_run else "rebuilt"
    output.result(
        {
            "schema": "ragctl.ledger-rebuild/1",
            "index": index,
            "documents": documents,
            "chunks": chunks,
            "dry_run": dry_run,
        },
        lambda: typer.echo(f"{index}: ledger {would}: {documents:,} documents in {chunks:,} chunks"),
    )
