"""Turns at a service that bears so many calls at once: over as soon as it has answered, before the answer is read.

To read hundreds of kilobytes of numbers takes a while, in which the service would have nothing to do for us. Only an
adapter knows when it has the answer, and only whoever keeps to the limit knows whose turn is next, so that the one
tells the other here, by the thread that makes the call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_calls = threading.local()


@contextmanager
def turn(end: Callable[[], None]) -> Iterator[None]:
    """A call of this thread; `end` is called once, when the service has answered or with the block at the latest."""
    _calls.end = end
    try:
        yield
    finally:
        _end()


def answered() -> None:
    """The service has answered the call of this thread."""
    if _end():
        time.sleep(0)  # lets the thread whose turn it is go first


def _end() -> bool:
    end: Callable[[], None] | None = getattr(_calls, "end", None)
    _calls.end = None
    if end is not None:
        end()
    return end is not None
