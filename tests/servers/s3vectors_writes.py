"""How fast an index is written to: a log to assert on, and the throttle of the service."""

from dataclasses import dataclass, field

VECTORS_PER_SECOND = 2_500
REQUESTS_PER_SECOND = 1_000


@dataclass(frozen=True)
class Write:
    """One accepted PutVectors or DeleteVectors: when, in seconds of the server's clock, and how many keys."""

    at: float
    vectors: int


@dataclass(frozen=True)
class Rate:
    """A rate of writes, per second."""

    vectors: float
    requests: float


@dataclass
class WriteLog:
    """The accepted writes of one index, oldest first, and what its throttle has left."""

    writes: list[Write] = field(default_factory=list)
    _vectors_left: float = VECTORS_PER_SECOND
    _requests_left: float = REQUESTS_PER_SECOND
    _refilled_at: float | None = None

    def admits(self, now: float, vectors: int) -> bool:
        """Take a write out of two token buckets that hold one second of the limits; False when they lack it."""
        elapsed = now - (now if self._refilled_at is None else self._refilled_at)
        self._refilled_at = now
        self._vectors_left = min(self._vectors_left + elapsed * VECTORS_PER_SECOND, VECTORS_PER_SECOND)
        self._requests_left = min(self._requests_left + elapsed * REQUESTS_PER_SECOND, REQUESTS_PER_SECOND)
        if self._vectors_left < vectors or self._requests_left < 1:
            return False
        self._vectors_left -= vectors
        self._requests_left -= 1
        return True

    def peak(self, seconds: float) -> Rate:
        """Return the highest mean rate over any window of that many seconds.

        A limiter with a burst of B vectors may reach 2,500 + B / seconds and still be right.
        """
        start = vectors = best_vectors = best_requests = 0
        for end, write in enumerate(self.writes):
            vectors += write.vectors
            while write.at - self.writes[start].at >= seconds:
                vectors -= self.writes[start].vectors
                start += 1
            best_vectors, best_requests = max(best_vectors, vectors), max(best_requests, end - start + 1)
        return Rate(best_vectors / seconds, best_requests / seconds)

    def seconds(self) -> float:
        """Return the time between the first write and the last."""
        return self.writes[-1].at - self.writes[0].at if self.writes else 0.0
