"""How fast one index is written to: a pace that all threads of a process share, slower while a service asks for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

HEADROOM: Final = 0.998  # share of the limits that is used
# Over this long a stretch the limits hold exactly, as the service sees it: calls that are held up on the way arrive
# closer together than they left.
WINDOW_S: Final = 5.0
# What a quiet limiter saves up, in seconds of the limit of vectors. The service allows for more: its limit has held like a bucket
# of one second's worth, and a writer that began with 6,000 vectors in a second was not refused.
BURST_S: Final = 0.7
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
    """Paces writes: requests one after the other, vectors like a bucket that refills at the limit and holds `BURST_S` of
    it. Each call pays for its vectors after it was let through, so any stretch of time has its limit, the bucket and one
    call at the most.

    Over `WINDOW_S` the limits hold without either, however late some calls arrive, as long as fewer are under way than
    fill a window; unless the quickest way there and the quickest way back are those of two different calls, which leaves
    room for some milliseconds. While the service throttles, the bucket is shut. Safe to use from several threads, which are served in the order in which they ask.
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
        self._next_at = float("-inf")  # when the limit of requests lets the next call go
        self._paid_at = float(
            "-inf"
        )  # when the vectors let through are paid for, and the bucket is full again
        self._turns: deque[Turn] = deque()  # as many of the last as fit into a window
        self._vectors = 0  # of those
        self._quickest_s = float("inf")  # from leaving to the answer
        self._pace = 1.0  # share of the full pace at `_slowed_at`
        self._slowed_at = float("-inf")

    def acquire(self, vectors: int) -> Turn:
        """Wait until a request that writes or deletes so many vectors may go. Its answer is for `answered`."""
        with self._lock:
            now = self._clock()
            saved = BURST_S if self._pace_at(now) == 1.0 else 0.0
            start = max(now, self._next_at, self._paid_at - saved, self._window_free_at(vectors))
            pace = self._pace_at(start)
            self._next_at = start + self._seconds_per_request / pace
            self._paid_at = max(self._paid_at, start) + vectors * self._seconds_per_vector / pace
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
