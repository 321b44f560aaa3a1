"""What a command tells on stderr, in one place: lines for people, or with --log-json events, one JSON object a line.

An event is a log record: its name is that of the logger, and what stands beside the message is its `fields`. The
modules of ragctl log as usual; the events that a command has of its own are told by `tell`. docs/cron.md lists them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from time import time
from typing import Any, TextIO, cast

NOTICE = 25  # for people who want neither silence nor every detail: between INFO and WARNING
logging.addLevelName(NOTICE, "NOTICE")

ending: dict[str, Any] = {}  # what the last event says beside the exit status


def listen(*, quiet: bool = False, verbose: bool = False, log_json: bool = False) -> None:
    """Have everything that is logged written to stderr; --log-json leaves nothing out, whatever else is asked."""
    stream = sys.stderr.stream if isinstance(sys.stderr, _Stray) else sys.stderr
    handler = _Handler(stream)
    handler.setFormatter(_JsonLines() if log_json else _Plain())
    logger = logging.getLogger("ragctl")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if verbose or log_json else logging.ERROR if quiet else NOTICE)
    logger.propagate = False
    sys.stderr = cast("TextIO", _Stray(stream)) if log_json else stream


def is_json() -> bool:
    """Whether stderr is for machines."""
    return isinstance(sys.stderr, _Stray)


def tell(
    event: str, message: str, *, level: int = NOTICE, plain: str | None = None, **fields: object
) -> None:
    """Tell the event `ragctl.<event>`, with `fields` beside the message; people read `plain`, or the message as it is."""
    extra = {"plain": message if plain is None else plain, "fields": fields}
    logging.getLogger(f"ragctl.{event}").log(level, "%s", message, extra=extra)


def printable(text: str, *, lines: bool = False) -> str:
    """Without control characters: neither a document nor its name may steer the terminal. `lines`: newlines and
    tabs are kept.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else " " for c in text)


class _Stray:
    """stderr under --log-json: a line that somebody else prints, a library's warning or a question, is an event too."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        *whole, self._begun = f"{self._begun}{text}".split("\n")
        for line in filter(None, whole):
            tell("stderr", line)
        return len(text)

    def flush(self) -> None:
        begun, self._begun = self._begun, ""
        if begun:
            tell("stderr", begun)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is logging's
        """A log that cannot be written must not change how a run ends."""


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = getattr(record, "plain", None)
        if text is None:
            text = f"ragctl: {record.levelname.lower()}: {record.getMessage()}"
        return printable(text, lines=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": round(time(), 3),
            "level": record.levelname.lower(),
            "event": record.name,
            "pid": os.getpid(),
            "message": record.getMessage(),
        }
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        return json.dumps({**event, **fields}, default=str)
