"""The stores that the contract holds for: a new one is a line in BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ragctl.adapters.base import IndexSpec, VectorStore
from ragctl.adapters.local import LocalStore
from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.backends import S3VectorsStore as Settings
from tests.servers.clients import connect
from tests.servers.s3vectors import S3VectorsServer

# Opens a store whose index does not exist; what it keeps on this machine goes into the folder.
Opener = Callable[[Path], AbstractContextManager[VectorStore]]

SPEC = IndexSpec(dimension=2, metric="cosine", embedder="compass/1")


@contextmanager
def local(folder: Path) -> Iterator[VectorStore]:
    store = LocalStore(folder / "store", "papers")
    yield store
    store.close()


@contextmanager
def s3vectors(_: Path) -> Iterator[VectorStore]:
    with S3VectorsServer() as server, connect("s3vectors", server.url) as client:
        yield S3VectorsStore(client, Settings(kind="s3vectors", bucket="library", index="papers"))
    assert (server.unexpected, server.broken) == ([], [])


BACKENDS: dict[str, Opener] = {
    "local": local,
    "s3vectors": s3vectors,
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
