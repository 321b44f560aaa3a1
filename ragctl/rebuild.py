"""The ledger from the index alone: every chunk names its document, so what is there can be read back.

It is made beside the old one and takes its place whole, so whatever ends a rebuild leaves the one or the other.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ragctl import indexes
from ragctl.errors import RagctlError
from ragctl.ingest import list_sources
from ragctl.lease import hold
from ragctl.manifest import DocumentRow, FileRow, Ledger, fence_seen, replace_ledger
from ragctl.planning import Listing
from ragctl.records import DOCUMENT, START
from ragctl.remote_ledger import RemoteLedger
from ragctl.scratch import scratch_folder
from ragctl.state import LocalState, lease_name, ledger_name
from ragctl.tenancy import Registry, has_index_each
from ragctl.tenants import indexes_wanted

if TYPE_CHECKING:
    from ragctl.adapters.base import VectorStore
    from ragctl.config import Experiment
    from ragctl.lease import Lease
    from ragctl.state import State

log = logging.getLogger("ragctl.rebuild")

BATCH = 5_000  # documents that are saved at once


def rebuild(experiment: Experiment, state: State, *, dry_run: bool) -> tuple[int, int]:
    """Make the index's ledger anew; how many documents and chunks it then holds.

    What the index cannot tell (content hashes, sizes, settings) is left open, so the next ingest reads every file, finds
    the chunks in place and embeds only what is missing.
    """
    with closing(_listing(experiment, state)) as listing:
        listed = {file.id for file in listing}
        wanted = indexes_wanted(experiment, state, enter=not dry_run, listing=listing)
    may_lack = has_index_each(experiment)
    each = [
        _rebuild_index(one, state, listed, dry_run=dry_run)
        for one in wanted
        if not (may_lack and _is_absent(one))
    ]
    return sum(documents for documents, _ in each), sum(chunks for _, chunks in each)


def _listing(experiment: Experiment, state: State) -> Listing:
    """The files of the sources, which tell records from files with a # in their names; empty where they cannot be
    listed, unless nothing else says whose indexes there are.
    """
    try:
        return list_sources(experiment)
    except RagctlError as error:
        if has_index_each(experiment) and not Registry(experiment, state).tenants():
            raise
        log.warning("the sources cannot be listed, the ledger is made without them: %s", error.message)
        return Listing(experiment.tenancy.key if experiment.tenancy else None)


def _is_absent(experiment: Experiment) -> bool:
    if indexes.exists(experiment):
        return False
    log.warning("there is no index %s, so there is no ledger to make", experiment.store.index)
    return True


def _rebuild_index(
    experiment: Experiment, state: State, listed: set[str], *, dry_run: bool
) -> tuple[int, int]:
    from ragctl.adapters import open_store

    index = experiment.store.index
    with closing(open_store(experiment)) as store:
        info = indexes.require(store, index)
        if dry_run:
            return _Found(store).counts()
        with hold(state, lease_name(index), "ledger rebuild") as lease:
            found = _Found(store)  # under the lease, so that no ingest adds to what is read
            with _replacing(state, ledger_name(index), lease) as ledger:
                _fill(ledger, found, listed)
                ledger.set_meta(
                    embedder=info.embedder or "", dimension=str(info.dimension), created=info.created
                )
        return found.counts()


def _replacing(state: State, name: str, lease: Lease) -> AbstractContextManager[Ledger]:
    """A new ledger, which takes the place of the one of this name when the block ends well."""
    return _on_disk(state, name, lease) if isinstance(state, LocalState) else _in_bucket(state, name, lease)


@contextmanager
def _on_disk(state: LocalState, name: str, lease: Lease) -> Iterator[Ledger]:
    path, new = state.path(name), state.path(f"{name}.new")
    fence = lease.fence_above(fence_seen(path))
    for left in (new, Path(f"{new}-journal")):  # by a rebuild that was killed
        left.unlink(missing_ok=True)
    with closing(Ledger(new, fence=fence, place=str(path))) as ledger:
        yield ledger
    lease.check()
    replace_ledger(path, new, fence=fence)


@contextmanager
def _in_bucket(state: State, name: str, lease: Lease) -> Iterator[Ledger]:
    with scratch_folder() as folder:
        path = folder / "ledger.sqlite"
        with closing(RemoteLedger(state, name, path, lease, anew=True)) as ledger:
            yield ledger
            lease.check()
            ledger.publish(force=True)


def _fill(ledger: Ledger, found: _Found, listed: set[str]) -> None:
    files: dict[str, int] = {}
    batch: list[DocumentRow] = []
    for document, keys in found.documents():
        file = _file_of(document, listed)
        files[file] = files.get(file, 0) + 1
        batch.append(DocumentRow(document, file, "", "", keys, done=False))
        if len(batch) == BATCH:
            ledger.settle(batch, [], [])
            batch = []
    rows = [FileRow(file, 0, "", "", "", documents, done=False) for file, documents in files.items()]
    ledger.settle(batch, rows, [])


def _file_of(document: str, listed: set[str]) -> str:
    """The file of a document: itself, or what stands before the record id."""
    if document in listed or "#" not in document:
        return document
    cuts = [i for i, character in enumerate(document) if character == "#"]
    return next((document[:i] for i in cuts if document[:i] in listed), document[: cuts[0]])


class _Found:
    """What stands in the index, grouped by document in a temporary database that goes to disk when it is large."""

    def __init__(self, store: VectorStore) -> None:
        self._db = sqlite3.connect("")
        self._db.execute("CREATE TABLE chunks (document TEXT, start INTEGER, key TEXT)")
        rows = (
            (str(record.metadata.get(DOCUMENT, "")), record.metadata.get(START, 0), record.key)
            for record in store.scan()
        )
        self._db.executemany("INSERT INTO chunks VALUES (?, ?, ?)", rows)

    def counts(self) -> tuple[int, int]:
        row = self._db.execute("SELECT count(DISTINCT document), count(*) FROM chunks").fetchone()
        return int(row[0]), int(row[1])

    def documents(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each document with its keys in the order of its text."""
        document, keys = None, list[str]()
        for name, key in self._db.execute("SELECT document, key FROM chunks ORDER BY document, start, key"):
            if name != document and document is not None:
                yield document, tuple(keys)
                keys = []
            document = name
            keys.append(key)
        if document is not None:
            yield document, tuple(keys)
