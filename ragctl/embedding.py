"""Texts on their way to an embedder: batches by count and bytes, as many calls at once as the endpoint bears.

The number of calls grows by one per round of successes and is halved by a throttle (additive increase, multiplicative
decrease, as TCP does: Chiu and Jain 1989). A refused batch is bisected, so that one bad text costs itself alone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from ragctl import turns
from ragctl.errors import (
    ConfigError,
    CredentialsError,
    InputRefused,
    LeaseHeld,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RagctlError,
    ServiceError,
    StateError,
    Throttled,
)

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder
    from ragctl.records import Embedded, Vector

log = logging.getLogger("ragctl.embedding")

Result = TypeVar("Result")

ATTEMPTS = 3  # of a batch that fails for another reason than a throttle, before it is bisected
# Texts that fail alone one after the other, with no success between: the service is down
FAILURES_IN_A_ROW = 10
THROTTLED_S = 600.0  # throttled for so long without one success: give up
ROUNDS_AHEAD = 2  # of calls for which texts may wait; to take in more would only keep us from those under way
SLOW = 4.0  # a call that takes so many times the usual time means that the endpoint is overloaded


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A text that wants a vector; `document` and `chunk` say whose, for the one who asked.

    `tokens`: how many it has, where the embedder's calls are limited by them.
    """

    document: Any
    chunk: int
    text: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a batch; texts that will be tried again are in neither."""

    vectors: list[tuple[Wanted, Vector]]
    refused: list[tuple[Wanted, str]]


def aside(call: Callable[[], Result]) -> Future[Result]:
    """Make a call of the embedder in a thread of its own, so that one that hangs keeps nothing from ending."""
    future = Future[Result]()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  whoever takes the result raises it
            future.set_exception(error)

    threading.Thread(target=run, name="embed", daemon=True).start()
    return future


class Probed:
    """An embedder that is being asked for its dimension: it may be a call, and to open the rest takes a while."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._dimension = aside(lambda: embedder.dimension)

    def ready(self) -> Embedder:
        """The embedder, once it is known to work. Raises what the call ended with, instead of calling again."""
        self._dimension.result()
        return self.embedder


