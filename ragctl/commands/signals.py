"""How a command is told to end: Ctrl-C, SIGTERM from a service manager, SIGHUP from a terminal that is closed."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any, NoReturn

from ragctl.commands import events

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def interrupting() -> Iterator[None]:
    """SIGTERM and SIGHUP end a block as Ctrl-C does: leases are given back, temporary folders removed, it is recorded."""
    with _taken(dict.fromkeys(_ending_signals(), _interrupt)):
        yield


@contextmanager
def cleaning_up() -> Iterator[None]:
    """The same for a block that has something to clean up, such as endpoints: a second signal to a command within does
    not end the process, but is an interrupt too.
    """
    with _taken(dict.fromkeys(_ending_signals(), _clean_up)):
        yield


@contextmanager
def stopping_on_signals(stop: threading.Event, within_s: float = 0.0) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP sets `stop`, so that what is in flight is finished and saved; the second ends the
    process at once, which is safe as well: the ledger is saved in whole transactions. Within `cleaning_up` the second is
    an interrupt.

    `within_s`: the process ends so many seconds after the first signal, as if by a second; 0: when all is finished.
    """
    # Not `stop`: setting it twice at once, one signal within the other, would never end
    signals = count()

    def handle(number: int, frame: FrameType | None) -> None:
        if next(signals):
            if before[signal.SIGTERM] is _clean_up:
                _clean_up(number, frame)
            os._exit(130)
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, within_s)
        text = f"{signal.Signals(number).name}: finishing what is in flight; again to stop at once"
        events.tell("signal", text, level=logging.WARNING, plain=f"ragctl: {text}")

    with _taken(dict.fromkeys((*_ending_signals(), signal.SIGALRM), handle)) as before:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _clean_up(number: int, frame: FrameType | None) -> NoReturn:
    """As `_interrupt`, and told apart from it."""
    _interrupt(number, frame)


def _ending_signals() -> list[signal.Signals]:
    """The signals by which a command is told to end; that of a terminal which is closed unless it is ignored (nohup)."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


@contextmanager
def _taken(handlers: Mapping[signal.Signals, Handler]) -> Iterator[Mapping[signal.Signals, Any]]:
    """Within the block, signals go to these; yields whom they went to before."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
