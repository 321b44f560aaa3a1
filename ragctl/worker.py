"""What happens to a file in a worker process: read, parse, chunk, and embed where the embedder is plain CPU work.

A worker sends what it finds as it goes: "started" before each file, then items in batches. The parent (workers.py)
knows from that which file to blame when a worker dies or takes too long.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ragctl.errors import DocumentError, ItemRefused
from ragctl.records import Chunk, Document, Metadata, SourceFile, chunk_keys, short_hash

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from ragctl.adapters.hashing import HashingEmbedder
    from ragctl.config import Experiment
    from ragctl.sources import Source
    from ragctl.sparse import SparseVector, SparseVectors

PR_SET_PDEATHSIG = 1  # linux/prctl.h
BATCH_CHUNKS = 512  # items are sent when they hold so many chunks ...
BATCH_CHARACTERS = 1_000_000  # ... or so much text: a message stays at a few megabytes


@dataclass(frozen=True, slots=True)
class Task:
    """A file to work through. `known_hash`: the content that needs no work, None where all content does."""

    file: SourceFile
    known_hash: str | None = None
    known_keys: frozenset[str] = frozenset()  # chunks that have their vectors, so none is made here


@dataclass(frozen=True, slots=True)
class Cut:
    """A document as chunks with their keys. `vectors` holds one for each of `embedded`, indexes into chunks."""

    document: str
    file: str
    content_hash: str
    metadata: Metadata
    chunks: tuple[Chunk, ...]
    keys: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()  # of each chunk, where calls of the embedder are limited by them
    embedded: tuple[int, ...] = ()
    vectors: tuple[SparseVector, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A document, or a whole file, that could not be read, parsed, chunked or embedded.

    `record`: the document that its file still has, where `document` names a place in the file.
    """

    document: str
    file: str
    stage: str
    error: str
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Same:
    """The file's content is what it was; it took so many seconds to read."""

    file: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing more comes of a file; with the seconds that its stages took. `whole`: all its documents are known."""

    file: str
    content_hash: str
    whole: bool
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Embedding:
    """How long the vectors of the items before it took."""

    seconds: float


Item = Cut | Failed | Same | Finished | Embedding


def serve(pipe: Connection, experiment: Experiment, embeds: bool, environment: dict[str, str]) -> None:
    """A worker process: work through lists of tasks until the parent hangs up.

    `environment` is the parent's: the process that this one is forked from may have started under another.
    """
    os.environ.update(environment)
    gc.freeze()  # what is shared with the other workers stays so: the collector would write to each object
    _end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what an interrupt means, and ends us
    shop = Workshop(experiment, embeds=embeds)
    _limit_memory(experiment.parsing.memory_mb)
    try:
        while True:
            _serve_batch(pipe, shop, pipe.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _serve_batch(pipe: Connection, shop: Workshop, tasks: list[Task]) -> None:
    batch = _Batch(pipe, shop)
    for number, task in enumerate(tasks):
        pipe.send(("started", number))
        for item in shop.work(task):
            batch.add(item)
        if batch.has_part_of_file:
            batch.send()  # so that of the files before "started", each is sent whole or not at all
    batch.send()
    pipe.send(("finished", None))


class _Batch:
    """Items on their way to the parent, sent when there are enough of them."""

    def __init__(self, pipe: Connection, shop: Workshop) -> None:
        self._pipe = pipe
        self._shop = shop
        self._items: list[Item] = []
        self._clear()
        self.has_part_of_file = False

    def add(self, item: Item) -> None:
        if isinstance(item, Cut):
            characters = sum(len(chunk.text) for chunk in item.chunks)
            if characters >= BATCH_CHARACTERS and self._items:
                self.send()
                self.has_part_of_file = True
            self._chunks += len(item.chunks)
            self._characters += characters
        self._items.append(item)
        if max(len(self._items), self._chunks) >= BATCH_CHUNKS or self._characters >= BATCH_CHARACTERS:
            self.send()
            self.has_part_of_file = True

    def send(self) -> None:
        if self._items:
            try:
                self._send()
            except MemoryError:
                self._fail_documents()
                self._pipe.send(("items", (self._items, None)))
        self._clear()
        self.has_part_of_file = False

    def _send(self) -> None:
        start = perf_counter()
        vectors = self._shop.embed(self._items)
        seconds = [] if vectors is None else [Embedding(perf_counter() - start)]
        self._pipe.send(("items", ([*self._items, *seconds], vectors)))

    def _fail_documents(self) -> None:
        """Have the documents failed for which the memory does not suffice; a large one stands by itself."""
        self._items[:] = [
            self._shop.too_large(item) if isinstance(item, Cut) else item for item in self._items
        ]

    def _clear(self) -> None:
        self._items = []
        self._chunks = 0
        self._characters = 0


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent's, also in the middle of a document that hangs.

    The parent is the server that forks workers. It ends once nobody holds the other end of a pipe any more: the run
    does, and so would each worker, which is handed a copy (prctl(2), multiprocessing.forkserver).
    Elsewhere than on Linux a worker ends when it next reads from, or writes to, its pipe.
    """
    if sys.platform == "linux":
        server: Any = forkserver._forkserver  # noqa: SLF001  there is no other way to it
        os.close(server._forkserver_alive_fd)  # noqa: SLF001  as above
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory(megabytes: int) -> None:
    """Let this process take `megabytes` more address space than it has now, so that a bomb ends as MemoryError."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return  # no /proc: the limit cannot be set relative to what is in use
    limit = pages * resource.getpagesize() + megabytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


class Workshop:
    """The tools of a worker, opened once: sources, parser, chunker, and the embedder if it is CPU work."""

    def __init__(self, experiment: Experiment, *, embeds: bool = True) -> None:
        self._experiment = experiment
        self._sources: dict[str, Source] = {}
        self._sections = {section.name: section for section in experiment.sources}
        self._embedder = _cpu_embedder(experiment) if embeds else None
        self._count_tokens = _token_counter(experiment)

    def work(self, task: Task) -> Iterator[Item]:
        """Everything that one file gives. Never raises for what is in the file."""
        file = task.file
        try:
            yield from self._work(task)
        except ItemRefused as refused:
            yield from _lost(file, refused.message)
        except MemoryError:
            yield from _lost(file, self._needs_memory())
        except RecursionError:
            yield from _lost(file, "is nested too deeply to parse")
        except Exception as error:  # noqa: BLE001  a bug that one document brings out must not cost the others
            yield from _lost(file, f"brings out a bug in ragctl: {_where(error)}")

    def _work(self, task: Task) -> Iterator[Item]:
        from ragctl.parsing import parse

        file, section = task.file, self._sections[task.file.source]
        start = perf_counter()
        data = self._source(file.source).read(file)
        content_hash = short_hash(data)
        seconds = {"read": perf_counter() - start, "parse": 0.0, "chunk": 0.0}
        if content_hash == task.known_hash:
            yield Same(file.id, seconds["read"])
            return
        whole = True
        start = perf_counter()
        for parsed in parse(file, data, self._experiment.parsing, section.records):
            seconds["parse"] += perf_counter() - start
            if isinstance(parsed, DocumentError):
                whole = whole and parsed.record is not None
                yield Failed(parsed.document or file.id, file.id, "parse", parsed.message, parsed.record)
            else:
                start = perf_counter()
                cut = self._cut(parsed, task)
                seconds["chunk"] += perf_counter() - start
                yield cut
            start = perf_counter()
        yield Finished(file.id, content_hash, whole, seconds)

    def _source(self, name: str) -> Source:
        from ragctl.sources import open_source

        if name not in self._sources:
            self._sources[name] = open_source(self._sections[name], self._experiment)
        return self._sources[name]

    def _cut(self, document: Document, task: Task) -> Cut:
        from ragctl.chunking import split

        chunks = tuple(split(document, self._experiment.chunking)) if document.text.strip() else ()
        keys = tuple(chunk_keys(document.id, [chunk.text for chunk in chunks]))
        wanted = (
            tuple(i for i, key in enumerate(keys) if key not in task.known_keys) if self._embedder else ()
        )
        return Cut(
            document.id,
            task.file.id,
            document.content_hash,
            document.metadata,
            chunks,
            keys,
            document.warnings,
            tuple(self._count_tokens(chunk.text) for chunk in chunks) if self._count_tokens else (),
            wanted,
        )

    def too_large(self, cut: Cut) -> Failed:
        """What becomes of a document for whose vectors the memory does not suffice."""
        return Failed(cut.document, cut.file, "embed", self._needs_memory(), cut.document)

    def _needs_memory(self) -> str:
        return f"needs more than {self._experiment.parsing.memory_mb} MB (parsing.memory_mb)"

    def embed(self, items: list[Item]) -> SparseVectors | None:
        """The vectors of all new chunks in the items, made in one go; None where there are none to make."""
        texts = [item.chunks[i].text for item in items if isinstance(item, Cut) for i in item.embedded]
        return self._embedder.sparse(texts) if self._embedder and texts else None


def with_vectors(items: list[Item], sparse: SparseVectors | None) -> list[Item]:
    """The same items, each with its own vectors of those that `Workshop.embed` made for them."""
    if sparse is None:
        return items
    vectors = sparse.rows()
    done: list[Item] = []
    first = 0
    for item in items:
        if isinstance(item, Cut) and item.embedded:
            last = first + len(item.embedded)
            done.append(replace(item, vectors=tuple(vectors[first:last])))
            first = last
        else:
            done.append(item)
    return done


def _where(error: Exception) -> str:
    """Type and place of an exception; its message may quote the document, so it stays out."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def _lost(file: SourceFile, error: str) -> Iterator[Item]:
    yield Failed(file.id, file.id, "parse", error)
    yield Finished(file.id, "", whole=False)


def _token_counter(experiment: Experiment) -> Callable[[str], int] | None:
    """What counts the tokens of a text, where the experiment limits them in a call; None elsewhere."""
    if not getattr(experiment.embedding, "max_batch_tokens", None):
        return None
    from ragctl.chunking import token_counter

    return token_counter(experiment.chunking)


def _cpu_embedder(experiment: Experiment) -> HashingEmbedder | None:
    """The experiment's embedder when it is CPU work; the others are called by the parent, which can wait better."""
    if experiment.embedding.kind != "hashing":
        return None
    from ragctl.adapters.hashing import HashingEmbedder

    embedder = HashingEmbedder.from_config(experiment)
    return embedder if embedder.cpu_bound else None
