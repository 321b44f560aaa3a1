"""State in a bucket, over a network that loses answers: a write of ours is known for ours, and no other is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from ragctl import deployment
from ragctl.deployment import Record
from ragctl.errors import ServiceError
from ragctl.lease import acquire, decode, hold
from ragctl.manifest import DocumentRow
from ragctl.remote_ledger import RemoteLedger
from ragctl.state import Conflict, S3State
from tests.processes import HeldPlace, held_place, until
from tests.servers.clients import REGION, connect
from tests.servers.s3_front import S3Front

LEASE = "papers/lease.json"
LEDGER = "papers/ledger.sqlite"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass(frozen=True)
class Bucket:
    """A bucket, seen from here over a network that may lose answers, and from elsewhere."""

    name: str
    front: S3Front
    ours: S3State
    others: S3State


@pytest.fixture
def bucket(s3: str) -> Iterator[Bucket]:
    name = f"state-{uuid4().hex}"
    with (
        connect("s3", s3) as client,
        S3Front(s3) as front,
        connect("s3", front.url, retries={"total_max_attempts": 5, "mode": "standard"}) as through,
    ):
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield Bucket(name, front, S3State(through, name, "team"), S3State(client, name, "team"))


def holder_of(state: S3State) -> dict[str, Any]:
    found = state.read(LEASE)
    assert found is not None
    holder: dict[str, Any] = json.loads(found.data)
    return holder


# --- one write -------------------------------------------------------------------------------------------


def test_a_write_whose_answer_is_lost_is_ours(bucket: Bucket) -> None:
    """A file made and a file replaced: done once, and under the version that it has."""
    bucket.front.loses = {"lease"}
    version = None
    for data in (b"1", b"2"):
        version = bucket.ours.write("lease", data, expect=version)
        found = bucket.others.read("lease")
        assert found is not None
        assert (found.data, found.version) == (data, version)
    assert bucket.front.lost == Counter({"lease": 2})


def test_the_same_bytes_of_somebody_else_are_not_taken_for_ours(bucket: Bucket) -> None:
    """Two who announce the very same deployment must not both go on with it."""
    record = Record("test", REGION)
    deployment.write(bucket.others, record, None)
    bucket.front.loses = {"deployment-test.json"}
    with pytest.raises(Conflict):
        deployment.write(bucket.ours, record, None)
    assert bucket.front.lost == Counter({"deployment-test.json": 1})


@pytest.mark.parametrize("loses", [False, True], ids=["not done", "done, and the answer lost"])
def test_a_write_that_another_got_in_the_way_of_is_made_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, loses: bool
) -> None:
    """S3 answers 409 while a write of the same file, which may be our own, is not through yet."""
    monkeypatch.setattr("ragctl.state.UNDECIDED_S", (0.0, 0.0, 0.0))
    bucket.front.busy["lease"] = 3
    if loses:
        bucket.front.loses = {"lease"}
    version = bucket.ours.write("lease", b"1", expect=None)
    found = bucket.others.read("lease")
    assert found is not None
    assert (found.data, found.version) == (b"1", version)
    bucket.front.busy["lease"] = 4
    with pytest.raises(Conflict):
        bucket.ours.write("lease", b"2", expect=version)
    assert bucket.others.read("lease") == found


# --- the lease -------------------------------------------------------------------------------------------


def test_a_lease_is_taken_renewed_and_given_back(bucket: Bucket) -> None:
    """Though of each write the first answer is lost."""
    bucket.front.loses = {"lease.json"}
    with hold(bucket.ours, LEASE, "ingest", ttl_s=8.0) as lease:
        first = holder_of(bucket.others)
        until(lambda: holder_of(bucket.others)["expires"] > first["expires"], "a renewal")
        # Which builds on the version of the first
        until(lambda: bucket.front.lost["lease.json"] > 2, "another one")
        lease.check()
        assert lease.fence_above(first["fence"] + 10) == first["fence"] + 11
    last = holder_of(bucket.others)
    assert (last["id"], last["fence"], last["expires"]) == (first["id"], first["fence"] + 11, 0.0)


def unreachable_after(state: S3State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next write is done, and all that we hear is that the state location cannot be reached."""
    write = state.write

    def written(name: str, data: bytes, *, expect: str | None) -> str:
        monkeypatch.setattr(state, "write", write)
        write(name, data, expect=expect)
        raise ServiceError("s3:PutObject: the connection failed")

    monkeypatch.setattr(state, "write", written)


