"""Fixtures of the test servers' own tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.servers.clients import REGION, connect
from tests.servers.s3vectors import S3VectorsServer


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The time of the S3 Vectors servers of a test."""
    return Clock()


@pytest.fixture
def start(clock: Clock) -> Iterator[Callable[..., S3VectorsServer]]:
    """Start servers that must end with nothing unknown asked of them and no ill-formed reply."""
    servers = []
    with ExitStack() as stack:

        def start(**options: Any) -> S3VectorsServer:
            servers.append(stack.enter_context(S3VectorsServer(clock=clock, **options)))
            return servers[-1]

        yield start
    assert [(server.unexpected, server.broken) for server in servers] == [([], [])] * len(servers)


@pytest.fixture
def server(start: Callable[..., S3VectorsServer]) -> S3VectorsServer:
    """A server with nothing in it."""
    return start()


@pytest.fixture
def client_of() -> Iterator[Callable[..., Any]]:
    """Make S3 Vectors clients of a server."""
    with ExitStack() as stack:

        def client_of(server: S3VectorsServer, region: str = REGION) -> Any:
            return stack.enter_context(connect("s3vectors", server.url, region=region))

        yield client_of


@pytest.fixture
def client(server: S3VectorsServer, client_of: Callable[..., Any]) -> Any:
    """A client of `server`."""
    return client_of(server)


@pytest.fixture
def make_index(client: Any) -> Callable[..., str]:
    """Make an index in the bucket "papers", which is made with the first; return its ARN."""
    client.create_vector_bucket(vectorBucketName="papers")
    return index_maker(client)


def index_maker(client: Any) -> Callable[..., str]:
    """Return a function that makes an index in the bucket "papers" and gives its ARN."""

    def make_index(name: str = "chunks", dimension: int = 2, metric: str = "cosine", **settings: Any) -> str:
        created = client.create_index(
            vectorBucketName="papers",
            indexName=name,
            dataType="float32",
            dimension=dimension,
            distanceMetric=metric,
            **settings,
        )
        return str(created["indexArn"])

    return make_index
