"""One vector index in memory: its settings, its vectors, and the two ways of ranking them."""

import time
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.servers.bm25 import TextIndex
from tests.servers.s3vectors_filters import Predicate
from tests.servers.s3vectors_records import Rows, VectorRules, metadata_bytes

LIST_BYTES = 1_048_576  # a list page ends once this much was processed

# Where a vector stands in a listing: by hash, so that no caller can rely on insertion or key order.
Place = tuple[int, str]


@dataclass
class TextField:
    """A searchable key: its words, when it starts to serve queries, and the vectors it has not read yet."""

    language: str | None
    ready_at: float
    words: TextIndex
    unread: set[str]


@dataclass
class VectorIndex:
    """An index and everything in it; not locked, the server sees to that."""

    bucket: str
    name: str
    arn: str
    rules: VectorRules
    mode: str
    encryption: Mapping[str, str]
    created: float = field(default_factory=time.time)
    text_fields: dict[str, TextField] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows: Rows = np.empty((0, self.rules.dimension), dtype=np.float32)
        self._norms = np.empty(0)
        self._keys: list[str] = []
        self._position: dict[str, int] = {}
        self._listing: list[Place] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, keys: Sequence[str], rows: Rows, metadata: Sequence[dict[str, Any]]) -> None:
        """Insert vectors, replacing vector and metadata of keys that are there."""
        for key in keys:
            if key not in self._position:
                self._position[key] = len(self._keys)
                self._keys.append(key)
                self._listing = None
        self._grow(len(self._keys))
        positions = [self._position[key] for key in keys]
        self._rows[positions] = rows
        self._norms[positions] = np.linalg.norm(rows.astype(np.float64), axis=1)
        self.metadata.update(zip(keys, metadata, strict=True))
        self._changed(keys)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove vectors; absent keys are fine."""
        gone = [key for key in keys if self.metadata.pop(key, None) is not None]
        for key in gone:
            position, last = self._position.pop(key), self._keys.pop()
            if last != key:
                self._keys[position], self._position[last] = last, position
                self._rows[position] = self._rows[len(self._keys)]
                self._norms[position] = self._norms[len(self._keys)]
            self._listing = None
        self._changed(gone)

    def vector(self, key: str) -> Rows:
        """Return the stored float32 values of one key."""
        row: Rows = self._rows[self._position[key]]
        return row

    def places(self, keys: Iterable[str]) -> list[Place]:
        """Return where those of the keys that are there stand in a listing, in listing order."""
        return sorted((zlib.crc32(key.encode()), key) for key in set(keys) if key in self._position)

    def page(self, after: Place | None, limit: int, segment: tuple[int, int]) -> tuple[list[Place], bool]:
        """Return a list page of one segment (index, count), and whether more follows; cut at about 1 MB."""
        if self._listing is None:
            self._listing = self.places(self._keys)
        start = bisect_right(self._listing, after) if after else 0
        page: list[Place] = []
        processed = 0
        for place in self._listing[start:]:
            if place[0] % segment[1] != segment[0]:
                continue
            if len(page) == limit or processed > LIST_BYTES:
                return page, True
            page.append(place)
            processed += self._stored_bytes(place[1])
        return page, False

    def by_distance(self, query: Rows, accept: Predicate | None, depth: int) -> list[tuple[str, float]]:
        """Return the nearest accepted keys with their distance, by exact search, equal ones by key.

        cosine is 1 - cosine similarity (0 to 2), euclidean is true L2, with the root.
        """
        chosen: slice | list[int] = slice(len(self))
        if accept is not None:
            chosen = [i for i, key in enumerate(self._keys) if accept(self.metadata[key])]
        distances = self._distances(chosen, query)
        if depth < len(distances):
            near = np.flatnonzero(distances <= np.partition(distances, depth - 1)[depth - 1])
        else:
            near = np.arange(len(distances))
        found = [
            (distances[i].item(), self._keys[i if isinstance(chosen, slice) else chosen[i]]) for i in near
        ]
        return [(key, distance) for distance, key in sorted(found)[:depth]]

    def by_text(self, name: str, text: str, accept: Predicate | None) -> list[tuple[str, float]]:
        """Return every accepted key with a word of the text in that field, best BM25 score first."""
        scores = self._words(name).scores(text)
        found = (key for key in scores if accept is None or accept(self.metadata[key]))
        return sorted(((key, scores[key]) for key in found), key=lambda hit: (-hit[1], hit[0]))

    def add_text_field(self, name: str, language: str | None, ready_at: float) -> None:
        """Make a key searchable from `ready_at` on, the vectors already here included."""
        self.text_fields[name] = TextField(language, ready_at, TextIndex(language), set(self._keys))

    def _distances(self, chosen: slice | list[int], query: Rows) -> NDArray[np.floating[Any]]:
        rows = self._rows[chosen]
        if self.rules.metric == "euclidean":
            lengths: NDArray[np.floating[Any]] = np.linalg.norm(rows - query, axis=1)
            return lengths
        unit = query / np.linalg.norm(query.astype(np.float64))
        return np.clip(1 - (rows @ unit.astype(np.float32)) / self._norms[chosen], 0, 2)

    def _words(self, name: str) -> TextIndex:
        """Return the words of a field, read up to the last write; reading waits until a query asks."""
        text_field = self.text_fields[name]
        for key in text_field.unread:
            text = " ".join(_strings(self.metadata.get(key, {}).get(name)))
            text_field.words.put(key, text)
        text_field.unread.clear()
        return text_field.words

    def _changed(self, keys: Iterable[str]) -> None:
        for text_field in self.text_fields.values():
            text_field.unread.update(keys)

    def _grow(self, count: int) -> None:
        if count > len(self._rows):
            rows = np.empty((max(count, 2 * len(self._rows)), self.rules.dimension), dtype=np.float32)
            rows[: len(self._rows)] = self._rows
            self._rows = rows
            self._norms = np.resize(self._norms, len(rows))

    def _stored_bytes(self, key: str) -> int:
        return len(key.encode()) + 4 * self.rules.dimension + metadata_bytes(self.metadata[key])


def _strings(value: Any) -> Iterator[str]:
    for element in value if isinstance(value, list) else [value]:
        if isinstance(element, str):
            yield element
