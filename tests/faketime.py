"""A clock for tests that moves only when somebody sleeps."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class FakeTime:
    """Seconds, and their sleep; a sleeper wakes when its time has come, however many sleep at once."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        with self._lock:
            self.slept.append(seconds)
            self.now = max(self.now, until)
