"""Calls that adapters made again, counted for the report of a run.

Adapters try again where they know best: in a connection pool, in an SDK, at the limiter of an index. The stages see only
what is left over, so the count is kept here, for the whole process, which works on one index at a time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Repeats:
    """How many calls were made again: `throttles` as the service asked for less, `retries` for any other reason."""

    throttles: int = 0
    retries: int = 0

    def __add__(self, other: Repeats) -> Repeats:
        return Repeats(self.throttles + other.throttles, self.retries + other.retries)

    def __sub__(self, other: Repeats) -> Repeats:
        return Repeats(self.throttles - other.throttles, self.retries - other.retries)


_lock = threading.Lock()
_sum = Repeats()


def count(*, throttles: int = 0, retries: int = 0) -> None:
    """Note calls that are made again. Safe to call from several threads."""
    global _sum  # noqa: PLW0603  the one count of the process
    with _lock:
        _sum += Repeats(throttles, retries)


def so_far() -> Repeats:
    """All since the process began; the difference of two is what happened between them."""
    return _sum