class EmbedQueue:
    """Owned by one thread, but for `call`, which runs in others.

    While nothing is throttled, a batch for each call waits in the thread that will make it, so that no call has to
    wait for the owner, who may be busy for longer than a call takes.
    """

    def __init__(self, embedder: Embedder, concurrency: int, counts: Any) -> None:
        self._embedder = embedder
        self._most = concurrency
        self._limit = float(concurrency)
        self._counts = counts
        self._texts: deque[Wanted] = deque()
        self._again: deque[list[Wanted]] = deque()
        self._attempts: dict[int, int] = {}  # by identity of the batch's first text
        self.under_way = 0  # batches handed out, of which some may wait for their turn
        self._turn = threading.Condition()
        self._calling = 0  # guarded by `_turn`
        self._withdrawn = False
        self._paused_until = 0.0
        self._backoff = 1.0
        self._throttled_since: float | None = None
        self._failed_in_a_row = 0
        self._usual_s: float | None = None
        self.seconds = 0.0  # of all calls, whether they succeeded or not; guarded by `_turn`

    @property
    def waiting(self) -> int:
        """Texts that are not yet sent."""
        return len(self._texts) + sum(len(batch) for batch in self._again)

    @property
    def has_plenty(self) -> bool:
        """Whether no call would want for texts for a while."""
        return len(self._texts) >= ROUNDS_AHEAD * self.limit * self._embedder.max_batch

    @property
    def limit(self) -> int:
        """Calls that may be under way at once just now."""
        return max(1, int(self._limit))

    @property
    def _handed_out(self) -> int:
        """Batches that may be under way: those that are called, and as many again that wait in their threads."""
        return self.limit * 2 if self.limit == self._most else self.limit

    def add(self, wanted: Wanted) -> None:
        self._texts.append(wanted)

    def pause(self, longest_s: float) -> float:
        """Seconds to wait for an event: until the end of a backoff, `longest_s` at most."""
        left = self._paused_until - monotonic()
        return min(longest_s, left) if left > 0 else longest_s

    def ready(self, *, drain: bool) -> Iterator[list[Wanted]]:
        """Batches to send now; the last one may be part full where `drain`, or where nothing is under way."""
        while self.under_way < self._handed_out and monotonic() >= self._paused_until:
            part = (drain or not self.under_way) and self.under_way < self.limit
            batch = self._again.popleft() if self._again else self._cut(drain=part)
            if not batch:
                return
            self.under_way += 1
            yield batch

    def start(self, batch: list[Wanted]) -> Future[tuple[Embedded, float]]:
        """Have a thread make the call."""
        return aside(partial(self.call, batch))

    def call(self, batch: list[Wanted]) -> tuple[Embedded, float]:
        """Runs in a thread: one call of the embedder when it has its turn, and its seconds."""
        texts = [wanted.text for wanted in batch]
        self._await_turn()
        start = monotonic()
        try:
            with turns.turn(self._end_turn):
                embedded = self._embedder.embed(texts, "document")
            return embedded, monotonic() - start
        finally:
            with self._turn:
                self.seconds += monotonic() - start

    def _await_turn(self) -> None:
        """Keep to the limit and to a pause that came after the batch was handed out."""
        with self._turn:
            while self._calling >= self.limit or monotonic() < self._paused_until:
                if self._withdrawn:
                    raise CancelledError
                self._turn.wait(self.pause(0.25))
            self._calling += 1

    def _end_turn(self) -> None:
        with self._turn:
            self._calling -= 1
            self._turn.notify()

    def withdraw(self) -> None:
        """Have the batches given up that still wait for their turn."""
        self._withdrawn = True

    def take(self, batch: list[Wanted], future: Future[Any]) -> Outcome:
        """Digest the end of a call. Raises what no other text can cure: no credentials, no such endpoint ..."""
        self.under_way -= 1
        error = future.exception()
        if isinstance(error, CancelledError):
            return Outcome([], [])
        if error is None:
            embedded, seconds = future.result()
            self._succeeded(batch, embedded, seconds)
            return Outcome(list(zip(batch, embedded.vectors, strict=True)), [])
        if not isinstance(error, RagctlError) or self.is_fatal(error):
            raise error
        if isinstance(error, Throttled):
            self._throttle(batch, error)
            return Outcome([], [])
        return self._failed(batch, error)

    @staticmethod
    def is_fatal(error: RagctlError) -> bool:
        """True for an error that every further call would meet."""
        fatal = (
            CredentialsError,
            PermissionDenied,
            NotFound,
            QuotaExceeded,
            StateError,
            ConfigError,
            LeaseHeld,
        )
        return isinstance(error, fatal)

    def _cut(self, *, drain: bool) -> list[Wanted]:
        """The next batch from the front: empty when it would be part full and need not go yet."""
        batch: list[Wanted] = []
        size = tokens = 0
        embedder = self._embedder
        for wanted in self._texts:
            size += len(wanted.text.encode("utf-8", "replace"))
            tokens += wanted.tokens
            too_much = size > embedder.max_bytes or tokens > (embedder.max_tokens or tokens)
            if batch and (len(batch) >= embedder.max_batch or too_much):
                break
            batch.append(wanted)
        full = len(batch) < len(self._texts) or len(batch) >= self._embedder.max_batch
        if not (full or drain):
            return []
        for _ in batch:
            self._texts.popleft()
        return batch

    def _succeeded(self, batch: list[Wanted], embedded: Embedded, seconds: float) -> None:
        self._attempts.pop(id(batch[0]), None)
        # A token that the server had in a cache counts as one: the bill is never too low
        usage = embedded.usage
        self._counts.tokens += usage.input_tokens + usage.cache_read_tokens
        self._failed_in_a_row = 0
        self._throttled_since = None
        self._backoff = 1.0
        usual = self._usual_s if self._usual_s is not None else seconds
        slow = seconds > SLOW * usual and seconds > 1.0
        self._limit = max(1.0, self._limit * 0.9) if slow else min(self._most, self._limit + 1 / self._limit)
        self._usual_s = usual + 0.1 * (seconds - usual)

    def _throttle(self, batch: list[Wanted], error: Throttled) -> None:
        now = monotonic()
        self._counts.throttles += 1
        self._throttled_since = self._throttled_since or now
        if now - self._throttled_since > THROTTLED_S:
            raise error
        if now >= self._paused_until:  # the calls of one round fail together and count once
            self._limit = max(1.0, self._limit / 2)
            self._paused_until = now + self._backoff
            self._backoff = min(30.0, self._backoff * 2)
            log.info("throttled: %d calls at once from now on", self.limit)
        self._again.append(batch)

    def _failed(self, batch: list[Wanted], error: RagctlError) -> Outcome:
        """Try again, then bisect, then give the single text up."""
        first = id(batch[0])
        if not isinstance(error, InputRefused):
            attempts = self._attempts[first] = self._attempts.get(first, 0) + 1
            if attempts < ATTEMPTS:
                self._counts.retries += 1
                self._paused_until = max(self._paused_until, monotonic() + 0.25 * 2**attempts)
                self._again.append(batch)
                return Outcome([], [])
        self._attempts.pop(first, None)
        if len(batch) > 1:
            middle = len(batch) // 2
            self._again += [batch[:middle], batch[middle:]]
            return Outcome([], [])
        if not isinstance(error, InputRefused):
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILURES_IN_A_ROW:
                raise ServiceError(
                    f"the embedder failed {FAILURES_IN_A_ROW} times in a row: {error.message}",
                    hint=error.hint,
                ) from error
        return Outcome([], [(batch[0], error.message)])
