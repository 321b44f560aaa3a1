"""The Typer app and main(): the only place that prints an error and sets the exit status."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import sys
import traceback
from time import monotonic
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
    events,
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
from ragctl.commands.signals import interrupting
from ragctl.commands.streams import ReaderGone, guarded
from ragctl.errors import RagctlError

# New objects after which Python looks for cycles of garbage, instead of 700: imports and ingests make many objects that
# stay for seconds, and hardly any cycle.
COLLECT_AFTER = 50_000
FULL = (errno.ENOSPC, errno.EDQUOT)
# NumPy's OpenBLAS starts a thread a core as it is imported, which spin for a while, and no product here is large enough
# for them. Processes that this one starts inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Pydantic looks for plugins of its own in every installed package as it is imported: 20 ms, for code of others that
# would see the configs.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


_UsageError: Any = typer.BadParameter.__base__  # which Typer does not name


class _Commands(TyperGroup):
    """Endings to which Typer would give a status of its own, or no word."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().make_context(*arguments, **named)
        except KeyboardInterrupt:
            raise typer.Exit(_interrupted()) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort):  # Abort: Ctrl-C or the end of input at a question
            raise typer.Exit(_interrupted()) from None
        except BrokenPipeError as error:  # not stdout's; Typer would end with 1, and say nothing
            raise RuntimeError("a pipe broke") from error


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
    ctx: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001  its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn a corpus into a searchable index, ask it questions, measure the answers, and clean up."""
    command = ctx.invoked_subcommand
    events.tell("start", f"ragctl {command}", level=logging.INFO, command=command, version=__version__)


def main() -> None:
    """The console script: run the command, say in plain words what went wrong, end with the honest status."""
    gc.set_threshold(COLLECT_AFTER)
    atexit.register(gc.freeze)  # else Python looks through all that is left for garbage as it ends: 0.1 s
    started = monotonic()
    events.ending.clear()
    with interrupting(), guarded():
        events.listen(log_json="--log-json" in sys.argv)  # until the command has read its options
        status = _status()
        seconds = round(monotonic() - started, 3)
        message = f"exit status {status} after {seconds:.1f} s"
        events.tell("end", message, level=logging.INFO, exit=status, seconds=seconds, **events.ending)
    sys.exit(status)


def _status() -> int:
    """Run the command; how it ended, of which everything is told."""
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except RagctlError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        plain = f"ragctl: error: {error.message}{hint}"
        return _told(error.message, error.exit_status, plain=plain, hint=error.hint)
    except _UsageError as error:
        if not events.is_json():
            error.show()
            return 2
        return _told(error.format_message(), 2)
    except KeyboardInterrupt:  # before Typer has begun
        return _interrupted()
    except ReaderGone:
        return 141
    except Exception as error:  # noqa: BLE001  a bug: its traceback, without local values, is what we need to see
        if place := _fault_of_place(error):
            message, hint = place
            return _told(message, 8, plain=f"ragctl: error: {message}\n  hint: {hint}", hint=hint)
        message, trace = "this is a bug in ragctl; please report it", traceback.format_exc()
        return _told(message, 1, plain=f"{trace}\nragctl: {message} with the lines above", traceback=trace)
    return status if isinstance(status, int) else 0


def _fault_of_place(error: Exception) -> tuple[str, str] | None:
    """What is wrong with this machine and what to do, where that is no bug: a full temporary folder (all other
    databases say themselves what is wrong with them), or a folder that may not be entered.
    """
    sqlite3 = sys.modules.get("sqlite3")
    if sqlite3 is not None and isinstance(error, sqlite3.OperationalError):
        return f"the temporary folder cannot be written: {error}", "free space, or set SQLITE_TMPDIR"
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "the temporary folder, or where state and reports lie"
        return f"the disk is full: {where}", "free space; TMPDIR names another folder for temporary files"
    if isinstance(error, PermissionError):
        return f"{error.filename}: {error.strerror}", "let this user read it, or enter its folder"
    return None


def _interrupted() -> int:
    return _told("interrupted", 130, plain="ragctl: interrupted")


def _told(message: str, status: int, **fields: Any) -> int:
    events.tell("error", message, level=logging.ERROR, exit=status, **fields)
    return status
