"""stdout and stderr where they cannot be written: a full disk, a terminal that is gone, a reader that has left."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast

from ragctl.errors import OutputError


class ReaderGone(Exception):
    """The reader of our output has left, as with `| head`."""


@contextmanager
def guarded() -> Iterator[None]:
    """Within the block, a write to stdout that fails raises OutputError or ReaderGone, told apart from every other
    OSError; one to stderr is let go. Nothing that is still to be flushed changes the exit status later, and no text
    fails for its letters.
    """
    before = sys.stdout, sys.stderr
    streams = [stream or _closed() for stream in before]
    for stream in streams:
        _take_every_letter(stream)
    sys.stdout, sys.stderr = cast("TextIO", _Result(streams[0])), cast("TextIO", _Notes(streams[1]))
    try:
        yield
    finally:
        for stream in streams:
            _flush_or_drop(stream)
        sys.stdout, sys.stderr = before


def _closed() -> TextIO:
    """A stream in the place of one that is closed, for which Python has None: a file that is opened next would get
    its number. Nothing can be written to it either.
    """
    return open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: PTH123


def _take_every_letter(stream: TextIO) -> None:
    """Have an escape written for what the encoding does not have. ASCII is nobody's choice, and UTF-8 instead: so Typer
    takes it too, with a stream of its own that is not guarded.
    """
    if isinstance(stream, TextIOWrapper):
        is_ascii = codecs.lookup(stream.encoding).name == "ascii"
        stream.reconfigure(encoding="utf-8" if is_ascii else None, errors="backslashreplace")


class _Wrapped:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Result(_Wrapped):
    """stdout: a result that is not written is no success."""

    def write(self, text: str) -> int:
        with _failing():
            return self._stream.write(text)

    def flush(self) -> None:
        with _failing():
            self._stream.flush()


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}") from error


class _Notes(_Wrapped):
    """stderr: what is said beside the result must not change how a run ends."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _flush_or_drop(stream: TextIO) -> None:
    """Python flushes once more when it ends, and would say so and end with 120 where that fails."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
