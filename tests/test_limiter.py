"""The pace of writes, on a clock that moves only when somebody sleeps."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.limiter import BURST_S, HEADROOM, JITTER_S, WINDOW_S, Limiter, Turn
from tests.faketime import FakeTime
from tests.servers.s3vectors_writes import WriteLog

INTERVAL = 500 / (2_500 * HEADROOM)  # seconds between full batches


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def limiter(time: FakeTime, vectors: float = 2_500, requests: float = 1_000) -> Limiter:
    return Limiter(vectors_per_second=vectors, requests_per_second=requests, clock=time, sleep=time.sleep)


def write(limit: Limiter, vectors: int) -> None:
    """A call that is answered as soon as it has left."""
    limit.ended(limit.acquire(vectors))


def test_the_first_call_goes_at_once(time: FakeTime) -> None:
    """One put after a pause waits for nothing."""
    write(limiter(time), 500)
    assert time.now == 0


def test_a_pause_saves_up_one_bucket(time: FakeTime) -> None:
    """After a quiet hour the first calls go together, and then the pace is what it was."""
    limit = limiter(time)
    time.now = 3_600
    write(limit, 500)
    write(limit, 500)
    assert time.now == pytest.approx(3_600, abs=0.01)
    for _ in range(18):
        write(limit, 500)
    assert time.now - 3_600 == pytest.approx(19 * INTERVAL - BURST_S)


def test_a_service_with_a_bucket_of_a_second_refuses_nothing(time: FakeTime) -> None:
    """Full batches as fast as they may go, for a minute, also after pauses, in which both buckets fill."""
    limit, service = limiter(time), WriteLog()
    for number in range(300):
        time.now += 3 if number % 70 == 69 else 0
        write(limit, 500)
        assert service.admits(time.now, 500)


def test_while_the_service_throttles_nothing_is_saved_up(time: FakeTime) -> None:
    """What was refused does not come back as a burst."""
    limit = limiter(time)
    limit.slow_down()
    write(limit, 500)
    write(limit, 500)
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
        write(limit, vectors)
        gone.append((time.now, vectors))
        if throttled:
            limit.slow_down()
    for start, _ in gone:
        within = [vectors for at, vectors in gone if start <= at < start + window]
        assert sum(within[:-1]) <= 2_500 * (window + BURST_S)
        assert len(within) - 1 <= 1_000 * window


class Service:
    """Callers, each with one call under way at a time, and when the service got their calls. They take turns in one
    thread: whoever waits for a turn lets time pass, and answers come with it.
    """

    def __init__(self, limit_of: Callable[[FakeTime], Limiter], monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = FakeTime()
        self.limit = limit_of(self.time)
        self.arrived: list[tuple[float, int]] = []
        self.most_under_way = 0
        self._answers: list[tuple[float, int, Turn, bool]] = []
        monkeypatch.setattr(self.limit, "_sleep", lambda seconds: self.pass_until(self.time.now + seconds))
        monkeypatch.setattr(self.limit._state, "wait", self.await_answer)

    def pass_until(self, then: float) -> None:
        while self._answers and self._answers[0][0] <= then:
            self.await_answer()
        self.time.now = max(self.time.now, then)

    def await_answer(self) -> None:
        """Let time pass until the next call ends."""
        at, _, turn, failed = heapq.heappop(self._answers)
        self.time.now = max(self.time.now, at)
        self.limit.ended(turn, failed=failed)

    def call(self, vectors: int, *, way_s: float, back_s: float, failed: bool = False, callers: int) -> None:
        """One of so many callers makes a call that takes `way_s` to get there; waits until one of them is free."""
        while len(self._answers) >= callers:
            self.await_answer()
        turn = self.limit.acquire(vectors)
        at = self.time.now + way_s
        self.arrived.append((at, vectors))
        heapq.heappush(self._answers, (at + back_s, len(self.arrived), turn, failed))
        self.most_under_way = max(self.most_under_way, len(self._answers))

    def peak(self) -> tuple[int, int]:
        """The most vectors, and the most requests, that arrived within any window."""
        arrived = sorted(self.arrived)
        best_vectors = best_requests = held = first = 0
        for last, (at, vectors) in enumerate(arrived):
            held += vectors
            while at - arrived[first][0] >= WINDOW_S - 1e-9:
                held -= arrived[first][1]
                first += 1
            best_vectors, best_requests = max(best_vectors, held), max(best_requests, last - first + 1)
        return best_vectors, best_requests


@given(
    calls=st.lists(
        st.tuples(st.integers(1, 500), st.floats(0.0, 3.0), st.floats(0, JITTER_S / 2), st.booleans()),
        min_size=30,
        max_size=120,
    ),
    back_s=st.floats(0.01, 0.2),
    callers=st.sampled_from([1, 2, 8, 64]),
)
def test_no_window_holds_more_than_the_limit_however_late_calls_arrive(
    calls: list[tuple[int, float, float, bool]], back_s: float, callers: int
) -> None:
    """What counts is when the service gets them: calls are held up on the way, each for a while of its own, and of those
    that fail nobody knows when, or whether, they got there.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        service = Service(limiter, monkeypatch)
        for vectors, held_up, jitter, failed in calls:
            service.call(vectors, way_s=held_up, back_s=back_s + jitter, failed=failed, callers=callers)
    assert service.peak()[0] <= 2_500 * WINDOW_S


