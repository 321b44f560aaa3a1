"""Embeddings kept by content: a text that any experiment has embedded with the same embedder is not paid for again."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from ragctl.errors import StateError
from ragctl.records import short_hash
from ragctl.scratch import scratch_folder

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.records import Vector
    from ragctl.state import State


PACK_VECTORS = 8_192  # of a pack in a bucket: 12 MB at 384 dimensions


class VectorCache(Protocol):
    """Vectors by text hash, for one embedder. Safe to call from several threads."""

    def get(self, texts: Sequence[str]) -> dict[str, Vector]: ...  # unknown ones are left out
    def put(self, vectors: Mapping[str, Vector]) -> None: ...
    def close(self) -> None: ...


def open_cache(experiment: Experiment, embedder: str) -> VectorCache | None:
    """The cache for vectors of the embedder with this identity, or None where the experiment names none."""
    if experiment.cache is None:
        return None
    place, name = experiment.cache.path, short_hash(embedder)
    if not place.startswith("s3://"):
        return FolderCache(Path(place) / f"{name}.sqlite")
    from ragctl.state import state_at

    return PackedCache(state_at(place, experiment), f"{name}/")


class FolderCache:
    """A SQLite file for each embedder. Float32 values, exactly as the embedder gave them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, texts: Sequence[str]) -> dict[str, Vector]:
        import numpy as np

        found: dict[str, Vector] = {}
        if not self._path.exists():  # and a plan makes none
            return found
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

    def close(self) -> None:
        """Nothing is held open."""

    def _connected(self) -> _Connection:
        return _Connection(self._path)


class PackedCache:
    """A cache in a bucket: packs of vectors that are written once and never changed, so that any number of machines
    may add to it. The packs are fetched into a temporary file when the first text is looked up.
    """

    def __init__(self, state: State, prefix: str) -> None:
        self._state = state
        self._prefix = prefix
        self._folder = ExitStack()
        self._local = FolderCache(self._folder.enter_context(scratch_folder()) / "cache.sqlite")
        self._new: dict[str, Vector] = {}
        self._fetched = False
        self._lock = Lock()

    def get(self, texts: Sequence[str]) -> dict[str, Vector]:
        with self._lock:
            if not self._fetched:
                self._fetch()
        return self._local.get(texts)

    def put(self, vectors: Mapping[str, Vector]) -> None:
        self._local.put(vectors)
        with self._lock:
            self._new.update(vectors)
            if len(self._new) >= PACK_VECTORS:
                self._write_pack()

    def close(self) -> None:
        with self._folder, self._lock:
            if self._new:
                self._write_pack()

    def _fetch(self) -> None:
        import numpy as np

        for name in self._state.names(self._prefix):
            found = self._state.read(name)
            if found is not None:
                with np.load(BytesIO(found.data), allow_pickle=False) as pack:
                    self._local.put(dict(zip(pack["texts"].tolist(), pack["vectors"], strict=True)))
        self._fetched = True

    def _write_pack(self) -> None:
        import numpy as np

        data = BytesIO()
        np.savez(data, texts=np.array(list(self._new)), vectors=np.stack(list(self._new.values())))
        self._state.overwrite(f"{self._prefix}{short_hash(data.getvalue())}.npz", data.getvalue())
        self._new = {}


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
