"""One run at a time: who holds the lease works, everybody else is told, nobody waits for the dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from ragctl import lease as lease_module
from ragctl.errors import LeaseHeld, LeaseLost
from ragctl.lease import Holder, acquire, decode, held_by, hold
from ragctl.process import Process
from ragctl.state import LocalState

NAME = "papers/lease.json"


@pytest.fixture
def state(tmp_path: Path) -> LocalState:
    return LocalState(tmp_path)


def leave(state: LocalState, **facts: object) -> None:
    """A lease as somebody else left it."""
    holder = {
        **asdict(Holder("x", 4, "elsewhere", 1, "99", "ingest", time.time() + 1_000)),
        **facts,
    }
    state.overwrite(NAME, json.dumps(holder).encode())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.01)


def test_the_second_run_is_told_who_holds_the_lease(state: LocalState) -> None:
    """It ends with exit 7, at once."""
    with hold(state, NAME, "ingest"), pytest.raises(LeaseHeld) as caught:
        acquire(state, NAME, "ingest", wait_s=0)
    assert caught.value.exit_status == 7
    assert f"another run holds the lease on this index: ingest (process {os.getpid()}" in caught.value.message


def test_a_lease_that_was_given_back_is_free(state: LocalState) -> None:
    """Each holder's fence is greater than the one before."""
    with hold(state, NAME, "ingest") as first:
        pass
    with hold(state, NAME, "ingest") as second:
        assert second.fence == first.fence + 1


def test_a_lease_that_cannot_be_given_back_does_not_keep_its_own_process_out(state: LocalState) -> None:
    """A full disk: what this process does next, with room or without, meets no lease but that of others."""
    lock = state.folder / ".lock"
    with hold(state, NAME, "deploy-models"):
        lock.unlink()
        lock.mkdir()
    assert held_by(state, NAME) is None
    lock.rmdir()
    with hold(state, NAME, "teardown"):
        assert held_by(state, NAME) is not None


def test_a_waiting_run_gets_the_lease_when_it_is_given_back(state: LocalState) -> None:
    """--wait outlasts the run before."""
    first = acquire(state, NAME, "ingest", wait_s=0)
    threading.Timer(0.2, first.release).start()
    second = acquire(state, NAME, "ingest", wait_s=30)
    assert second.fence == first.fence + 1
    second.release()


def test_an_expired_lease_is_taken_over(state: LocalState) -> None:
    """A machine that vanished does not block the index for ever."""
    leave(state, expires=time.time() - 1)
    with hold(state, NAME, "ingest", ttl_s=1.2) as lease:  # which is how long it is looked at: see below
        assert lease.fence == 5


def test_a_lease_that_expired_long_ago_is_taken_over_at_once(state: LocalState) -> None:
    """No two clocks are so far apart."""
    begun = time.monotonic()
    leave(state, expires=time.time() - 901)
    with hold(state, NAME, "ingest") as lease:
        assert lease.fence == 5
    assert time.monotonic() - begun < 10


def test_a_lease_that_has_just_expired_is_looked_at_first(state: LocalState) -> None:
    """It may be our clock that is ahead: for a third of the time that a lease lasts nobody must renew it."""
    begun = time.monotonic()
    leave(state, expires=time.time() - 899)
    with hold(state, NAME, "ingest", ttl_s=1.2) as lease:
        assert lease.fence == 5
    assert time.monotonic() - begun >= 0.4


