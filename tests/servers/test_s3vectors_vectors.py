"""Vectors of the S3 Vectors server: what is stored, what is refused, how it is listed, how fast."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.servers.clients import refused
from tests.servers.conftest import Clock, index_maker
from tests.servers.s3vectors import BODY_BYTES, S3VectorsServer


def vector(key: str, *values: float, **metadata: Any) -> dict[str, Any]:
    """Return a record for PutVectors, (1, 0) unless values are given."""
    return {"key": key, "data": {"float32": list(values or (1.0, 0.0))}, "metadata": metadata}


def keys_of(reply: dict[str, Any]) -> list[str]:
    """Return the keys of a reply, sorted."""
    return sorted(hit["key"] for hit in reply["vectors"])


def test_vectors_come_back_as_float32(client: Any, make_index: Callable[..., str]) -> None:
    """Values are narrowed to float32, metadata is kept, and only what is asked for is shown."""
    arn = make_index()
    metadata = {"s": "", "n": 1.5, "b": True, "list": ["x", "x"], "numbers": [1, 2.5], "$odd.key": 7, "": 0}
    client.put_vectors(indexArn=arn, vectors=[vector("a", 0.123456789, 2.0, **metadata)])
    asked = {"indexArn": arn, "keys": ["a", "absent"]}
    assert client.get_vectors(**asked)["vectors"] == [{"key": "a"}]
    (whole,) = client.get_vectors(**asked, returnData=True, returnMetadata=True)["vectors"]
    assert whole["metadata"] == metadata
    assert whole["data"]["float32"] == [0.12345679, 2.0]


def test_a_vector_without_metadata_has_empty_metadata(client: Any, make_index: Callable[..., str]) -> None:
    """Asking for metadata of a vector that has none gives an empty object."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[{"key": "a", "data": {"float32": [1.0, 0.0]}}])
    got = client.get_vectors(indexArn=arn, keys=["a"], returnMetadata=True)["vectors"]
    assert got == [{"key": "a", "metadata": {}}]


def test_putting_a_key_again_replaces_all_of_it(client: Any, make_index: Callable[..., str]) -> None:
    """Neither the old values nor any of the old metadata remain."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector("a", 1.0, 2.0, old=1)])
    client.put_vectors(indexArn=arn, vectors=[vector("a", 3.0, 4.0, new=2)])
    (only,) = client.list_vectors(indexArn=arn, returnData=True, returnMetadata=True)["vectors"]
    assert only == {"key": "a", "data": {"float32": [3.0, 4.0]}, "metadata": {"new": 2}}


def test_deleting_leaves_the_others_whole(client: Any, make_index: Callable[..., str]) -> None:
    """Deleted keys are gone, absent ones are no error, and the rest keep their values."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector(f"k{n}", n, 1.0, n=n) for n in range(10)])
    client.delete_vectors(indexArn=arn, keys=["k0", "k5", "k9", "absent"])
    left = client.list_vectors(indexArn=arn, returnData=True, returnMetadata=True)["vectors"]
    expected = {n: [float(n), 1.0] for n in (1, 2, 3, 4, 6, 7, 8)}
    assert {v["metadata"]["n"]: v["data"]["float32"] for v in left} == expected


def test_replies_are_not_in_the_order_asked(client: Any, make_index: Callable[..., str]) -> None:
    """GetVectors and ListVectors have an order of their own, so callers must go by key."""
    arn = make_index()
    keys = [f"k{number:02}" for number in range(50)]
    client.put_vectors(indexArn=arn, vectors=[vector(key) for key in keys])
    got = [hit["key"] for hit in client.get_vectors(indexArn=arn, keys=keys)["vectors"]]
    assert got != keys
    assert sorted(got) == keys


@pytest.mark.parametrize(
    ("operation", "request_", "path"),
    [
        ("put_vectors", {"vectors": [vector(f"k{n}") for n in range(501)]}, "vectors"),
        ("delete_vectors", {"keys": ["k"] * 501}, "keys"),
        ("get_vectors", {"keys": ["k"] * 101}, "keys"),
        ("list_vectors", {"maxResults": 1001}, "maxResults"),
        ("put_vectors", {"vectors": [vector("k" * 1025)]}, "vectors[0].key"),
        ("put_vectors", {"vectors": [vector("a"), vector("é" * 513)]}, "vectors[1].key"),
        ("delete_vectors", {"keys": ["é" * 513]}, "keys[0]"),
        ("get_vectors", {"keys": ["é" * 513]}, "keys[0]"),
        ("put_vectors", {"vectors": [vector("a"), vector("b"), vector("a")]}, "vectors"),
    ],
)
def test_counts_and_keys_are_bounded(
    client: Any, make_index: Callable[..., str], operation: str, request_: dict[str, Any], path: str
) -> None:
    """500, 500, 100 and 1,000 per call; keys of 1,024 characters and 1,024 bytes; no key twice."""
    refused(client, operation, path=path, indexArn=make_index(), **request_)


