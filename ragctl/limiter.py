"""How fast one index is written to: a pace that all threads of a process share, slower while a service asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

# Share of the limit that is used: calls that were held up on the way arrive closer together. At 2,500 vectors/s full
# batches of 500 are 206 ms apart, so that five seconds hold 25 of them, the limit and not more, unless one is held up
# for longer than 155 ms; with 0.985 there were 26 now and then. The service allows for more: its limit has held like a
# bucket of one second's worth.
HEADROOM: Final = 0.97
SLOWER: Final = 0.7  # of the pace, each time that the service throttles
RECOVERY: Final = 0.1  # of the full pace, per second without throttling: from a standstill in ten seconds
SETTLE_S: Final = (
    1.0  # throttles closer together than this are one event: calls that were already on their way
)


class Limiter:
    """Paces writes so that neither limit is exceeded over any stretch of time, but for one call at its start.

    Each call pays for its vectors after it was let through, so a quiet limiter lets the first one go at once and
    never saves up more. Safe to use from several threads, which are served in the order in which they ask.
    """

    def __init__(
        self,
        *,
        vectors_per_second: float,
        requests_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Keep below the limits, in units per second of `clock`."""
        self._seconds_per_vector = 1 / (vectors_per_second * HEADROOM)
        self._seconds_per_request = 1 / (requests_per_second * HEADROOM)
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free_at = 0.0  # when the next call may go
        self._pace = 1.0  # share of the full pace at `_slowed_at`
        self._slowed_at = float("-inf")

    def acquire(self, vectors: int) -> None:
        """Wait until a request that writes or deletes so many vectors may go."""
        with self._lock:
            now = self._clock()
            cost = max(vectors * self._seconds_per_vector, self._seconds_per_request)
            start = max(now, self._free_at)
            self._free_at = start + cost / self._pace_at(start)
        if start > now:
            self._sleep(start - now)

    def slow_down(self) -> None:
        """Go slower from now on: the service has throttled a call. The pace recovers by itself."""
        with self._lock:
            now = self._clock()
            if now - self._slowed_at >= SETTLE_S:
                self._pace = self._pace_at(now) * SLOWER
                self._slowed_at = now

    def _pace_at(self, now: float) -> float:
        return min(1.0, self._pace + (now - self._slowed_at) * RECOVERY)
