"""Batches on their way to the embedder."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ragctl import embedding, turns
from ragctl.adapters.base import EmbedRole
from ragctl.embedding import EmbedQueue, Outcome, Wanted
from ragctl.errors import ServiceError, Throttled
from ragctl.records import Embedded, Usage
from ragctl.under_way import Counts


class Clock:
    """Time that passes only where somebody works or waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TwoSecondEmbedder:
    identity, dimension, cpu_bound = "slow/1", 2, False
    max_batch, max_bytes = 4, 1_000
    max_tokens: int | None = None

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:
        self._clock.now += 2
        return Embedded(np.ones((len(texts), 2), np.float32))


class Limited(TwoSecondEmbedder):
    max_batch, max_bytes = 5, 60
    max_tokens: int | None = 20


@given(st.lists(st.tuples(st.text(max_size=80), st.integers(0, 30)), max_size=40), st.integers(1, 9))
def test_batches_keep_within_count_bytes_and_tokens(texts: list[tuple[str, int]], added: int) -> None:
    """Every text goes, in order and once; a batch over a limit holds one text, which alone is over it."""
    queue = EmbedQueue(Limited(Clock()), 1, Counts())
    sent: list[Wanted] = []
    for number, (text, tokens) in enumerate(texts):
        queue.add(Wanted(None, number, text, tokens))
        if number % added == 0 or number == len(texts) - 1:
            while batch := queue._cut(drain=number == len(texts) - 1):
                assert len(batch) <= 5
                size = sum(len(wanted.text.encode()) for wanted in batch)
                assert len(batch) == 1 or (size <= 60 and sum(wanted.tokens for wanted in batch) <= 20)
                sent += batch
    assert [wanted.chunk for wanted in sent] == list(range(len(texts)))


def test_a_pause_is_no_time_of_the_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a throttle a batch waits for its turn; the report of a stage says how long its calls took."""
    clock = Clock()
    monkeypatch.setattr(embedding, "monotonic", clock)
    counts = Counts()
    queue = EmbedQueue(TwoSecondEmbedder(clock), 1, counts)
    batch = [Wanted(None, 0, "north wind")]  # whose it is does not matter here
    queue.add(batch[0])
    (handed,) = queue.ready(drain=True)
    throttled: Future[Any] = Future()
    throttled.set_exception(Throttled("slow down"))
    queue.take(handed, throttled)

    def wait(_: float) -> bool:
        clock.now += 5
        return True

    monkeypatch.setattr(queue._turn, "wait", wait)
    embedded, seconds = queue.call(batch)
    assert len(embedded.vectors) == 1
    assert (seconds, queue.seconds, clock.now) == (2, 2, 107)
    assert counts.throttles == 1


class Service(TwoSecondEmbedder):
    """One that takes a call at a time. The first answer is read for as long as the second has not been asked for."""

    max_batch = 1

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.at_once = self.most = 0
        self._second = threading.Event()

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:
        self.asked.append(threading.get_ident())
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        if len(self.asked) == 2:
            self._second.set()
        time.sleep(0.01)
        self.at_once -= 1
        turns.answered()
        assert self._second.wait(10), "the second call waits for the first to be read"
        return Embedded(np.ones((len(texts), 2), np.float32))


def test_the_next_call_goes_as_soon_as_the_service_has_answered() -> None:
    """A service has nothing to do for us while its answer is read, and yet never gets more calls than it bears."""
    service = Service()
    queue = EmbedQueue(service, 1, Counts())
    for number in range(4):
        queue.add(Wanted(None, number, "north wind"))
    vectors = 0
    while vectors < 4:
        calls = [(batch, queue.start(batch)) for batch in queue.ready(drain=True)]
        vectors += sum(len(queue.take(batch, call).vectors) for batch, call in calls)
    assert len(service.asked) == 4
    assert service.most == 1


def test_a_call_that_fails_ends_its_turn() -> None:
    """Also one that was never answered."""
    ended: list[str] = []
    with pytest.raises(Throttled), turns.turn(lambda: ended.append("turn")):
        raise Throttled("slow down")
    turns.answered()  # of a call that keeps to no limit, such as a question's
    assert ended == ["turn"]


def ended(queue: EmbedQueue, batch: list[Wanted], end: Exception | Usage) -> Outcome:
    """What comes of a batch of which the call ends like this, a second after it left."""
    future: Future[Any] = Future()
    if isinstance(end, Exception):
        future.set_exception(end)
    else:
        future.set_result((Embedded(np.ones((len(batch), 2), np.float32), usage=end), 1.0))
    queue.under_way += 1
    return queue.take(batch, future)


def a_queue() -> tuple[EmbedQueue, Counts]:
    counts = Counts()
    return EmbedQueue(TwoSecondEmbedder(Clock()), 1, counts), counts


def given_up(queue: EmbedQueue, number: int) -> str:
    """A text that fails each time, until it is given up: what is said of it."""
    text = [Wanted(None, number, f"text {number}")]
    for _ in range(2):
        assert ended(queue, text, ServiceError("broken")) == Outcome([], [])
    ((_, said),) = ended(queue, text, ServiceError("broken")).refused
    return said


def test_a_batch_is_tried_three_times_and_then_halved() -> None:
    """So one text that the endpoint cannot bear costs itself alone."""
    queue, counts = a_queue()
    both = [Wanted(None, 0, "north"), Wanted(None, 1, "south")]
    for again in ([both], [both, both], [both, both, both[:1], both[1:]]):
        assert ended(queue, both, ServiceError("broken")) == Outcome([], [])
        assert list(queue._again) == again
    assert counts.retries == 2
    assert given_up(queue, 0) == "broken"


def test_an_embedder_that_fails_ten_texts_in_a_row_is_down() -> None:
    """One success between them, and it is the texts."""
    queue, _ = a_queue()
    for number in range(9):
        given_up(queue, number)
    ended(queue, [Wanted(None, 9, "good")], Usage())
    for number in range(10, 19):
        given_up(queue, number)
    with pytest.raises(ServiceError, match="the embedder failed 10 times in a row: broken"):
        given_up(queue, 19)


def test_an_embedder_that_throttles_for_ten_minutes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes without one success: each begins them anew."""
    clock = Clock()
    monkeypatch.setattr(embedding, "monotonic", clock)
    queue, counts = a_queue()
    batch = [Wanted(None, 0, "north")]
    for _ in range(2):
        ended(queue, batch, Throttled("slow down"))
        clock.now += 599
        ended(queue, batch, Throttled("slow down"))
        ended(queue, batch, Usage())
    ended(queue, batch, Throttled("slow down"))
    clock.now += 601
    with pytest.raises(Throttled, match="slow down"):
        ended(queue, batch, Throttled("slow down"))
    assert counts.throttles == 6


def test_tokens_that_the_server_had_cached_count_as_tokens() -> None:
    """The bill is never too low."""
    queue, counts = a_queue()
    ended(queue, [Wanted(None, 0, "north")], Usage(input_tokens=100, cache_read_tokens=900))
    assert counts.tokens == 1_000
