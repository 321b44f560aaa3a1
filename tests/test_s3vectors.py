"""The S3 Vectors store: its index, its searches and its errors; what all stores do is in contract/test_store.py."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragctl.adapters.base import SearchRequest
from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.adapters.s3vectors_index import identity_tags, read_identity
from ragctl.backends import S3VectorsStore as Settings
from ragctl.errors import (
    ConfigError,
    FilterError,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Refused,
    ServiceError,
)
from ragctl.filters import matches, normalise
from ragctl.records import Hit, SearchMode
from tests.experiments import experiment
from tests.faketime import FakeTime
from tests.s3vectors_stores import SPEC, OpenStore, fan, opening, put_all, record, serving
from tests.servers.clients import connect
from tests.servers.http import Fault
from tests.servers.s3vectors import S3VectorsServer

KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd"
UPGRADE = "ragctl create-index CONFIG --upgrade"
EAST = np.array((1, 0), dtype=np.float32)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def server(time: FakeTime, request: pytest.FixtureRequest) -> Iterator[S3VectorsServer]:
    with serving(time, **getattr(request, "param", {})) as server:
        yield server


@pytest.fixture
def open_store(server: S3VectorsServer, time: FakeTime) -> Iterator[OpenStore]:
    with opening(server, time) as open_store:
        yield open_store


@pytest.fixture
def store(open_store: OpenStore) -> S3VectorsStore:
    return open_store()


@pytest.fixture
def client(server: S3VectorsServer) -> Iterator[Any]:
    with connect("s3vectors", server.url) as client:
        yield client


def classic() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("server", [{"default_mode": "CLASSIC"}], indirect=True)


def search(store: S3VectorsStore, mode: SearchMode = "vector", **changes: Any) -> list[Hit]:
    vector, text = (None if mode == "text" else EAST), (None if mode == "vector" else "winds")
    return store.search(replace(SearchRequest(mode, 10, vector, text), **changes))


# --- making the index ------------------------------------------------------------------------------------


def test_an_index_is_made_with_everything_the_config_says(open_store: OpenStore, client: Any) -> None:
    """Bucket and index carry the KMS key and the tags; the text is searchable in its language and not filterable."""
    store = open_store(kms_key_arn=KEY, tags={"team": "search"})
    assert store.create(replace(SPEC, language="de")) is True
    index = client.get_index(vectorBucketName="library", indexName="papers")["index"]
    bucket = client.get_vector_bucket(vectorBucketName="library")["vectorBucket"]
    assert index["encryptionConfiguration"] == {"sseType": "aws:kms", "kmsKeyArn": KEY}
    assert bucket["encryptionConfiguration"] == {"sseType": "aws:kms", "kmsKeyArn": KEY}
    assert index["metadataConfiguration"] == {
        "nonFilterableMetadataKeys": ["end", "start", "text"],
        "textSearchConfigurations": [{"metadataKey": "text", "status": "ACTIVE", "language": "de"}],
    }
    tags = client.list_tags_for_resource(resourceArn=index["indexArn"])["tags"]
    assert tags == {"team": "search", "ragctl:embedder": "compass/1"}
    tags = client.list_tags_for_resource(resourceArn=bucket["vectorBucketArn"])["tags"]
    assert tags == {"team": "search", "ragctl:bucket": "made-by-ragctl"}


def test_an_index_in_a_bucket_that_is_there_leaves_the_bucket_alone(
    store: S3VectorsStore, client: Any
) -> None:
    """Whoever made the bucket keeps it as it was, and its encryption is inherited."""
    client.create_vector_bucket(
        vectorBucketName="library", encryptionConfiguration={"sseType": "aws:kms", "kmsKeyArn": KEY}
    )
    assert store.create(SPEC) is True
    assert store.create(SPEC) is False
    info = store.describe()
    assert info is not None
    assert info.details["encryption"] == f"aws:kms {KEY}"
    assert info.details["mode"] == "ENHANCED"


def test_all_differences_are_listed(open_store: OpenStore) -> None:
    """One refusal names every setting that is not as asked for."""
    open_store().create(SPEC)
    other = replace(
        SPEC, dimension=3, metric="euclidean", embedder="b", non_filterable=("text",), language="fr"
    )
    with pytest.raises(Refused) as caught:
        open_store(kms_key_arn=KEY).create(other)
    assert caught.value.message.splitlines() == [
        "index library/papers was made with other settings",
        "  embedder: the index has compass/1, the experiment asks for b",
        "  dimension: the index has 2, the experiment asks for 3",
        "  metric: the index has cosine, the experiment asks for euclidean",
        "  non-filterable keys: the index has end, start, text, the experiment asks for text",
        "  language: the index has en, the experiment asks for fr",
        f"  KMS key: the index has none, the experiment asks for {KEY}",
    ]


def test_four_creators_at_once_converge(open_store: OpenStore, server: S3VectorsServer) -> None:
    """One of them makes the index, the others find it equal."""
    stores = [open_store() for _ in range(4)]
    together = threading.Barrier(4)

    def create(store: S3VectorsStore) -> bool:
        together.wait()
        return store.create(SPEC)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(create, stores)) == [False, False, False, True]


def test_a_creator_that_lost_the_race_still_compares(
    store: S3VectorsStore, open_store: OpenStore, client: Any
) -> None:
    """Somebody makes another index of the name between the look and the call: refused, not used."""

    def be_quicker(**_: Any) -> None:
        if not raced:
            raced.append(True)
            open_store().create(replace(SPEC, dimension=3))

    raced: list[bool] = []
    store._calls._client.meta.events.register("before-call.s3vectors.CreateIndex", be_quicker)
    with pytest.raises(Refused, match="dimension: the index has 3, the experiment asks for 2"):
        store.create(SPEC)


def test_a_lost_reply_does_not_stop_the_creation(store: S3VectorsStore, server: S3VectorsServer) -> None:
    """The service made bucket and index, the connection broke: the next look finds both."""
    server.faults.add(Fault("lost", "CreateVectorBucket"), Fault("lost", "CreateIndex"))
    store.create(SPEC)
    assert store.describe() is not None
    assert len(server.faults.injected) == 2


@pytest.mark.parametrize("server", [{"build_seconds": 40}], indirect=True)
def test_creating_waits_until_the_text_can_be_searched(
    store: S3VectorsStore, time: FakeTime, server: S3VectorsServer
) -> None:
    """The first query after create-index is not refused; waiting asks seldom."""
    store.create(SPEC)
    assert time.now >= 40
    assert len(server.calls_of("GetIndex")) < 20
    assert search(store, "text") == []


@pytest.mark.parametrize("server", [{"build_seconds": 3_600}], indirect=True)
def test_waiting_for_the_text_ends(store: S3VectorsStore, time: FakeTime) -> None:
    """A backfill of an hour is reported, not waited for."""
    with pytest.raises(ServiceError, match="index library/papers: its text search is still being built"):
        store.create(SPEC)
    assert time.now < 700


@pytest.mark.parametrize(
    "tags", [{"aws:team": "x"}, {"ragctl:embedder": "x"}, {"team": "a&b"}, {"": "x"}, {"team": "x" * 257}]
)
def test_tags_that_the_service_refuses_are_a_config_error(
    open_store: OpenStore, tags: dict[str, str]
) -> None:
    """They are found before anything is made."""
    with pytest.raises(ConfigError, match=r"store\.tags"):
        open_store(tags=tags)


@given(identity=st.text(min_size=1, max_size=150))
def test_an_identity_survives_its_tags(identity: str) -> None:
    """Whatever an embedder is called, the index says so again, in characters that a tag may hold."""
    tags = identity_tags(identity)
    assert read_identity({"team": "search", **tags}) == identity
    assert all(re.fullmatch(r"[A-Za-z0-9_.:/=+@-]{1,256}", value) for value in tags.values())


def test_an_index_of_a_very_long_identity_is_found_equal(store: S3VectorsStore) -> None:
    """An identity longer than one tag is kept whole."""
    spec = replace(SPEC, embedder="sagemaker:" + "model with (signs) & spaces, " * 20)
    assert store.create(spec) is True
    assert store.create(spec) is False
    info = store.describe()
    assert info is not None
    assert info.embedder == spec.embedder


def test_an_old_sdk_is_named_before_any_call() -> None:
    """Without text search in its model the SDK would drop the question silently."""
    shape = SimpleNamespace(members={"queryVector": None})
    operation = SimpleNamespace(input_shape=shape)
    model = SimpleNamespace(operation_model=lambda _: operation)
    old = SimpleNamespace(meta=SimpleNamespace(service_model=model))
    with pytest.raises(ConfigError) as caught:
        S3VectorsStore(old, Settings(kind="s3vectors", bucket="library"))
    assert caught.value.hint == 'pip install "boto3>=1.44.5"'


def test_a_store_is_opened_from_a_config(server: S3VectorsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, region, bucket, index and rates come from the experiment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    config = experiment(
        store={"kind": "s3vectors", "bucket": "library", "index": "papers", "vectors_per_second": 100},
        aws={"region": "eu-central-1", "endpoints": {"s3vectors": server.url}},
    )
    store = S3VectorsStore.from_config(config)
    assert store.limits.vectors_per_second == 100
    assert store.create(SPEC) is True
    info = store.describe()
    assert info is not None
    assert info.details["arn"].startswith("arn:aws:s3vectors:eu-central-1:")


# --- CLASSIC ---------------------------------------------------------------------------------------------


@classic()
def test_a_classic_bucket_is_refused_with_the_call_that_upgrades_it(
    store: S3VectorsStore, client: Any
) -> None:
    """No index without text search is made where one with it was asked for."""
    client.create_vector_bucket(vectorBucketName="library")
    with pytest.raises(Refused, match="vector bucket library makes indexes in CLASSIC mode") as caught:
        store.create(SPEC)
    assert UPGRADE in (caught.value.hint or "")
    assert store.describe() is None
    assert store.upgrade(SPEC) == ["vector bucket library: new indexes are ENHANCED"]
    assert store.create(SPEC) is True
    assert store.upgrade(SPEC) == []


@classic()
def test_a_classic_index_is_upgraded_in_place(store: S3VectorsStore, client: Any) -> None:
    """Its records stay, their text becomes searchable."""
    without = replace(SPEC, text_search=False)
    store.create(without)
    store.put([record("a", text="cold winds"), record("b", (0, 1), text="ice")])
    with pytest.raises(Refused, match="text search: the index has no, the experiment asks for yes") as caught:
        store.create(SPEC)
    assert UPGRADE in (caught.value.hint or "")
    assert store.upgrade(SPEC) == [
        "vector bucket library: new indexes are ENHANCED",
        "index library/papers: ENHANCED",
        "index library/papers: text search",
    ]
    assert store.create(SPEC) is False
    assert [hit.key for hit in search(store, "text")] == ["a"]


@classic()
@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_a_classic_index_says_what_it_cannot_do(store: S3VectorsStore, mode: SearchMode) -> None:
    """Before any call, with the call that would change it."""
    store.create(replace(SPEC, text_search=False))
    with pytest.raises(
        ConfigError, match=f"is in CLASSIC mode, so it cannot answer searches of mode {mode}"
    ) as c:
        search(store, mode)
    assert UPGRADE in (c.value.hint or "")


@classic()
def test_a_classic_index_filters_like_any_other(store: S3VectorsStore) -> None:
    """Filters are asked for in the ENHANCED way, query by query, `$startsWith` among them."""
    store.create(replace(SPEC, text_search=False))
    store.put([record("a", lang="en-GB"), record("b", lang="de")])
    assert [hit.key for hit in search(store, filter=normalise({"lang": {"$startsWith": "en"}}))] == ["a"]
    assert len(search(store)) == 2


def test_an_index_without_text_search_says_so(store: S3VectorsStore) -> None:
    """ENHANCED alone does not make a text searchable."""
    store.create(replace(SPEC, text_search=False))
    with pytest.raises(ConfigError, match="index papers was made without text search"):
        search(store, "hybrid")


# --- removing --------------------------------------------------------------------------------------------


def test_a_bucket_is_removed_when_it_is_empty_and_ours(store: S3VectorsStore, client: Any) -> None:
    """Not while an index stands in it, whoever made that."""
    assert store.drop_bucket() is False
    store.create(SPEC)
    with pytest.raises(Refused, match="vector bucket library holds indexes: papers"):
        store.drop_bucket()
    assert store.drop() is True
    assert store.drop_bucket() is True
    assert client.list_vector_buckets()["vectorBuckets"] == []


def test_every_index_of_a_bucket_counts(
    store: S3VectorsStore, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one on the last page of a listing."""
    monkeypatch.setattr("tests.servers.s3vectors_paging.LIST_PAGE", 2)
    store.create(SPEC)
    for name in ("theirs-1", "theirs-2", "theirs-3"):
        client.create_index(
            vectorBucketName="library",
            indexName=name,
            dataType="float32",
            dimension=2,
            distanceMetric="cosine",
        )
    with pytest.raises(Refused, match="vector bucket library holds indexes: theirs-3"):
        store.can_drop_bucket(["papers", "theirs-1", "theirs-2"])
    assert store.can_drop_bucket(["papers", "theirs-1", "theirs-2", "theirs-3"]) is True


