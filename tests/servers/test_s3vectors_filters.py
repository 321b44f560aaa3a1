"""Filters of the S3 Vectors server: what is refused, what is counted, and what matches, against mongomock."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mongomock.filtering import filter_applies

from tests.servers.clients import connect, refused
from tests.servers.conftest import index_maker
from tests.servers.s3vectors import S3VectorsServer

NEAR: dict[str, Any] = {"topK": 100, "queryVector": {"float32": [1.0, 0.0]}}


def vector(key: str, *values: float, **metadata: Any) -> dict[str, Any]:
    """Return a record for PutVectors, (1, 0) unless values are given."""
    return {"key": key, "data": {"float32": list(values or (1.0, 0.0))}, "metadata": metadata}


def hits(client: Any, arn: str, **query: Any) -> list[str]:
    """Return the keys a query finds, in order."""
    return [hit["key"] for hit in client.query_vectors(indexArn=arn, **{**NEAR, **query})["vectors"]]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"a": 1, "b": 2},
        {"$and": [{"a": 1}], "b": 2},
        {"$or": [{"a": 1, "b": 2}]},
        {"$and": []},
        {"$and": {"a": 1}},
        {"$not": {"a": 1}},
        {"$nor": [{"a": 1}]},
        {"a": {}},
        {"a": {"b": 1}},
        {"a": {"$regex": "x"}},
        {"a": {"$and": [{"$eq": 1}]}},
        {"a": {"$eq": 1, "$exists": True}},
        {"a": None},
        {"a": ["x"]},
        {"a": {"$eq": None}},
        {"a": {"$ne": ["x"]}},
        {"a": {"$gt": "x"}},
        {"a": {"$gt": True}},
        {"a": {"$exists": 1}},
        {"a": {"$in": []}},
        {"a": {"$in": "x"}},
        {"a": {"$nin": ["x", None]}},
        {"a": {"$in": [["x"]]}},
        {"a": {"$startsWith": 1}},
        {"$or": [{"a": 1}, {"a": {"$gt": None}}]},
        [{"a": 1}],
    ],
)
def test_filters_the_service_refuses(client: Any, make_index: Callable[..., str], document: Any) -> None:
    """Each form known to be refused is a ValidationException about the filter."""
    message = refused(client, "query_vectors", path="filter", indexArn=make_index(), **NEAR, filter=document)
    assert message.startswith("Invalid filter")


def test_filters_on_nothing_match_nothing(client: Any, make_index: Callable[..., str]) -> None:
    """A key that no vector has, or a value of another type, is no error."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector("a", n=1, s="1", b=True)])
    assert hits(client, arn, filter={"typo": 1}) == []
    assert hits(client, arn, filter={"s": {"$gt": 0}}) == []
    assert hits(client, arn, filter={"n": True}) == hits(client, arn, filter={"b": 1}) == []
    assert hits(client, arn, filter={"n": "1"}) == []


def test_non_filterable_keys_cannot_filter(client: Any, make_index: Callable[..., str]) -> None:
    """A filter on one is refused, deep inside as well, and other keys go on filtering."""
    arn = make_index(metadataConfiguration={"nonFilterableMetadataKeys": ["text"]})
    client.put_vectors(indexArn=arn, vectors=[vector("a", text="x", n=1)])
    deep = {"$and": [{"n": 1}, {"$or": [{"text": {"$exists": True}}]}]}
    message = refused(client, "query_vectors", path="filter", indexArn=arn, **NEAR, filter=deep)
    assert message == "Invalid use of non-filterable metadata in filter"
    assert hits(client, arn, filter={"n": 1}) == ["a"]


def test_a_filter_has_a_hundred_constraints(
    start: Callable[..., S3VectorsServer],
    client_of: Callable[..., Any],
    client: Any,
    make_index: Callable[..., str],
) -> None:
    """Each value compared counts one; the bound is of the ENHANCED mode, asked for or the index's own."""

    def wide(count: int) -> dict[str, Any]:
        return {"$and": [{"n": {"$in": list(range(count - 2))}}, {"n": {"$gte": 0, "$lt": 9}}]}

    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector("a", n=1)])
    assert hits(client, arn, filter=wide(100)) == ["a"]
    refused(client, "query_vectors", path="filter", indexArn=arn, **NEAR, filter=wide(101))
    old = client_of(start(default_mode="CLASSIC"))
    old.create_vector_bucket(vectorBucketName="papers")
    classic = index_maker(old)()
    assert hits(old, classic, filter=wide(101)) == []
    enhanced: dict[str, Any] = {**NEAR, "queryMode": "ENHANCED"}
    refused(old, "query_vectors", path="filter", indexArn=classic, **enhanced, filter=wide(101))


