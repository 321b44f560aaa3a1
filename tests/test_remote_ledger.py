"""A ledger in a bucket: its journal tells what a run that died may have put, and a damaged one is not guessed at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from ragctl.adapters.local import LocalStore
from ragctl.errors import LeaseLost, StateError
from ragctl.ingest import IngestOptions, Progress, ingest, reading_ledger
from ragctl.lease import Lease, acquire
from ragctl.loading import load
from ragctl.manifest import DocumentRow, Ledger
from ragctl.records import VectorRecord
from ragctl.remote_ledger import RemoteLedger
from ragctl.state import LocalState, State, open_state
from ragctl.under_way import Counts
from tests.cli import experiment, in_process, write_docs
from tests.processes import HeldPlace, held_place
from tests.servers.clients import REGION, connect

NAME = "papers/ledger.sqlite"
JOURNAL = f"{NAME}.journal/00000001-00000000.json"
DAMAGES = pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"documents": ["a"], "ke',
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"documents": ["a"]}',
        b'{"documents": ["a"], "keys": 7}',
        b'{"documents": ["a"], "keys": [7]}',
    ],
    ids=str,
)


# A run that dies when its first vectors are in the store, and before the ledger knows of them.
DIES = """
import os
from ragctl.adapters.s3vectors import S3VectorsStore
put = S3VectorsStore.put
def put_and_die(self, *arguments, **named):
    put(self, *arguments, **named)
    os._exit(9)
S3VectorsStore.put = put_and_die
"""


@pytest.fixture
def state(tmp_path: Path) -> LocalState:
    """As good as a bucket, for a ledger that is told nothing else."""
    return LocalState(tmp_path / "state")


@pytest.fixture
def lease(state: LocalState) -> Iterator[Lease]:
    lease = acquire(state, "papers/lease.json", "ingest", wait_s=0)
    yield lease
    lease.release()


def document(name: str, *keys: str) -> DocumentRow:
    return DocumentRow(name, name, "h", "f", keys)


def test_what_a_run_that_died_announced_is_loose(state: LocalState, lease: Lease, tmp_path: Path) -> None:
    """But for the keys that a document vouches for; its documents are not done."""
    first = RemoteLedger(state, NAME, tmp_path / "first", lease)
    first.settle([document("a", "k1")], [], [])
    first.publish(force=True)
    first.declare(["a"], ["b"], ["k1", "k2"])  # and dies
    second = RemoteLedger(state, NAME, tmp_path / "second", lease)
    assert second.loose(-1) == ["k2"]
    found = second.document("a")
    assert found is not None
    assert not found.done
    assert state.names(f"{NAME}.journal/") == []


@DAMAGES
def test_a_damaged_journal(state: LocalState, lease: Lease, tmp_path: Path, data: bytes) -> None:
    """What it named may be in the store: the error names it, and what helps; nothing is written."""
    RemoteLedger(state, NAME, tmp_path / "first", lease).close()
    before = state.read(NAME)
    state.overwrite(JOURNAL, data)
    with pytest.raises(StateError) as caught:
        RemoteLedger(state, NAME, tmp_path / "second", lease)
    assert caught.value.message == (
        f"{state.place}/{JOURNAL}: is damaged: what a run that died put into the index is not known"
    )
    assert caught.value.hint == "make the ledger anew from the index: ragctl ledger rebuild CONFIG"
    assert (state.read(NAME), state.names(f"{NAME}.journal/")) == (before, [JOURNAL])


@DAMAGES
def test_a_ledger_made_anew_drops_the_journal_when_it_is_whole(
    state: LocalState, lease: Lease, tmp_path: Path, data: bytes
) -> None:
    """Until then both stay as they are, whatever becomes of who makes it."""
    state.overwrite(NAME, b"rubbish")
    state.overwrite(JOURNAL, data)
    anew = RemoteLedger(state, NAME, tmp_path / "anew", lease, anew=True)
    anew.settle([document("a", "k1")], [], [])
    found = state.read(NAME)
    assert found is not None
    assert (found.data, state.names(f"{NAME}.journal/")) == (b"rubbish", [JOURNAL])
    anew.publish(force=True)
    anew.close()
    assert state.names(f"{NAME}.journal/") == []
    after = RemoteLedger(state, NAME, tmp_path / "after", lease)
    assert (after.counts(), after.loose(-1)) == ((1, 1), [])


def test_a_ledger_made_anew_has_nothing_of_the_old_one_but_its_fence(
    state: LocalState, lease: Lease, tmp_path: Path
) -> None:
    """So that who was left behind by the old one cannot write the new one."""
    old = RemoteLedger(state, NAME, tmp_path / "old", lease)
    old.settle([document("a", "k1")], [], [])
    old.publish(force=True)
    lost = {**json.loads(_read(state, "papers/lease.json")), "fence": 1, "expires": 0.0}
    state.overwrite("papers/lease.json", json.dumps(lost).encode())
    again = acquire(state, "papers/lease.json", "ledger rebuild", wait_s=0)
    anew = RemoteLedger(state, NAME, tmp_path / "anew", again, anew=True)
    assert (anew.counts(), anew.meta("fence")) == ((0, 0), str(lease.fence + 1))
    again.release()


def test_a_ledger_made_anew_does_not_replace_that_of_who_took_over(
    state: LocalState, lease: Lease, tmp_path: Path
) -> None:
    """A rebuild that slept meanwhile ends with 7."""
    RemoteLedger(state, NAME, tmp_path / "first", lease).close()
    anew = RemoteLedger(state, NAME, tmp_path / "anew", lease, anew=True)
    state.overwrite(NAME, b"theirs")
    state.overwrite(JOURNAL, b"theirs")
    with pytest.raises(LeaseLost, match="another run took over this index while this one was paused"):
        anew.publish(force=True)
    assert (_read(state, NAME), _read(state, JOURNAL)) == (b"theirs", b"theirs")


def _read(state: State, name: str) -> bytes:
    found = state.read(name)
    assert found is not None
    return found.data


# --- what is published before the store is changed ----------------------------------------------------------


class Bucket:
    """A state that is no local folder, so that a run works on a copy of the ledger and publishes it."""

    def __init__(self, folder: Path) -> None:
        self._files = LocalState(folder)
        self.place = self._files.place
        self.read, self.write, self.overwrite = self._files.read, self._files.write, self._files.overwrite
        self.delete, self.names = self._files.delete, self._files.names


class Watched:
    """Runs over a folder; at each put and delete: what a run that took over just then would find published."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._bucket = Bucket(folder / "bucket")
        self.created_at_put: list[str | None] = []
        self.deleted: list[str] = []
        self.claimed: list[str] = []  # of the deleted keys, those that a published document had
        put, delete = LocalStore.put, LocalStore.delete

        def watched_put(store: LocalStore, records: Sequence[VectorRecord], *, fresh: bool = False) -> None:
            with self._published() as ledger:
                self.created_at_put.append(ledger.meta("created"))
            put(store, records, fresh=fresh)

        def watched_delete(store: LocalStore, keys: Sequence[str]) -> None:
            with self._published() as ledger:
                claimed = {key for row in ledger.documents() for key in row.keys}
            self.deleted += keys
            self.claimed += claimed.intersection(keys)
            delete(store, keys)

        monkeypatch.setattr(LocalStore, "put", watched_put)
        monkeypatch.setattr(LocalStore, "delete", watched_delete)

    @contextmanager
    def _published(self) -> Iterator[Ledger]:
        with reading_ledger(self._bucket, "test") as ledger:
            yield ledger

    def ingest(self) -> Counts:
        loaded = load(experiment(self._folder, ingest={"workers": 1, "max_delete": 0.5}))
        return ingest(loaded, self._bucket, IngestOptions(), Progress()).counts


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Three documents that are in the index."""
    write_docs(tmp_path, {f"{name}.md": f"Of the {name}." for name in ("apple", "pear", "plum")})
    watched = Watched(tmp_path, monkeypatch)
    assert watched.ingest().added == 3
    return watched


def test_a_new_ledger_is_published_before_the_first_put(watched: Watched) -> None:
    """It says what index it is of; else what a run that dies leaves there would be taken for that of a lost ledger."""
    assert watched.created_at_put
    assert all(watched.created_at_put)


def test_keys_of_a_document_that_changed_go_when_no_published_one_has_them(
    watched: Watched, tmp_path: Path
) -> None:
    """A run that took over the old ledger would think that they are there."""
    write_docs(tmp_path, {"pear.md": "Of another pear."})
    assert watched.ingest().changed == 1
    assert (len(watched.deleted), watched.claimed) == (1, [])


def test_keys_of_a_document_that_is_gone_go_when_no_published_one_has_them(
    watched: Watched, tmp_path: Path
) -> None:
    """The ledger is published for it, however short ago it was published last."""
    (tmp_path / "docs" / "pear.md").unlink()
    assert watched.ingest().deleted == 1
    assert (len(watched.deleted), watched.claimed) == (1, [])


# --- a whole run -----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldPlace]:
    """An ingest whose state is in a bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket = f"state-{uuid4().hex}"
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with connect("s3", url) as client:
        client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    try:
        with held_place(tmp_path) as place:
            place.sections |= {
                "state": f"s3://{bucket}/team",
                "aws": {"region": REGION, "endpoints": {"s3vectors": place.vectors.url, "s3": url}},
            }
            place.configure()
            yield place
    finally:
        server.stop()


