"""parse -> chunk -> embed -> put -> ledger, concurrent and bounded.

One thread, the conductor, owns all state: which documents are open, what waits for an embedding, what waits for a
put. Workers parse in processes; embed and put calls wait in threads; everything comes back to the conductor as an
event. What has been parsed but not yet put is bounded in bytes: beyond that the workers are held back.

The order of writes for a document is always: declare its new keys in the ledger, put, save its row, delete the keys it
no longer has, forget them. A document whose embedding or put fails keeps its old row and its old vectors.
"""

from __future__ import annotations

import gc
import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from ragctl import tenancy
from ragctl.embedding import EmbedQueue, Outcome, Wanted
from ragctl.errors import RagctlError, RecordRefused
from ragctl.manifest import DocumentRow, Failure, FileRow
from ragctl.records import (
    DOCUMENT,
    END,
    PAGE,
    START,
    TEXT,
    Chunk,
    Metadata,
    MetadataValue,
    SourceFile,
    VectorRecord,
    stem_of,
)
from ragctl.spending import IngestBill, stored_size
from ragctl.worker import Cut, Embedding, Failed, Finished, Item, Same, Task
from ragctl.workers import Workers

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, VectorStore
    from ragctl.cache import VectorCache
    from ragctl.config import Experiment
    from ragctl.lease import Lease
    from ragctl.manifest import Ledger
    from ragctl.records import Embedded, Vector

log = logging.getLogger("ragctl.ingest")

MESSAGES_AHEAD = 4  # messages of workers that may wait for the conductor
CHUNK_BYTES = 1_500  # of the objects that a chunk is made of, beside its text and vector
PATIENCE_S = 30.0  # records wait so long at most for their put to fill up
STOP_S = 25.0  # for what is in flight when a run is told to stop
PUT_FAILURES_IN_A_ROW = 3  # batches that fail with no success between: the store is down
COLLECT_AFTER = 50_000  # new objects; left to itself Python looks after every 700
SETTLE_DOCUMENTS = 5_000  # documents that one save of the ledger takes at most


@dataclass(slots=True)
class Counts:
    """What a run did so far."""

    seen: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: int = 0
    empty: int = 0
    embedded: int = 0
    reused: int = 0
    written: int = 0
    removed: int = 0
    tokens: int = 0
    throttles: int = 0
    retries: int = 0
    cached: int = 0
    bytes: int = 0  # of the files that were read


@dataclass(slots=True)
class _Open:
    """A document on its way into the store. `waiting`: chunks that are not yet there."""

    cut: Cut
    old: DocumentRow | None
    waiting: int = 0
    rewrites: list[VectorRecord] = field(default_factory=list)  # same vector, other metadata: put last
    failed: bool = False
    owed_text: int = 0  # bytes to embed that are promised to the bill and not yet paid for
    owed_stored: int = 0  # likewise, bytes to store


@dataclass(slots=True)
class _OpenFile:
    """A file of which documents are on their way."""

    file: SourceFile
    row: FileRow | None
    open: int = 0
    documents: int = 0
    finished: Finished | None = None
    whole: bool = True
    seen: set[str] | None = None  # ids of its documents, kept where some may have vanished
    failed: set[str] = field(default_factory=set)  # its documents that failed


@dataclass(frozen=True, slots=True)
class Todo:
    """A task with what the ledger knows of its file."""

    task: Task
    row: FileRow | None


@dataclass(frozen=True, slots=True)
class Services:
    """What a run works with; handed in."""

    experiment: Experiment
    ledger: Ledger
    store: VectorStore
    embedder: Embedder
    lease: Lease
    cache: VectorCache | None
    fingerprints: Mapping[str, str]  # by source


