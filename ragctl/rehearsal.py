"""An ingest that changes nothing and pays for nothing: the real pipeline, with a store and an embedder that only count.

What it says of a real ingest holds because both go through the same code: the same comparison with the ledger, the same
chunks, the same batches. It works on a copy of the ledger, which is thrown away.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, cast

from ragctl.ingest import Progress
from ragctl.limits import check_record, metadata_size, refuse_doubles
from ragctl.manifest import Failure
from ragctl.pipeline import Pipeline
from ragctl.planning import Plan
from ragctl.records import DOCUMENT, Embedded, VectorRecord, short_hash, some_vectors
from ragctl.reuse import KnownTexts
from ragctl.spending import stored_size
from ragctl.under_way import Counts, Services, Todo

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, EmbedRole, IndexSpec, VectorStore
    from ragctl.cache import VectorCache
    from ragctl.config import Experiment
    from ragctl.lease import Lease
    from ragctl.manifest import DocumentRow, Ledger
    from ragctl.records import Vector

BATCH_TEXTS = 512


@dataclass(slots=True)
class Tally:
    """What would be stored: records, their logical bytes, the part of those that queries read, their encoded size."""

    records: int = 0
    stored: int = 0
    queried: int = 0
    encoded: int = 0

    def add(self, other: Tally) -> None:
        self.records += other.records
        self.stored += other.stored
        self.queried += other.queried
        self.encoded += other.encoded


@dataclass(slots=True)
class Rehearsed:
    """What an ingest of some files would do."""

    counts: Counts
    failures: list[Failure]
    vanished: list[str]  # documents that are gone from files that are still there
    emptied: list[DocumentRow]  # documents that have no text any more
    total: Tally
    puts: list[int]  # logical bytes of each put request
    by_document: Mapping[str, Tally]  # empty unless asked for
    texts: int  # to embed
    tokens: int  # of those


class CountingStore:
    """Stands for the experiment's store: has its limits, and what is in it may be looked up."""

    def __init__(self, store: VectorStore, spec: IndexSpec, *, exists: bool, by_document: bool) -> None:
        self.limits = store.limits
        self.encoded_size = store.encoded_size
        self.total = Tally()
        self.puts: list[int] = []
        self.by_document: defaultdict[str, Tally] = defaultdict(Tally)
        self._store, self._spec, self._exists = store, spec, exists
        self._splits = by_document
        self._lock = threading.Lock()

    def check(self, record: VectorRecord) -> None:
        spec = self._spec
        check_record(record, dimension=spec.dimension, metric=spec.metric, non_filterable=spec.non_filterable)

    def get(self, keys: Sequence[str], *, vectors: bool = False) -> dict[str, VectorRecord]:  # noqa: ARG002  none is read
        if not self._exists:
            return {}
        vector = some_vectors(1, self._spec.dimension)[0]
        return {key: replace(record, vector=vector) for key, record in self._store.get(keys).items()}

    def put(self, records: Sequence[VectorRecord], *, fresh: bool = False) -> None:  # noqa: ARG002  nothing is kept
        refuse_doubles(records)
        with self._lock:
            self.puts.append(sum(self._count(record) for record in records))

    def delete(self, keys: Sequence[str]) -> None:
        """Nothing was put."""

    def _count(self, record: VectorRecord) -> int:
        stored, queried = sizes_of(record, self._spec)
        tally = Tally(1, stored, queried, self.encoded_size(record))
        self.total.add(tally)
        if self._splits:
            self.by_document[str(record.metadata[DOCUMENT])].add(tally)
        return stored