def test_a_journal_that_is_damaged_after_a_kill(place: HeldPlace) -> None:
    """Exit 8 from whoever would write; the rebuild sees all that is there, and one run more makes it right."""
    with place.start(prelude=DIES) as killed:
        assert killed.end().status == 9
    assert len(place.held()) == 60
    state = open_state(load(place.folder / "experiment.yaml"))
    journal = state.names("test/ledger.sqlite.journal/")
    assert journal
    for name in journal:
        state.overwrite(name, b"")
    before = place.held()
    for _ in range(2):
        ended = place.ragctl("ingest")
        assert (ended.status, ended.out) == (8, "")
        assert ended.err.endswith(
            f"ragctl: error: {state.place}{journal[0]}: is damaged: what a run that died put into the index is not known\n"
            "  hint: make the ledger anew from the index: ragctl ledger rebuild CONFIG\n"
        )
        assert (place.held(), state.names("test/ledger.sqlite.journal/")) == (before, journal)
    assert in_process("ledger", "rebuild", place.folder / "experiment.yaml").status == 0
    assert state.names("test/ledger.sqlite.journal/") == []
    place.write({"d001.md": "Note 1, written anew.\n"})  # so that what was put of it must go
    assert place.ragctl("ingest").status == 0
    held = place.held()
    again = place.ragctl("ingest", "--json")
    assert (again.status, again.json["chunks"]["written"], again.json["chunks"]["deleted"]) == (0, 0, 0)
    assert held == place.undisturbed()
