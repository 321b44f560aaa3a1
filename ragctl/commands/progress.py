"""How a run shows that it is alive: a bar on a terminal, else a line at most every 10 seconds."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

from ragctl.commands import events

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
        if output.has_bar:
            from tqdm import tqdm

            self._bar = tqdm(unit=" chunks", file=sys.stderr, dynamic_ncols=True, leave=False)

    def tick(self) -> None:
        if self._bar is not None:
            self._bar.n = self._progress.counts.written
            self._bar.set_description(self._text(), refresh=True)
        elif monotonic() - self._shown >= LINE_EVERY_S:
            self._shown = monotonic()
            text = f"{self._text()}, {self._progress.counts.written:,} chunks {self._done}"
            counts = asdict(self._progress.counts)
            events.tell("progress", text, waiting_for=self._bottleneck(), counts=counts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _text(self) -> str:
        counts, stage = self._progress.counts, self._bottleneck()
        waits = f", waiting for: {stage}" if stage is not None else ""
        return f"{counts.seen:,} documents{f', {counts.failed:,} failed' if counts.failed else ''}{waits}"

    def _bottleneck(self) -> str | None:
        pipeline = self._progress.pipeline
        return pipeline.bottleneck() if pipeline is not None else None


def ending_signals() -> list[signal.Signals]:
    """The signals by which a run is told to end; that of a terminal which is closed unless it is ignored (nohup)."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


@contextmanager
def stopping_on_signals(stop: threading.Event, within_s: float = 0.0) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP sets `stop`, so that what is in flight is finished and saved; the second ends the
    process at once, which is safe as well: the ledger is saved in whole transactions. Where somebody around us has
    something to clean up and takes signals for it, the second is theirs.

    `within_s`: the process ends so many seconds after the first signal, as if by a second; 0: when all is finished.
    """
    default = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)

    # Not `stop`: setting it twice at once, one signal within the other, would never end
    signals = count()

    def handle(number: int, frame: FrameType | None) -> None:
        if next(signals):
            outer = before[signal.SIGTERM if number == signal.SIGALRM else signal.Signals(number)]
            if callable(outer) and outer not in default:
                outer(number, frame)
            os._exit(130)
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, within_s)
        text = f"{signal.Signals(number).name}: finishing what is in flight; again to stop at once"
        events.tell("signal", text, level=logging.WARNING, plain=f"ragctl: {text}")

    before = {number: signal.signal(number, handle) for number in (*ending_signals(), signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