def test_a_live_holder_whose_clock_is_behind_keeps_its_lease(state: LocalState) -> None:
    """What it writes has always expired by our clock; that it writes says that it is alive."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            leave(state, expires=time.time() - 300)

    leave(state, expires=time.time() - 300)
    holder = threading.Thread(target=renew)
    holder.start()
    try:
        for wait_s in (0.0, 1.5):
            with pytest.raises(LeaseHeld):
                acquire(state, NAME, "ingest", wait_s=wait_s, ttl_s=3.0)
    finally:
        ended.set()
        holder.join()
    with hold(state, NAME, "ingest", ttl_s=1.2) as lease:  # now that it is silent
        assert lease.fence == 5


def test_a_lease_of_another_machine_is_respected(state: LocalState) -> None:
    """Its processes cannot be looked at, so only its time counts."""
    leave(state)
    with pytest.raises(LeaseHeld):
        acquire(state, NAME, "ingest", wait_s=0)


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_over_at_once(state: LocalState) -> None:
    """Cron need not wait for the lease of a run that was killed."""
    code = (
        "import sys, time, pathlib\n"
        "from ragctl.lease import acquire\n"
        "from ragctl.state import LocalState\n"
        f"acquire(LocalState(pathlib.Path(sys.argv[1])), {NAME!r}, 'ingest', wait_s=0)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(state.folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeld):
        acquire(state, NAME, "ingest", wait_s=0)
    found = state.read(NAME)
    killed = decode(found.data) if found else None
    assert killed is not None
    child.kill()
    child.wait()
    child.stdout.close()
    with hold(state, NAME, "ingest") as lease:
        assert lease.fence == killed.fence + 1


def test_a_reused_process_number_is_not_taken_for_the_holder(state: LocalState) -> None:
    """The start time of the process counts too."""
    leave(state, host=socket.gethostname(), pid=os.getpid(), started="1")
    with hold(state, NAME, "ingest") as lease:
        assert lease.fence == 5


def test_a_process_of_another_container_is_not_taken_for_dead(state: LocalState) -> None:
    """Containers may share a host name; a process that we do not see may be alive in the other one."""
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started": "1"}
    leave(state, **here, space="another boot pid:[4026531836]")
    with pytest.raises(LeaseHeld):
        acquire(state, NAME, "ingest", wait_s=0)
    leave(state, **here, space=Process.ourselves().space)
    with hold(state, NAME, "ingest") as lease:
        assert lease.fence == 5


def test_a_lease_says_where_its_process_can_be_seen(state: LocalState) -> None:
    """The boot of the kernel, for every machine has the same first namespace, and the namespace."""
    with hold(state, NAME, "ingest"):
        found = state.read(NAME)
    holder = decode(found.data) if found else None
    assert holder is not None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert holder.space == f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def test_a_run_that_is_told_to_stop_waits_no_longer(state: LocalState) -> None:
    """A signal while it waits ends it; before, it takes a lease that is free."""
    with hold(state, NAME, "ingest", stopping=lambda: True):
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            acquire(state, NAME, "ingest", wait_s=600, stopping=lambda: time.monotonic() > begun + 0.3)
        assert time.monotonic() - begun < 5


def test_a_run_that_is_told_to_stop_does_not_take_what_becomes_free(
    state: LocalState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what was given back at the same moment."""
    first = acquire(state, NAME, "ingest", wait_s=0)
    told = threading.Event()

    def give_back(*_: object) -> None:
        first.release()
        told.set()

    monkeypatch.setattr(lease_module, "_sleep", give_back)
    with pytest.raises(KeyboardInterrupt):
        acquire(state, NAME, "ingest", wait_s=600, stopping=told.is_set)
    found = state.read(NAME)
    holder = decode(found.data) if found else None
    assert holder is not None
    assert (holder.fence, holder.expires) == (first.fence, 0.0)


def test_a_heartbeat_keeps_the_lease(state: LocalState) -> None:
    """A run longer than the lease does not lose it."""
    lease = acquire(state, NAME, "ingest", wait_s=0, ttl_s=0.4)
    found = state.read(NAME)
    assert found is not None
    first = decode(found.data)
    assert first is not None

    def renewed() -> bool:
        now = state.read(NAME)
        holder = decode(now.data) if now else None
        return holder is not None and holder.expires > first.expires

    until(renewed)
    lease.check()
    lease.release()


