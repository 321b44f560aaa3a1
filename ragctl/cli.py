"""The Typer app and main(): the only place that prints an error and sets the exit status."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ragctl import __version__
from ragctl.commands import (
    config,
    create_index,
    deploy_models,
    doctor,
    evaluate,
    failures,
    ingest,
    ledger,
    plan,
    prices,
    query,
    run,
    status,
    teardown,
    verify,
)
from ragctl.commands.options import printable
from ragctl.errors import RagctlError

# New objects after which Python looks for cycles of garbage, instead of 700: imports and ingests make many objects that
# stay for seconds, and hardly any cycle.
COLLECT_AFTER = 50_000


class _Commands(TyperGroup):
    """Endings to which Typer would give a status of its own, 1 among them, which is for bugs."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort):  # Abort: Ctrl-C or the end of input at a question
            typer.echo("ragctl: interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output has gone, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
            raise typer.Exit(141) from None


app = typer.Typer(
    cls=_Commands,
    name="ragctl",
    help="Turn a corpus into a searchable index, ask it questions, measure the answers, and clean up.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # plain help: half the start-up time, and the same text in a terminal, a file and the docs
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("create-index", short_help="Make the index, or check the one that is there.")(
    create_index.command
)
app.command("plan", short_help="Say what an ingest would do and cost.")(plan.command)
app.command("ingest", short_help="Bring the index up to date with the sources.")(ingest.command)
app.command("query", short_help="Answer a question, with citations.")(query.command)
app.command("eval", short_help="Ask a data set's questions, score, decide the gate.")(evaluate.command)
app.command("deploy-models", short_help="Deploy the experiment's SageMaker models.")(deploy_models.command)
app.command("run", short_help="Deploy, ingest, evaluate and take the models down.")(run.command)
app.command("teardown", short_help="Remove what the experiment made.")(teardown.command)
app.command("status", short_help="Show what exists and what it costs.")(status.command)
app.command("verify", short_help="Hold source, ledger and index against one another.")(verify.command)
app.command("doctor", short_help="Check everything that the experiment needs.")(doctor.command)
app.command("failures", short_help="List the documents that failed.")(failures.command)
app.add_typer(prices.app, name="prices")
app.add_typer(ledger.app, name="ledger")
app.add_typer(config.app, name="config")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"ragctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn a corpus into a searchable index, ask it questions, measure the answers, and clean up."""


def main() -> None:
    """The console script: run the command, say in plain words what went wrong, end with the honest status."""
    gc.set_threshold(COLLECT_AFTER)
    try:
        app()
    except RagctlError as error:
        typer.echo(f"ragctl: error: {printable(error.message, lines=True)}", err=True)
        if error.hint:
            typer.echo(f"  hint: {error.hint}", err=True)
        sys.exit(error.exit_status)
    except Exception:  # noqa: BLE001  a bug: its traceback, without local values, is what we need to see
        typer.echo(traceback.format_exc(), err=True)
        typer.echo("ragctl: this is a bug in ragctl; please report it with the lines above", err=True)
        sys.exit(1)
