"""Runs that meet on one index: together, after a kill, after a pause, and with clocks that jump."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from ragctl import rebuild
from ragctl.ingest import reading_ledger, writing_ledger
from ragctl.loading import load
from ragctl.state import open_state
from ragctl.verify import repair, verify
from tests.cli import in_process
from tests.processes import HeldPlace, Run, held_place, until
from tests.servers.clients import REGION, connect

TTL_S = 2.0  # where a lease must run out; longer elsewhere, so that no busy machine loses one


def lasting(seconds: float) -> str:
    """Leases that last so long, and are renewed four times as often."""
    return (
        "import functools, ragctl.ingest, ragctl.lease\n"
        f"ragctl.ingest.hold = functools.partial(ragctl.lease.hold, ttl_s={seconds})\n"
    )


SHORT = lasting(TTL_S)
ELSEWHERE = SHORT + "import socket; socket.gethostname = lambda: 'elsewhere'\n"
DAY_S = 86_400
JUMPS = pytest.mark.parametrize("jump", [DAY_S, -DAY_S], ids=["forwards", "backwards"])


def clock(offset: Path) -> str:
    """A wall clock that is off by the seconds that stand in a file."""
    return f"import time; now = time.time; time.time = lambda: now() + float(open({str(offset)!r}).read())\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldPlace]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with held_place(tmp_path) as place:
        yield place


def lease_of(place: HeldPlace) -> dict[str, Any]:
    lease: dict[str, Any] = json.loads(state_of(place, "lease.json"))
    return lease


def state_of(place: HeldPlace, name: str) -> bytes:
    found = open_state(load(place.folder / "experiment.yaml")).read(f"test/{name}")
    assert found is not None
    return found.data


def writes_to(place: HeldPlace) -> list[tuple[str, int]]:
    """The calls that changed the store."""
    changing = ("PutVectors", "DeleteVectors")
    return [(call.operation, call.status) for call in place.vectors.calls if call.operation in changing]


def assert_undisturbed(place: HeldPlace) -> None:
    """The index is what one run alone makes of the documents, and the next run finds nothing to do."""
    held = place.held()
    again = place.ragctl("ingest", "--json")
    assert (again.status, again.json["chunks"]["written"], again.json["chunks"]["deleted"]) == (0, 0, 0)
    assert held == place.undisturbed()


# --- together --------------------------------------------------------------------------------------------


def test_of_two_runs_that_start_together_one_works(place: HeldPlace) -> None:
    """The other ends with 7 and says who holds the lease; a third waits, and is let in afterwards."""
    place.models.held = "harbour"
    with place.start() as one, place.start() as other:
        until(lambda: (one.process.poll(), other.process.poll()) != (None, None), "one to end")
        loser, winner = (one, other) if one.process.poll() is not None else (other, one)
        ended = loser.end()
        assert (ended.status, ended.out) == (7, "")
        holder = f"ingest (process {winner.process.pid} on {socket.gethostname()}, until "
        assert f"ragctl: error: another run holds the lease on this index: {holder}" in ended.err
        assert (
            "  hint: wait for it with --wait 10m; it is taken over by itself once it expires\n" in ended.err
        )
        with place.start("--wait", "60s") as third:
            third.says(f"waiting for the lease of {holder}")
            place.models.gate.set()
            assert winner.end().status == 0
            ended = third.end()
    assert (ended.status, ended.out) == (0, "test: nothing to do, 60 documents in 60 chunks\n")
    assert_undisturbed(place)


def test_a_run_that_waits_in_vain(place: HeldPlace) -> None:
    """Exit 7 once its time is over."""
    with place.start_held():
        ended = place.start("--wait", "1s").end()
    assert ended.status == 7
    assert "another run holds the lease on this index" in ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_run_that_is_told_to_stop_while_it_waits(place: HeldPlace, number: signal.Signals) -> None:
    """It ends at once with 130, and its record says that it was interrupted; the holder goes on."""
    with place.start_held() as holder:
        lease = lease_of(place)
        with place.start("--wait", "10m") as waiting:
            waiting.says("waiting for the lease of ingest")
            begun = time.monotonic()
            waiting.send(number)
            ended = waiting.end()
            assert time.monotonic() - begun < 10
        assert (ended.status, ended.out) == (130, "")
        assert ended.err.splitlines()[-2:] == [
            f"ragctl: {number.name}: finishing what is in flight; again to stop at once",
            "ragctl: interrupted",
        ]
        reports = {
            json.loads(path.read_bytes())["status"] for path in place.folder.glob("runs/*-ingest-*/run.json")
        }
        assert reports == {"running", "interrupted"}
        assert lease_of(place)["id"] == lease["id"]
        place.models.gate.set()
        assert holder.end().status == 0
    assert_undisturbed(place)


@pytest.mark.parametrize("data", [None, b'{"id": "x", "fen'], ids=["removed", "damaged"])
def test_a_lease_whose_file_is_lost(place: HeldPlace, data: bytes | None) -> None:
    """Somebody removed it, or a disk did: the next run works, though the ledger has seen many holders."""
    for _ in range(3):
        assert place.ragctl("ingest").status == 0
    path = place.folder / "state" / "test" / "lease.json"
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    place.write({"d001.md": "Note 1, written anew.\n"})
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["documents"]["changed"]) == (0, 1), ended.err
    assert_undisturbed(place)


# --- after a kill ----------------------------------------------------------------------------------------


def test_the_lease_of_a_killed_run_is_taken_over_at_once(place: HeldPlace) -> None:
    """On the same machine nobody need wait until it expires."""
    with place.start_held() as killed:
        killed.send(signal.SIGKILL)
        killed.process.wait()
        ended = place.start().end()
    assert ended.status == 0
    assert f"took over the lease of ingest (process {killed.process.pid} on" in ended.err
    assert_undisturbed(place)


def test_the_lease_of_a_run_killed_elsewhere_is_taken_over_when_it_expires(place: HeldPlace) -> None:
    """Until then it is respected: nobody can see from here that it is dead."""
    with place.start_held(prelude=ELSEWHERE) as killed:
        killed.send(signal.SIGKILL)
        killed.process.wait()
        pid, fence = killed.process.pid, lease_of(place)["fence"]
        ended = place.start("--wait", "60s").end()
    assert ended.status == 0, ended.err
    assert f"waiting for the lease of ingest (process {pid} on elsewhere, until" in ended.err
    assert f"took over the lease of ingest (process {pid} on elsewhere, until" in ended.err
    assert lease_of(place)["fence"] == fence + 1
    assert_undisturbed(place)


# --- after a pause ---------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "bucket"])
def anywhere(request: pytest.FixtureRequest, place: HeldPlace) -> Iterator[HeldPlace]:
    """The ledger in a folder, and in a bucket."""
    if request.param == "folder":
        yield place
        return
    bucket = f"state-{uuid4().hex}"
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with connect("s3", f"http://{host}:{port}") as client:
            # Of a name of its own: moto's servers in one process share their buckets.
            client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        endpoints = {"s3vectors": place.vectors.url, "s3": f"http://{host}:{port}"}
        place.sections |= {"state": f"s3://{bucket}/team", "aws": {"region": REGION, "endpoints": endpoints}}
        place.configure()
        yield place
    finally:
        server.stop()


def stopped_between_saves(place: HeldPlace, run: Run) -> bool:
    """Stop a run where it does not hold the lock of a ledger in a folder, which nobody can take from it; else let it go."""
    run.send_to_all(signal.SIGSTOP)
    ledger = place.folder / "state" / "test" / "ledger.sqlite"
    if not ledger.exists():
        return True
    try:
        with closing(sqlite3.connect(ledger, timeout=0, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        run.send_to_all(signal.SIGCONT)
        return False
    return True


def test_an_old_holder_that_wakes_up_cannot_write(anywhere: HeldPlace) -> None:
    """Stopped, taken over, woken: it ends with 7 and has touched neither store nor ledger nor lease."""
    place = anywhere
    with place.start_held(prelude=SHORT) as old:
        until(lambda: stopped_between_saves(place, old), "it lets go of its ledger")
        ended = place.start("--wait", "60s").end()
        assert ended.status == 0, ended.err
        assert f"took over the lease of ingest (process {old.process.pid} on" in ended.err
        before = place.held(), state_of(place, "ledger.sqlite"), lease_of(place), writes_to(place)
        place.models.gate.set()
        old.send_to_all(signal.SIGCONT)
        ended = old.end()
    assert (ended.status, ended.out) == (7, "")
    error, hint = ended.err.splitlines()[-2:]
    assert error.startswith("ragctl: error: ")
    assert error.endswith(
        (
            "/test/lease.json was lost: this run was paused for longer than 2 s or cannot reach the state location",
            "another run took over this index while this one was paused",  # where there was something to save
        )
    )
    assert hint == "  hint: what is saved is consistent; run the command again"
    assert (place.held(), state_of(place, "ledger.sqlite"), lease_of(place), writes_to(place)) == before
    assert_undisturbed(place)


def test_an_old_holder_whose_clock_was_ahead_cannot_write(place: HeldPlace, tmp_path: Path) -> None:
    """Its fence is of next year and its lease's file is removed: who comes then is above it all the same."""
    (tmp_path / "offset").write_text(str(365 * DAY_S))
    with place.start_held(prelude=clock(tmp_path / "offset")) as old:
        until(lambda: stopped_between_saves(place, old), "it lets go of its ledger")
        fence = lease_of(place)["fence"]
        (place.folder / "state" / "test" / "lease.json").unlink()
        ended = place.start().end()
        assert ended.status == 0, ended.err
        assert lease_of(place)["fence"] == fence + 1
        before = place.held(), state_of(place, "ledger.sqlite"), lease_of(place), writes_to(place)
        place.models.gate.set()
        old.send_to_all(signal.SIGCONT)
        ended = old.end()
    assert (ended.status, ended.out) == (7, "")
    assert (place.held(), state_of(place, "ledger.sqlite"), lease_of(place), writes_to(place)) == before
    assert_undisturbed(place)