class CountingEmbedder:
    """Stands for the experiment's embedder: counts the texts, each once, and their tokens."""

    identity = "rehearsal"
    max_batch = BATCH_TEXTS
    max_bytes = 4_000_000
    max_tokens = None
    cpu_bound = True  # so that the pipeline leaves it to us to know a text again

    def __init__(self, dimension: int, count_tokens: Callable[[str], int]) -> None:
        self.dimension = dimension
        self.texts = self.tokens = 0
        self._count_tokens = count_tokens
        self._known = KnownTexts()
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:  # noqa: ARG002  all are documents
        new = self._unknown(texts)
        tokens = sum(map(self._count_tokens, new))
        with self._lock:
            self.texts += len(new)
            self.tokens += tokens
        return Embedded(some_vectors(len(texts), self.dimension))

    def _unknown(self, texts: Sequence[str]) -> list[str]:
        new = []
        with self._lock:
            for text in texts:
                key = f"-{short_hash(text)}"
                if self._known.get(key[1:]) is None:
                    self._known.add(key)
                    new.append(text)
        return new

    def close(self) -> None:
        self._known.close()


class _ReadOnlyCache:
    def __init__(self, cache: VectorCache) -> None:
        self.get = cache.get
        self.close = cache.close

    def put(self, vectors: Mapping[str, Vector]) -> None:
        """Nothing was embedded."""


class _NoLease:
    def check(self) -> None:
        """Nobody else knows the copy."""


def sizes_of(record: VectorRecord, spec: IndexSpec) -> tuple[int, int]:
    """Logical bytes of a record: all of it, and what of it every query reads (AWS S3 pricing: vector, key and
    filterable metadata).
    """
    stored = stored_size(spec.dimension, record.key, record.metadata)
    hidden = {key: value for key, value in record.metadata.items() if key in spec.non_filterable}
    return stored, stored - (metadata_size(hidden) - metadata_size({}))


@dataclass(slots=True)
class Rehearsal:
    """What a rehearsal works with; `dimension` and `cache` as far as the embedder is known."""

    experiment: Experiment
    ledger: Ledger  # a scratch ledger
    store: VectorStore  # the real one, which is only asked for what is in it
    spec: IndexSpec
    exists: bool  # the index
    fingerprints: Mapping[str, str]
    count_tokens: Callable[[str], int]
    cache: VectorCache | None = None
    strays: tuple[str, ...] = ()  # keys of the index that no document has: their vectors may be of use

    def run(
        self,
        plan: Plan,
        chosen: Collection[str] | None = None,
        progress: Progress | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> Rehearsed:
        """Go through the plan's files, or through those that are chosen. Raises what the pipeline raises."""
        store = CountingStore(self.store, self.spec, exists=self.exists, by_document=chosen is not None)
        embedder = CountingEmbedder(self.spec.dimension, self.count_tokens)
        services = Services(
            _without_threshold(self.experiment),
            self.ledger,
            cast("VectorStore", store),  # the pipeline asks no more of it than it has
            cast("Embedder", embedder),
            cast("Lease", _NoLease()),
            _ReadOnlyCache(self.cache) if self.cache is not None else None,
            self.fingerprints,
        )
        counts = Counts()
        if progress is not None:
            progress.counts = counts
        known = KnownTexts(chain((key for row in plan.vanished() for key in row.keys), self.strays))
        pipeline = Pipeline(services, counts, known, threading.Event(), embeds=False)
        try:
            if plan.planned.add + plan.planned.check:
                with closing(plan.todos()) as todos:
                    pipeline.run(_chosen(todos, chosen), tick)
        finally:
            known.close()
            embedder.close()
            if self.cache is not None:
                self.cache.close()
        return Rehearsed(
            counts=counts,
            failures=pipeline.failures,
            vanished=pipeline.vanished,
            emptied=pipeline.emptied,
            total=store.total,
            puts=store.puts,
            by_document=store.by_document,
            texts=embedder.texts,
            tokens=embedder.tokens,
        )


def _without_threshold(experiment: Experiment) -> Experiment:
    """A plan goes through everything, whatever fails of it."""
    return experiment.model_copy(
        update={"ingest": experiment.ingest.model_copy(update={"fail_threshold": 1.0})}
    )


def _chosen(todos: Iterator[Todo], chosen: Collection[str] | None) -> Iterator[Todo]:
    return (todo for todo in todos if chosen is None or todo.task.file.id in chosen)
