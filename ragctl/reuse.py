"""Vectors that need not be made: of a text that is in the store, in the cache, or on its way there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ragctl.records import stem_of, vector_bytes

if TYPE_CHECKING:
    from ragctl.records import Vector, VectorRecord
    from ragctl.sparse import AnyVector
    from ragctl.under_way import OpenDocument, Services, Sought

Chunks = list[tuple["OpenDocument", int]]  # documents, and which of their chunks


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


class TextsUnderWay:
    """Texts that wait for their vector, and vectors that wait for their put. Owned by one thread."""

    def __init__(self) -> None:
        self._waiting: dict[str, Chunks] = {}  # text hash -> who else waits for its vector
        self._vectors: dict[str, AnyVector] = {}  # text hash -> vector, from then on until its put has ended

    def vector(self, stem: str) -> AnyVector | None:
        """The vector of a text whose put has not ended."""
        return self._vectors.get(stem)

    def join(self, stem: str, document: OpenDocument, chunk: int) -> bool:
        """Wait with others for a text's vector; False for the first, who has to ask for it."""
        others = self._waiting.get(stem)
        if others is None:
            self._waiting[stem] = []
            return False
        others.append((document, chunk))
        return True

    def arrived(self, stem: str) -> Chunks:
        """Who else waited for the vector, which has come, or never will."""
        return self._waiting.pop(stem, [])

    def put_begins(self, record: VectorRecord) -> None:
        """Remember the vector of a record that is queued for its put, for others with the same text."""
        self._vectors[stem_of(record.key)] = record.vector

    def put_ended(self, record: VectorRecord) -> None:
        """Forget it: it is in the store, or it is not needed."""
        if self._vectors:
            self._vectors.pop(stem_of(record.key), None)


def part_size(services: Services) -> int:
    """How many chunks one call of `fetch` looks up: all calls that are made at once bring a quarter at most of what may
    wait between the stages.
    """
    settings = services.experiment.ingest
    room = settings.memory_mb * 2**20 // 4 // settings.put_concurrency
    return max(1, min(services.store.limits.get_keys, room // vector_bytes(services.embedder.dimension)))


class Part(NamedTuple):
    """Some of what is sought of a document. `vectors`: also those of records under its own keys."""

    document: OpenDocument
    sought: Sequence[Sought]
    vectors: bool

    def keys(self) -> Iterator[tuple[str, bool]]:
        """The keys to look up, and whether the vector is wanted of each."""
        own = self.document.cut.keys
        return ((key, self.vectors or key != own[i]) for i, key in self.sought if key is not None)

    def stems(self) -> Iterator[str]:
        """The text hashes to look for in the cache."""
        return (stem_of(self.document.cut.keys[i]) for i, key in self.sought if key is None)


def fetch(services: Services, parts: Sequence[Part]) -> tuple[dict[str, VectorRecord], dict[str, Vector]]:
    """Records by key from the store, vectors by text hash from the cache, for parts of what is sought of documents.

    The vectors of records of which none is wanted are empty.
    """
    wanted = [pair for part in parts for pair in part.keys()]
    read = {key for key, vector in wanted if vector}
    others = {key for key, _ in wanted} - read
    records = services.store.get(sorted(read), vectors=True) if read else {}
    if others:
        records |= services.store.get(sorted(others))
    stems = {stem for part in parts for stem in part.stems()}
    return records, services.cache.get(sorted(stems)) if services.cache is not None and stems else {}
