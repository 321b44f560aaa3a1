"""Embeddings kept by content: a text that any experiment has embedded with the same embedder is not paid for again."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ragctl.errors import ConfigError, StateError
from ragctl.records import short_hash

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.records import Vector


class VectorCache(Protocol):
    """Vectors by text hash, for one embedder. Safe to call from several threads."""

    def get(self, texts: Sequence[str]) -> dict[str, Vector]: ...  # unknown ones are left out
    def put(self, vectors: Mapping[str, Vector]) -> None: ...


def open_cache(experiment: Experiment, embedder: str) -> VectorCache | None:
    """The cache for vectors of the embedder with this identity, or None where the experiment names none."""
    if experiment.cache is None:
        return None
    if "://" in experiment.cache.path:
        raise ConfigError(
            "cache.path: must be a folder", hint="a folder on a shared file system serves several machines"
        )
    return FolderCache(Path(experiment.cache.path) / f"{short_hash(embedder)}.sqlite")


class FolderCache:
    """A SQLite file for each embedder. Float32 values, exactly as the embedder gave them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, texts: Sequence[str]) -> dict[str, Vector]:
        import numpy as np

        found: dict[str, Vector] = {}
        with self._connected() as db:
            for text in texts:
                row = db.execute("SELECT vector FROM vectors WHERE text = ?", (text,)).fetchone()
                if row:
                    found[text] = np.frombuffer(row[0], np.float32)
        return found

    def put(self, vectors: Mapping[str, Vector]) -> None:
        rows = ((text, vector.astype("<f4").tobytes()) for text, vector in vectors.items())
        with self._connected() as db:
            db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    def _connected(self) -> _Connection:
        return _Connection(self._path)


class _Connection:
    """A connection for one operation, committed at its end: SQLite's locks do the rest between processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, timeout=60)
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS vectors (text TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"{self._path}: the embedding cache cannot be used: {error}") from error
        return self._db

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                self._db.commit()
        finally:
            self._db.close()
        if isinstance(error, sqlite3.Error):
            raise StateError(f"{self._path}: the embedding cache cannot be used: {error}") from error
