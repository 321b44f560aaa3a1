"""verify: source, ledger and index held against one another, and exactly what is off put right.

The keys of ledger and index are always compared in full. Content costs a parse (and for a few chunks an embedding), so
it is looked at for a sample of documents, or for all with `full`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ragctl import fingerprints, indexes, tenancy
from ragctl.errors import Refused
from ragctl.ingest import lease_name, list_sources, reading_ledger, writing_ledger
from ragctl.lease import hold
from ragctl.manifest import DocumentRow, Ledger
from ragctl.records import TEXT, short_hash, stem_of
from ragctl.tenants import strays
from ragctl.under_way import metadata_of
from ragctl.worker import Cut, Task, Workshop

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, VectorStore
    from ragctl.config import Experiment
    from ragctl.planning import Listing
    from ragctl.state import State

log = logging.getLogger("ragctl.verify")

SAMPLE = 200  # documents whose content is looked at unless told otherwise
EMBEDDED = 32  # chunks that are embedded again, to see whether the vectors are of this embedder
SAME = 0.99  # cosine similarity at least, of one text embedded twice by one embedder; services round


@dataclass(slots=True)
class Drift:
    """What is off. Keys are chunks', ids documents'."""

    documents: int = 0  # in the ledger
    chunks: int = 0
    looked_at: int = 0  # documents whose content was compared
    missing: list[str] = field(default_factory=list)  # keys that the ledger has and the index has not
    orphaned: list[str] = field(default_factory=list)  # keys that the index has and no document claims
    stale: list[str] = field(default_factory=list)  # files that changed, came or went since the last ingest
    wrong_metadata: list[str] = field(
        default_factory=list
    )  # keys whose text or metadata is not the document's
    wrong_vector: list[str] = field(default_factory=list)  # keys whose vector is not the embedder's
    failed: list[str] = field(default_factory=list)  # documents that are in the queue of failures
    index: list[str] = field(default_factory=list)  # differences between the index and the experiment
    parts: list[tuple[Experiment, Drift]] = field(default_factory=list)  # where each tenant has an index

    def add(self, experiment: Experiment, part: Drift) -> None:
        """Take in what is off in one of several indexes."""
        self.parts.append((experiment, part))
        self.index += [f"{experiment.store.index}: {difference}" for difference in part.index]
        for name in ("documents", "chunks", "looked_at"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        for name in ("missing", "orphaned", "stale", "wrong_metadata", "wrong_vector", "failed"):
            getattr(self, name).extend(getattr(part, name))

    @property
    def is_clean(self) -> bool:
        return not any(
            (
                self.missing,
                self.orphaned,
                self.stale,
                self.wrong_metadata,
                self.wrong_vector,
                self.failed,
                self.index,
            )
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "ragctl.verify/1",
            "clean": self.is_clean,
            "documents": self.documents,
            "chunks": self.chunks,
            "looked_at": self.looked_at,
            "missing": self.missing,
            "orphaned": self.orphaned,
            "stale": self.stale,
            "wrong_metadata": self.wrong_metadata,
            "wrong_vector": self.wrong_vector,
            "failed": self.failed,
            "index": self.index,
        }


def verify(experiment: Experiment, state: State, *, sample: int | None) -> Drift:
    """Compare source, ledger and index; nothing is changed. `sample`: documents to look into, None for all."""
    listing = list_sources(experiment)
    try:
        if not tenancy.has_index_each(experiment):
            return _verify_index(experiment, state, listing, sample)
        whole = Drift()
        known = tenancy.Registry(experiment, state).tenants()
        for tenant in known:
            one = tenancy.of_tenant(experiment, tenant)
            whole.add(one, _verify_index(one, state, listing.of(tenant), sample))
        for tenant in set(listing.tenants()).difference(known):
            whole.stale += [file.id for file in listing.of(tenant)]
        whole.failed += [failure.document for failure in strays(experiment, listing)]
        return whole
    finally:
        listing.close()


def _verify_index(experiment: Experiment, state: State, listing: Listing, sample: int | None) -> Drift:
    from ragctl.adapters import open_embedder, open_store

    embedder = open_embedder(experiment)
    store = open_store(experiment)
    drift = Drift()
    try:
        info = indexes.require(store, experiment.store.index)
        try:
            indexes.refuse_other_settings(info, indexes.spec_of(experiment, embedder))
        except Refused as error:
            drift.index = [line.strip() for line in error.message.splitlines()[1:]]
        with reading_ledger(state, experiment.store.index) as ledger:
            drift.documents, drift.chunks = ledger.counts()
            drift.failed = [failure.document for failure in ledger.failures()]
            _compare_keys(ledger, store, drift)
            current = _compare_files(experiment, ledger, listing, drift)
            chosen = _spread(current, sample)
            _compare_content(experiment, ledger, store, listing, chosen, drift)
            if not drift.index:
                _compare_vectors(ledger, store, embedder, drift)
    finally:
        store.close()
    return drift


def repair(experiment: Experiment, state: State, drift: Drift) -> None:
    """Delete what is orphaned or has a wrong vector, and have the next ingest look at every document that is off."""
    for one, its in drift.parts or [(experiment, drift)]:
        _repair_index(one, state, its)


def _repair_index(experiment: Experiment, state: State, drift: Drift) -> None:
    from ragctl.adapters import open_store

    index = experiment.store.index
    store = open_store(experiment)
    try:
        with (
            hold(state, lease_name(index), "verify --repair") as lease,
            writing_ledger(state, index, lease) as ledger,
        ):
            off = {*drift.missing, *drift.wrong_metadata, *drift.wrong_vector}
            ledger.invalidate({row.file for row in ledger.documents() if off.intersection(row.keys)})
            doomed = drift.orphaned + drift.wrong_vector
            for first in range(0, len(doomed), store.limits.delete_keys):
                lease.check()
                store.delete(doomed[first : first + store.limits.delete_keys])
    finally:
        store.close()


def _compare_keys(ledger: Ledger, store: VectorStore, drift: Drift) -> None:
    """Ledger against index, in a temporary database that goes to disk when it is large."""
    db = sqlite3.connect("")
    db.execute("CREATE TABLE known (key TEXT PRIMARY KEY) WITHOUT ROWID")
    db.execute("CREATE TABLE there (key TEXT PRIMARY KEY) WITHOUT ROWID")
    db.executemany("INSERT INTO known VALUES (?)", ((key,) for row in ledger.documents() for key in row.keys))
    db.executemany("INSERT OR IGNORE INTO there VALUES (?)", ((key,) for key in store.keys()))
    drift.missing = [row[0] for row in db.execute("SELECT key FROM known EXCEPT SELECT key FROM there")]
    drift.orphaned = [row[0] for row in db.execute("SELECT key FROM there EXCEPT SELECT key FROM known")]
    db.close()


def _compare_files(experiment: Experiment, ledger: Ledger, listing: Listing, drift: Drift) -> list[str]:
    """Source against ledger; the files that are as they were."""
    failed = {failure.file for failure in ledger.failures()}
    different = {step.id for step in listing.steps(ledger, fingerprints.of_sources(experiment))}
    drift.stale += sorted(different - failed)
    return [file.id for file in listing if file.id not in different]


def _spread(items: list[str], count: int | None) -> list[str]:
    """`count` of the items, evenly over all of them."""
    if count is None or count >= len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]


def _compare_content(
    experiment: Experiment,
    ledger: Ledger,
    store: VectorStore,
    listing: Listing,
    files: Iterable[str],
    drift: Drift,
) -> None:
    """What the index holds of these files against what they say now."""
    shop = Workshop(experiment, embeds=False)
    for file_id in files:
        rows = {row.id: row for row in ledger.documents(file_id)}
        for item in shop.work(Task(listing.file(file_id))):
            if isinstance(item, Cut) and item.document in rows:
                drift.looked_at += 1
                _compare_document(experiment, rows[item.document], item, store, drift)


def _compare_document(
    experiment: Experiment, row: DocumentRow, cut: Cut, store: VectorStore, drift: Drift
) -> None:
    if row.keys != cut.keys:
        drift.stale.append(row.id)
        return
    found = dict(_get(store, list(cut.keys)))
    for chunk, key in zip(cut.chunks, cut.keys, strict=True):
        if key in found and found[key] != metadata_of(experiment, cut, chunk):
            drift.wrong_metadata.append(key)


def _get(store: VectorStore, keys: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for first in range(0, len(keys), store.limits.get_keys):
        for key, record in store.get(keys[first : first + store.limits.get_keys]).items():
            yield key, dict(record.metadata)


def _compare_vectors(ledger: Ledger, store: VectorStore, embedder: Embedder, drift: Drift) -> None:
    """Embed a few chunks again: another model behind the same name gives other vectors."""
    import numpy as np

    keys = ledger.sample_keys(EMBEDDED)
    found = store.get(keys, vectors=True).values()
    records = [
        record for record in found if short_hash(str(record.metadata.get(TEXT))) == stem_of(record.key)
    ]
    for first in range(0, len(records), embedder.max_batch):
        batch = records[first : first + embedder.max_batch]
        again = embedder.embed([str(record.metadata["text"]) for record in batch], "document").vectors
        for record, vector in zip(batch, again, strict=True):
            lengths = float(np.linalg.norm(record.vector) * np.linalg.norm(vector))
            if not lengths or float(record.vector @ vector) / lengths < SAME:
                drift.wrong_vector.append(record.key)
