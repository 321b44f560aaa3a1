"""The stores that the contract holds for: a new one is a line in BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ragctl.adapters.base import IndexSpec, VectorStore
from ragctl.adapters.local import LocalStore

# Opens a store whose index does not exist; every call with the same folder reaches the same index.
Opener = Callable[[Path], AbstractContextManager[VectorStore]]

SPEC = IndexSpec(dimension=2, metric="cosine", embedder="compass/1")


@contextmanager
def local(folder: Path) -> Iterator[VectorStore]:
    store = LocalStore(folder / "store", "papers")
    yield store
    store.close()


BACKENDS: dict[str, Opener] = {
    "local": local,
}


@pytest.fixture(params=list(BACKENDS))
def absent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorStore]:
    """A store whose index does not exist."""
    with BACKENDS[request.param](tmp_path) as store:
        yield store


@pytest.fixture
def store(absent: VectorStore) -> VectorStore:
    """A store with an empty index of SPEC."""
    absent.create(SPEC)
    return absent