@pytest.mark.parametrize("callers", [8, 16, 32, 64])
def test_many_callers_of_which_one_in_11_is_late_keep_below_the_limit(
    callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds late, for minutes: what is under way keeps its place in the window. The pace hardly suffers."""
    service = Service(limiter, monkeypatch)
    for number in range(1_500):
        late = 2.0 if number % 11 == 10 else 0.0
        service.call(500, way_s=0.04 + late, back_s=0.04, callers=callers)
    assert service.peak()[0] <= 2_500 * WINDOW_S
    assert 1_500 * 500 / service.time.now > 2_400


@pytest.mark.parametrize(
    ("failed", "arrived"), [(False, 12 - (0.08 - JITTER_S)), (True, 12.0)], ids=["answered", "failed"]
)
def test_when_a_call_arrived_is_taken_from_its_end(time: FakeTime, failed: bool, arrived: float) -> None:
    """An answer has taken its way back, which is at least what the quickest call took but for its way there, and but for
    some milliseconds. What fails may end at once, and says nothing of ways.
    """
    limit = limiter(time)
    for seconds, bad in ((0.08, False), (0.3, False), (0.001, True)):
        turn = limit.acquire(1)
        time.now += seconds
        limit.ended(turn, failed=bad)
    time.now = 10
    whole = limit.acquire(12_500)
    time.now = 12
    limit.ended(whole, failed=failed)
    limit.acquire(1)
    assert time.now == pytest.approx(arrived + WINDOW_S, abs=1e-4)


@given(
    held_up=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.4, 2.0]), min_size=5, max_size=40),
    callers=st.sampled_from([4, 64]),
)
def test_no_window_holds_more_requests_than_the_limit(held_up: list[float], callers: int) -> None:
    """Deletes and puts of one vector, of which some are held up."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        service = Service(lambda time: limiter(time, requests=20), monkeypatch)
        for number in range(250):
            way_s = 0.01 + held_up[number % len(held_up)]
            service.call(1, way_s=way_s, back_s=0.01, callers=callers)
    assert service.peak()[1] <= 20 * WINDOW_S


def test_calls_that_have_not_ended_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all of a window is under way, the next call waits until one of them ends, however long that takes."""
    service = Service(limiter, monkeypatch)
    for _ in range(25):
        service.call(500, way_s=30, back_s=30, callers=64)
    assert service.time.now < 6
    service.call(500, way_s=0, back_s=0, callers=64)
    assert service.time.now >= 60


def test_a_call_too_large_for_a_window_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 10 vectors a second, a batch of 500 goes all the same, once nothing else is under way."""
    service = Service(lambda time: limiter(time, vectors=10), monkeypatch)
    for _ in range(3):
        service.call(500, way_s=1, back_s=1, callers=8)
    assert service.most_under_way == 1


def test_a_thread_that_waits_for_an_answer_goes_on_when_it_comes(time: FakeTime) -> None:
    """Whoever waits costs nothing meanwhile, and those behind are not let past the limit."""
    limit = limiter(time)
    turns = [limit.acquire(500) for _ in range(25)]
    waiting = [threading.Thread(target=write, args=(limit, 500), daemon=True) for _ in range(4)]
    for thread in waiting:
        thread.start()
    waiting[0].join(0.05)
    assert all(thread.is_alive() for thread in waiting)
    limit.ended(turns[3], failed=True)
    for thread in waiting:
        thread.join(10)
    assert not any(thread.is_alive() for thread in waiting)
    assert time.now >= turns[3].ended + WINDOW_S


def test_a_call_that_is_a_little_late_is_made_up_for(time: FakeTime) -> None:
    """A thread that wakes up late does not slow down the run: the calls after it leave when they would have."""
    limit = limiter(time)
    for number in range(20):
        time.now += 1.9 * INTERVAL if number == 10 else 0  # its turn was one interval after the last
        write(limit, 500)
    assert time.now == pytest.approx(19 * INTERVAL - BURST_S)


def test_many_small_calls_are_held_by_the_requests(time: FakeTime) -> None:
    """1,000 calls of one vector take a second, although the vectors alone would take less than half."""
    limit = limiter(time)
    for _ in range(1_001):
        write(limit, 1)
    assert time.now == pytest.approx(1 / HEADROOM)


def test_throttling_slows_down_for_seconds_and_passes(time: FakeTime) -> None:
    """A good part of the pace is lost after a few throttles, and is back ten seconds later."""
    limit = limiter(time)

    def ten_calls() -> float:
        start = time.now
        for _ in range(10):
            write(limit, 500)
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
        write(limit, 500)
        write(limit, 500)
        waits.append(time.now - start)
    assert waits[0] == pytest.approx(waits[1])


def test_threads_share_one_pace(time: FakeTime) -> None:
    """Four writers get through together what one would."""
    limit = limiter(time)

    def work() -> None:
        for _ in range(10):
            write(limit, 500)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert time.now >= 39 * INTERVAL - BURST_S - 1e-6
