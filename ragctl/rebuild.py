"""The ledger from the index alone: every chunk names its document, so what is there can be read back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ragctl import indexes
from ragctl.ingest import lease_name, ledger_name, list_sources, writing_ledger
from ragctl.lease import hold
from ragctl.manifest import DocumentRow, FileRow
from ragctl.records import DOCUMENT, START
from ragctl.tenants import indexes_wanted

if TYPE_CHECKING:
    from ragctl.adapters.base import VectorStore
    from ragctl.config import Experiment
    from ragctl.manifest import Ledger
    from ragctl.state import State

BATCH = 5_000  # documents that are saved at once


def rebuild(experiment: Experiment, state: State, *, dry_run: bool) -> tuple[int, int]:
    """Make the index's ledger anew; how many documents and chunks it then holds.

    What the index cannot tell (content hashes, sizes, settings) is left open, so the next ingest reads every file, finds
    the chunks in place and embeds only what is missing.
    """
    each = [
        _rebuild_index(one, state, dry_run=dry_run)
        for one in indexes_wanted(experiment, state, enter=not dry_run)
    ]
    return sum(documents for documents, _ in each), sum(chunks for _, chunks in each)


def _rebuild_index(experiment: Experiment, state: State, *, dry_run: bool) -> tuple[int, int]:
    from ragctl.adapters import open_store

    store = open_store(experiment)
    try:
        info = indexes.require(store, experiment.store.index)
        found = _Found(store)
        if not dry_run:
            index = experiment.store.index
            with hold(state, lease_name(index), "ledger rebuild") as lease:
                state.delete(ledger_name(index))
                with writing_ledger(state, index, lease, anew=True) as ledger:
                    _fill(ledger, found, {file.id for file in list_sources(experiment)})
                    ledger.set_meta(
                        embedder=info.embedder or "", dimension=str(info.dimension), created=info.created
                    )
        return found.counts()
    finally:
        store.close()


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
