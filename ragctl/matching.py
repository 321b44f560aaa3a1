"""Whether an index still holds what its ledger says: cheaply at the start of every run, key by key where it does not.

A run that was killed may have had calls to a service under way, which arrive after the next run has cleaned up. What that
run found to clean up is therefore looked at once more by the first run after a while.

An index that was emptied, replaced or put back from a backup is told by when it was made, by its version where the store
keeps one, which is then another one than the last run has left, and by a look at a few keys, other ones in every run.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ragctl.errors import Refused

if TYPE_CHECKING:
    from ragctl.adapters.base import IndexInfo, VectorStore
    from ragctl.manifest import Ledger

log = logging.getLogger("ragctl.ingest")

# After which no call of a run that died arrives any more: a client gives one up after a minute
LATE_S: Final = 300.0
PROBED_KEYS: Final = 100  # looked up by every run: one call on every store
REBUILD: Final = "if state: names the right place, make the ledger anew: ragctl ledger rebuild CONFIG"
# Set in the ledger from when the two were found to differ until they agree again
UNMATCHED: Final = "unmatched"
VERSION: Final = "index_version"  # in the ledger: that of the index as the last run has left it


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How an index differs from its ledger. `lost`: some of what the ledger knows is not there; it will be put again.

    `strays`: keys of the index that no document of the ledger has. `compared`: all keys were looked at.
    """

    compared: bool = False
    lost: bool = False
    strays: tuple[str, ...] = ()


def is_filled(ledger: Ledger) -> bool:
    """Whether an ingest or a rebuild has ever worked on it; else nothing that it lacks says anything of the index."""
    return ledger.meta("created") is not None


def is_lost(ledger: Ledger, store: VectorStore, info: IndexInfo | None) -> bool:
    """Whether the index holds chunks and the ledger was never filled: it is lost, or is another one's."""
    return info is not None and not is_filled(ledger) and next(store.keys(), None) is not None


def refuse_lost_ledger(ledger: Ledger, store: VectorStore, info: IndexInfo | None) -> None:
    """Raise Refused where `is_lost`."""
    if info is not None and is_lost(ledger, store, info):
        raise Refused(
            f"index {info.name} holds chunks, but there is no whole ledger of it ({ledger.place})",
            hint=REBUILD,
        )


def warn_unless_filled(ledger: Ledger, index: str) -> bool:
    """Say that what the ledger lacks is unknown rather than absent, for a command that does not look at the index;
    whether it is filled.
    """
    if not is_filled(ledger):
        log.warning(
            "nothing was ever ingested into %s, or its ledger is lost (%s); then: ragctl ledger rebuild CONFIG",
            index,
            ledger.place,
        )
    return is_filled(ledger)


def match(ledger: Ledger, store: VectorStore, info: IndexInfo | None, max_strays: float) -> Mismatch:
    """Hold the index against its ledger and have the next plan do again what was lost.

    `info` is what the index is like, None where there is none. Raises Refused when more than the share `max_strays`
    of what the index holds is unknown to the ledger, which then is an old or a wrong one.
    """
    if not is_filled(ledger):
        return Mismatch()
    if info is None:
        return _all_lost(ledger)
    if _seems_whole(ledger, store, info):
        return Mismatch()
    with keys_of(ledger, store) as keys:
        strays, total = keys.strays(), keys.in_index()
        if len(strays) > max_strays * total:
            raise Refused(
                f"{len(strays):,} of the {total:,} chunks in index {info.name} are unknown to its ledger "
                f"({ledger.place}), more than the {max_strays:.0%} that one run may remove; nothing was changed",
                hint=f"{REBUILD}; if they are to go: ragctl ingest CONFIG --max-delete 1.0",
            )
        lost = keys.files_that_lack_some()
    if not (lost or strays):
        return Mismatch(compared=True)
    if lost:
        log.warning("index %s has lost chunks that the ledger knows: they are put again", info.name)
    if strays:
        log.warning("index %s holds %d chunks that no document has: they are removed", info.name, len(strays))
    ledger.set_meta(**{UNMATCHED: "yes"})
    ledger.invalidate(lost)
    return Mismatch(compared=True, lost=bool(lost), strays=tuple(strays))