def test_a_bucket_of_somebody_else_stays(store: S3VectorsStore, client: Any) -> None:
    """An empty bucket without our tag is not ours to remove."""
    client.create_vector_bucket(vectorBucketName="library")
    with pytest.raises(Refused, match="was not made by ragctl"):
        store.drop_bucket()
    assert len(client.list_vector_buckets()["vectorBuckets"]) == 1


# --- searching -------------------------------------------------------------------------------------------


def test_a_large_top_k_is_paged_to_the_end(store: S3VectorsStore, server: S3VectorsServer) -> None:
    """1,200 hits come in twelve pages, in order, each once."""
    store.create(SPEC)
    put_all(store, fan(1_200))
    hits = search(store, top_k=10_000)
    assert [hit.key for hit in hits] == [f"k{number:05}" for number in range(1_200)]
    assert [hit.ranks.vector_rank for hit in hits] == list(range(1, 1_201))
    assert len(server.calls_of("QueryVectors")) == 12
    assert len(search(store, top_k=150)) == 150


@pytest.mark.parametrize("server", [{"token_seconds": 60}], indirect=True)
def test_a_page_that_came_too_late_starts_the_search_again(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime
) -> None:
    """The token of the second page has expired once; the hits are whole all the same."""
    store.create(SPEC)
    put_all(store, fan(250))

    def dawdle(**_: Any) -> None:
        if len(server.calls_of("QueryVectors")) == 1:
            time.now += 120

    store._calls._client.meta.events.register("after-call.s3vectors.QueryVectors", dawdle)
    assert len({hit.key for hit in search(store, top_k=250)}) == 250
    assert [call.status for call in server.calls_of("QueryVectors")] == [200, 400, 200, 200, 200]


