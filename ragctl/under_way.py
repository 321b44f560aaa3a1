"""Documents and files on their way through an ingest, and what a run works with and counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from ragctl import tenancy
from ragctl.manifest import FileRow
from ragctl.records import DOCUMENT, END, PAGE, START, TEXT

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, VectorStore
    from ragctl.cache import VectorCache
    from ragctl.config import Experiment
    from ragctl.lease import Lease
    from ragctl.manifest import DocumentRow, Ledger
    from ragctl.records import Chunk, MetadataValue, SourceFile
    from ragctl.sparse import AnyVector
    from ragctl.worker import Cut, Finished, Task

_TEXT_OF = attrgetter("text")
CHUNK_BYTES = 1_500  # of the objects that a chunk is made of, beside its text and vector


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


@dataclass(frozen=True, slots=True)
class Todo:
    """A task with what the ledger knows of its file."""

    task: Task
    row: FileRow | None


@dataclass(slots=True)
class OpenFile:
    """A file of which documents are on their way."""

    file: SourceFile
    row: FileRow | None
    open: int = 0
    documents: int = 0
    finished: Finished | None = None
    whole: bool = True  # nothing of it has failed
    emptied: bool = False  # some document had chunks and has none any more
    seen: set[str] | None = None  # ids of its documents, kept where some may have vanished
    failed: set[str] = field(default_factory=set)  # its documents that failed

    def has(self, document: str | None) -> None:
        """The document is still in the file, whether it gets in or not."""
        if self.seen is not None and document is not None:
            self.seen.add(document)


class Sought(NamedTuple):
    """A chunk whose vector may be there already: under a key of the store, or, where that is None, in the cache."""

    chunk: int
    key: str | None


@dataclass(slots=True, eq=False)
class OpenDocument:
    """A document on its way into the store. `waiting`: chunks that are not yet there.

    `vector_bytes`: of a vector that is not made yet.
    """

    cut: Cut
    old: DocumentRow | None
    vector_bytes: InitVar[int]
    waiting: int = 0
    sought: deque[Sought] = field(default_factory=deque)  # not yet looked up
    # Chunks that keep their vector and get other metadata, which are put last; None: the vector is to be read again
    rewrites: dict[int, AnyVector | None] = field(default_factory=dict)
    rewriting: bool = False  # all that is new of it is in the store
    failed: bool = False
    owed_text: int = 0  # bytes to embed that are promised to the bill and not yet paid for
    owed_stored: int = 0  # likewise, bytes to store
    bytes: int = field(init=False)  # memory that it takes, about

    def __post_init__(self, vector_bytes: int) -> None:
        chunks, vectors = self.cut.chunks, self.cut.vectors
        text = sum(map(len, map(_TEXT_OF, chunks)))
        taken = sum(vector.nbytes for vector in vectors) if vectors else len(chunks) * vector_bytes
        self.bytes = text * 2 + taken + len(chunks) * CHUNK_BYTES

    @property
    def known(self) -> frozenset[str]:
        """Keys of its chunks that the ledger has."""
        return frozenset(self.old.keys) if self.old else frozenset()


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


class OpenFiles:
    """The files that the workers were given, and what has come of each so far."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._issued: dict[str, Todo] = {}
        self._files: dict[str, OpenFile] = {}

    def issue(self, todos: Iterator[Todo]) -> Iterator[Task]:
        """The tasks. Runs in the threads of the workers, one at a time."""
        for todo in todos:
            self._issued[todo.task.file.id] = todo
            yield todo.task

    def get(self, file_id: str) -> OpenFile:
        """A file that something has come of."""
        if file_id not in self._files:
            todo = self._issued[file_id]
            seen = None if todo.row is None else set[str]()
            self._files[file_id] = OpenFile(todo.task.file, todo.row, seen=seen)
        return self._files[file_id]

    def unchanged(self, file_id: str) -> FileRow:
        """The new row of a file whose content is what it was; nothing else comes of it."""
        todo = self._issued.pop(file_id)
        assert todo.row is not None
        return self._row(todo.task.file, todo.row.content_hash, todo.row.documents, done=True)

    def finished(self, file: OpenFile) -> FileRow:
        """The row of a file that all has come of; it is open no more."""
        assert file.finished is not None
        del self._files[file.file.id]
        self._issued.pop(file.file.id, None)
        content = file.finished.content_hash if file.whole else ""
        return self._row(file.file, content, file.documents, done=file.whole)

    def vanished(self, file: OpenFile) -> list[str]:
        """Documents that the file had before and has no more; unknown while something of it cannot be parsed."""
        assert file.finished is not None
        if not file.finished.whole or file.seen is None:
            return []
        return [row.id for row in self._s.ledger.documents(file.file.id) if row.id not in file.seen]

    def fingerprint(self, file_id: str) -> str:
        """What the documents of a file are made with."""
        return self._s.fingerprints[self._files[file_id].file.source]

    def _row(self, file: SourceFile, content_hash: str, documents: int, *, done: bool) -> FileRow:
        fingerprint = self._s.fingerprints[file.source]
        return FileRow(file.id, file.size, file.stamp, content_hash, fingerprint, documents, done)
