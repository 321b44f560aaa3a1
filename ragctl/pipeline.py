"""parse -> chunk -> embed -> put -> ledger, concurrent and bounded.

One thread, the conductor, owns all state: which documents are open, what waits for an embedding, what waits for a
put. Workers parse in processes; embed and put calls wait in threads; everything comes back to the conductor as an
event. What has been parsed but not yet put is bounded in bytes: beyond that the workers are held back.

The order of writes for a document is always: declare its new keys in the ledger, put, save its row, delete the keys it
no longer has, forget them. A document whose embedding or put fails keeps its old row and its old vectors.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from ragctl import tenancy
from ragctl.admission import Admission
from ragctl.embedding import EmbedQueue, Wanted
from ragctl.errors import RagctlError, RecordRefused
from ragctl.manifest import DocumentRow, Failure, FileRow
from ragctl.putting import Batch, PutQueue
from ragctl.records import Chunk, Metadata, VectorRecord, some_vectors, stem_of, vector_bytes
from ragctl.reuse import KnownTexts, Part, TextsUnderWay, fetch, part_size
from ragctl.room import Room
from ragctl.settling import Settling
from ragctl.spending import IngestBill
from ragctl.under_way import (
    Counts,
    OpenDocument,
    OpenFile,
    OpenFiles,
    Services,
    Sought,
    Todo,
    metadata_of,
)
from ragctl.worker import Cut, Embedding, Failed, Finished, Item, Same
from ragctl.workers import Workers

if TYPE_CHECKING:
    from ragctl.records import Vector
    from ragctl.sparse import AnyVector

log = logging.getLogger("ragctl.ingest")

STOP_S = 25.0  # for what is in flight when a run is told to stop
# Documents among which failures are counted at the least while nobody knows how many come: the first of a file of
# records are not all.
UNKNOWN_DOCUMENTS = 1_000
PUT_FAILURES_IN_A_ROW = 3  # batches that fail with no success between: the store is down


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
        coming: int | None = 0,
        kept: int = 0,
        knows_all: bool = False,
    ) -> None:
        """`bill` gets what is paid for; `embeds` false: the workers make no vectors, the embedder is asked for all.

        `coming` documents at the least are worked through, None where nobody knows, and `kept` documents are not: the
        share of failures is one of all of them.
        `knows_all`: the index holds nothing that the ledger does not know.
        """
        self._s = services
        self._bill = bill or IngestBill()
        self._embeds_in_workers = embeds
        self._knows_all = knows_all
        self.counts = counts
        self.failures: list[Failure] = []
        self.gave_up = False  # more failed than `ingest.fail_threshold` allows
        self._coming = coming
        self._kept = kept
        self._seen_before = counts.seen
        self._failed_puts = 0  # in a row
        # Left to the end, when it is known how many they are: documents that are gone from files that are still there,
        # documents without any chunk that had some, and the files of both.
        self.vanished: list[str] = []
        self.emptied: list[DocumentRow] = []
        self.shrunk: list[FileRow] = []
        # of each stage, summed over what ran at the same time
        self.seconds: dict[str, float] = {"read": 0.0, "parse": 0.0, "chunk": 0.0, "embed": 0.0, "put": 0.0}
        self._timing = threading.Lock()
        self._stopping = stopping  # set: end early, with everything saved that is in the store
        settings = services.experiment.ingest
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._room = Room(settings.memory_mb * 2**20)
        self._files = OpenFiles(services)
        self._embeds = EmbedQueue(services.embedder, settings.embed_concurrency, counts)
        self._seen = borrowed
        self._texts = TextsUnderWay()
        self._records = PutQueue(services.store)
        self._admission = Admission(services, self._bill)
        self._seeking: deque[OpenDocument] = deque()  # that have something sought, and no fetch under way
        self._part = part_size(services)
        (self._any_vector,) = some_vectors(1, services.embedder.dimension)
        self._calls = 0  # fetches and puts under way
        self._fetches = 0  # the fetches among them
        self._most_fetches = settings.put_concurrency
        self._puts = 0  # the puts among them: no more than are made at once, and the next
        most = services.store.limits.puts_at_once or settings.put_concurrency
        self._most_puts = min(settings.put_concurrency, most) + 1
        self._settling = Settling(services, counts)
        self._parsing = True
        self._error: BaseException | None = None

    def bottleneck(self) -> str:
        """The stage that the others wait for just now, for a display."""
        if self._calls and (self._records.has_full or not self._embeds.under_way):
            return "put"
        if self._embeds.under_way >= self._embeds.limit or self._embeds.waiting:
            return "embed"
        if self._parsing:
            return "parse"
        return "embed" if self._embeds.under_way else "put"

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self, todos: Iterator[Todo], tick: Callable[[], None] = lambda: None) -> None:
        """Work through the files. `tick` is called about twice a second, for progress."""
        settings = self._s.experiment.ingest
        workers = Workers(
            self._s.experiment,
            self._files.issue(todos),
            self._deliver,
            lambda error: self._events.put(partial(self._on_parsed, error)),
            embeds=self._embeds_in_workers,
        )
        self._workers = workers
        with ThreadPoolExecutor(settings.put_concurrency, "put") as self._putters:
            workers.start()
            try:
                self._loop(workers, tick)
            finally:
                workers.stop()
                self._embeds.withdraw()
                self._room.open()
                workers.join()
                self._spent("embed", self._embeds.seconds)
                self._putters.shutdown(wait=False, cancel_futures=True)
                self._settling.save()
                if (
                    self._calls
                ):  # some of which may take longer than there is time: what is saved must not wait
                    self._s.ledger.publish(force=True)

    def _loop(self, workers: Workers, tick: Callable[[], None]) -> None:
        ticked = stopped = 0.0
        while self._error is None and not self._is_done(stopping=bool(stopped)):
            if (self._stopping.is_set() or self.gave_up) and not stopped:
                stopped = monotonic()
                workers.stop()
                self._embeds.withdraw()
            if stopped and monotonic() - stopped > STOP_S:
                return
            self._take_event()
            self._dispatch(stopping=bool(stopped))
            if self._settling.is_due:
                self._settling.save()
            if monotonic() - ticked > 0.5:
                ticked = monotonic()
                tick()
        if self._error is not None:
            raise self._error

    def _is_done(self, *, stopping: bool) -> bool:
        under_way = self._calls or self._embeds.under_way
        if stopping:
            return not (under_way or self._records)
        waiting = (
            self._seeking or self._embeds.waiting or self._records or self._room.is_full or self._admission
        )
        return not (self._parsing or under_way or waiting)

    def _take_event(self) -> None:
        try:
            event = self._events.get(timeout=self._embeds.pause(0.25))
        except queue.Empty:
            return
        try:
            event()
        except BaseException as error:  # noqa: BLE001  raised by the loop after what is in the store was saved
            self._error = self._error or error

    def _deliver(self, items: list[Item]) -> None:
        """Runs in the threads of the workers: waits until there is room."""
        self._room.enter()
        self._events.put(partial(self._on_items, items))

    def _dispatch(self, *, stopping: bool) -> None:
        """Start what can be started: let the workers go on, send batches to the embedder, put what is full."""
        if not self._embeds.has_plenty:
            self._room.let_go_on()
        if self._admission and not stopping:
            self._admit()
        # Workers are done, or held back until something gets through
        no_more = not self._parsing or self._room.is_full
        if not stopping:
            for batch in self._embeds.ready(drain=no_more):
                self._announce(self._embeds.start(batch), partial(self._on_embedded, batch))
        self._put_batches(no_more=no_more, stopping=stopping)
        if not stopping:
            self._fetch()

    def _put_batches(self, *, no_more: bool, stopping: bool) -> None:
        """Put what is full, or has waited long enough, or will not get any fuller."""
        others = self._seeking or self._embeds.waiting or self._embeds.under_way or self._calls - self._puts
        # What is held back goes on when a put ends; after the last document nothing else will fill this one.
        alone = no_more and not others and (not self._puts or not (self._parsing or self._admission))
        while self._records and self._puts < self._most_puts:
            if not (self._records.has_full or alone or self._records.is_late or stopping):
                return
            self._put()

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

    def _announce(self, call: Future[Any], digest: Callable[[Future[Any]], None]) -> None:
        """Make an event of the end of a call, which comes in the call's own thread."""
        call.add_done_callback(lambda ended: self._events.put(partial(digest, ended)))

    # --- what comes from the workers ---------------------------------------------------------------------

    def _on_items(self, items: list[Item]) -> None:
        self._room.digested()
        for item in items:
            if self._bill.is_spent:  # what is under way is finished, nothing more is taken
                return
            match item:
                case Cut():
                    self._take_document(item)
                case Failed():
                    self.counts.seen += 1
                    self._files.get(item.file).has(item.record)
                    self._fail(item.document, item.file, item.stage, item.error)
                case Same():
                    self._take_same(item)
                case Finished():
                    self._take_finished(item)
                case Embedding():
                    self._spent("embed", item.seconds)

    def _on_parsed(self, error: BaseException | None) -> None:
        self._parsing = False
        if error is not None:
            raise error
        self._judge()

    def _take_same(self, item: Same) -> None:
        row = self._files.unchanged(item.file)
        self.counts.seen += row.documents
        self.counts.unchanged += row.documents
        self.counts.bytes += row.size
        self.seconds["read"] += item.seconds
        self._settling.file(row)

    def _take_finished(self, item: Finished) -> None:
        file = self._files.get(item.file)
        file.finished = item
        file.whole = file.whole and item.whole
        self.counts.bytes += file.file.size
        for stage, seconds in item.seconds.items():
            self.seconds[stage] += seconds
        self._close_file(file)

    def _take_document(self, cut: Cut) -> None:
        file = self._files.get(cut.file)
        self.counts.seen += 1
        file.documents += 1
        file.has(cut.document)
        for warning in cut.warnings:
            log.warning("%s: %s", cut.document, warning)
        # A file without a row has no documents in the ledger.
        old = self._s.ledger.document(cut.document) if file.row else None
        if self._is_unchanged(cut, old):
            self.counts.unchanged += 1
            return
        if fault := self._tenancy_fault(cut):
            self._fail(cut.document, cut.file, "metadata", fault)
            return
        file.open += 1
        document = OpenDocument(cut, old, vector_bytes(self._s.embedder.dimension))
        self._room.take(document.bytes)
        self._admission.offer(document)
        self._admit()

    def _admit(self) -> None:
        """Open the documents that the budget bears. When nothing is under way that could turn out cheaper than was
        thought and it still does not bear the next one, the run takes no more.
        """
        for document in self._admission.admitted():
            self._open(document)
        under_way = (
            self._seeking or self._calls or self._embeds.under_way or self._embeds.waiting or self._records
        )
        if not self._admission or under_way:
            return
        if dear := self._admission.too_dear():
            self._fail_dear(dear)
            return
        for document in self._admission.turn_away():
            self._room.free(document.bytes)
        self._workers.stop()

    def _fail_dear(self, document: OpenDocument) -> None:
        document.failed = True
        cut = document.cut
        self._fail(
            cut.document, cut.file, "embed", "costs more by itself than budget.ingest_usd allows a command"
        )
        self._close(document)

    def _is_unchanged(self, cut: Cut, old: DocumentRow | None) -> bool:
        fingerprint = self._files.fingerprint(cut.file)
        return (
            old is not None
            and old.done
            and (old.content_hash, old.fingerprint) == (cut.content_hash, fingerprint)
        )

    def _tenancy_fault(self, cut: Cut) -> str | None:
        section = self._s.experiment.tenancy
        return tenancy.fault(cut.metadata, section.key, required=section.required) if section else None

    # --- a document's chunks -----------------------------------------------------------------------------

    def _open(self, document: OpenDocument) -> None:
        """Sort the chunks: those with a vector from the worker, those with one in the store or cache, the rest."""
        cut = document.cut
        document.waiting = len(cut.chunks)
        if not cut.chunks:
            self._close(document)
            return
        made = dict(zip(cut.embedded, cut.vectors, strict=True)) if cut.vectors else {}
        self.counts.embedded += len(made)
        known, new = document.known, list[int]()
        for i, key in enumerate(cut.keys):
            if i in made:
                continue
            there = key if key in known else self._seen.get(stem_of(key))
            if there is None and self._s.cache is None:
                new.append(i)
            else:
                document.sought.append(Sought(i, there))
        if document.sought:
            self._seeking.append(document)
        for i, vector in made.items():
            self._add_record(document, i, vector, shared=False)
        self._want(document, new)

    def _fetch(self) -> None:
        """Look up what is sought of documents, part by part, for as long as the puts keep up with what is found."""
        while self._seeking and self._fetches < self._most_fetches and not self._records.has_full:
            parts = self._parts()
            self._fetches += 1
            self._call(partial(self._on_fetched, parts), fetch, self._s, parts)

    def _parts(self) -> list[Part]:
        """What is looked up next, of as many documents as one call takes: the embedded store goes over all its keys
        each time.
        """
        parts: list[Part] = []
        room = self._part
        while self._seeking and room:
            document = self._seeking[0]
            part = [document.sought.popleft() for _ in range(min(room, len(document.sought)))]
            room -= len(part)
            if not document.sought:
                self._seeking.popleft()
            # The vectors of the last part, which most often is the only one, are kept until all that is new is there.
            parts.append(Part(document, part, vectors=document.rewriting or not document.sought))
        return parts

    def _on_fetched(self, parts: list[Part], future: Future[Any]) -> None:
        self._calls -= 1
        self._fetches -= 1
        records, cached = future.result()
        for part in parts:
            self._digest(part, records, cached)

    def _digest(self, part: Part, records: Mapping[str, VectorRecord], cached: Mapping[str, Vector]) -> None:
        document, sought, vectors = part
        missing: list[int] = []
        for i, key in sought:
            own = document.cut.keys[i]
            found = None if key is None else records.get(key)
            vector = cached.get(stem_of(own)) if found is None else found.vector
            if vector is None:
                missing.append(i)
            elif found is None:
                self.counts.cached += 1
                self._add_record(document, i, vector)
            elif key == own:
                self._keep(document, i, found, vector if vectors else None)
            else:
                self.counts.reused += 1
                self._add_record(document, i, vector)
        self._want(document, missing)

    def _keep(self, document: OpenDocument, i: int, found: VectorRecord, vector: AnyVector | None) -> None:
        """The chunk is in the store: leave it, unless its metadata changed, then put it again with the same vector."""
        if document.rewriting and vector is not None:
            self._rewrite(document, i, vector)
            return
        self.counts.reused += 1
        if document.failed or dict(found.metadata) == self._metadata(document, document.cut.chunks[i]):
            self._arrived(document)
        else:
            document.rewrites[i] = vector
            self._put_rewrites(document)

    def _want(self, document: OpenDocument, chunks: list[int]) -> None:
        """Queue chunks for embedding; a text that is already on its way is not sent twice."""
        if document.failed:
            for _ in chunks:
                self._arrived(document)
            return
        if chunks and (error := self._refusal(document, chunks)):
            self._fail_open(document, "put", error)
            for _ in chunks[1:]:
                self._arrived(document)
            return
        cut = document.cut
        for i in chunks:
            stem = stem_of(cut.keys[i])
            vector = self._texts.vector(stem)
            if vector is not None:
                self.counts.reused += 1
                self._add_record(document, i, vector)
            elif not self._texts.join(stem, document, i):
                self._embeds.add(Wanted(document, i, cut.chunks[i].text, cut.tokens[i] if cut.tokens else 0))

    def _refusal(self, document: OpenDocument, chunks: list[int]) -> str | None:
        """What the store would say to one of the chunks, whatever its vector: it is not embedded, and paid for, in vain."""
        cut, vector = document.cut, self._any_vector
        try:
            for i in chunks:
                self._s.store.check(
                    VectorRecord(cut.keys[i], vector, self._metadata(document, cut.chunks[i]))
                )
        except RecordRefused as error:
            return error.message
        return None

    def _on_embedded(self, batch: list[Wanted], future: Future[Any]) -> None:
        tokens = self.counts.tokens
        outcome = self._embeds.take(batch, future)
        self._admission.paid(outcome, self.counts.tokens - tokens)
        cache: dict[str, Vector] = {}
        for wanted, vector in outcome.vectors:
            stem = stem_of(wanted.document.cut.keys[wanted.chunk])
            self.counts.embedded += 1
            cache[stem] = vector
            others = self._texts.arrived(stem)
            self.counts.reused += len(others)
            for document, i in [(wanted.document, wanted.chunk), *others]:
                if not self._add_record(document, i, vector):
                    cache.pop(stem, None)
        for wanted, error in outcome.refused:
            others = self._texts.arrived(stem_of(wanted.document.cut.keys[wanted.chunk]))
            for document, i in [(wanted.document, wanted.chunk), *others]:
                self._fail_open(document, "embed", f"{document.cut.chunks[i].where}: {error}")
        if self._s.cache is not None and cache:
            self._call(self._on_cached, self._s.cache.put, cache)

    def _on_cached(self, future: Future[Any]) -> None:
        self._calls -= 1
        future.result()

    def _add_record(self, document: OpenDocument, i: int, vector: AnyVector, *, shared: bool = True) -> bool:
        """`shared`: others may ask for the vector of this text before it is in the store. False: the store refuses it."""
        if document.failed:
            self._arrived(document)
            return True
        chunk = document.cut.chunks[i]
        record = VectorRecord(document.cut.keys[i], vector, self._metadata(document, chunk))
        taken = self._queue_record(document, record)
        if taken and shared:
            self._texts.put_begins(record)
        return taken

    def _queue_record(self, document: OpenDocument, record: VectorRecord) -> bool:
        try:
            self._s.store.check(record)
        except RecordRefused as error:
            self._fail_open(document, "put", error.message)
            return False
        self._records.add(document, record)
        return True

    def _metadata(self, document: OpenDocument, chunk: Chunk) -> Metadata:
        return metadata_of(self._s.experiment, document.cut, chunk)

    # --- put ---------------------------------------------------------------------------------------------

    def _put(self) -> None:
        """Send the next batch, its keys announced in the ledger."""
        self._s.lease.check()
        batch, dropped = self._records.take()
        for document, record in dropped:
            self._texts.put_ended(record)
            self._arrived(document)
        if not batch:
            return
        documents = {document.cut.document: document for document, _ in batch}
        rewritten = {name for name, document in documents.items() if document.old}
        known = frozenset[str]().union(*(documents[name].known for name in rewritten))
        records = [record for _, record in batch]
        new = [record.key for record in records if record.key not in known]
        self._s.ledger.declare(rewritten, documents.keys() - rewritten, new)
        self._bill.put(records)
        self._puts += 1
        fresh = self._knows_all and len(new) == len(records)
        self._call(partial(self._on_put, batch), self._write, records, fresh)

    def _write(self, records: list[VectorRecord], fresh: bool) -> None:
        """Runs in a thread, perhaps long after it was handed over: a run that has lost its lease writes no more."""
        self._s.lease.check()
        with self._timed("put"):
            self._s.store.put(records, fresh=fresh)

    def _on_put(self, batch: Batch, future: Future[Any]) -> None:
        self._calls -= 1
        self._puts -= 1
        error = future.exception()
        if error is not None and not isinstance(error, RagctlError):
            raise error
        self._failed_puts = self._failed_puts + 1 if error is not None else 0
        if error is not None and (self._embeds.is_fatal(error) or self._failed_puts >= PUT_FAILURES_IN_A_ROW):
            raise error
        for document, record in batch:
            self._texts.put_ended(record)
            if error is not None:
                self._fail_open(document, "put", str(error))
                continue
            self.counts.written += 1
            if not self._s.embedder.cpu_bound:
                self._seen.add(record.key)
            self._arrived(document)

    def _call(
        self, digest: Callable[[Future[Any]], None], function: Callable[..., object], *arguments: object
    ) -> None:
        """Have a thread call the function, and the conductor then digest what came of it."""
        self._calls += 1
        self._announce(self._putters.submit(function, *arguments), digest)

    # --- the end of a document, of a file ----------------------------------------------------------------

    def _arrived(self, document: OpenDocument) -> None:
        document.waiting -= 1
        if document.waiting == 0:
            self._close(document)
        else:
            self._put_rewrites(document)

    def _put_rewrites(self, document: OpenDocument) -> None:
        """Change what is in the store only when all that is new of the document has arrived there."""
        if document.rewrites and document.waiting == len(document.rewrites):
            rewrites, document.rewrites, document.rewriting = document.rewrites, {}, True
            document.sought.extend(
                Sought(i, document.cut.keys[i]) for i, vector in rewrites.items() if vector is None
            )
            if document.sought:
                self._seeking.append(document)
            for i, vector in rewrites.items():
                if vector is not None:
                    self._rewrite(document, i, vector)

    def _rewrite(self, document: OpenDocument, i: int, vector: AnyVector) -> None:
        if document.failed:
            self._arrived(document)
            return
        metadata = self._metadata(document, document.cut.chunks[i])
        self._queue_record(document, VectorRecord(document.cut.keys[i], vector, metadata))

    def _fail_open(self, document: OpenDocument, stage: str, error: str) -> None:
        """One chunk of the document failed, so the document has; the other chunks need not go on."""
        if not document.failed:
            document.failed = True
            self._fail(document.cut.document, document.cut.file, stage, error)
            document.waiting -= len(document.rewrites) + len(document.sought)
            document.rewrites.clear()
            if document.sought:
                document.sought.clear()
                self._seeking.remove(document)
        self._arrived(document)

    def _close(self, document: OpenDocument) -> None:
        cut = document.cut
        self._room.free(document.bytes)
        self._admission.closed(document)
        file = self._files.get(cut.file)
        if not document.failed:
            fingerprint = self._files.fingerprint(cut.file)
            row = DocumentRow(cut.document, cut.file, cut.content_hash, fingerprint, cut.keys)
            if document.known and not cut.chunks:
                self.emptied.append(row)
                file.emptied = True
            else:
                self._settling.document(row)
            if not cut.chunks:
                self.counts.empty += 1
            elif document.old is None:
                self.counts.added += 1
            else:
                self.counts.changed += 1
        file.open -= 1
        self._close_file(file)

    def _close_file(self, file: OpenFile) -> None:
        if file.finished is None or file.open > 0:
            return
        row = self._files.finished(file)
        vanished = self._files.vanished(file)
        if vanished or file.emptied:
            self.vanished += vanished
            self.shrunk.append(row)  # done only when they are removed, so that a refusal is met again
            row = replace(row, done=False)
        self._settling.file(row, file.failed)
        self._judge()

    def _judge(self) -> None:
        """Give up where more has failed than may."""
        coming = self._coming
        if coming is None:
            coming = UNKNOWN_DOCUMENTS if self._parsing else 0
        documents = self._kept + max(coming, self.counts.seen - self._seen_before, 1)
        share = len(self.failures) / documents
        self.gave_up = self.gave_up or share > self._s.experiment.ingest.fail_threshold

    def _fail(self, document: str, file_id: str, stage: str, error: str) -> None:
        failure = Failure(document, file_id, stage, error.removeprefix(document).lstrip(" :"))
        file = self._files.get(file_id)
        file.whole = False
        file.failed.add(document)
        self.counts.failed += 1
        self.failures.append(failure)
        self._settling.failure(failure)
        log_failure(failure)


def log_failure(failure: Failure) -> None:
    """Tell of a document that failed, as the event of which --log-json makes a line."""
    fields = {"document": failure.document, "stage": failure.stage, "error": failure.error}
    words = (failure.document, failure.stage, failure.error)
    logging.getLogger("ragctl.failure").info("%s failed at %s: %s", *words, extra={"fields": fields})