@pytest.mark.parametrize("server", [{"token_seconds": -1}], indirect=True)
def test_pages_that_are_always_too_late_end_the_search(store: S3VectorsStore) -> None:
    """Once more is enough: the error says which call it was."""
    store.create(SPEC)
    put_all(store, fan(250))
    with pytest.raises(ServiceError, match="s3vectors:QueryVectors on index library/papers: Validation"):
        search(store, top_k=250)


def test_hybrid_hits_say_what_the_service_says(store: S3VectorsStore) -> None:
    """Distance, BM25 and fused score are the service's; ranks that it does not tell are not made up."""
    store.create(SPEC)
    store.put([record("both", text="winds"), record("words", (-1, 0), text="winds winds ice")])
    store.put([record("near", (1, 0.1), text="sun")])
    hits = {hit.key: hit for hit in search(store, "hybrid")}
    ranks = hits["both"].ranks
    assert ranks.vector_distance == pytest.approx(0, abs=1e-6)
    assert (ranks.text_score or 0) > 0
    assert ranks.fused_score == hits["both"].score
    assert (ranks.vector_rank, ranks.text_rank) == (None, None)
    assert hits["near"].ranks.text_score is None
    ranked = search(store, "text")
    assert [(hit.ranks.text_rank, hit.ranks.vector_rank) for hit in ranked] == [(1, None), (2, None)]


