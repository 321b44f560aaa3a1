"""Writing under trouble: nothing is lost, nothing is too fast, and hopeless calls end."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import pytest

from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.adapters.s3vectors_calls import BROKEN_ATTEMPTS, BULK_S, LONGEST_WAIT_S
from ragctl.backends import S3VectorsStore as Settings
from ragctl.errors import LeaseLost, ServiceError, Throttled
from ragctl.limiter import BURST_S, Turn
from ragctl.records import VectorRecord
from tests.faketime import FakeTime
from tests.s3vectors_stores import SPEC, OpenStore, fan, opening, put_all, record, serving
from tests.servers.clients import connect
from tests.servers.http import Fault
from tests.servers.s3vectors import S3VectorsServer

ARN = "arn:aws:s3vectors:eu-west-1:123456789012:bucket/library/index/papers"
SLOW_DOWN = {"status": 429, "code": "TooManyRequestsException", "message": "slow down"}


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def server(time: FakeTime, request: pytest.FixtureRequest) -> Iterator[S3VectorsServer]:
    with serving(time, **getattr(request, "param", {})) as server:
        yield server


@pytest.fixture
def open_store(server: S3VectorsServer, time: FakeTime) -> Iterator[OpenStore]:
    with opening(server, time) as open_store:
        yield open_store


@pytest.fixture
def store(open_store: OpenStore) -> S3VectorsStore:
    store = open_store()
    store.create(SPEC)
    return store


def batches(records: list[VectorRecord], size: int = 500) -> list[list[VectorRecord]]:
    return [records[first : first + size] for first in range(0, len(records), size)]


@pytest.mark.parametrize("server", [{"enforce_rate": True}], indirect=True)
def test_sustained_writes_stay_under_the_limit(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime
) -> None:
    """A service that enforces its limit never has to; over any 5 seconds there are fewer than 2,500 vectors/s."""
    put_all(store, fan(15_000))
    store.delete([f"k{number:05}" for number in range(500)])
    assert {call.status for call in server.calls_of("PutVectors")} == {200}
    assert server.writes[ARN].peak(5).vectors <= 2_500
    assert 15_000 / time.now > 2_300


@pytest.mark.parametrize("server", [{"enforce_rate": True}], indirect=True)
def test_small_writes_stay_under_the_limit_of_requests(
    store: S3VectorsStore, server: S3VectorsServer
) -> None:
    """Single puts and deletes together: fewer than 1,000 calls a second."""
    for number in range(600):
        store.put([record(f"k{number}")])
        store.delete([f"k{number}"])
    assert {call.status for call in server.calls} == {200, 404}  # 404: the index was looked for first
    assert server.writes[ARN].peak(1).requests <= 1_000


def test_threads_share_the_pace_of_the_store() -> None:
    """On a real clock, four writers stay within what one may: the pace, what was saved up, and what each has under way."""
    with S3VectorsServer() as server, connect("s3vectors", server.url) as client:
        section = Settings(kind="s3vectors", bucket="library", index="papers", vectors_per_second=1_000)
        store = S3VectorsStore(client, section, clock=monotonic, sleep=sleep)
        store.create(SPEC)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(store.put, batches(fan(2_000), 50)))
        assert len(list(store.keys())) == 2_000
        assert server.writes[ARN].peak(1).vectors <= 1_000 * (1 + BURST_S) + 5 * 50


def test_200_faults_lose_nothing_of_50_000_vectors(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime
) -> None:
    """429, 503, lost replies and broken connections, on four threads: every vector is there once, as it was put."""
    server.faults.add(
        Fault("error", "PutVectors", **SLOW_DOWN, times=80, probability=0.4, seed=1),  # type: ignore[arg-type]  # mypy takes the mapping for one type
        Fault("error", "PutVectors", times=80, probability=0.4, seed=2),
        Fault("lost", "PutVectors", times=20, probability=0.1, seed=3),
        Fault("reset", "PutVectors", times=20, probability=0.1, seed=4),
    )
    records = fan(50_000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.put, batches(records)))
    while len(server.faults.injected) < 200:  # what chance has left over
        store.put(records[:100])
    assert len(server.faults.injected) == 200
    there = {one.key: one.metadata["number"] for one in store.scan()}
    assert there == {one.key: one.metadata["number"] for one in records}
    assert time.now < 400


def test_a_throttle_between_broken_connections_shows_that_the_service_is_there(
    store: S3VectorsStore, server: S3VectorsServer
) -> None:
    """Only connections that break one after the other are given up, not as many in all."""
    broken = Fault("reset", "PutVectors", times=BROKEN_ATTEMPTS - 1)
    server.faults.add(broken, Fault("error", "PutVectors", **SLOW_DOWN), broken)  # type: ignore[arg-type]  # as above
    store.put(fan(10))
    assert len(server.faults.injected) == 2 * BROKEN_ATTEMPTS - 1
    assert len(list(store.keys())) == 10


def test_a_write_ends_its_turn_however_it_ends(store: S3VectorsStore, server: S3VectorsServer) -> None:
    """Refused, without an answer, broken in the middle, or not even sent: a turn that never ended would hold up others."""
    limiter = store._calls._limiter
    ended, ends = limiter.ended, list[bool]()

    def note(turn: Turn, *, failed: bool = False) -> None:
        ends.append(failed)
        ended(turn, failed=failed)

    def refuse() -> None:
        raise LeaseLost("taken over")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(limiter, "ended", note)
        server.faults.add(
            Fault("error", "PutVectors", **SLOW_DOWN),  # type: ignore[arg-type]  # as above
            Fault("lost", "PutVectors"),
            Fault("reset", "DeleteVectors"),
            Fault("error", "DeleteVectors", status=400, code="ValidationException"),
        )
        store.put(fan(3))
        with pytest.raises(ServiceError):
            store.delete(["k00000"])
        store.before_writes(refuse)
        with pytest.raises(LeaseLost):
            store.put(fan(3))
        store.before_writes(interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.put(fan(3))
    assert ends == [True, True, False, True, True, True, True]
    assert limiter._under_way == 0


@pytest.mark.parametrize("write", ["put", "delete"])
def test_a_write_that_is_tried_again_asks_first_whether_it_may(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime, write: str
) -> None:
    """The lease is lost while the service throttles for a minute: nothing is written when it takes calls again."""
    store.put(fan(10))
    operation = "PutVectors" if write == "put" else "DeleteVectors"
    server.faults.add(Fault("error", operation, **SLOW_DOWN, times=20))  # type: ignore[arg-type]  # as above
    before = len(server.calls_of(operation))

    def check() -> None:
        if time.now > 30:
            raise LeaseLost("taken over")

    store.before_writes(check)
    with pytest.raises(LeaseLost, match="taken over"):
        store.put(fan(20)) if write == "put" else store.delete([f"k{number:05}" for number in range(10)])
    calls = server.calls_of(operation)[before:]
    assert {call.status for call in calls} == {429}
    assert len(list(store.keys())) == 10


def test_refusals_in_a_row_are_waited_out(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime
) -> None:
    """Nothing at all gets through for minutes, and then everything does.

    On this clock the waits of four threads may also come one after the other: no more refusals than a write bears.
    """
    refusals = int(BULK_S / LONGEST_WAIT_S) // 2 * 2 - 10
    half = refusals // 2
    server.faults.add(Fault("error", "PutVectors", **SLOW_DOWN, times=half), Fault("error", times=half))  # type: ignore[arg-type]  # as above
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.put, batches(fan(2_000))))
    assert len(server.faults.injected) == refusals
    assert len(list(store.keys())) == 2_000


def test_a_batch_above_the_capacity_goes_in_halves(store: S3VectorsStore, server: S3VectorsServer) -> None:
    """The service takes 60 vectors at a time: all 500 arrive, in calls that fit."""
    server.batch_capacity = 60
    store.put(fan(500))
    assert len(list(store.keys())) == 500
    sizes = [call.sizes["vectors"] for call in server.calls_of("PutVectors") if call.status == 200]
    assert max(sizes) <= 60
    assert sum(sizes) == 500


def test_throttling_is_backed_off_for_seconds(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime
) -> None:
    """A 429 is followed by seconds of quiet, longer each time; the batch stays whole."""
    server.faults.add(Fault("error", "PutVectors", **SLOW_DOWN, times=4))  # type: ignore[arg-type]  # as above
    store.put(fan(500))
    waits = [seconds for seconds in time.slept if seconds >= 0.5]
    assert len(waits) == 4
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 <= waits[2] <= 4
    assert [call.sizes["vectors"] for call in server.calls_of("PutVectors")] == [500] * 5


def test_a_throttle_without_end_is_given_up_after_ten_minutes(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime
) -> None:
    """The error says what was tried on what; a search gives up after a minute."""
    server.faults.add(Fault("error", "PutVectors", **SLOW_DOWN, times=None))  # type: ignore[arg-type]  # as above
    server.faults.add(Fault("error", "QueryVectors", times=None))
    with pytest.raises(Throttled, match="s3vectors:PutVectors on index library/papers: still throttled"):
        store.put([record("a")])
    assert 590 <= time.now <= 610
    before = time.now
    with pytest.raises(Throttled, match="s3vectors:QueryVectors on index library/papers"):
        store._all_pages({"topK": 1, "queryVector": {"float32": [1.0, 0.0]}}, 1)
    assert 50 <= time.now - before <= 61


@pytest.mark.parametrize("operation", ["PutVectors", "DeleteVectors", "GetVectors", "ListVectors"])
def test_a_lost_reply_is_asked_for_again(
    store: S3VectorsStore, server: S3VectorsServer, operation: str
) -> None:
    """The service did it and the connection broke: doing it twice is the same as once."""
    store.put([record("a"), record("b")])
    server.faults.add(Fault("lost", operation), Fault("reset", operation))
    store.put([record("c")])
    store.delete(["a"])
    assert sorted(store.get(["a", "b", "c"])) == ["b", "c"]
    assert sorted(store.keys()) == ["b", "c"]
    assert len(server.faults.injected) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", "PutVectors", times=None),
        Fault("error", "PutVectors", status=500, code="InternalServerException", times=None),
    ],
)
def test_a_service_that_is_broken_is_given_up_soon(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime, fault: Fault
) -> None:
    """Five attempts in a few seconds: it is not a matter of patience."""
    server.faults.add(fault)
    with pytest.raises(ServiceError, match="s3vectors:PutVectors on index library/papers"):
        store.put([record("a")])
    assert len(server.calls_of("PutVectors")) == 5
    assert time.now < 10


def test_too_many_at_once_is_a_mistake_of_the_caller(store: S3VectorsStore, server: S3VectorsServer) -> None:
    """The caller cuts; nothing is sent that the service would refuse."""
    with pytest.raises(ValueError, match="put: 501 at once, at most 500 are allowed"):
        store.put(fan(501))
    with pytest.raises(ValueError, match="delete: 501 at once"):
        store.delete([str(number) for number in range(501)])
    with pytest.raises(ValueError, match="get: 101 at once, at most 100"):
        store.get([str(number) for number in range(101)])
    assert server.calls_of("PutVectors") == []
