"""How a run shows that it is alive: a bar on a terminal, else a line at most every 10 seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ragctl.commands.options import Output
    from ragctl.ingest import Progress

LINE_EVERY_S = 10.0


class IngestDisplay:
    """Shows an ingest; `tick` is called about twice a second and costs nothing when there is nothing to show."""

    def __init__(self, progress: Progress, output: Output, *, done: str = "written") -> None:
        """`done` says what has become of the chunks that are shown."""
        self._progress = progress
        self._done = done
        self._bar = None
        self._shown = monotonic()
        self._is_on = output.has_progress
        if self._is_on and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(unit=" chunks", file=sys.stderr, dynamic_ncols=True, leave=False)

    def tick(self) -> None:
        if self._bar is not None:
            self._bar.n = self._progress.counts.written
            self._bar.set_description(self._text(), refresh=True)
        elif self._is_on and monotonic() - self._shown >= LINE_EVERY_S:
            self._shown = monotonic()
            typer.echo(f"{self._text()}, {self._progress.counts.written:,} chunks {self._done}", err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _text(self) -> str:
        counts = self._progress.counts
        pipeline = self._progress.pipeline
        waits = f", waiting for: {pipeline.bottleneck()}" if pipeline is not None else ""
        return f"{counts.seen:,} documents{f', {counts.failed:,} failed' if counts.failed else ''}{waits}"


@contextmanager
def stopping_on_signals(stop: threading.Event, within_s: float = 0.0) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`, so that what is in flight is finished and saved; the second ends the
    process at once, which is safe as well: the ledger is saved in whole transactions. Where somebody around us has
    something to clean up and takes signals for it, the second is theirs.

    `within_s`: the process ends so many seconds after the first signal, as if by a second; 0: when all is finished.
    """
    default = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)

    signals = (
        count()
    )  # and not `stop`: setting it twice at once, one signal within the other, would never end

    def handle(number: int, frame: FrameType | None) -> None:
        if next(signals):
            outer = before[signal.SIGTERM if number == signal.SIGALRM else signal.Signals(number)]
            if callable(outer) and outer not in default:
                outer(number, frame)
            os._exit(130)
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, within_s)
        typer.echo(
            f"ragctl: {signal.Signals(number).name}: finishing what is in flight; again to stop at once",
            err=True,
        )

    before = {
        number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    }
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