def test_a_question_without_words_searches_by_vector(store: S3VectorsStore, server: S3VectorsServer) -> None:
    """Blank text is nothing to look for; a hybrid search still has its vector."""
    store.create(SPEC)
    store.put([record("a", text="winds"), record("b", (0, 1), text="ice")])
    assert search(store, "text", text="  ") == []
    assert [hit.key for hit in search(store, "hybrid", text=" \n")] == ["a", "b"]
    assert len(server.calls_of("QueryVectors")) == 1


def test_words_that_nothing_holds_leave_the_vector(store: S3VectorsStore) -> None:
    """No hit by words is no error and no gap."""
    store.create(SPEC)
    store.put([record("a", text="winds")])
    assert search(store, "text", text="volcano") == []
    assert [hit.key for hit in search(store, "hybrid", text="volcano")] == ["a"]


def test_a_long_question_is_cut_for_the_words(
    store: S3VectorsStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The service takes 1,024 characters: the rest is not searched for, which is said without quoting it."""
    store.create(SPEC)
    store.put([record("a", text="winds"), record("b", text="secret")])
    with caplog.at_level(logging.INFO):
        hits = search(store, "text", text="winds " + "filler " * 200 + "secret")
    assert [hit.key for hit in hits] == ["a"]
    assert "the question has 1412 characters: words are searched in the first 1024" in caplog.text
    assert "secret" not in caplog.text


METADATA = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.one_of(
        st.integers(0, 3),
        st.booleans(),
        st.sampled_from(["x", "xy", "1"]),
        st.lists(st.integers(0, 3), min_size=1),
    ),
)
CONDITIONS = st.recursive(
    st.builds(
        lambda key, condition: {key: condition},
        st.sampled_from(["a", "b", "missing"]),
        st.one_of(
            st.integers(0, 3),
            st.booleans(),
            st.builds(lambda v: {"$ne": v}, st.one_of(st.integers(0, 3), st.sampled_from(["x", "1"]))),
            st.builds(lambda v: {"$nin": v}, st.lists(st.integers(0, 3), min_size=1, max_size=3)),
            st.builds(lambda v: {"$in": v}, st.lists(st.integers(0, 3), min_size=1, max_size=3)),
            st.builds(lambda v: {"$exists": v}, st.booleans()),
            st.builds(lambda v: {"$startsWith": v}, st.sampled_from(["", "x"])),
        ),
    ),
    lambda inner: st.builds(
        lambda word, parts: {word: parts},
        st.sampled_from(["$and", "$or"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "server", [{"missing_ne_matches": False}, {"missing_ne_matches": True}], indirect=True
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shelf=st.lists(METADATA, min_size=1, max_size=6), condition=CONDITIONS)
def test_filters_mean_what_the_reference_says(
    store: S3VectorsStore, shelf: list[dict[str, Any]], condition: dict[str, Any]
) -> None:
    """Whatever the service does with $ne on a missing key, the answer is that of `filters.matches`."""
    store.drop()
    store.create(SPEC)
    store.put([record(str(number), **metadata) for number, metadata in enumerate(shelf)])
    normal = normalise(condition)
    expected = {str(number) for number, metadata in enumerate(shelf) if matches(normal, metadata)}
    assert {hit.key for hit in search(store, filter=normal)} == expected


def test_a_key_that_is_only_shown_is_refused_before_the_call(
    store: S3VectorsStore, server: S3VectorsServer
) -> None:
    """The index's own list counts, also where the config names fewer keys."""
    store.create(replace(SPEC, non_filterable=("text", "notes")))
    with pytest.raises(FilterError, match=r"filter\.notes"):
        search(store, filter=normalise({"notes": "x"}))
    assert server.calls_of("QueryVectors") == []


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "attempt"),
    [
        ("PutVectors", lambda store: store.put([record("a")])),
        ("DeleteVectors", lambda store: store.delete(["a"])),
        ("QueryVectors", search),
        ("GetVectors", lambda store: store.get(["a"])),
        ("ListVectors", lambda store: list(store.keys())),
        ("DeleteIndex", lambda store: store.drop()),
        ("GetIndex", lambda store: store.describe()),
    ],
)
def test_a_missing_permission_is_named(
    store: S3VectorsStore, server: S3VectorsServer, action: str, attempt: Any
) -> None:
    """The error names the action and the resource, after a single attempt."""
    store.create(SPEC)
    server.denied.add(action)
    before = len(server.calls)
    with pytest.raises(PermissionDenied) as caught:
        attempt(store)
    assert f"s3vectors:{action}" in caught.value.message
    assert caught.value.hint == f"allow s3vectors:{action} on index library/papers"
    assert len(server.calls) == before + 1


