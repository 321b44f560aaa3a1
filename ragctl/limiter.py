"""How fast one index is written to: a pace that all threads of a process share, slower while a service asks for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

HEADROOM: Final = 0.998  # share of the limits that is used
# Calls that are held up on the way arrive closer together than they left. Over this long a stretch the limits hold
# nevertheless, as the service sees it. It allows for more: its limit has held like a bucket of one second's worth.
WINDOW_S: Final = 5.0
SLOWER: Final = 0.7  # of the pace, each time that the service throttles
RECOVERY: Final = 0.1  # of the full pace, per second without throttling: from a standstill in ten seconds
# Throttles closer together than this are one event: calls that were already on their way
SETTLE_S: Final = 1.0


@dataclass(slots=True)
class Turn:
    """A call that was let through: when it left, and when its answer came, if it did."""

    vectors: int
    left: float
    answered: float | None = None


class Limiter:
    """Paces writes so that neither limit is exceeded over any stretch of time, but for one call at its start, and
    over `WINDOW_S` not even by that one, however late some of them arrive; unless the quickest way there and the quickest
    way back are those of two different calls, which leaves room for some milliseconds.

    Each call pays for its vectors after it was let through, so a quiet limiter lets the first one go at once and
    never saves up more; only a call that is late by less than it costs makes up for that. Safe to use from several
    threads, which are served in the order in which they ask.
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
        self._most_vectors = vectors_per_second * WINDOW_S
        self._most_requests = requests_per_second * WINDOW_S
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free_at = 0.0  # when the next call may go
        self._turns: deque[Turn] = deque()  # as many of the last as fit into a window
        self._vectors = 0  # of those
        self._quickest_s = float("inf")  # from leaving to the answer
        self._pace = 1.0  # share of the full pace at `_slowed_at`
        self._slowed_at = float("-inf")

    def acquire(self, vectors: int) -> Turn:
        """Wait until a request that writes or deletes so many vectors may go. Its answer is for `answered`."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free_at, self._window_free_at(vectors))
            cost = max(vectors * self._seconds_per_vector, self._seconds_per_request) / self._pace_at(start)
            keeps_time = start - self._free_at < cost
            self._free_at = (self._free_at if keeps_time else start) + cost
            turn = Turn(vectors, start)
            self._turns.append(turn)
            self._vectors += vectors
        if start > now:
            self._sleep(start - now)
        return turn

    def answered(self, turn: Turn) -> None:
        """The service has answered: what was slower than other calls may have arrived that much later."""
        with self._lock:
            turn.answered = self._clock()
            self._quickest_s = min(self._quickest_s, turn.answered - turn.left)

    def _window_free_at(self, vectors: int) -> float:
        """When the window has room for so many more vectors and one more request."""
        free_at = float("-inf")
        while self._turns and (
            self._vectors + vectors > self._most_vectors or len(self._turns) >= self._most_requests
        ):
            turn = self._turns.popleft()
            self._vectors -= turn.vectors
            free_at = max(free_at, self._arrived_at(turn) + WINDOW_S)
        return free_at

    def _arrived_at(self, turn: Turn) -> float:
        """The latest at which a call can have arrived; where it left when there has been no answer for a window."""
        return turn.left if turn.answered is None else turn.answered - self._quickest_s

    def slow_down(self) -> None:
        """Go slower from now on: the service has throttled a call. The pace recovers by itself."""
        with self._lock:
            now = self._clock()
            if now - self._slowed_at >= SETTLE_S:
                self._pace = self._pace_at(now) * SLOWER
                self._slowed_at = now

    def _pace_at(self, now: float) -> float:
        return min(1.0, self._pace + (now - self._slowed_at) * RECOVERY)
