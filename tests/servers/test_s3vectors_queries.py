"""Queries of the S3 Vectors server: ranking against numpy, text by hand, fusion, paging."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.servers.clients import refused
from tests.servers.conftest import Clock, index_maker
from tests.servers.s3vectors import S3VectorsServer

TEXT_FIELD = {"textSearchConfigurations": [{"metadataKey": "text", "language": "en"}]}
NEAR: dict[str, Any] = {"topK": 10_000, "queryVector": {"float32": [1.0, 0.0]}}


def vector(key: str, *values: float, **metadata: Any) -> dict[str, Any]:
    """Return a record for PutVectors, (1, 0) unless values are given."""
    return {"key": key, "data": {"float32": list(values or (1.0, 0.0))}, "metadata": metadata}


def hits(client: Any, arn: str, **query: Any) -> list[str]:
    """Return the keys a query finds, in order."""
    return [hit["key"] for hit in client.query_vectors(indexArn=arn, **{**NEAR, **query})["vectors"]]


def text(words: str, key: str = "text") -> dict[str, Any]:
    """Return a full-text-only query."""
    return {"topK": 10, "queryTexts": [{"text": words, "metadataKey": key}]}


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ranking_is_that_of_exact_search(client: Any, make_index: Callable[..., str], metric: str) -> None:
    """Order and distances are those of brute force in float64 over the values as float32."""
    dice = np.random.default_rng(7)
    stored, query = (
        dice.standard_normal((400, 16)).astype(np.float32),
        dice.standard_normal(16).astype(np.float32),
    )
    arn = make_index(dimension=16, metric=metric)
    records = [vector(f"k{number}", *row.tolist()) for number, row in enumerate(stored)]
    client.put_vectors(indexArn=arn, vectors=records)
    rows, wanted = stored.astype(np.float64), query.astype(np.float64)
    if metric == "cosine":
        exact = 1 - rows @ wanted / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted)
    else:
        exact = np.sqrt(((rows - wanted) ** 2).sum(axis=1))
    reply = client.query_vectors(
        indexArn=arn, topK=50, queryVector={"float32": query.tolist()}, returnDistance=True
    )
    assert reply["distanceMetric"] == metric
    assert [hit["key"] for hit in reply["vectors"]] == [f"k{number}" for number in exact.argsort()[:50]]
    assert [hit["distance"] for hit in reply["vectors"]] == pytest.approx(
        np.sort(exact)[:50].tolist(), abs=1e-5
    )


def test_euclidean_distance_has_its_root(client: Any, make_index: Callable[..., str]) -> None:
    """From (1, 1, 1) to (2, 2, 2) it is the root of three."""
    arn = make_index(dimension=3, metric="euclidean")
    client.put_vectors(indexArn=arn, vectors=[vector("a", 2.0, 2.0, 2.0)])
    query: dict[str, Any] = {"topK": 1, "queryVector": {"float32": [1.0, 1.0, 1.0]}, "returnDistance": True}
    (hit,) = client.query_vectors(indexArn=arn, **query)["vectors"]
    assert hit["distance"] == pytest.approx(math.sqrt(3))


def test_a_query_shows_what_it_is_asked_for(client: Any, make_index: Callable[..., str]) -> None:
    """Distance and metadata come when wanted, vector values never, scores not for vectors alone."""
    arn = make_index()
    client.put_vectors(
        indexArn=arn,
        vectors=[vector("a", 0.0, 2.0, n=1), {k: v for k, v in vector("b").items() if k != "metadata"}],
    )
    assert client.query_vectors(indexArn=arn, **NEAR)["vectors"] == [{"key": "b"}, {"key": "a"}]
    shown = client.query_vectors(
        indexArn=arn, **NEAR, returnDistance=True, returnMetadata=True, returnScores=True
    )["vectors"]
    assert shown == [
        {"key": "b", "distance": 0.0, "metadata": {}},
        {"key": "a", "distance": 1.0, "metadata": {"n": 1}},
    ]


def test_an_empty_index_finds_nothing(client: Any, make_index: Callable[..., str]) -> None:
    """A query before the first put answers an empty list."""
    arn = make_index(metadataConfiguration=TEXT_FIELD)
    assert hits(client, arn) == hits(client, arn, filter={"a": 1}) == hits(client, arn, **text("fox")) == []


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ({"topK": 10_001, "queryVector": {"float32": [1.0, 0.0]}}, "topK"),
        ({"topK": 1}, "queryVector"),
        ({"topK": 1, "queryVector": {"float32": [1.0, 0.0, 0.0]}}, "queryVector"),
        ({**NEAR, "queryMode": "CLASSIC"}, "queryMode"),
        ({**NEAR, "queryMode": "FAST"}, "queryMode"),
        (text("x" * 1025), "queryTexts[0].text"),
        (text("fox", "title"), "queryTexts[0].metadataKey"),
        ({"topK": 1, "queryTexts": [{"text": "fox", "metadataKey": "text"}] * 2}, "queryTexts"),
        (
            {"topK": 1, "queryTexts": [{"text": "fox", "metadataKey": f"k{n}"} for n in range(11)]},
            "queryTexts",
        ),
    ],
)
def test_queries_are_checked(
    client: Any, make_index: Callable[..., str], query: dict[str, Any], path: str
) -> None:
    """Depth, dimension, mode, and the fields and lengths of texts are refused with their place."""
    refused(
        client, "query_vectors", path=path, indexArn=make_index(metadataConfiguration=TEXT_FIELD), **query
    )


def test_results_come_a_hundred_to_a_page(client: Any, make_index: Callable[..., str]) -> None:
    """All of topK is reached by following nextToken, each key once, nearest first."""
    arn = make_index()
    records = [vector(f"k{number:03}", 100.0, number) for number in range(250)]
    client.put_vectors(indexArn=arn, vectors=records)
    for top_k, sizes in ((100, [100]), (101, [100, 1]), (10_000, [100, 100, 50])):
        query = {**NEAR, "topK": top_k}
        pages = list(client.get_paginator("query_vectors").paginate(indexArn=arn, **query))
        assert [len(page["vectors"]) for page in pages] == sizes
        keys = [hit["key"] for page in pages for hit in page["vectors"]]
        assert keys == [f"k{number:03}" for number in range(min(top_k, 250))]


def test_a_paged_query_does_not_see_later_writes(client: Any, make_index: Callable[..., str]) -> None:
    """Further pages show the index as it was when the query began."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector(f"k{n:03}", 100.0, n, n=n) for n in range(150)])
    first = client.query_vectors(indexArn=arn, **NEAR)
    client.put_vectors(indexArn=arn, vectors=[vector("k149", n=-1), vector("new")])
    client.delete_vectors(indexArn=arn, keys=["k120"])
    second = client.query_vectors(indexArn=arn, **NEAR, returnMetadata=True, nextToken=first["nextToken"])
    assert [hit["metadata"]["n"] for hit in second["vectors"]] == list(range(100, 150))