@pytest.mark.parametrize(
    ("status", "code", "kind", "hint"),
    [
        (402, "ServiceQuotaExceededException", QuotaExceeded, "Service Quotas"),
        (400, "KmsDisabledException", ServiceError, "check the KMS key"),
        (400, "KmsNotFoundException", ServiceError, "check the KMS key"),
        (404, "NotFoundException", NotFound, "aws.region"),
        (400, "ValidationException", ServiceError, None),
    ],
)
def test_a_refusal_is_not_tried_again(
    store: S3VectorsStore,
    server: S3VectorsServer,
    time: FakeTime,
    status: int,
    code: str,
    kind: type[ServiceError],
    hint: str | None,
) -> None:
    """What waiting cannot help ends at once, in our words."""
    store.create(SPEC)
    server.faults.add(Fault("error", "PutVectors", status=status, code=code, message="no"))
    with pytest.raises(kind, match="s3vectors:PutVectors on index library/papers") as caught:
        store.put([record("a")])
    assert hint is None or hint in (caught.value.hint or "")
    assert len(server.calls_of("PutVectors")) == 1
    assert time.slept == []


def test_another_region_has_no_such_index(
    store: S3VectorsStore, server: S3VectorsServer, time: FakeTime
) -> None:
    """A bucket is known in its region alone; the hint names the setting."""
    store.create(SPEC)
    with connect("s3vectors", server.url, region="us-east-1") as client:
        elsewhere = S3VectorsStore(client, Settings(kind="s3vectors", bucket="library", index="papers"))
        assert elsewhere.describe() is None
        with pytest.raises(NotFound) as caught:
            search(elsewhere)
    assert "aws.region" in (caught.value.hint or "")


def test_no_text_reaches_errors_or_logs(
    store: S3VectorsStore, server: S3VectorsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the question nor a document's text is quoted, whatever goes wrong."""
    store.create(SPEC)
    server.faults.add(
        Fault("error", times=3), Fault("error", status=400, code="ValidationException", times=2)
    )
    with caplog.at_level(logging.DEBUG, logger="ragctl"):
        with pytest.raises(ServiceError) as put:
            store.put([record("a", text="swordfish")])
        with pytest.raises(ServiceError) as asked:
            search(store, "hybrid", text="swordfish")
    assert "swordfish" not in f"{put.value} {asked.value} {caplog.text}"
    assert "trying again" in caplog.text
