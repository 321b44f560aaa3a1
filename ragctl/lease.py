"""One run at a time per index: a lease with a fencing token, kept alive by a heartbeat, taken over when it expires.

The lease is a small file in the state location, changed only by conditional writes. Every holder's `fence` is greater
than that of all before it; the ledger refuses a write with a fence lower than the one it has seen (manifest.py), so a
holder that slept past its time cannot write when it wakes, whatever its clock says.

The fence guards the ledger, the heartbeat alone what goes into the store. So a lease whose holder may be alive is not
taken on the word of two clocks that need not agree: it is watched for as long as a heartbeat takes.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

from ragctl.errors import LeaseHeld, LeaseLost, RagctlError
from ragctl.process import Process
from ragctl.state import Conflict, State

log = logging.getLogger("ragctl.lease")

TTL_S = 60.0  # a holder that has been silent for so long has lost it
BEATS = 4  # renewals in that time
SKEW_S = 900.0  # by which clocks may differ: S3 refuses the requests of one that is off by more
YEAR_10000_S = 253_402_300_800.0  # the first moment that no calendar here knows
_let_go: set[str] = set()  # leases of this process that it gave back, though their files still say otherwise
POLL_S = 0.1  # how soon a run that waits notices that it is told to stop


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease. `expires`: seconds since the epoch, by the holder's clock."""

    id: str
    fence: int
    host: str
    pid: int
    started: str  # start time of the process, so that a reused pid is not taken for it
    command: str
    expires: float
    space: str = ""  # in which its pid means something, see `Process`

    def __post_init__(self) -> None:
        """Raise ValueError for what no holder has ever written."""
        texts = (self.id, self.host, self.started, self.command, self.space)
        numbers = (self.fence, self.pid)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int) for n in numbers):
            raise ValueError("a lease of other types")
        if not 0 <= self.expires < YEAR_10000_S:  # which NaN is not, either; a text is a TypeError
            raise ValueError(f"a lease until {self.expires}")

    @property
    def process(self) -> Process:
        return Process(self.host, self.pid, self.started, self.space)

    def __str__(self) -> str:
        until = datetime.fromtimestamp(self.expires, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"{self.command} (process {self.pid} on {self.host}, until {until} UTC unless renewed)"


class Lease:
    """A lease that we hold. `check()` before every write; `fence` goes with every save of the ledger."""

    def __init__(self, state: State, name: str, holder: Holder, version: str, ttl_s: float) -> None:
        self._state = state
        self._name = name
        self._holder = holder
        self._version = version
        self._ttl_s = ttl_s
        self._renewed = _clock()
        self._writing = threading.Lock()  # the heartbeat and the run do not write at once
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> int:
        return self._holder.fence

    def check(self) -> None:
        """Raise LeaseLost unless the lease is surely still ours."""
        if self._lost or _clock() - self._renewed > self._ttl_s:
            raise LeaseLost(
                f"the lease {self._state.place}/{self._name} was lost: this run was paused for longer than "
                f"{self._ttl_s:.0f} s or cannot reach the state location",
                hint="what is saved is consistent; run the command again",
            )

    def fence_above(self, seen: int) -> int:
        """Our fence, made greater than one that the ledger has seen: the lease's file was lost after a holder whose
        clock was ahead. Raises LeaseLost.

        It is made so by a write that succeeds only while nobody has taken the lease over; so a holder that slept past
        its time stays below whoever did.
        """
        if seen >= self.fence:
            with self._writing:
                try:
                    self._save(replace(self._holder, fence=seen + 1, expires=time.time() + self._ttl_s))
                except Conflict as error:
                    self._lost = True
                    raise LeaseLost(
                        "another run took over this index while this one was paused",
                        hint="what is saved is consistent; run the command again",
                    ) from error
        return self.fence

    def release(self) -> None:
        """Give it back; a lease that somebody took over is left alone."""
        self._stop.set()
        self._thread.join()
        if self._lost:
            return
        try:
            self._save(replace(self._holder, expires=0.0))
        except (Conflict, RagctlError) as error:
            _let_go.add(self._holder.id)
            log.warning("lease not given back, it will expire: %s", error)

    def remove(self) -> None:
        """Give it back with its file, where what it guarded is gone; `release` has nothing more to do then."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            self._state.delete(self._name)
            self._lost = True

    def _beat(self) -> None:
        while not self._stop.wait(self._ttl_s / BEATS):
            with self._writing:
                self._renew()

    def _renew(self) -> None:
        before = _clock()  # the time that counts is from before the write reached anybody
        try:
            self._save(replace(self._holder, expires=time.time() + self._ttl_s))
        except Conflict:
            self._lost = True
            self._stop.set()
            return
        except RagctlError as error:
            log.warning("lease not renewed, trying again: %s", error)
            return
        self._renewed = before

    def _save(self, holder: Holder) -> None:
        """Write our lease anew. Raises Conflict where somebody else's stands there, or none."""
        try:
            version = self._state.write(self._name, _encode(holder), expect=self._version)
        except Conflict:
            # a renewal may have got there of which all that we heard is that the state location cannot be reached
            found = self._state.read(self._name)
            current = decode(found.data) if found else None
            if found is None or current is None or current.id != holder.id:
                raise
            version = self._state.write(self._name, _encode(holder), expect=found.version)
        self._holder, self._version = holder, version


def _never() -> bool:
    return False


@contextmanager
def hold(
    state: State,
    name: str,
    command: str,
    *,
    wait_s: float = 0.0,
    ttl_s: float = TTL_S,
    stopping: Callable[[], bool] = _never,
) -> Iterator[Lease]:
    """Hold the lease `name` for the length of a block.

    Raises LeaseHeld when somebody else holds it and does not let go within `wait_s` seconds, and KeyboardInterrupt
    when `stopping` says, while we wait, that somebody else took a signal for us.
    """
    lease = acquire(state, name, command, wait_s=wait_s, ttl_s=ttl_s, stopping=stopping)
    try:
        yield lease
    finally:
        lease.release()


def acquire(
    state: State,
    name: str,
    command: str,
    *,
    wait_s: float,
    ttl_s: float = TTL_S,
    stopping: Callable[[], bool] = _never,
) -> Lease:
    """The lease, free, expired or left behind by a dead process on this machine; see `hold`.

    Clocks may be wrong: a lease that nobody has renewed for `ttl_s` seconds under our eyes has expired whatever it
    says, and one that seems to have expired just now is looked at for a third of that, with `wait_s` or without.
    """
    begun = _clock()
    version, since, is_renewed, told = None, begun, False, False
    while True:
        found = state.read(name)
        if told and stopping():
            raise KeyboardInterrupt
        current = decode(found.data) if found else None
        if found and found.version != version:
            is_renewed = version is not None
            version, since = found.version, _clock()
        patience = 0.0 if current is None else _patience(current, ttl_s, is_renewed=is_renewed)
        watched, waited = _clock() - since, _clock() - begun
        if watched >= patience:
            holder = _ourselves(command, fence=_next_fence(current), ttl_s=ttl_s)
            try:
                ours = state.write(name, _encode(holder), expect=found.version if found else None)
            except Conflict:
                continue
            if current is not None and current.expires > 0:
                log.warning("took over the lease of %s", current)
            return Lease(state, name, holder, ours, ttl_s)
        if waited >= wait_s and patience == ttl_s:  # where it is less, we shall know in a moment
            raise LeaseHeld(
                f"another run holds the lease on this index: {current}",
                hint="wait for it with --wait 10m; it is taken over by itself once it expires",
            )
        if not told:
            log.warning("waiting for the lease of %s", current)
            told = True
        left = patience - watched if waited >= wait_s else min(patience - watched, wait_s - waited)
        _sleep(min(1.0, max(0.05, left)), stopping)


def _sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    """Wait, unless we are told to stop. In small pieces: to wait for a threading.Event would lock it against the
    handler of a signal, which runs in this thread and sets it.
    """
    until = time.monotonic() + seconds
    while not stopping() and (left := until - time.monotonic()) > 0:
        time.sleep(min(POLL_S, left))


def held_by(state: State, name: str) -> Holder | None:
    """Who holds the lease `name` just now; None: nobody."""
    found = state.read(name)
    current = decode(found.data) if found else None
    return None if current is None or _is_over(current) or _is_free(current) else current


def decode(data: bytes) -> Holder | None:
    """The holder in a lease file; None where the file is damaged, which counts as no lease."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _next_fence(before: Holder | None) -> int:
    """Greater than every earlier holder's, also where the lease's file was removed or damaged: milliseconds grow
    faster than one run after the other counts.
    """
    return before.fence + 1 if before else int(time.time() * 1_000)


def _ourselves(command: str, *, fence: int, ttl_s: float) -> Holder:
    return Holder(
        id=uuid4().hex,
        fence=fence,
        command=command,
        expires=time.time() + ttl_s,
        **asdict(Process.ourselves()),
    )


def _patience(holder: Holder, ttl_s: float, *, is_renewed: bool) -> float:
    """For how long we must have seen that nobody renews a lease before we may take it; `is_renewed`: we saw that."""
    if _is_free(holder):
        return 0.0
    if not _is_over(holder):
        return ttl_s
    if _is_here(holder):  # by the clock that is ours
        return 0.0
    if is_renewed:  # the holder is alive: it is our clock that is ahead
        return ttl_s
    return 0.0 if time.time() - holder.expires > SKEW_S else ttl_s / (BEATS - 1)


def _is_over(holder: Holder) -> bool:
    """Whether its time has passed, by our clock."""
    return holder.expires <= time.time()


def _is_here(holder: Holder) -> bool:
    """Whether the holder's pid is one that we can look up."""
    return holder.process.is_here


def _is_free(holder: Holder) -> bool:
    """Whether it was given back, or left behind."""
    return holder.expires == 0 or holder.id in _let_go or _is_dead(holder)


def _is_dead(holder: Holder) -> bool:
    """Whether we can see that its process is no more."""
    return holder.process.is_dead


def _clock() -> float:
    """Seconds that go on while the machine sleeps and that no clock change moves."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
