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
# What a quiet limiter saves up, in seconds of the limit of vectors. The service allows for more: its limit has held like
# a bucket of one second's worth, and a writer that began with 6,000 vectors in a second was not refused.
BURST_S: Final = 0.7
SLOWER: Final = 0.7  # of the pace, each time that the service throttles
RECOVERY: Final = 0.1  # of the full pace, per second without throttling: from a standstill in ten seconds
# Throttles closer together than this are one event: calls that were already on their way
SETTLE_S: Final = 1.0
# By so much the quickest way there and the quickest way back, of two different calls, may together be quicker than any
# whole call. It costs nothing: `HEADROOM` leaves as much of a window.
JITTER_S: Final = 0.01
SHORTEST_S: Final = 1e-6  # of sleep: what is left of a wait may be too little for the clock to move


@dataclass(slots=True, eq=False)
class Turn:
    """A call that was let through: when it left, when it ended, and whether the service has answered it well."""

    vectors: int
    left: float
    ended: float = float("inf")
    failed: bool = False


class Limiter:
    """Paces writes: requests one after the other, vectors like a bucket that refills at the limit and holds `BURST_S` of
    it. Each call pays for its vectors after it was let through, so any stretch of time has its limit, the bucket and one
    call at the most.

    Over `WINDOW_S` the limits hold without either, however late calls arrive: one that has not ended may still be on
    its way, and keeps its place in the window. While the service throttles, the bucket is shut.

    Safe to use from several threads, which are served one after the other: a turn that was given before its time
    would be too early for what is learned meanwhile.
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
        self._queue = threading.Lock()  # held by the caller that is next, for as long as it waits
        self._state = threading.Condition()  # guards what is below, and tells that a call has ended
        self._next_at = float("-inf")  # when the limit of requests lets the next call go
        # When the vectors let through are paid for, and the bucket is full again
        self._paid_at = float("-inf")
        self._under_way = self._vectors_under_way = 0  # calls that have not ended, and their vectors
        self._ended: deque[Turn] = deque()  # those that may still be in the window, as they ended
        self._vectors_ended = 0  # of those
        self._quickest_s = float("inf")  # from leaving to a good answer
        self._pace = 1.0  # share of the full pace at `_slowed_at`
        self._slowed_at = float("-inf")

    def acquire(self, vectors: int) -> Turn:
        """Wait until a request that writes or deletes so many vectors may go; `ended` must be told when it ends."""
        with self._queue:
            with self._state:
                while not self._may_fit(vectors):
                    self._state.wait()
            asked = self._clock()
            while (start := max(asked, self._due_at(vectors))) > (now := self._clock()):
                self._sleep(max(start - now, SHORTEST_S))
            return self._leave(vectors, start, now)

    def ended(self, turn: Turn, *, failed: bool = False) -> None:
        """The call has ended: what was slower than other calls may have arrived that much later. `failed`: without a
        good answer; it may have arrived all the same, as late as now.
        """
        with self._state:
            turn.ended, turn.failed = self._clock(), failed
            if not failed:
                self._quickest_s = min(self._quickest_s, turn.ended - turn.left)
            self._under_way -= 1
            self._vectors_under_way -= turn.vectors
            self._ended.append(turn)
            self._vectors_ended += turn.vectors
            self._state.notify_all()

    def _may_fit(self, vectors: int) -> bool:
        """Whether the window will have room although no other call ends. One that is too large for it goes alone."""
        return not self._under_way or self._has_room(self._under_way, self._vectors_under_way + vectors)

    def _has_room(self, turns: int, vectors: int) -> bool:
        """Whether the window holds so many vectors, and one request more than these."""
        return vectors <= self._most_vectors and turns < self._most_requests

    def _due_at(self, vectors: int) -> float:
        """When a call may go, by what is known now."""
        with self._state:
            saved = BURST_S if self._pace_at(self._clock()) == 1.0 else 0.0
            before = self._before(vectors)
            free_at = max((self._arrived_at(turn) + WINDOW_S for turn in before), default=float("-inf"))
            return max(self._next_at, self._paid_at - saved, free_at)

    def _before(self, vectors: int) -> list[Turn]:
        """Those that have to leave the window before it has room for so many more vectors and one more request."""
        turns = self._under_way + len(self._ended)
        held = self._vectors_under_way + self._vectors_ended
        before: list[Turn] = []
        for turn in self._ended:
            if self._has_room(turns, held + vectors):
                break
            before.append(turn)
            turns, held = turns - 1, held - turn.vectors
        return before

    def _leave(self, vectors: int, start: float, now: float) -> Turn:
        """Let the call go. It was due at `start`: what is lost by waking up late is made up for."""
        with self._state:
            for turn in self._before(vectors):
                self._ended.popleft()
                self._vectors_ended -= turn.vectors
            pace = self._pace_at(start)
            self._next_at = start + self._seconds_per_request / pace
            self._paid_at = max(self._paid_at, start) + vectors * self._seconds_per_vector / pace
            self._under_way += 1
            self._vectors_under_way += vectors
            return Turn(vectors, now)

    def _arrived_at(self, turn: Turn) -> float:
        """The latest at which a call that has ended can have arrived."""
        return turn.ended if turn.failed else turn.ended - max(0.0, self._quickest_s - JITTER_S)

    def slow_down(self) -> None:
        """Go slower from now on: the service has throttled a call. The pace recovers by itself."""
        with self._state:
            now = self._clock()
            if now - self._slowed_at >= SETTLE_S:
                self._pace = self._pace_at(now) * SLOWER
                self._slowed_at = now

    def _pace_at(self, now: float) -> float:
        return min(1.0, self._pace + (now - self._slowed_at) * RECOVERY)