class KnownTexts:
    """Which text has its vector under which key, for documents that share a text or moved: in a temporary database
    that goes to disk when it is large.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._db = sqlite3.connect("", check_same_thread=False)
        self._db.execute("CREATE TABLE texts (stem TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID")
        for key in keys:
            self.add(key)

    def add(self, key: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (stem_of(key), key))

    def get(self, stem: str) -> str | None:
        found = self._db.execute("SELECT key FROM texts WHERE stem = ?", (stem,)).fetchone()
        return str(found[0]) if found else None

    def close(self) -> None:
        self._db.close()


class Pipeline:
    """One pass over files. `run` returns when everything that could be done is in the store and in the ledger."""

    def __init__(
        self,
        services: Services,
        counts: Counts,
        borrowed: KnownTexts,
        stopping: threading.Event,
        bill: IngestBill | None = None,
        *,
        embeds: bool = True,
        files: int = 0,
    ) -> None:
        """`bill` gets what is paid for; `embeds` false: the workers make no vectors, the embedder is asked for all.

        `files`: how many there are to work through, for the share of failures.
        """
        self._s = services
        self._bill = bill or IngestBill()
        self._embeds_in_workers = embeds
        self.counts = counts
        self.failures: list[Failure] = []
        self.gave_up = False  # more failed than `ingest.fail_threshold` allows
        self._planned = files
        self._seen_before = counts.seen
        self._failed_puts = 0  # in a row
        self.vanished: list[str] = []  # documents that are gone from files that are still there ...
        self.shrunk: list[FileRow] = []  # ... and those files
        # of each stage, summed over what ran at the same time
        self.seconds: dict[str, float] = {"read": 0.0, "parse": 0.0, "chunk": 0.0, "embed": 0.0, "put": 0.0}
        self._timing = threading.Lock()
        self._stopping = stopping  # set: end early, with everything saved that is in the store
        settings = services.experiment.ingest
        self._events: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._slots = threading.Semaphore(MESSAGES_AHEAD)
        self._held = 0  # slots that wait for room
        self._room = settings.memory_mb * 2**20
        self._pending_bytes = 0
        self._files: dict[str, _OpenFile] = {}
        self._issued: dict[str, Todo] = {}
        self._embeds = EmbedQueue(services.embedder, settings.embed_concurrency, counts)
        self._seen = borrowed
        self._flying: dict[str, list[tuple[_Open, int]]] = {}  # text hash -> who else waits for its vector
        self._fresh: dict[str, Vector] = {}  # text hash -> vector, from then on until its put has ended
        self._records: deque[tuple[_Open, VectorRecord, int]] = deque()  # with the bytes that each takes
        self._records_since = 0.0
        self._records_bytes = 0
        self._unpaid: deque[_Open] = deque()  # what the budget does not bear just now
        self._calls = 0  # fetches and puts under way
        self._settled: list[DocumentRow] = []
        self._settled_files: list[FileRow] = []
        self._settled_failures: list[Failure] = []
        self._failing: dict[str, set[str]] = {}  # files worked through, with their documents that failed
        self._gone: list[str] = []  # keys to delete once the ledger that no longer has them is published
        self._saved = monotonic()
        self._parsing = True
        self._error: BaseException | None = None

    def bottleneck(self) -> str:
        """The stage that the others wait for just now, for a display."""
        if self._calls and (self._has_full_put() or not self._embeds.under_way):
            return "put"
        if self._embeds.under_way >= self._embeds.limit or self._embeds.waiting:
            return "embed"
        return "parse" if self._parsing else "put"

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self, todos: Iterator[Todo], tick: Callable[[], None] = lambda: None) -> None:
        """Work through the files. `tick` is called about twice a second, for progress."""
        settings = self._s.experiment.ingest
        workers = Workers(
            self._s.experiment,
            self._issue(todos),
            self._deliver,
            lambda e: self._events.put(("parsed", None, e)),
            embeds=self._embeds_in_workers,
        )
        self._workers = workers
        with (
            _few_collections(),
            ThreadPoolExecutor(settings.embed_concurrency, "embed") as embedders,
            ThreadPoolExecutor(settings.put_concurrency, "put") as putters,
        ):
            self._embedders, self._putters = embedders, putters
            workers.start()
            try:
                self._loop(workers, tick)
            finally:
                workers.stop()
                self._slots.release(
                    self._held + 64
                )  # wake every worker thread that waits for room; 64 at most
                workers.join()
                self._save()

    def _loop(self, workers: Workers, tick: Callable[[], None]) -> None:
        ticked = stopped = 0.0
        while self._error is None and not self._is_done(stopping=bool(stopped)):
            if (self._stopping.is_set() or self.gave_up) and not stopped:
                stopped = monotonic()
                workers.stop()
            if stopped and monotonic() - stopped > STOP_S:
                return
            self._take_event()
            self._dispatch(stopping=bool(stopped))
            if monotonic() - self._saved > self._s.experiment.ingest.checkpoint_s:
                self._save()
            if monotonic() - ticked > 0.5:
                ticked = monotonic()
                tick()
        if self._error is not None:
            raise self._error

    def _is_done(self, *, stopping: bool) -> bool:
        under_way = self._calls or self._embeds.under_way
        if stopping:
            return not (under_way or self._records)
        waiting = self._embeds.waiting or self._records or self._held or self._unpaid
        return not (self._parsing or under_way or waiting)

    def _take_event(self) -> None:
        try:
            kind, subject, result = self._events.get(timeout=self._embeds.pause(0.25))
        except queue.Empty:
            return
        try:
            getattr(self, f"_on_{kind}")(subject, result)
        except BaseException as error:  # noqa: BLE001  raised by the loop after what is in the store was saved
            self._error = self._error or error

    def _issue(self, todos: Iterator[Todo]) -> Iterator[Task]:
        """Runs in the threads of the workers, one at a time."""
        for todo in todos:
            self._issued[todo.task.file.id] = todo
            yield todo.task

    def _deliver(self, items: list[Item]) -> None:
        """Runs in the threads of the workers: waits until there is room."""
        self._slots.acquire()
        self._events.put(("items", items, None))

    def _dispatch(self, *, stopping: bool) -> None:
        """Start what can be started: let the workers go on, send batches to the embedder, put what is full."""
        while self._held and self._pending_bytes < self._room:
            self._held -= 1
            self._slots.release()
        if self._unpaid and not stopping:
            self._admit()
        no_more = (
            not self._parsing or self._held > 0
        )  # workers are done, or held back until something gets through
        if not stopping:
            for batch in self._embeds.ready(drain=no_more):
                future = self._embedders.submit(self._embed, batch)
                future.add_done_callback(partial(self._announce, "embedded", batch))
        idle = no_more and not (self._embeds.waiting or self._embeds.under_way or self._calls)
        late = monotonic() - self._records_since > PATIENCE_S
        while self._records and (self._has_full_put() or idle or late or stopping):
            self._put()

    def _embed(self, batch: list[Wanted]) -> tuple[Embedded, float]:
        """Runs in a thread."""
        with self._timed("embed"):
            return self._embeds.call(batch)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to that of a stage, in any thread."""
        start = perf_counter()
        try:
            yield
        finally:
            self._spent(stage, perf_counter() - start)

    def _spent(self, stage: str, seconds: float) -> None:
        with self._timing:
            self.seconds[stage] += seconds

    def _announce(self, kind: str, subject: object, future: Future[Any]) -> None:
        """Runs in the thread of a call that has ended."""
        self._events.put((kind, subject, future))

    # --- what comes from the workers ---------------------------------------------------------------------

    def _on_items(self, items: list[Item], _: None) -> None:
        self._held += 1
        for item in items:
            if self._bill.is_spent:  # what is under way is finished, nothing more is taken
                return
            match item:
                case Cut():
                    self._take_document(item)
                case Failed():
                    self.counts.seen += 1
                    self._fail(item.document, item.file, item.stage, item.error)
                case Same():
                    self._take_same(item)
                case Finished():
                    self._take_finished(item)
                case Embedding():
                    self._spent("embed", item.seconds)

    def _on_parsed(self, _: None, error: BaseException | None) -> None:
        self._parsing = False
        if error is not None:
            raise error

    def _file(self, file_id: str) -> _OpenFile:
        if file_id not in self._files:
            todo = self._issued[file_id]
            seen = None if todo.row is None else set[str]()
            self._files[file_id] = _OpenFile(todo.task.file, todo.row, seen=seen)
        return self._files[file_id]

    def _take_same(self, item: Same) -> None:
        todo = self._issued.pop(item.file)
        assert todo.row is not None
        self.counts.seen += todo.row.documents
        self.counts.unchanged += todo.row.documents
        self.counts.bytes += todo.task.file.size
        self._settled_files.append(
            self._file_row(todo.task.file, todo.row.content_hash, todo.row.documents, done=True)
        )

    def _take_finished(self, item: Finished) -> None:
        file = self._file(item.file)
        file.finished = item
        file.whole = file.whole and item.whole
        self.counts.bytes += file.file.size
        for stage, seconds in item.seconds.items():
            self.seconds[stage] += seconds
        self._close_file(file)

    def _take_document(self, cut: Cut) -> None:
        file = self._file(cut.file)
        self.counts.seen += 1
        file.documents += 1
        if file.seen is not None:
            file.seen.add(cut.document)
        for warning in cut.warnings:
            log.warning("%s: %s", cut.document, warning)
        old = self._s.ledger.document(cut.document)
        if self._is_unchanged(cut, old):
            self.counts.unchanged += 1
            return
        if fault := self._tenancy_fault(cut):
            self._fail(cut.document, cut.file, "metadata", fault)
            return
        file.open += 1
        if self._bill.cap is None:
            self._open(_Open(cut, old))
            return
        self._pending_bytes += _bytes_of(cut)
        self._unpaid.append(_Open(cut, old))
        self._admit()

    def _admit(self) -> None:
        """Open the documents that the budget bears. What is under way may turn out cheaper than was thought, so one
        that it does not bear waits for that; then the run takes no more, and finishes what it has taken.
        """
        while self._unpaid and self._affords(self._unpaid[0]):
            document = self._unpaid.popleft()
            self._pending_bytes -= _bytes_of(document.cut)
            self._open(document)
        under_way = self._calls or self._embeds.under_way or self._embeds.waiting or self._records
        if self._unpaid and not under_way:
            self._bill.is_spent = True
            self._unpaid.clear()
            self._workers.stop()

    def _affords(self, document: _Open) -> bool:
        """Whether the cap of the bill bears the document, as a whole: a part of one would be paid for in vain."""
        cut = document.cut
        known = frozenset(document.old.keys) if document.old else frozenset()
        chunks = list(zip(cut.keys, cut.chunks, strict=True))
        text = sum(len(chunk.text.encode("utf-8", "replace")) for key, chunk in chunks if key not in known)
        stored = sum(self._stored_size(document, key, chunk) for key, chunk in chunks)
        document.owed_text, document.owed_stored = text, stored
        return self._bill.promise(text, stored)

    def _stored_size(self, document: _Open, key: str, chunk: Chunk) -> int:
        if not self._bill.counts_puts:
            return 0
        try:
            return stored_size(self._s.embedder.dimension, key, self._metadata(document, chunk))
        except ValueError:  # metadata that no store takes: the document fails when its turn comes
            return 0

    def _is_unchanged(self, cut: Cut, old: DocumentRow | None) -> bool:
        fingerprint = self._fingerprint(cut.file)
        return (
            old is not None
            and old.done
            and (old.content_hash, old.fingerprint) == (cut.content_hash, fingerprint)
        )

    def _fingerprint(self, file_id: str) -> str:
        return self._s.fingerprints[self._files[file_id].file.source]

    def _tenancy_fault(self, cut: Cut) -> str | None:
        section = self._s.experiment.tenancy
        return tenancy.fault(cut.metadata, section.key, required=section.required) if section else None

    # --- a document's chunks -----------------------------------------------------------------------------

    def _open(self, document: _Open) -> None:
        """Sort the chunks: those with a vector from the worker, those with one in the store or cache, the rest."""
        cut = document.cut
        self._pending_bytes += _bytes_of(cut)
        document.waiting = len(cut.chunks)
        if not cut.chunks:
            self._close(document)
            return
        known = frozenset(document.old.keys) if document.old else frozenset()
        made = dict(zip(cut.embedded, cut.vectors, strict=True)) if cut.vectors is not None else {}
        self.counts.embedded += len(made)
        fetch: dict[int, str] = {}  # chunk -> key in the store that has its vector
        lookup: list[int] = []
        for i, key in enumerate(cut.keys):
            if i in made:
                self._add_record(document, i, made[i])
            elif key in known:
                fetch[i] = key
            elif other := self._seen.get(stem_of(key)):
                fetch[i] = other
            else:
                lookup.append(i)
        if fetch or (lookup and self._s.cache is not None):
            self._call("fetched", (document, fetch, lookup), self._fetch, document, fetch, lookup)
        else:
            self._want(document, lookup)

    def _fetch(
        self, document: _Open, fetch: Mapping[int, str], lookup: list[int]
    ) -> tuple[dict[str, VectorRecord], dict[str, Vector]]:
        """Runs in a thread: records by key from the store, vectors by text hash from the cache."""
        keys = list(dict.fromkeys(fetch.values()))
        size = self._s.store.limits.get_keys
        records: dict[str, VectorRecord] = {}
        for first in range(0, len(keys), size):
            records |= self._s.store.get(keys[first : first + size], vectors=True)
        cache = self._s.cache
        stems = [stem_of(document.cut.keys[i]) for i in lookup]
        return records, cache.get(stems) if cache is not None and stems else {}

    def _on_fetched(self, subject: tuple[_Open, dict[int, str], list[int]], future: Future[Any]) -> None:
        self._calls -= 1
        document, fetch, lookup = subject
        records, cached = future.result()
        missing: list[int] = []
        for i, key in fetch.items():
            found = records.get(key)
            if found is None:
                missing.append(i)
            elif key == document.cut.keys[i]:
                self._keep(document, i, found)
            else:
                self.counts.reused += 1
                self._add_record(document, i, found.vector)
        for i in lookup:
            vector = cached.get(stem_of(document.cut.keys[i]))
            if vector is None:
                missing.append(i)
            else:
                self.counts.cached += 1
                self._add_record(document, i, vector)
        self._want(document, sorted(missing))

    def _keep(self, document: _Open, i: int, found: VectorRecord) -> None:
        """The chunk is in the store: leave it, unless its metadata changed, then put it again with the same vector."""
        self.counts.reused += 1
        metadata = self._metadata(document, document.cut.chunks[i])
        if document.failed or dict(found.metadata) == metadata:
            self._arrived(document)
        else:
            document.rewrites.append(VectorRecord(found.key, found.vector, metadata))
            self._put_rewrites(document)

    def _want(self, document: _Open, chunks: list[int]) -> None:
        """Queue chunks for embedding; a text that is already on its way is not sent twice."""
        for i in chunks:
            stem = stem_of(document.cut.keys[i])
            vector = self._fresh.get(stem)
            if vector is not None:
                self.counts.reused += 1
                self._add_record(document, i, vector)
            elif stem in self._flying:
                self._flying[stem].append((document, i))
            else:
                self._flying[stem] = []
                self._embeds.add(Wanted(document, i, document.cut.chunks[i].text))

    def _on_embedded(self, batch: list[Wanted], future: Future[Any]) -> None:
        tokens = self.counts.tokens
        outcome = self._embeds.take(batch, future)
        self._pay(outcome, self.counts.tokens - tokens)
        cache: dict[str, Vector] = {}
        for wanted, vector in outcome.vectors:
            stem = stem_of(wanted.document.cut.keys[wanted.chunk])
            self.counts.embedded += 1
            cache[stem] = vector
            others = self._flying.pop(stem, [])
            self.counts.reused += len(others)
            for document, i in [(wanted.document, wanted.chunk), *others]:
                self._add_record(document, i, vector)
        for wanted, error in outcome.refused:
            others = self._flying.pop(stem_of(wanted.document.cut.keys[wanted.chunk]), [])
            for document, i in [(wanted.document, wanted.chunk), *others]:
                where = _where(document.cut.chunks[i])
                self._fail_open(document, "embed", f"{where}: {error}")
        if self._s.cache is not None and cache:
            self._call("cached", None, self._s.cache.put, cache)

    def _pay(self, outcome: Outcome, tokens: int) -> None:
        size = 0
        for wanted, _ in outcome.vectors:
            text = len(wanted.text.encode("utf-8", "replace"))
            size += text
            paid = min(text, wanted.document.owed_text)
            wanted.document.owed_text -= paid
            self._bill.release(paid, 0)
        if size:
            self._bill.embedded(size, tokens)

    def _on_cached(self, _: None, future: Future[Any]) -> None:
        self._calls -= 1
        future.result()

    def _add_record(self, document: _Open, i: int, vector: Vector) -> None:
        if document.failed:
            self._arrived(document)
            return
        chunk = document.cut.chunks[i]
        record = VectorRecord(document.cut.keys[i], vector, self._metadata(document, chunk))
        try:
            self._s.store.check(record)
        except RecordRefused as error:
            self._fail_open(document, "put", error.message)
            return
        self._queue_record(document, record)

    def _queue_record(self, document: _Open, record: VectorRecord) -> None:
        if not self._records:
            self._records_since = monotonic()
        size = self._s.store.encoded_size(record)
        self._records.append((document, record, size))
        self._fresh[stem_of(record.key)] = record.vector
        self._records_bytes += size

    def _metadata(self, document: _Open, chunk: Chunk) -> Metadata:
        return metadata_of(self._s.experiment, document.cut, chunk)

    # --- put ---------------------------------------------------------------------------------------------

    def _has_full_put(self) -> bool:
        limits = self._s.store.limits
        return len(self._records) >= limits.put_records or self._records_bytes >= limits.put_bytes

    def _put(self) -> None:
        """Send the next batch: at most so many records and so many bytes, no key twice."""
        self._s.lease.check()
        limits = self._s.store.limits
        batch: list[tuple[_Open, VectorRecord]] = []
        size = 0
        while self._records and len(batch) < limits.put_records:
            document, record, taken = self._records[0]
            size += taken
            if batch and size > limits.put_bytes:
                break
            self._records_bytes -= taken
            self._records.popleft()
            if document.failed:
                self._fresh.pop(stem_of(record.key), None)
                self._arrived(document)
            else:
                batch.append((document, record))
        if not batch:
            return
        self._records_since = monotonic()
        documents = {document.cut.document: document for document, _ in batch}
        known = {key for document in documents.values() if document.old for key in document.old.keys}
        self._s.ledger.declare(documents, (record.key for _, record in batch if record.key not in known))
        records = [record for _, record in batch]
        self._bill.put(records)
        self._call("put", batch, self._write, records)

    def _write(self, records: list[VectorRecord]) -> None:
        """Runs in a thread, perhaps long after it was handed over: a run that has lost its lease writes no more."""
        self._s.lease.check()
        with self._timed("put"):
            self._s.store.put(records)

    def _on_put(self, batch: list[tuple[_Open, VectorRecord]], future: Future[Any]) -> None:
        self._calls -= 1
        error = future.exception()
        if error is not None and not isinstance(error, RagctlError):
            raise error
        self._failed_puts = self._failed_puts + 1 if error is not None else 0
        if error is not None and (self._embeds.is_fatal(error) or self._failed_puts >= PUT_FAILURES_IN_A_ROW):
            raise error
        for document, record in batch:
            self._fresh.pop(stem_of(record.key), None)
            if error is not None:
                self._fail_open(document, "put", str(error))
                continue
            self.counts.written += 1
            if not self._s.embedder.cpu_bound:
                self._seen.add(record.key)
            self._arrived(document)

    def _call(self, kind: str, subject: object, function: Callable[..., object], *arguments: object) -> None:
        self._calls += 1
        future = self._putters.submit(function, *arguments)
        future.add_done_callback(partial(self._announce, kind, subject))

    # --- the end of a document, of a file ----------------------------------------------------------------

    def _arrived(self, document: _Open) -> None:
        document.waiting -= 1
        if document.waiting == 0:
            self._close(document)
        else:
            self._put_rewrites(document)

    def _put_rewrites(self, document: _Open) -> None:
        """Change what is in the store only when all that is new of the document has arrived there."""
        if document.rewrites and document.waiting == len(document.rewrites):
            rewrites, document.rewrites = document.rewrites, []
            for record in rewrites:
                try:
                    self._s.store.check(record)
                except RecordRefused as error:
                    self._fail_open(document, "put", error.message)
                else:
                    self._queue_record(document, record)

    def _fail_open(self, document: _Open, stage: str, error: str) -> None:
        """One chunk of the document failed, so the document has; the other chunks need not go on."""
        if not document.failed:
            document.failed = True
            self._fail(document.cut.document, document.cut.file, stage, error)
            for _ in document.rewrites:
                document.waiting -= 1
            document.rewrites = []
        self._arrived(document)

    def _close(self, document: _Open) -> None:
        cut = document.cut
        self._pending_bytes -= _bytes_of(cut)
        self._bill.release(document.owed_text, document.owed_stored)
        if not document.failed:
            fingerprint = self._fingerprint(cut.file)
            self._settled.append(DocumentRow(cut.document, cut.file, cut.content_hash, fingerprint, cut.keys))
            if not cut.chunks:
                self.counts.empty += 1
            elif document.old is None:
                self.counts.added += 1
            else:
                self.counts.changed += 1
        file = self._files[cut.file]
        file.open -= 1
        self._close_file(file)

    def _close_file(self, file: _OpenFile) -> None:
        if file.finished is None or file.open > 0:
            return
        file_id = file.file.id
        content = file.finished.content_hash if file.whole else ""
        row = self._file_row(file.file, content, file.documents, done=file.whole)
        if vanished := self._vanished(file):
            self.vanished += vanished
            self.shrunk.append(row)  # done only when they are removed, so that a refusal is met again
            row = replace(row, done=False)
        self._settled_files.append(row)
        self._failing[file_id] = file.failed
        del self._files[file_id]
        self._issued.pop(file_id, None)
        share = len(self.failures) / max(self._planned, self.counts.seen - self._seen_before, 1)
        self.gave_up = self.gave_up or share > self._s.experiment.ingest.fail_threshold
        if len(self._settled) + len(self._settled_files) >= SETTLE_DOCUMENTS:
            self._save()

    def _vanished(self, file: _OpenFile) -> list[str]:
        """Documents that the file had before and has no more; unknown while something of it cannot be read."""
        if not file.whole or file.seen is None:
            return []
        return [row.id for row in self._s.ledger.documents(file.file.id) if row.id not in file.seen]

    def _file_row(self, file: SourceFile, content_hash: str, documents: int, *, done: bool) -> FileRow:
        fingerprint = self._s.fingerprints[file.source]
        return FileRow(file.id, file.size, file.stamp, content_hash, fingerprint, documents, done)

    def _fail(self, document: str, file_id: str, stage: str, error: str) -> None:
        failure = Failure(document, file_id, stage, error.removeprefix(document).lstrip(" :"))
        file = self._file(file_id)
        file.whole = False
        file.failed.add(document)
        self.counts.failed += 1
        self.failures.append(failure)
        self._settled_failures.append(failure)
        log.info("%s failed at %s: %s", document, stage, failure.error)

    def _save(self) -> None:
        """Save the ledger, then delete from the store what no document has any more."""
        self._saved = monotonic()
        if not (self._settled or self._settled_files or self._settled_failures):
            return
        self._gone += self._s.ledger.settle(
            self._settled, self._settled_files, self._settled_failures, self._failing
        )
        self._settled, self._settled_files, self._settled_failures, self._failing = [], [], [], {}
        if self._s.ledger.publish():
            gone, self._gone = self._gone, []
            self.counts.removed += delete_keys(self._s, gone)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Look for cycles of garbage rarely: a run makes many objects that last for seconds, and hardly any cycle."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def metadata_of(experiment: Experiment, cut: Cut, chunk: Chunk) -> dict[str, MetadataValue]:
    """What stands beside a chunk's vector: the document's metadata, where the chunk is from, and its text."""
    metadata = dict(cut.metadata)
    section = experiment.tenancy
    tenant = tenancy.tenant_of(metadata, section.key) if section else None
    if section and tenant is not None:
        metadata[section.key] = tenant  # 42 from a record and "42" from a caller are one tenant
    metadata |= {DOCUMENT: cut.document, START: chunk.start, END: chunk.end, TEXT: chunk.text}
    if chunk.page is not None:
        metadata[PAGE] = chunk.page
    return metadata


def delete_keys(services: Services, keys: list[str]) -> int:
    """Delete loose keys from the store, and then from the ledger; how many."""
    size = services.store.limits.delete_keys
    for first in range(0, len(keys), size):
        services.lease.check()
        batch = keys[first : first + size]
        services.store.delete(batch)
        services.ledger.deleted(batch)
    return len(keys)


def _bytes_of(cut: Cut) -> int:
    text = sum(len(chunk.text) for chunk in cut.chunks)
    vectors = cut.vectors.nbytes if cut.vectors is not None else len(cut.chunks) * 4_096
    return text * 2 + vectors + len(cut.chunks) * CHUNK_BYTES


def _where(chunk: Chunk) -> str:
    page = f" on page {chunk.page}" if chunk.page is not None else ""
    return f"characters {chunk.start} to {chunk.end}{page}"