def test_starts_with_needs_the_enhanced_mode(
    start: Callable[..., S3VectorsServer], client_of: Callable[..., Any]
) -> None:
    """On a CLASSIC index it is refused unless the query asks for ENHANCED."""
    client = client_of(start(default_mode="CLASSIC"))
    client.create_vector_bucket(vectorBucketName="papers")
    arn = index_maker(client)()
    client.put_vectors(
        indexArn=arn, vectors=[vector("a", path="docs/x"), vector("b", path="src/docs"), vector("c", path=1)]
    )
    prefix = {"path": {"$startsWith": "docs/"}}
    refused(client, "query_vectors", path="filter", indexArn=arn, **NEAR, filter=prefix)
    assert hits(client, arn, filter=prefix, queryMode="ENHANCED") == ["a"]
    assert hits(client, arn, queryMode="CLASSIC", filter={"path": 1}) == ["c"]


@pytest.mark.parametrize("matches", [True, False])
def test_the_missing_key_rule_is_an_option(
    start: Callable[..., S3VectorsServer], client_of: Callable[..., Any], matches: bool
) -> None:
    """$ne and $nin match vectors without the key or not, as chosen; with a guard both agree."""
    client = client_of(start(missing_ne_matches=matches))
    client.create_vector_bucket(vectorBucketName="papers")
    arn = index_maker(client)()
    client.put_vectors(indexArn=arn, vectors=[vector("has", k="y"), vector("lacks"), vector("is", k="x")])
    for condition in ({"$ne": "x"}, {"$nin": ["x", "z"]}):
        found = {"has", "lacks"} if matches else {"has"}
        assert set(hits(client, arn, filter={"k": condition})) == found
        guarded = {"$and": [{"k": {"$exists": True}}, {"k": condition}]}
        assert hits(client, arn, filter=guarded) == ["has"]


@pytest.fixture(scope="module")
def mongo_like() -> Iterator[tuple[Any, str]]:
    """A client and an index of a server whose $ne and $nin match missing keys, as MongoDB's do."""
    with S3VectorsServer(missing_ne_matches=True) as server, connect("s3vectors", server.url) as client:
        client.create_vector_bucket(vectorBucketName="papers")
        yield client, index_maker(client)()
    assert (server.unexpected, server.broken) == ([], [])


# Booleans equal to numbers, where Python and the service part, are left out: numbers start at 2.
numbers = st.integers(2, 5) | st.sampled_from([2.5, 3.0])
words = st.sampled_from(["", "a", "b", "ab"])
primitives = numbers | words | st.booleans()
values = primitives | st.lists(numbers, min_size=1, max_size=3) | st.lists(words, min_size=1, max_size=3)
names = st.sampled_from(["x", "y", "z"])
ranges = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), numbers, min_size=1, max_size=2)
conditions = (
    primitives
    | ranges
    | st.fixed_dictionaries({"$eq": primitives})
    | st.fixed_dictionaries({"$ne": primitives})
    | st.fixed_dictionaries({"$in": st.lists(primitives, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"$nin": st.lists(primitives, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"$exists": st.booleans()})
)
filters = st.recursive(
    st.builds(lambda name, condition: {name: condition}, names, conditions),
    lambda inner: st.builds(
        lambda word, parts: {word: parts},
        st.sampled_from(["$and", "$or"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)
batches = st.lists(st.dictionaries(names, values), min_size=6, max_size=6)


@settings(max_examples=150)
@given(batch=batches, document=filters)
def test_filters_agree_with_mongomock(
    mongo_like: tuple[Any, str], batch: list[dict[str, Any]], document: dict[str, Any]
) -> None:
    """An independent implementation of the same operators finds the same vectors."""
    client, arn = mongo_like
    client.put_vectors(indexArn=arn, vectors=[vector(str(n), **metadata) for n, metadata in enumerate(batch)])
    expected = [str(n) for n, metadata in enumerate(batch) if filter_applies(document, metadata)]  # type: ignore[no-untyped-call] # has no types
    assert sorted(hits(client, arn, filter=document)) == expected