LATER = 10**15  # a fence above that of all holders


def test_a_rebuild_yields_to_a_later_holder(anywhere: HeldPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run has saved that took over while the index was read is not replaced: exit 7."""
    place = anywhere
    place.models.gate.set()
    assert place.ragctl("ingest").status == 0
    state = open_state(load(place.folder / "experiment.yaml"))

    fill = rebuild._fill

    def overtaken(*arguments: Any) -> None:
        fill(*arguments)
        later: Any = SimpleNamespace(fence=LATER, fence_above=lambda _: LATER)
        with writing_ledger(state, "test", later) as ledger:
            ledger.set_meta(chunking_seconds="12")

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "_fill", overtaken)
        ended = in_process("ledger", "rebuild", place.folder / "experiment.yaml")
    told = "another run took over this index while this one was paused"
    assert (ended.status, ended.out) == (7, "")
    assert ended.err == f"ragctl: error: {told}\n  hint: what is saved is consistent; run the command again\n"
    with reading_ledger(state, "test") as ledger:
        assert (ledger.meta("chunking_seconds"), ledger.counts()) == ("12", (60, 60))


# --- a look without the lease ----------------------------------------------------------------------------


def test_a_repair_deletes_nothing_that_an_ingest_has_saved_since(place: HeldPlace) -> None:
    """What was put and not yet saved looked orphaned; the ingest ends before the repair has the lease."""
    loaded = load(place.folder / "experiment.yaml")
    state = open_state(loaded)
    with place.start_held() as run:
        until(lambda: bool(verify(loaded, state, sample=None).orphaned), "a put without its save")
        drift = verify(loaded, state, sample=None)
        place.models.gate.set()
        assert run.end().status == 0
    assert drift.orphaned
    before = place.held()
    assert before.keys() >= set(drift.orphaned)
    repair(loaded, state, drift)
    assert place.held() == before
    assert_undisturbed(place)


# --- clocks that jump ------------------------------------------------------------------------------------


def test_a_machine_a_day_ahead_takes_over_and_the_holder_yields(place: HeldPlace, tmp_path: Path) -> None:
    """To its clock the lease has expired: the holder, awake all the time, writes nothing from then on."""
    (tmp_path / "offset").write_text(str(DAY_S))
    with place.start_held() as old:
        ended = place.start(prelude=clock(tmp_path / "offset")).end()
        assert ended.status == 0, ended.err
        before = place.held(), state_of(place, "ledger.sqlite"), writes_to(place)
        place.models.gate.set()
        ended = old.end()
    assert (ended.status, ended.out) == (7, "")
    assert "ragctl: error: another run took over this index while this one was paused\n" in ended.err
    assert (place.held(), state_of(place, "ledger.sqlite"), writes_to(place)) == before
    assert_undisturbed(place)


def test_a_lease_lost_after_a_run_a_year_ahead(anywhere: HeldPlace, tmp_path: Path) -> None:
    """The ledger has seen a fence of next year: the next holder's is above it, and so are those of all after it."""
    place = anywhere
    (tmp_path / "offset").write_text(str(365 * DAY_S))
    assert place.start(prelude=clock(tmp_path / "offset")).end().status == 0
    fence = lease_of(place)["fence"]
    open_state(load(place.folder / "experiment.yaml")).delete("test/lease.json")
    for further in (1, 2):
        place.write({"d001.md": f"Note 1, written anew for the {further}. time.\n"})
        ended = place.ragctl("ingest", "--json")
        assert (ended.status, ended.json["documents"]["changed"]) == (0, 1), ended.err
        assert lease_of(place)["fence"] == fence + further
    assert_undisturbed(place)


def test_a_machine_minutes_ahead_respects_who_renews(place: HeldPlace, tmp_path: Path) -> None:
    """To its clock the lease has just expired; it waits for a heartbeat before it believes that."""
    (tmp_path / "offset").write_text("300")
    beats = lasting(8)
    with place.start_held(
        prelude=beats + "import socket; socket.gethostname = lambda: 'elsewhere'\n"
    ) as holder:
        lease = lease_of(place)
        ended = place.start(prelude=beats + clock(tmp_path / "offset")).end()
        assert ended.status == 7, ended.err
        assert lease_of(place)["id"] == lease["id"]
        place.models.gate.set()
        assert holder.end().status == 0
    assert_undisturbed(place)


def test_a_machine_a_day_behind_takes_over_what_is_silent(place: HeldPlace, tmp_path: Path) -> None:
    """To its clock the lease holds for another day; but nobody has renewed it for as long as it lasts."""
    (tmp_path / "offset").write_text(str(-DAY_S))
    with place.start_held(prelude=ELSEWHERE) as killed:
        killed.send(signal.SIGKILL)
        killed.process.wait()
        behind = SHORT + clock(tmp_path / "offset")
        assert place.start(prelude=behind).end().status == 7
        ended = place.start("--wait", "60s", prelude=behind).end()
    assert ended.status == 0, ended.err
    assert f"took over the lease of ingest (process {killed.process.pid} on elsewhere" in ended.err
    assert_undisturbed(place)


def test_a_machine_a_day_behind_respects_who_renews(place: HeldPlace, tmp_path: Path) -> None:
    """It waits for longer than a lease lasts, and still does not take what is alive."""
    (tmp_path / "offset").write_text(str(-DAY_S))
    with place.start_held(prelude=ELSEWHERE) as holder:
        ended = place.start("--wait", f"{2 * TTL_S}s", prelude=SHORT + clock(tmp_path / "offset")).end()
        assert ended.status == 7, ended.err
        place.models.gate.set()
        assert holder.end().status == 0
    assert_undisturbed(place)


@JUMPS
def test_a_clock_that_jumps_under_the_holder(place: HeldPlace, tmp_path: Path, jump: int) -> None:
    """It goes on renewing, and ends as if nothing had been."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    with place.start_held(prelude=lasting(8) + clock(offset)) as holder:
        expires = lease_of(place)["expires"]
        (tmp_path / "later").write_text(str(jump))
        (tmp_path / "later").replace(offset)
        until(lambda: abs(lease_of(place)["expires"] - expires) > DAY_S / 2, "a heartbeat by the new clock")
        place.models.gate.set()
        ended = holder.end()
    assert ended.status == 0, ended.err
    assert lease_of(place)["expires"] == 0.0  # given back
    assert_undisturbed(place)
