"""The cases where moto is known to answer as AWS does, asked of moto and of our server alike.

Wrong in moto, and so not asked: ARNs in replies, half an address, a second CreateIndex, metadata settings, nearly
every limit, paging, segments, queries.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from tests.servers.clients import connect, refused
from tests.servers.s3vectors import S3VectorsServer

BUCKET: dict[str, Any] = {"vectorBucketName": "papers"}
INDEX: dict[str, Any] = {**BUCKET, "indexName": "chunks"}


def moto() -> Iterator[str]:
    """Serve moto, in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def ours() -> Iterator[str]:
    """Serve the project's own server."""
    with S3VectorsServer() as server:
        yield server.url
    assert (server.unexpected, server.broken) == ([], [])


@pytest.fixture(scope="module", params=[moto, ours], ids=["moto", "ours"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of either server."""
    serve: Callable[[], Iterator[str]] = request.param
    yield from serve()


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A client with the bucket "papers" and its index "chunks", of dimension 4, both dropped at the end."""
    with connect("s3vectors", url) as client:
        client.create_vector_bucket(**BUCKET)
        client.create_index(**INDEX, dataType="float32", dimension=4, distanceMetric="cosine")
        yield client
        client.delete_index(**INDEX)
        client.delete_vector_bucket(**BUCKET)


def vector(key: str, *values: float) -> dict[str, Any]:
    """Return a record with metadata that names its key."""
    return {"key": key, "data": {"float32": list(values)}, "metadata": {"is": key}}


def test_buckets_conflict_as_on_aws(client: Any) -> None:
    """A second bucket of the name, and deleting one with indexes, is a conflict, in the same words."""
    assert refused(client, "create_vector_bucket", code="ConflictException", **BUCKET) == (
        "A vector bucket with the specified name already exists"
    )
    assert refused(client, "delete_vector_bucket", code="ConflictException", **BUCKET) == (
        "The specified vector bucket is not empty"
    )


@pytest.mark.parametrize(
    ("operation", "address", "what"),
    [
        ("get_vector_bucket", {"vectorBucketName": "absent"}, "vector bucket"),
        ("get_index", {**INDEX, "indexName": "absent"}, "index"),
        ("get_vector_bucket_policy", BUCKET, "vector bucket policy"),
    ],
)
def test_missing_things_are_not_found_as_on_aws(
    client: Any, operation: str, address: dict[str, Any], what: str
) -> None:
    """An absent bucket, index or policy is 404, in the same words."""
    message = refused(client, operation, code="NotFoundException", **address)
    assert message == f"The specified {what} could not be found"


def test_a_wrong_length_is_told_as_on_aws(client: Any) -> None:
    """The text of the refusal is the same, word for word."""
    assert refused(client, "put_vectors", **INDEX, vectors=[vector("w", 1.0, 2.0)]) == (
        "Invalid record for key 'w': vector must have length 4, but has length 2"
    )


def test_a_dimension_is_bounded_as_on_aws(client: Any) -> None:
    """4,097 dimensions are refused."""
    wide = {**INDEX, "indexName": "wide", "dimension": 4097}
    refused(client, "create_index", **wide, dataType="float32", distanceMetric="cosine")


def test_vectors_are_kept_as_on_aws(client: Any) -> None:
    """Puts replace by key, absent keys are neither got nor missed by delete, and metadata comes when asked for."""
    client.put_vectors(**INDEX, vectors=[vector("a", 1.0, 2.0, 3.0, 4.0), vector("b", 1.0, 0.0, 0.0, 0.0)])
    client.put_vectors(**INDEX, vectors=[vector("a", 4.0, 3.0, 2.0, 1.0)])
    (got,) = client.get_vectors(**INDEX, keys=["a", "absent"], returnData=True)["vectors"]
    assert got == {"key": "a", "data": {"float32": [4.0, 3.0, 2.0, 1.0]}}
    client.delete_vectors(**INDEX, keys=["b", "absent"])
    assert client.list_vectors(**INDEX, returnMetadata=True)["vectors"] == [
        {"key": "a", "metadata": {"is": "a"}}
    ]


def test_policies_and_tags_are_kept_as_on_aws(client: Any) -> None:
    """A policy is read back as written; tags come and go by the ARN of the bucket."""
    client.put_vector_bucket_policy(**BUCKET, policy='{"Statement": []}')
    assert client.get_vector_bucket_policy(**BUCKET)["policy"] == '{"Statement": []}'
    client.delete_vector_bucket_policy(**BUCKET)
    arn = client.get_vector_bucket(**BUCKET)["vectorBucket"]["vectorBucketArn"]
    client.tag_resource(resourceArn=arn, tags={"team": "a", "app": "b"})
    client.untag_resource(resourceArn=arn, tagKeys=["team"])
    assert client.list_tags_for_resource(resourceArn=arn)["tags"] == {"app": "b"}
