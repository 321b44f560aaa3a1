"""The pace of writes, on a clock that moves only when somebody sleeps."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.limiter import BURST_S, HEADROOM, WINDOW_S, Limiter, Turn
from tests.faketime import FakeTime
from tests.servers.s3vectors_writes import WriteLog

INTERVAL = 500 / (2_500 * HEADROOM)  # seconds between full batches


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def limiter(time: FakeTime, vectors: float = 2_500, requests: float = 1_000) -> Limiter:
    return Limiter(vectors_per_second=vectors, requests_per_second=requests, clock=time, sleep=time.sleep)


def test_the_first_call_goes_at_once(time: FakeTime) -> None:
    """One put after a pause waits for nothing."""
    limiter(time).acquire(500)
    assert time.now == 0


def test_a_pause_saves_up_one_bucket(time: FakeTime) -> None:
    """After a quiet hour the first calls go together, and then the pace is what it was."""
    limit = limiter(time)
    time.now = 3_600
    limit.acquire(500)
    limit.acquire(500)
    assert time.now == pytest.approx(3_600, abs=0.01)
    for _ in range(18):
        limit.acquire(500)
    assert time.now - 3_600 == pytest.approx(19 * INTERVAL - BURST_S)


def test_a_service_with_a_bucket_of_a_second_refuses_nothing(time: FakeTime) -> None:
    """Full batches as fast as they may go, for a minute, also after pauses, in which both buckets fill."""
    limit, service = limiter(time), WriteLog()
    for number in range(300):
        time.now += 3 if number % 70 == 69 else 0
        limit.acquire(500)
        assert service.admits(time.now, 500)


def test_while_the_service_throttles_nothing_is_saved_up(time: FakeTime) -> None:
    """What was refused does not come back as a burst."""
    limit = limiter(time)
    limit.slow_down()
    limit.acquire(500)
    limit.acquire(500)
    assert time.now >= INTERVAL


@given(
    calls=st.lists(st.tuples(st.integers(1, 500), st.floats(0, 0.5), st.booleans()), min_size=1, max_size=60),
    window=st.floats(0.2, 5),
)
def test_no_window_holds_more_than_the_limits(calls: list[tuple[int, float, bool]], window: float) -> None:
    """Over any stretch of time: the limits, what was saved up, and one call more; throttling only makes it less."""
    time = FakeTime()
    limit = limiter(time)
    gone: list[tuple[float, int]] = []
    for vectors, pause, throttled in calls:
        time.now += pause
        limit.acquire(vectors)
        gone.append((time.now, vectors))
        if throttled:
            limit.slow_down()
    for start, _ in gone:
        within = [vectors for at, vectors in gone if start <= at < start + window]
        assert sum(within[:-1]) <= 2_500 * (window + BURST_S)
        assert len(within) - 1 <= 1_000 * window


@given(
    calls=st.lists(st.tuples(st.integers(1, 500), st.floats(0, 0.3)), min_size=30, max_size=120),
    quickest=st.floats(0.01, 0.2),
)
def test_no_window_holds_more_than_the_limit_however_late_calls_arrive(
    calls: list[tuple[int, float]], quickest: float
) -> None:
    """What counts is when the service gets them: calls are held up on the way, each for a while of its own."""
    time = FakeTime()
    limit = limiter(time)
    arrived: list[tuple[float, int]] = []
    answers: list[tuple[float, Turn]] = []
    for vectors, held_up in calls:
        turn = limit.acquire(vectors)
        arrived.append((time.now + held_up, vectors))
        answers.append((time.now + held_up + quickest, turn))
        for answer in [one for one in answers if one[0] <= time.now]:
            answers.remove(answer)
            then, time.now = time.now, answer[0]
            limit.answered(answer[1])
            time.now = then
    for start, _ in arrived:
        assert sum(vectors for at, vectors in arrived if start <= at < start + WINDOW_S) <= 2_500 * WINDOW_S


def test_a_call_that_is_a_little_late_is_made_up_for(time: FakeTime) -> None:
    """A thread that wakes up late does not slow down the run: the calls after it leave when they would have."""
    limit = limiter(time)
    for number in range(20):
        time.now += 1.9 * INTERVAL if number == 10 else 0  # its turn was one interval after the last
        limit.acquire(500)
    assert time.now == pytest.approx(19 * INTERVAL - BURST_S)


def test_many_small_calls_are_held_by_the_requests(time: FakeTime) -> None:
    """1,000 calls of one vector take a second, although the vectors alone would take less than half."""
    limit = limiter(time)
    for _ in range(1_001):
        limit.acquire(1)
    assert time.now == pytest.approx(1 / HEADROOM)


def test_throttling_slows_down_for_seconds_and_passes(time: FakeTime) -> None:
    """A good part of the pace is lost after a few throttles, and is back ten seconds later."""
    limit = limiter(time)

    def ten_calls() -> float:
        start = time.now
        for _ in range(10):
            limit.acquire(500)
        return time.now - start

    full = ten_calls()
    for _ in range(3):
        time.now += 1
        limit.slow_down()
    time.now += 0.5  # what was asked for at the old pace is over
    assert ten_calls() > 1.3 * full
    time.now += 10
    assert ten_calls() == pytest.approx(full)


def test_throttles_of_calls_on_their_way_together_count_once(time: FakeTime) -> None:
    """Eight workers that are refused at the same moment do not bring the pace to a standstill."""
    once, often = limiter(time), limiter(time)
    once.slow_down()
    for _ in range(8):
        often.slow_down()
    waits = []
    for limit in (once, often):
        time.now, start = 0.0, 0.0
        limit.acquire(500)
        limit.acquire(500)
        waits.append(time.now - start)
    assert waits[0] == pytest.approx(waits[1])


def test_threads_share_one_pace(time: FakeTime) -> None:
    """Four writers get through together what one would."""
    limit = limiter(time)

    def work() -> None:
        for _ in range(10):
            limit.acquire(500)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert time.now >= 39 * INTERVAL - BURST_S - 1e-6
