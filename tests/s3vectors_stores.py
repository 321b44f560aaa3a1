"""What the tests of the S3 Vectors store share: a server on a fake clock, and stores that talk to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ragctl.adapters.base import IndexSpec
from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.backends import S3VectorsStore as Settings
from ragctl.records import VectorRecord
from tests.faketime import FakeTime
from tests.servers.clients import connect
from tests.servers.s3vectors import S3VectorsServer

SPEC = IndexSpec(dimension=2, metric="cosine", embedder="compass/1")
OpenStore = Callable[..., S3VectorsStore]


@contextmanager
def serving(time: FakeTime, **options: Any) -> Iterator[S3VectorsServer]:
    """A server that must end with nothing unknown asked of it and no ill-formed reply."""
    with S3VectorsServer(clock=time, **options) as server:
        yield server
    assert (server.unexpected, server.broken) == ([], [])


@contextmanager
def opening(server: S3VectorsServer, time: FakeTime) -> Iterator[OpenStore]:
    """Open stores of the bucket "library" and the index "papers", or as the settings say."""
    with ExitStack() as stack:

        def open_store(**settings: Any) -> S3VectorsStore:
            client = stack.enter_context(connect("s3vectors", server.url))
            section = {"kind": "s3vectors", "bucket": "library", "index": "papers", **settings}
            return S3VectorsStore(client, Settings.model_validate(section), clock=time, sleep=time.sleep)

        yield open_store


def record(key: str, direction: Sequence[float] = (1, 0), **metadata: Any) -> VectorRecord:
    return VectorRecord(key, np.array(direction, dtype=np.float32), metadata)


def fan(count: int) -> list[VectorRecord]:
    """Records of which each is a little further from east than the one before."""
    return [record(f"k{number:05}", (1_000, number), number=number) for number in range(count)]


def put_all(store: S3VectorsStore, records: Sequence[VectorRecord]) -> None:
    for first in range(0, len(records), 500):
        store.put(records[first : first + 500])
