"""Options that every command has, and how a command prints: the result to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragctl.commands import events
from ragctl.commands.events import printable

if TYPE_CHECKING:
    from ragctl.config import Experiment

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Experiment file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change a setting, with paths from here; may be repeated.",
        show_default=False,
    ),
]
Index = Annotated[
    str | None,
    typer.Option("--index", metavar="NAME", help="This one of several indexes.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no warnings.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is done.")]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Write events to stderr, each a line of JSON (docs/cron.md).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's words go."""

    json: bool
    quiet: bool
    log_json: bool

    def result(self, document: Mapping[str, Any], show: Callable[[], None]) -> None:
        """Print the result: as one JSON document, or as `show` does for people."""
        if self.json:
            typer.echo(as_json(document))
        else:
            show()

    def results(self, documents: Mapping[str, Mapping[str, Any]], show: Callable[[str], None]) -> None:
        """Print a result for each index: the only JSON document as it is, several in one under "indexes"."""
        first, *more = documents.values()
        document = {"schema": first["schema"], "indexes": documents} if more else first

        def show_each() -> None:
            for index in documents:
                show(index)

        self.result(document, show_each)

    def say(self, text: str) -> None:
        """A line to stderr, unless --quiet; an event under --log-json."""
        events.tell("note", text)

    def complain(self, text: str) -> None:
        """A line to stderr, even with --quiet; under --log-json events have said it already."""
        if not self.log_json:
            typer.echo(printable(text), err=True)

    @property
    def has_bar(self) -> bool:
        """Whether progress may be drawn as a bar, which is not a line."""
        return not (self.quiet or self.log_json) and sys.stderr.isatty()


def as_json(document: Mapping[str, Any]) -> str:
    """A document on one line for stdout; what its encoding does not have is escaped as JSON does it."""
    text = json.dumps(document, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, default=str)
    return text


def setup(*, json_output: bool, quiet: bool, verbose: bool, log_json: bool) -> Output:
    """Set the logging up and say where the words of this command go."""
    events.listen(quiet=quiet, verbose=verbose, log_json=log_json)
    return Output(json_output, quiet, log_json)


def load(config: Path, overrides: list[str] | None) -> Experiment:
    """The experiment, with `--set` applied."""
    from ragctl.loading import load as load_file

    experiment = load_file(config, overrides or ())
    events.tell(
        "experiment",
        f"experiment {experiment.name}",
        level=logging.INFO,
        name=experiment.name,
        config=config.resolve(),
    )
    return experiment


def load_each(config: Path, overrides: list[str] | None, index: str | None) -> list[Experiment]:
    """An experiment for each of its indexes, or for the one that is named."""
    from ragctl.indexes import named

    return named(load(config, overrides), index)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed; without a terminal to ask on, `--yes` must have been given."""
    from ragctl.errors import ConfigError, Refused

    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{question} There is no terminal to ask on", hint="say --yes, or look first: --dry-run"
        )
    if not typer.confirm(question, err=True):
        raise Refused("nothing was done")


def shown(path: str | Path) -> str:
    """A path as people like it: from here, where it lies below."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def no_colour() -> bool:
    """Whether NO_COLOR is set (no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))