def test_the_longest_key_and_the_fullest_batch_pass(client: Any, make_index: Callable[..., str]) -> None:
    """Exactly 1,024 bytes of key and 500 records are accepted."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector(f"k{n}") for n in range(499)] + [vector("é" * 512)])
    assert len(client.list_vectors(indexArn=arn)["vectors"]) == 500


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"k": None}, "Metadata value of key 'k'"),
        ({"k": {"a": 1}}, "Metadata value of key 'k'"),
        ({"k": []}, "Metadata value of key 'k'"),
        ({"k": [True]}, "Metadata value of key 'k'"),
        ({"k": ["a", 1]}, "Metadata value of key 'k'"),
        ({"k": [["a"]]}, "Metadata value of key 'k'"),
        ({"text": None}, "Metadata value of key 'text'"),
        ({f"k{n}": 1 for n in range(51)}, "Metadata object must have at most 50 keys"),
        ({"k" * 1025: 1}, "Metadata keys must have at most 1024 characters"),
        ({"k": "x" * 2036}, "Filterable metadata must have at most 2048 bytes"),
        ({"k": "é" * 1018}, "Filterable metadata must have at most 2048 bytes"),
        ({"text": "x" * 40_945}, "Metadata must have at most 40960 bytes"),
    ],
)
def test_metadata_is_checked(
    client: Any, make_index: Callable[..., str], metadata: dict[str, Any], words: str
) -> None:
    """Types, count and sizes are refused by key and place, and the batch writes nothing."""
    arn = make_index(metadataConfiguration={"nonFilterableMetadataKeys": ["text"]})
    batch = [vector("good"), vector("bad", **metadata)]
    message = refused(client, "put_vectors", path="vectors[1].metadata", indexArn=arn, vectors=batch)
    assert message.startswith(f"Invalid record for key 'bad': {words}")
    assert client.list_vectors(indexArn=arn)["vectors"] == []


def test_metadata_sizes_are_exact(client: Any, make_index: Callable[..., str]) -> None:
    """By the formula 2,048 filterable bytes and 40,960 bytes in all are the last that pass.

    4 + (8 + 1 + 2,035) = 2,048; with (8 + 4 + 38,900) more = 40,960.
    Numbers count 4, booleans nothing, elements of arrays 4 each besides their own size.
    """
    arn = make_index(metadataConfiguration={"nonFilterableMetadataKeys": ["text"]})
    client.put_vectors(indexArn=arn, vectors=[vector("a", k="x" * 2035, text="x" * 38_900)])
    mixed = {"n": 7, "b": True, "a": ["x", "y"]}  # 4 + (8+1+4) + (8+1) + (8+1+5+5) = 45
    client.put_vectors(indexArn=arn, vectors=[vector("b", k="x" * (2048 - 45 - 9), **mixed)])
    refused(client, "put_vectors", indexArn=arn, vectors=[vector("b", k="x" * (2048 - 45 - 8), **mixed)])


def test_a_wrong_dimension_is_named(client: Any, make_index: Callable[..., str]) -> None:
    """The text names the key, the right length and the wrong one."""
    arn = make_index(dimension=4)
    assert refused(client, "put_vectors", indexArn=arn, vectors=[vector("w")]) == (
        "Invalid record for key 'w': vector must have length 4, but has length 2"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_values_must_be_finite_as_float32(client: Any, make_index: Callable[..., str], value: float) -> None:
    """NaN, infinities and doubles too large for float32 are refused on put and on query."""
    arn = make_index()
    bad = [vector("good"), vector("bad", 1.0, value)]
    refused(client, "put_vectors", path="vectors[1].data", indexArn=arn, vectors=bad)
    query: dict[str, Any] = {"indexArn": arn, "topK": 1, "queryVector": {"float32": [1.0, value]}}
    refused(client, "query_vectors", path="queryVector", **query)


@pytest.mark.parametrize("value", [0.0, 1e-50])
def test_cosine_has_no_zero_vector(client: Any, make_index: Callable[..., str], value: float) -> None:
    """A vector that is zero as float32 is refused by cosine on put and query, and taken by euclidean."""
    cosine, euclidean = make_index(), make_index("other", metric="euclidean")
    query: dict[str, Any] = {"topK": 1, "queryVector": {"float32": [value, 0.0]}}
    refused(client, "put_vectors", path="vectors[0].data", indexArn=cosine, vectors=[vector("a", value, 0.0)])
    refused(client, "query_vectors", path="queryVector", indexArn=cosine, **query)
    client.put_vectors(indexArn=euclidean, vectors=[vector("a", value, 0.0)])
    assert keys_of(client.query_vectors(indexArn=euclidean, **query)) == ["a"]


def test_lone_surrogates_fail_the_request(client: Any, make_index: Callable[..., str]) -> None:
    """Half a character anywhere is an error the model does not declare; a whole emoji is fine."""
    arn = make_index()
    for bad in (vector("a", text="\ud800"), vector("\udfff")):
        refused(client, "put_vectors", code="SerializationException", indexArn=arn, vectors=[bad])
    client.put_vectors(indexArn=arn, vectors=[vector("\U0001f600")])
    assert keys_of(client.list_vectors(indexArn=arn)) == ["\U0001f600"]


def test_nan_in_metadata_is_not_json(client: Any, make_index: Callable[..., str]) -> None:
    """What boto3 writes for NaN in metadata cannot be read."""
    bad = [vector("a", n=float("nan"))]
    refused(client, "put_vectors", code="SerializationException", indexArn=make_index(), vectors=bad)


def test_the_body_is_bounded_to_the_byte(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str]
) -> None:
    """20 MiB passes the size check, one byte more does not."""
    arn = make_index()
    client.put_vector_bucket_policy(vectorBucketName="papers", policy='{"a": ""}')
    empty = server.calls_of("PutVectorBucketPolicy")[0].body_bytes
    room = BODY_BYTES - empty
    client.put_vector_bucket_policy(vectorBucketName="papers", policy=f'{{"a": "{"x" * room}"}}')
    assert server.report()["largest_body"] == BODY_BYTES
    policy = f'{{"a": "{"x" * (room + 1)}"}}'
    message = refused(client, "put_vector_bucket_policy", vectorBucketName="papers", policy=policy)
    assert message == "Request body exceeds max allowed size"
    assert client.list_vectors(indexArn=arn)["vectors"] == []


def test_list_pages_end_at_a_megabyte(client: Any, make_index: Callable[..., str]) -> None:
    """A page holds what fits about 1 MB, whatever was asked, and a short page is not the last."""
    arn = make_index(metadataConfiguration={"nonFilterableMetadataKeys": ["text"]})
    for batch in range(2):
        records = [vector(f"{batch}-{n}", text="x" * 30_000) for n in range(40)]
        client.put_vectors(indexArn=arn, vectors=records)
    pages = list(client.get_paginator("list_vectors").paginate(indexArn=arn))
    assert [len(page["vectors"]) for page in pages] == [35, 35, 10]
    assert len({hit["key"] for page in pages for hit in page["vectors"]}) == 80


def test_listing_is_paged_with_500_by_default(client: Any, make_index: Callable[..., str]) -> None:
    """Small vectors come 500 to a page, or as many as asked for up to 1,000."""
    arn = make_index()
    for start in range(0, 1200, 400):
        client.put_vectors(indexArn=arn, vectors=[vector(f"k{start + n}") for n in range(400)])
    sizes = [len(page["vectors"]) for page in client.get_paginator("list_vectors").paginate(indexArn=arn)]
    assert sizes == [500, 500, 200]
    assert len(client.list_vectors(indexArn=arn, maxResults=1000)["vectors"]) == 1000


@pytest.mark.parametrize("count", [1, 3, 16])
def test_segments_are_disjoint_and_complete(client: Any, make_index: Callable[..., str], count: int) -> None:
    """The segments of a listing, each paged, hold every vector once."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector(f"k{number}") for number in range(200)])
    found = []
    for number in range(count):
        segment = {"indexArn": arn, "segmentCount": count, "segmentIndex": number}
        pages = client.get_paginator("list_vectors").paginate(**segment, PaginationConfig={"PageSize": 7})
        found += [hit["key"] for page in pages for hit in page["vectors"]]
    assert len(found) == 200
    assert len(set(found)) == 200