def look_again(ledger: Ledger, store: VectorStore, info: IndexInfo) -> bool:
    """Note what a run that died had under way; and once its calls cannot come any more, have what they have put deleted,
    and what they have deleted put again. Whether there was any of the latter.
    """
    if info.version is not None:  # an embedded index: its calls die with their run
        return False
    if ledger.loose(1):
        ledger.expect_late_calls(str(time.time()))
        return False
    doubtful = frozenset(ledger.late())
    waited = time.time() - float(ledger.meta("late_since") or 0)
    if not doubtful or 0 <= waited < LATE_S:  # less than 0: the clock was set back
        return False
    keys, size = sorted(doubtful), store.limits.get_keys
    there = {key for first in range(0, len(keys), size) for key in store.get(keys[first : first + size])}
    vouched = {key: row.file for row in ledger.documents() for key in doubtful.intersection(row.keys)}
    lost = {file for key, file in vouched.items() if key not in there}
    strays = there - vouched.keys()
    if lost or strays:
        log.warning(
            "calls of a run that was killed came late: %d chunks are removed, %d files are put again",
            len(strays),
            len(lost),
        )
    ledger.invalidate(lost)
    ledger.loosen(strays)
    ledger.expect_none_late()
    return bool(lost)


def leave(ledger: Ledger, store: VectorStore) -> None:
    """At the end of a run: remember the version of the index that it leaves."""
    info = store.describe()
    if info is not None and info.version is not None:
        ledger.set_meta(**{VERSION: info.version})


def settle(ledger: Ledger, store: VectorStore) -> None:
    """After a whole run: what the index holds and still no document has is loose, to be deleted."""
    if ledger.meta(UNMATCHED):
        with keys_of(ledger, store) as keys:
            ledger.loosen(keys.strays())
        ledger.set_meta(**{UNMATCHED: ""})


def _all_lost(ledger: Ledger) -> Mismatch:
    lost = {row.file for row in ledger.documents() if row.keys}
    if lost:
        log.warning("the index is gone since the last run: everything is put again")
        ledger.invalidate(lost)
    return Mismatch(lost=bool(lost))


def _seems_whole(ledger: Ledger, store: VectorStore, info: IndexInfo) -> bool:
    if ledger.meta(UNMATCHED):
        return False
    if ledger.meta("created") != info.created:
        log.warning("the index was made anew, or is another one, since the last run: its keys are compared")
        return False
    if info.version not in (None, ledger.meta(VERSION)):
        return False
    probe = ledger.sample_keys(min(PROBED_KEYS, store.limits.get_keys))
    return len(store.get(probe)) == len(probe)


class Keys:
    """The keys of a ledger and of its index, in a temporary database that goes to disk when it is large."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def only_in_ledger(self) -> list[str]:
        """Keys that the index lacks."""
        return self._read("SELECT key FROM known EXCEPT SELECT key FROM there")

    def only_in_index(self) -> list[str]:
        """Keys that no document of the ledger has."""
        return self._read("SELECT key FROM there EXCEPT SELECT key FROM known")

    def strays(self) -> list[str]:
        """Those of them that the ledger does not know to be loose either."""
        return self._read("SELECT key FROM there EXCEPT SELECT key FROM known EXCEPT SELECT key FROM loose")

    def files_that_lack_some(self) -> list[str]:
        """The ledger's files of which the index lacks a chunk."""
        return self._read(
            "SELECT DISTINCT file FROM known WHERE NOT EXISTS (SELECT 1 FROM there WHERE there.key = known.key)"
        )

    def in_index(self) -> int:
        """How many keys the index has."""
        return int(self._db.execute("SELECT count(*) FROM there").fetchone()[0])

    def _read(self, query: str) -> list[str]:
        return [row[0] for row in self._db.execute(query)]


@contextmanager
def keys_of(ledger: Ledger, store: VectorStore) -> Iterator[Keys]:
    """All keys of both, listed and read once."""
    with closing(sqlite3.connect("")) as db:
        db.execute("CREATE TABLE known (key TEXT PRIMARY KEY, file TEXT) WITHOUT ROWID")
        db.execute("CREATE TABLE there (key TEXT PRIMARY KEY) WITHOUT ROWID")
        db.execute("CREATE TABLE loose (key TEXT PRIMARY KEY) WITHOUT ROWID")
        known = ((key, row.file) for row in ledger.documents() for key in row.keys)
        db.executemany("INSERT OR IGNORE INTO known VALUES (?, ?)", known)
        db.executemany("INSERT OR IGNORE INTO there VALUES (?)", ((key,) for key in store.keys()))
        db.executemany("INSERT INTO loose VALUES (?)", ((key,) for key in ledger.loose(-1)))
        yield Keys(db)