def test_a_renewal_of_which_nothing_was_heard(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version that we know is not the one that is there, and still it is our lease: renewed, and given back."""
    lease = acquire(bucket.ours, LEASE, "ingest", wait_s=0)
    for _ in range(2):
        unreachable_after(bucket.ours, monkeypatch)
        lease._renew()
        lease._renew()
        lease.check()
    unreachable_after(bucket.ours, monkeypatch)
    lease._renew()
    lease.release()
    assert holder_of(bucket.others)["expires"] == 0.0


def test_a_renewal_over_the_lease_of_somebody_else(bucket: Bucket) -> None:
    """It was taken over meanwhile: it stays theirs."""
    lease = acquire(bucket.ours, LEASE, "ingest", wait_s=0)
    theirs = json.dumps(holder_of(bucket.others) | {"id": "theirs"}).encode()
    bucket.others.overwrite(LEASE, theirs)
    bucket.front.loses = {"lease.json"}
    lease._renew()
    lease.release()
    found = bucket.others.read(LEASE)
    assert found is not None
    assert found.data == theirs


# --- the ledger ------------------------------------------------------------------------------------------


def test_a_ledger_is_published(bucket: Bucket, tmp_path: Path) -> None:
    """Each time, though its answer is lost."""
    bucket.front.loses = {"ledger.sqlite"}
    with hold(bucket.ours, LEASE, "ingest") as lease:
        ledger = RemoteLedger(bucket.ours, LEDGER, tmp_path / "copy", lease)
        ledger.settle([DocumentRow("d", "d", "h", "f", ("k",))], [], [])
        assert ledger.publish(force=True)
        assert ledger.publish(force=True)  # with nothing new, the very same bytes
        ledger.close()
    assert bucket.front.lost == Counter({"ledger.sqlite": 3})
    found = bucket.others.read(LEDGER)
    assert found is not None
    assert found.data == (tmp_path / "copy").read_bytes()


# --- a whole run -----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> Iterator[HeldPlace]:
    """An ingest whose state is in the bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with held_place(tmp_path) as place:
        endpoints = {"s3vectors": place.vectors.url, "s3": bucket.front.url}
        place.sections |= {
            "state": f"s3://{bucket.name}/team",
            "aws": {"region": REGION, "endpoints": endpoints},
        }
        place.configure()
        yield place


def test_a_run_that_hears_no_first_answer(place: HeldPlace, bucket: Bucket) -> None:
    """Exit 0, nothing to say, and the lease is given back."""
    bucket.front.loses = {"lease.json", "ledger.sqlite"}
    lasting = (
        "import functools, ragctl.ingest, ragctl.lease\n"
        "ragctl.ingest.hold = functools.partial(ragctl.lease.hold, ttl_s=8)\n"
    )
    with place.start_held("--json", prelude=lasting) as run:
        taken = bucket.front.lost["lease.json"]
        until(lambda: bucket.front.lost["lease.json"] > taken + 1, "two renewals")
        place.models.gate.set()
        ended = run.end()
    assert (ended.status, ended.err) == (0, "")
    assert ended.json["documents"]["added"] == 60
    assert bucket.front.lost["ledger.sqlite"] >= 2
    found = bucket.others.read("test/lease.json")
    assert found is not None
    holder = decode(found.data)
    assert holder is not None
    assert holder.expires == 0.0
    bucket.front.loses = set()
    again = place.ragctl("ingest", "--json")
    assert (again.status, again.json["chunks"]["written"], again.json["chunks"]["deleted"]) == (0, 0, 0)
