"""verify: source, ledger and index held against one another, and exactly what is off put right.

The keys of ledger and index are always compared in full. Content costs a parse (and for a few chunks an embedding), so
it is looked at for a sample of documents, another one each time, or for all with `full`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from typing import TYPE_CHECKING, Any

from ragctl import fingerprints, indexes, matching, tenancy
from ragctl.guard import DeleteGuard
from ragctl.ingest import list_sources, reading_ledger, writing_ledger
from ragctl.lease import hold
from ragctl.manifest import Ledger
from ragctl.ownership import refuse_shared
from ragctl.records import DOCUMENT, TEXT, is_key_of, short_hash, stem_of
from ragctl.sparse import dense
from ragctl.state import lease_name
from ragctl.tenants import strays
from ragctl.under_way import metadata_of
from ragctl.worker import Cut, Failed, Finished, Task, Workshop

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, VectorStore
    from ragctl.config import Experiment
    from ragctl.lease import Lease
    from ragctl.planning import Listing
    from ragctl.records import Metadata, VectorRecord
    from ragctl.state import State

SAMPLE = 200  # documents whose content is looked at unless told otherwise
# Chunks that are embedded again, to see whether the vectors are of this embedder, where that may cost something
EMBEDDED = 32
SAME = 0.99  # cosine similarity at least, of one text embedded twice by one embedder; services round
UNKNOWN = "documents of the index, each record of none counted as one, are not in the ledger"
OTHER_LEDGER = (
    f"{matching.REBUILD}; if they are to go: ragctl verify CONFIG --repair --set ingest.max_delete=1.0"
)


@dataclass(slots=True)
class Drift:
    """What is off. Keys are chunks', ids documents'."""

    documents: int = 0  # in the ledger
    chunks: int = 0
    looked_at: int = 0  # documents whose content was compared
    missing: list[str] = field(default_factory=list)  # keys that the ledger has and the index has not
    orphaned: list[str] = field(default_factory=list)  # keys that the index has and no document claims
    # Files, and documents of them, that changed, came or went since the last ingest
    stale: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # whose content is stale, although they seem unchanged
    # Keys whose text or metadata is not the document's
    wrong_metadata: list[str] = field(default_factory=list)
    wrong_vector: list[str] = field(default_factory=list)  # keys whose vector is not the embedder's
    failed: list[str] = field(default_factory=list)  # documents that are in the queue of failures
    failed_in_index: list[str] = field(default_factory=list)  # those of them whose old version still answers
    embedded: int = 0  # chunks that were embedded again, and their vectors compared
    index: list[str] = field(default_factory=list)  # differences between the index and the experiment
    parts: list[tuple[Experiment, Drift]] = field(default_factory=list)  # where each tenant has an index

    def add(self, experiment: Experiment, part: Drift) -> None:
        """Take in what is off in one of several indexes."""
        self.parts.append((experiment, part))
        self.index += [f"{experiment.store.index}: {difference}" for difference in part.index]
        for name in ("documents", "chunks", "looked_at", "embedded"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        for name in (
            "missing",
            "orphaned",
            "stale",
            "wrong_metadata",
            "wrong_vector",
            "failed",
            "failed_in_index",
        ):
            getattr(self, name).extend(getattr(part, name))

    @property
    def is_clean(self) -> bool:
        return not (self.failed or self.index or self.is_repairable)

    @property
    def is_repairable(self) -> bool:
        """Whether something is off that a repair puts right: not another embedder, nor a document that fails."""
        kinds = (self.missing, self.orphaned, self.stale, self.wrong_metadata, self.wrong_vector)
        return not self.index and any(kinds)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "ragctl.verify/1",
            "clean": self.is_clean,
            "documents": self.documents,
            "chunks": self.chunks,
            "looked_at": self.looked_at,
            "embedded": self.embedded,
            "missing": self.missing,
            "orphaned": self.orphaned,
            "stale": self.stale,
            "wrong_metadata": self.wrong_metadata,
            "wrong_vector": self.wrong_vector,
            "failed": self.failed,
            "failed_in_index": self.failed_in_index,
            "index": self.index,
        }


def verify(experiment: Experiment, state: State, *, sample: int | None, seed: str | None = None) -> Drift:
    """Compare source, ledger and index; nothing is changed.

    `sample`: documents to look into, None for all; which ones depends on `seed`, and on chance without it. Raises
    Refused when there are chunks in the index and no whole ledger: each of them would seem to be orphaned.
    """
    chance = seed or secrets.token_hex(8)
    listing = list_sources(experiment)
    try:
        if not tenancy.has_index_each(experiment):
            return _verify_index(experiment, state, listing, sample, chance)
        whole = Drift()
        known = tenancy.Registry(experiment, state).tenants()
        for tenant in known:
            one = tenancy.of_tenant(experiment, tenant)
            whole.add(one, _verify_index(one, state, listing.of(tenant), sample, chance, may_lack=True))
        for tenant in set(listing.tenants()).difference(known):
            whole.stale += [file.id for file in listing.of(tenant)]
        whole.failed += [failure.document for failure in strays(experiment, listing)]
        return whole
    finally:
        listing.close()


def _verify_index(
    experiment: Experiment,
    state: State,
    listing: Listing,
    sample: int | None,
    seed: str,
    *,
    may_lack: bool = False,
) -> Drift:
    """`may_lack`: there may be no index yet."""
    from ragctl.adapters import open_embedder, open_store

    index = experiment.store.index
    embedder = open_embedder(experiment)
    drift = Drift()
    with closing(open_store(experiment)) as store, reading_ledger(state, index) as ledger:
        refuse_shared(experiment, ledger, state)
        drift.documents, drift.chunks = ledger.counts()
        failures = ledger.failures()
        drift.failed = [failure.document for failure in failures]
        drift.failed_in_index = [failure.document for failure in failures if ledger.holds(failure)]
        info = store.describe() if may_lack or drift.chunks else indexes.require(store, index)
        current = _compare_files(experiment, ledger, listing, drift)
        if info is None:
            drift.missing = list(_keys(ledger))
            return drift
        drift.index = indexes.differences(info, indexes.spec_of(experiment, embedder))
        if not drift.index:
            matching.refuse_lost_ledger(ledger, store, info)
        _compare_keys(ledger, store, drift)
        _compare_content(experiment, ledger, store, listing, _chosen(current, sample, seed), drift)
        if not drift.index:
            most = None if sample is None and embedder.cpu_bound else EMBEDDED  # which costs nothing but time
            some = _chosen(_keys(ledger), most, seed)
            drift.embedded = len(some)
            drift.wrong_vector = _of_another_embedder(store, embedder, some)
    return drift


def repair(experiment: Experiment, state: State, drift: Drift) -> None:
    """Delete what is orphaned or has a wrong vector, and have the next ingest look at every document that is off.

    Raises Refused, before anything is removed, when more documents than one run may remove are in the index alone:
    then the ledger is an old or a wrong one.
    """
    parts = drift.parts or [(experiment, drift)]
    guard = DeleteGuard(experiment, None)
    for one, its in parts:
        guard.expect(one.store.index, 0, its.documents)
    if len(parts) > 1:  # nothing of one tenant is removed before all are known to be within the bounds
        for one, its in parts:
            if its.orphaned:
                with _repairing(one, state) as part:
                    part.expect(guard, its)
        guard.check(UNKNOWN, OTHER_LEDGER)
    for one, its in parts:
        with _repairing(one, state) as part:
            part.expect(guard, its)
            guard.check(UNKNOWN, OTHER_LEDGER)
            part.put_right(its)


@contextmanager
def _repairing(experiment: Experiment, state: State) -> Iterator[_Repair]:
    from ragctl.adapters import open_store

    index = experiment.store.index
    with (
        closing(open_store(experiment)) as store,
        hold(state, lease_name(index), "verify --repair") as lease,
        writing_ledger(state, index, lease) as ledger,
    ):
        refuse_shared(experiment, ledger, state)
        matching.refuse_lost_ledger(ledger, store, store.describe())
        store.before_writes(lease.check)
        yield _Repair(experiment, store, lease, ledger)


@dataclass(frozen=True, slots=True)
class _Repair:
    """One index whose lease we hold. What was seen without it is looked at once more: an ingest may have been under
    way, and be done now.
    """

    experiment: Experiment
    store: VectorStore
    lease: Lease
    ledger: Ledger

    def expect(self, guard: DeleteGuard, drift: Drift) -> None:
        """Tell the guard how many documents only the index has; what a run that died left behind counts as none.

        A record that is of no document, for it names none or has not the key that ragctl would give it, counts as one:
        somebody else wrote it, and no ingest brings it back.
        """
        loose = frozenset(self.ledger.loose(-1))
        keys = [key for key in self._unclaimed(drift.orphaned) if key not in loose]
        named, foreign = set[str](), 0
        for record in _get(self.store, keys):
            document = str(record.metadata.get(DOCUMENT, ""))
            if is_key_of(record.key, document):
                named.add(document)
            else:
                foreign += 1
        unknown = foreign + sum(self.ledger.document(document) is None for document in named)
        guard.expect(self.experiment.store.index, unknown, self.ledger.counts()[0] + unknown)

    def put_right(self, drift: Drift) -> None:
        """Delete what is still nobody's or wrong, once the ledger knows which files are to be looked at for it."""
        from ragctl.adapters import open_embedder

        doomed = self._unclaimed(drift.orphaned)
        off = {*drift.missing, *drift.wrong_metadata}
        if drift.wrong_vector:
            embedder = open_embedder(self.experiment)
            wrong = _of_another_embedder(self.store, embedder, drift.wrong_vector)
            doomed += wrong
            off.update(wrong)
        files = {row.file for row in self.ledger.documents() if off.intersection(row.keys)}
        self.ledger.invalidate(files.union(drift.files))
        self.ledger.publish(force=True)
        size = self.store.limits.delete_keys
        for first in range(0, len(doomed), size):
            self.lease.check()
            batch = doomed[first : first + size]
            self.store.delete(batch)
            self.ledger.deleted(batch)

    def _unclaimed(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that no document has."""
        left = dict.fromkeys(keys)
        if left:
            for key in _keys(self.ledger):
                left.pop(key, None)
        return list(left)


def _keys(ledger: Ledger) -> Iterator[str]:
    return (key for row in ledger.documents() for key in row.keys)


def _compare_keys(ledger: Ledger, store: VectorStore, drift: Drift) -> None:
    """Ledger against index."""
    with matching.keys_of(ledger, store) as keys:
        drift.missing, drift.orphaned = keys.only_in_ledger(), keys.only_in_index()


def _compare_files(experiment: Experiment, ledger: Ledger, listing: Listing, drift: Drift) -> list[str]:
    """Source against ledger; the files to look into: those that are as the last ingest met them."""
    settings = fingerprints.of_sources(experiment)
    failing = _failing(ledger)
    different = {step.id for step in listing.steps(ledger, settings)}
    as_met = {id_ for id_ in different.intersection(failing) if _is_as_met(ledger, listing, id_, settings)}
    drift.stale += sorted(different - as_met)
    # Of a file that failed as a whole there is nothing to compare; perhaps it hangs, or takes all memory.
    closed = (different - as_met) | {id_ for id_ in as_met if id_ in failing[id_]}
    return [file.id for file in listing if file.id not in closed]


def _failing(ledger: Ledger) -> dict[str, set[str]]:
    """The documents that are in the queue of failures, by file."""
    failing: dict[str, set[str]] = {}
    for failure in ledger.failures():
        failing.setdefault(failure.file, set()).add(failure.document)
    return failing


def _is_as_met(ledger: Ledger, listing: Listing, file_id: str, settings: Mapping[str, str]) -> bool:
    """Whether the file is as an ingest met it that went through all of it, although not all got in."""
    row = ledger.file(file_id)
    if row is None or file_id not in listing:
        return False
    file = listing.file(file_id)
    return (row.size, row.stamp, row.fingerprint) == (file.size, file.stamp, settings[file.source])


def _chosen(items: Iterable[str], count: int | None, seed: str) -> list[str]:
    """`count` of the items, others for every seed; nearly the same ones where the items are nearly the same."""
    if count is None:
        return list(items)
    return nsmallest(count, items, key=lambda item: short_hash(f"{seed} {item}"))


def _compare_content(
    experiment: Experiment,
    ledger: Ledger,
    store: VectorStore,
    listing: Listing,
    files: Iterable[str],
    drift: Drift,
) -> None:
    """What the index holds of these files against what they say now, but for documents that are known to fail."""
    shop = Workshop(experiment, embeds=False)
    failing = _failing(ledger)
    content = _Content(store, drift.wrong_metadata)
    for file_id in files:
        known = failing.get(file_id, set())
        rows = {row.id: row for row in ledger.documents(file_id) if row.id not in known}
        unseen, changed = set(rows), set[str]()
        for item in shop.work(Task(listing.file(file_id))):
            match item:
                case Failed():
                    changed.update({item.document} - known)
                    unseen.discard(item.record or "")  # its old version stays
                case Cut() if item.document not in known:
                    unseen.discard(item.document)
                    row = rows.get(item.document)
                    drift.looked_at += row is not None
                    if row is not None and row.keys == item.keys:
                        for key, chunk in zip(item.keys, item.chunks, strict=True):
                            content.expect(key, metadata_of(experiment, item, chunk))
                    else:
                        changed.add(item.document)
                case Finished() if item.whole:  # else what is unseen may be in what cannot be read
                    changed |= unseen
        if changed:
            drift.stale += sorted(changed)
            drift.files.append(file_id)
    content.compare()


@dataclass(frozen=True, slots=True)
class _Content:
    """What the index should hold, looked up as many chunks at a time as the store gives: for the embedded one each look
    goes over all keys of the index.
    """

    store: VectorStore
    wrong: list[str]  # gets the keys under which the index has another text or other metadata
    expected: dict[str, Metadata] = field(default_factory=dict)

    def expect(self, key: str, metadata: Metadata) -> None:
        self.expected[key] = metadata
        if len(self.expected) == self.store.limits.get_keys:
            self.compare()

    def compare(self) -> None:
        """Look at what is left."""
        found = self.store.get(list(self.expected))
        self.wrong.extend(
            key
            for key, metadata in self.expected.items()
            if key in found and dict(found[key].metadata) != metadata
        )
        self.expected.clear()


def _get(store: VectorStore, keys: list[str], *, vectors: bool = False) -> Iterator[VectorRecord]:
    for first in range(0, len(keys), store.limits.get_keys):
        yield from store.get(keys[first : first + store.limits.get_keys], vectors=vectors).values()


def _of_another_embedder(store: VectorStore, embedder: Embedder, keys: list[str]) -> list[str]:
    """Those of the keys whose vector is not what the embedder makes of their text: another model behind the same name
    gives other vectors.
    """
    import numpy as np

    records = (
        record
        for record in _get(store, keys, vectors=True)
        if short_hash(str(record.metadata.get(TEXT))) == stem_of(record.key)
    )
    wrong = []
    while batch := list(islice(records, embedder.max_batch)):
        again = embedder.embed([str(record.metadata[TEXT]) for record in batch], "document").vectors
        for record, vector in zip(batch, again, strict=True):
            stored = dense(record.vector)
            lengths = float(np.linalg.norm(stored) * np.linalg.norm(vector))
            if not lengths or float(stored @ vector) / lengths < SAME:
                wrong.append(record.key)
    return wrong