def test_a_holder_that_slept_past_its_time_is_told(
    state: LocalState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops before it writes, also when no heartbeat came through."""
    lease = acquire(state, NAME, "ingest", wait_s=0)
    now = lease_module._clock()
    monkeypatch.setattr(lease_module, "_clock", lambda: now + 61)
    with pytest.raises(LeaseLost, match="was lost: this run was paused for longer than 60 s"):
        lease.check()


def test_a_lease_that_was_taken_over_is_lost(state: LocalState) -> None:
    """The heartbeat notices, and giving back does not touch the new holder's lease."""
    lease = acquire(state, NAME, "ingest", wait_s=0, ttl_s=0.4)
    leave(state, fence=9)

    def lost() -> bool:
        try:
            lease.check()
        except LeaseLost:
            return True
        return False

    until(lost)
    lease.release()
    found = state.read(NAME)
    assert found is not None
    holder = decode(found.data)
    assert holder is not None
    assert (holder.fence, holder.expires > time.time()) == (9, True)


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "removed"])
def test_a_lease_whose_file_is_lost_counts_as_none(state: LocalState, damaged: bool) -> None:
    """Half a file from a dying disk locks nobody out, and the new holder's fence is still above all before."""
    with hold(state, NAME, "ingest") as before:
        pass
    if damaged:
        state.overwrite(NAME, b'{"id": "x", "fen')
    else:
        state.delete(NAME)
    with hold(state, NAME, "ingest") as lease:
        assert lease.fence >= before.fence


@pytest.mark.parametrize(
    "facts",
    [
        {"expires": 1e300},
        {"expires": 253_402_300_800},
        {"expires": float("inf")},
        {"expires": float("nan")},
        {"expires": -1},
        {"expires": "tomorrow"},
        {"expires": None},
        {"fence": "4"},
        {"pid": None},
        {"host": 7},
        {"colour": "red"},
    ],
    ids=str,
)
def test_a_lease_that_nobody_wrote_like_this_counts_as_none(
    state: LocalState, facts: dict[str, object]
) -> None:
    """It is damaged: it neither locks anybody out nor brings a run down."""
    leave(state, **facts)
    assert held_by(state, NAME) is None
    before = int(time.time() * 1_000)
    with hold(state, NAME, "ingest") as lease:
        assert before <= lease.fence <= int(time.time() * 1_000)


def test_a_lease_until_the_last_day_is_told(state: LocalState) -> None:
    """A clock may be far ahead; what it says can still be printed."""
    leave(state, expires=253_402_300_799.0)
    with pytest.raises(LeaseHeld, match=r"until 9999-12-31 23:59:59 UTC unless renewed"):
        acquire(state, NAME, "ingest", wait_s=0)


# --- a ledger that has seen more than the lease's file says ----------------------------------------------


def test_a_fence_is_raised_above_what_the_ledger_has_seen(state: LocalState) -> None:
    """The next holder's is above it, too."""
    with hold(state, NAME, "ingest") as lease:
        before = lease.fence
        assert lease.fence_above(before - 1) == before
        assert lease.fence_above(before + 99) == before + 100
        lease.check()
        found = state.read(NAME)
        holder = decode(found.data) if found else None
        assert holder is not None
        assert (holder.fence, holder.expires > time.time()) == (before + 100, True)
    with hold(state, NAME, "ingest") as after:
        assert after.fence == before + 101


def test_a_fence_is_not_raised_above_that_of_who_took_over(state: LocalState) -> None:
    """A holder that slept past its time sees a greater fence in the ledger, and learns why."""
    lease = acquire(state, NAME, "ingest", wait_s=0)
    leave(state, fence=lease.fence + 1)
    theirs = state.read(NAME)
    with pytest.raises(LeaseLost, match="another run took over this index while this one was paused"):
        lease.fence_above(lease.fence + 1)
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    assert state.read(NAME) == theirs