@pytest.mark.parametrize(
    ("segment", "path"),
    [
        ({"segmentCount": 2}, "segmentIndex"),
        ({"segmentIndex": 0}, "segmentIndex"),
        ({"segmentCount": 2, "segmentIndex": 2}, "segmentIndex"),
        ({"segmentCount": 17, "segmentIndex": 0}, "segmentCount"),
        ({"nextToken": "garbage"}, "nextToken"),
        ({"nextToken": "WzFd"}, "nextToken"),
    ],
)
def test_segments_and_tokens_are_checked(
    client: Any, make_index: Callable[..., str], segment: dict[str, Any], path: str
) -> None:
    """Half a segment, one out of range, and tokens of nobody's making are refused."""
    refused(client, "list_vectors", path=path, indexArn=make_index(), **segment)


def test_a_token_belongs_to_its_listing(client: Any, make_index: Callable[..., str]) -> None:
    """A token of one index or segment does not lead on in another."""
    arn, other = make_index(), make_index("other")
    client.put_vectors(indexArn=arn, vectors=[vector("a"), vector("b")])
    token = client.list_vectors(indexArn=arn, maxResults=1)["nextToken"]
    refused(client, "list_vectors", path="nextToken", indexArn=other, nextToken=token)
    segment: dict[str, Any] = {"segmentCount": 2, "segmentIndex": 0}
    refused(client, "list_vectors", path="nextToken", indexArn=arn, nextToken=token, **segment)
    assert len(client.list_vectors(indexArn=arn, nextToken=token)["vectors"]) == 1