def test_page_tokens_end_and_belong_to_their_query(
    client: Any, make_index: Callable[..., str], clock: Clock
) -> None:
    """A token of another question, of nobody, or too old is refused; the query must start again."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[vector(f"k{number}", 1.0, number) for number in range(150)])
    token = client.query_vectors(indexArn=arn, **NEAR)["nextToken"]
    for change in (
        {"topK": 200},
        {"filter": {"a": 1}},
        {"nextToken": "garbage"},
        {"nextToken": "WyJhIiwgMV0="},
    ):
        refused(
            client, "query_vectors", path="nextToken", indexArn=arn, **{**NEAR, "nextToken": token, **change}
        )
    clock.now = 300.0
    assert len(hits(client, arn, nextToken=token)) == 50
    clock.now = 300.1
    refused(client, "query_vectors", path="nextToken", indexArn=arn, **NEAR, nextToken=token)


def test_text_is_ranked_by_bm25(client: Any, make_index: Callable[..., str]) -> None:
    """Scores are those of the formula, worked out here for three texts of 2, 2 and 5 words."""
    arn = make_index(metadataConfiguration=TEXT_FIELD)
    texts = {"a": "red foxes", "b": "blue whales", "c": "The fox saw another fox"}
    client.put_vectors(indexArn=arn, vectors=[vector(key, text=words) for key, words in texts.items()])
    reply = client.query_vectors(indexArn=arn, **text("FOX!"), returnScores=True, returnDistance=True)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    short = idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 2 / 3))
    long = idf * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 5 / 3))
    assert [hit["key"] for hit in reply["vectors"]] == (["c", "a"] if long > short else ["a", "c"])
    by_key = {hit["key"]: hit for hit in reply["vectors"]}
    for key, score in (("a", short), ("c", long)):
        (bm25,) = by_key[key].pop("scores")["bm25Scores"]
        assert bm25 == {"metadataKey": "text", "score": pytest.approx(score)}
        assert by_key[key] == {"key": key}


def test_text_search_follows_writes(client: Any, make_index: Callable[..., str]) -> None:
    """A replaced text is found by its new words only, a deleted vector not at all, and filters hold."""
    arn = make_index(metadataConfiguration=TEXT_FIELD)
    client.put_vectors(indexArn=arn, vectors=[vector(k, text="red fox", n=n) for n, k in enumerate("abc")])
    assert sorted(hits_by_text(client, arn, "fox")) == ["a", "b", "c"]
    client.put_vectors(indexArn=arn, vectors=[vector("a", text="blue whale")])
    client.delete_vectors(indexArn=arn, keys=["b"])
    assert hits_by_text(client, arn, "fox") == ["c"]
    assert hits_by_text(client, arn, "whale") == ["a"]
    assert hits_by_text(client, arn, "fox", filter={"n": 1}) == []
    assert hits_by_text(client, arn, "fox", filter={"n": 2}) == ["c"]


def hits_by_text(client: Any, arn: str, words: str, **query: Any) -> list[str]:
    """Return the keys a full-text query finds, in order."""
    return [hit["key"] for hit in client.query_vectors(indexArn=arn, **text(words), **query)["vectors"]]


def test_stemming_is_of_the_language_of_the_field(client: Any, make_index: Callable[..., str]) -> None:
    """English fields find other forms of a word; a field without a language finds the word as it stands."""
    fields = [{"metadataKey": "text", "language": "en"}, {"metadataKey": "raw"}]
    arn = make_index(metadataConfiguration={"textSearchConfigurations": fields})
    client.put_vectors(indexArn=arn, vectors=[vector("a", text="running quickly", raw="running quickly")])
    assert hits_by_text(client, arn, "runs") == ["a"]
    for words, found in (("runs", []), ("Running", ["a"])):
        query = text(words, "raw")
        assert [hit["key"] for hit in client.query_vectors(indexArn=arn, **query)["vectors"]] == found


def test_hybrid_results_are_fused_by_rank(client: Any, make_index: Callable[..., str]) -> None:
    """Each result scores 1 / (60 + rank) in every ranking it is in; distance only where it was ranked by it."""
    fields = [{"metadataKey": "text"}, {"metadataKey": "title"}]
    arn = make_index(metadataConfiguration={"textSearchConfigurations": fields})
    records = [
        vector("a", 1.0, 0.0, text="whale", title="nothing"),
        vector("b", 1.0, 1.0, text="fox", title="fox"),
        vector("c", 0.0, 1.0, text="fox and more words", title="nothing"),
    ]
    client.put_vectors(indexArn=arn, vectors=records)
    texts = [{"text": "fox", "metadataKey": "text"}, {"text": "fox", "metadataKey": "title"}]
    query: dict[str, Any] = {"topK": 10, "queryVector": {"float32": [1.0, 0.0]}, "queryTexts": texts}
    reply = client.query_vectors(indexArn=arn, **query, returnScores=True, returnDistance=True)
    assert [hit["key"] for hit in reply["vectors"]] == ["b", "c", "a"]
    b, c, a = reply["vectors"]
    assert b["scores"]["fused"] == pytest.approx(1 / 62 + 1 / 61 + 1 / 61)
    assert c["scores"]["fused"] == pytest.approx(1 / 63 + 1 / 62)
    assert a["scores"] == {"fused": pytest.approx(1 / 61), "bm25Scores": [], "vectorDistance": 0.0}
    assert [score["metadataKey"] for score in b["scores"]["bm25Scores"]] == ["text", "title"]
    assert c["scores"]["vectorDistance"] == c["distance"] == pytest.approx(1.0)
    assert len(client.query_vectors(indexArn=arn, **{**query, "topK": 2})["vectors"]) == 2


def test_hybrid_results_beyond_the_vector_ranking_have_no_distance(
    client: Any, make_index: Callable[..., str]
) -> None:
    """What only the text found, further than the vector ranking goes, comes without a distance."""
    arn = make_index(metadataConfiguration=TEXT_FIELD)
    near = [vector(f"k{number}", 100.0, number) for number in range(150)]
    client.put_vectors(indexArn=arn, vectors=[*near, vector("far", -1.0, 0.0, text="fox")])
    hybrid = {**NEAR, **text("fox"), "returnDistance": True, "returnScores": True}
    (far,) = [hit for hit in client.query_vectors(indexArn=arn, **hybrid)["vectors"] if hit["key"] == "far"]
    assert "distance" not in far
    assert far["scores"].keys() == {"fused", "bm25Scores"}


def test_text_results_are_paged_too(client: Any, make_index: Callable[..., str]) -> None:
    """A full-text query beyond a hundred results goes on by token like any other."""
    arn = make_index(metadataConfiguration=TEXT_FIELD)
    client.put_vectors(indexArn=arn, vectors=[vector(f"k{n}", text="fox " * (n % 7 + 1)) for n in range(130)])
    query = {**text("fox"), "topK": 1000}
    pages = list(client.get_paginator("query_vectors").paginate(indexArn=arn, **query))
    assert [len(page["vectors"]) for page in pages] == [100, 30]
    assert len({hit["key"] for page in pages for hit in page["vectors"]}) == 130


def test_classic_indexes_have_no_text_search(
    start: Callable[..., S3VectorsServer], client_of: Callable[..., Any]
) -> None:
    """Full-text queries of a CLASSIC index are refused, in whatever mode they are asked."""
    client = client_of(start(default_mode="CLASSIC"))
    client.create_vector_bucket(vectorBucketName="papers")
    asked: dict[str, Any] = {**text("fox"), "indexArn": index_maker(client)()}
    refused(client, "query_vectors", path="queryTexts", **asked)
    refused(client, "query_vectors", path="queryTexts", **asked, queryMode="ENHANCED")