def test_writers_at_once_lose_nothing(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str]
) -> None:
    """Puts from several threads are all there afterwards, each with its own values."""
    arn = make_index()

    def put(batch: int) -> None:
        records = [vector(f"k{batch * 100 + n}", batch * 100 + n, 1.0) for n in range(100)]
        client.put_vectors(indexArn=arn, vectors=records)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(16)))
    stored = client.get_paginator("list_vectors").paginate(indexArn=arn, returnData=True)
    values = {hit["key"]: hit["data"]["float32"][0] for page in stored for hit in page["vectors"]}
    assert values == {f"k{number}": float(number) for number in range(1600)}


def test_writes_above_the_limits_are_throttled(
    start: Callable[..., S3VectorsServer], client_of: Callable[..., Any], clock: Clock
) -> None:
    """2,500 vectors a second and 1,000 requests a second per index, puts and deletes together."""
    client = client_of(start(enforce_rate=True))
    client.create_vector_bucket(vectorBucketName="papers")
    arn, other = index_maker(client)(), index_maker(client)("other")
    batch = [vector(f"k{number}") for number in range(500)]
    for _ in range(4):
        client.put_vectors(indexArn=arn, vectors=batch)
    client.delete_vectors(indexArn=arn, keys=[f"k{number}" for number in range(500)])
    refused(client, "put_vectors", code="TooManyRequestsException", indexArn=arn, vectors=batch[:1])
    client.put_vectors(indexArn=other, vectors=batch)
    clock.now = 0.2
    client.put_vectors(indexArn=arn, vectors=batch)
    refused(client, "delete_vectors", code="TooManyRequestsException", indexArn=arn, keys=["a"])


def test_a_batch_above_the_capacity_of_the_moment_is_unavailable(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str]
) -> None:
    """A batch answered 503 for its size goes through in halves."""
    arn, batch = make_index(), [vector(f"k{number}") for number in range(100)]
    server.batch_capacity = 50
    refused(client, "put_vectors", code="ServiceUnavailableException", indexArn=arn, vectors=batch)
    client.put_vectors(indexArn=arn, vectors=batch[:50])
    client.put_vectors(indexArn=arn, vectors=batch[50:])
    assert len(client.list_vectors(indexArn=arn)["vectors"]) == 100


def test_the_write_log_gives_rates(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str], clock: Clock
) -> None:
    """Accepted writes are logged per index, and their peak over any window can be asserted on."""
    arn = make_index()
    for now, count in ((0.0, 10), (0.9, 20), (1.5, 30), (4.0, 40)):
        clock.now = now
        client.put_vectors(indexArn=arn, vectors=[vector(f"k{number}") for number in range(count)])
    refused(client, "put_vectors", indexArn=arn, vectors=[vector("a", 1.0)])
    log = server.writes[arn]
    assert [(write.at, write.vectors) for write in log.writes] == [(0.0, 10), (0.9, 20), (1.5, 30), (4.0, 40)]
    assert (log.peak(1.0).vectors, log.peak(1.0).requests) == (50.0, 2.0)
    assert (log.peak(10.0).vectors, log.peak(10.0).requests) == (10.0, 0.4)
