"""Vector buckets and indexes of the S3 Vectors server: addresses, settings, modes, tags, listings."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.servers.clients import refused
from tests.servers.conftest import Clock, index_maker
from tests.servers.s3vectors import S3VectorsServer

BUCKET_ARN = "arn:aws:s3vectors:eu-west-1:123456789012:bucket/papers"
INDEX_ARN = f"{BUCKET_ARN}/index/chunks"
KMS_KEY = "arn:aws:kms:eu-west-1:123456789012:key/1"
INDEX: dict[str, Any] = {
    "indexName": "chunks",
    "dataType": "float32",
    "dimension": 2,
    "distanceMetric": "cosine",
}


def test_a_bucket_is_read_back_by_name_and_by_arn(client: Any) -> None:
    """Creation answers the ARN; both forms of address show the same bucket."""
    created = client.create_vector_bucket(vectorBucketName="papers")
    assert created["vectorBucketArn"] == BUCKET_ARN
    by_name = client.get_vector_bucket(vectorBucketName="papers")["vectorBucket"]
    assert by_name == client.get_vector_bucket(vectorBucketArn=BUCKET_ARN)["vectorBucket"]
    assert by_name["encryptionConfiguration"] == {"sseType": "AES256"}
    assert by_name["defaultIndexMode"] == "ENHANCED"
    assert by_name["creationTime"].year > 2000


def test_an_index_is_read_back_with_all_its_settings(client: Any, make_index: Callable[..., str]) -> None:
    """GetIndex shows what CreateIndex was given, the mode of the bucket, and no count."""
    settings = {
        "nonFilterableMetadataKeys": ["source", "text"],
        "textSearchConfigurations": [{"metadataKey": "text", "language": "en"}, {"metadataKey": "title"}],
    }
    assert make_index(dimension=4096, metric="euclidean", metadataConfiguration=settings) == INDEX_ARN
    index = client.get_index(indexArn=INDEX_ARN)["index"]
    assert index == client.get_index(vectorBucketName="papers", indexName="chunks")["index"]
    del index["creationTime"]
    assert index == {
        "vectorBucketName": "papers",
        "indexName": "chunks",
        "indexArn": INDEX_ARN,
        "dataType": "float32",
        "dimension": 4096,
        "distanceMetric": "euclidean",
        "encryptionConfiguration": {"sseType": "AES256"},
        "indexMode": "ENHANCED",
        "metadataConfiguration": {
            "nonFilterableMetadataKeys": ["source", "text"],
            "textSearchConfigurations": [
                {"metadataKey": "text", "language": "en", "status": "ACTIVE"},
                {"metadataKey": "title", "status": "ACTIVE"},
            ],
        },
    }


def test_a_plain_index_has_no_metadata_configuration(client: Any, make_index: Callable[..., str]) -> None:
    """Settings that were not given are not invented."""
    assert "metadataConfiguration" not in client.get_index(indexArn=make_index())["index"]


def test_what_exists_is_not_made_again(client: Any, make_index: Callable[..., str]) -> None:
    """A second bucket or index of the name is a conflict, whatever its settings, and harms nothing."""
    arn = make_index(dimension=3)
    client.put_vectors(indexArn=arn, vectors=[{"key": "a", "data": {"float32": [1.0, 2.0, 3.0]}}])
    conflict: dict[str, Any] = {"code": "ConflictException", "vectorBucketName": "papers"}
    assert refused(client, "create_index", **conflict, **INDEX) == (
        "An index with the specified name already exists"
    )
    refused(client, "create_vector_bucket", **conflict)
    refused(client, "delete_vector_bucket", **conflict)
    assert len(client.list_vectors(indexArn=arn)["vectors"]) == 1


def test_what_is_missing_is_not_found(client: Any, make_index: Callable[..., str]) -> None:
    """Calls on an absent bucket, index, policy or tagged resource are 404."""
    arn = make_index()
    client.delete_index(indexArn=arn)
    for operation in ("get_index", "delete_index", "list_vectors"):
        refused(client, operation, code="NotFoundException", indexArn=arn)
    refused(client, "list_tags_for_resource", code="NotFoundException", resourceArn=arn)
    refused(client, "get_vector_bucket_policy", code="NotFoundException", vectorBucketName="papers")
    client.delete_vector_bucket(vectorBucketName="papers")
    for operation in ("get_vector_bucket", "delete_vector_bucket", "list_indexes"):
        refused(client, operation, code="NotFoundException", vectorBucketName="papers")


def test_a_new_index_of_the_name_is_empty(client: Any, make_index: Callable[..., str]) -> None:
    """Deleting an index drops its vectors and its tags."""
    arn = make_index(tags={"team": "a"})
    client.put_vectors(indexArn=arn, vectors=[{"key": "a", "data": {"float32": [1.0, 2.0]}}])
    client.delete_index(indexArn=arn)
    make_index()
    assert client.list_vectors(indexArn=arn)["vectors"] == []
    assert client.list_tags_for_resource(resourceArn=arn)["tags"] == {}


@pytest.mark.parametrize(
    "address",
    [
        {},
        {"indexName": "chunks"},
        {"vectorBucketName": "papers"},
        {"indexArn": INDEX_ARN, "indexName": "chunks"},
        {"indexArn": INDEX_ARN, "vectorBucketName": "papers", "indexName": "chunks"},
    ],
)
def test_an_index_has_exactly_one_address(
    client: Any, make_index: Callable[..., str], address: dict[str, str]
) -> None:
    """Both forms, half of one, or none is refused with a text that says what to give."""
    make_index()
    assert refused(client, "get_index", **address) == (
        "Must specify either indexArn or both vectorBucketName and indexName"
    )


@pytest.mark.parametrize("address", [{}, {"vectorBucketName": "papers", "vectorBucketArn": BUCKET_ARN}])
def test_a_bucket_has_exactly_one_address(client: Any, address: dict[str, str]) -> None:
    """Name and ARN together, or neither, is refused."""
    client.create_vector_bucket(vectorBucketName="papers")
    refused(client, "get_vector_bucket", **address)


@pytest.mark.parametrize("name", ["Papers", "my_papers", "-papers", "papers-", "my.papers", "p" * 64])
def test_bucket_names_are_checked(client: Any, name: str) -> None:
    """Capitals, underscores, dots, outer hyphens and 64 characters are refused."""
    refused(client, "create_vector_bucket", path="vectorBucketName", vectorBucketName=name)


@pytest.mark.parametrize("name", ["Chunks", "my_chunks", ".chunks", "chunks-", "c" * 64])
def test_index_names_are_checked(client: Any, make_index: Callable[..., str], name: str) -> None:
    """Index names may hold dots, but no capitals or underscores."""
    make_index("a.b-c")
    wanted: dict[str, Any] = {**INDEX, "indexName": name}
    refused(client, "create_index", path="indexName", vectorBucketName="papers", **wanted)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"dimension": 4097}, "dimension"),
        ({"distanceMetric": "dot"}, "distanceMetric"),
        ({"dataType": "float16"}, "dataType"),
        (
            {"metadataConfiguration": {"nonFilterableMetadataKeys": [f"k{i}" for i in range(11)]}},
            "metadataConfiguration.nonFilterableMetadataKeys",
        ),
        (
            {"metadataConfiguration": {"nonFilterableMetadataKeys": ["k" * 64]}},
            "metadataConfiguration.nonFilterableMetadataKeys[0]",
        ),
        (
            {"metadataConfiguration": {"textSearchConfigurations": [{"metadataKey": "t", "language": "xx"}]}},
            "metadataConfiguration.textSearchConfigurations[0].language",
        ),
        (
            {"metadataConfiguration": {"textSearchConfigurations": [{"metadataKey": "t"}] * 2}},
            "metadataConfiguration.textSearchConfigurations",
        ),
        ({"tags": {"aws:team": "a"}}, "tags"),
        ({"tags": {"team": "a;b"}}, "tags"),
        ({"tags": {f"t{i}": "" for i in range(51)}}, "tags"),
    ],
)
def test_index_settings_are_checked(client: Any, change: dict[str, Any], path: str) -> None:
    """What boto3 lets through and the service does not is refused, with the field named."""
    client.create_vector_bucket(vectorBucketName="papers")
    refused(client, "create_index", path=path, vectorBucketName="papers", **{**INDEX, **change})


@pytest.mark.parametrize(
    "settings",
    [
        {"sseType": "aws:kms"},
        {"kmsKeyArn": KMS_KEY},
        {"sseType": "AES256", "kmsKeyArn": KMS_KEY},
        {"sseType": "aws:kms", "kmsKeyArn": "alias/mine"},
    ],
)
def test_encryption_settings_are_checked(client: Any, settings: dict[str, str]) -> None:
    """A KMS key and aws:kms need each other, and the key must be a full ARN."""
    path = "encryptionConfiguration.kmsKeyArn"
    name: dict[str, Any] = {"vectorBucketName": "papers"}
    refused(client, "create_vector_bucket", path=path, **name, encryptionConfiguration=settings)


def test_an_index_may_override_the_encryption_of_its_bucket(client: Any) -> None:
    """Without settings of its own an index is encrypted as its bucket is."""
    kms = {"sseType": "aws:kms", "kmsKeyArn": KMS_KEY}
    client.create_vector_bucket(vectorBucketName="papers", encryptionConfiguration=kms)
    make_index = index_maker(client)
    inherited = client.get_index(indexArn=make_index())["index"]
    own = client.get_index(indexArn=make_index("own", encryptionConfiguration={"sseType": "AES256"}))["index"]
    assert inherited["encryptionConfiguration"] == kms
    assert own["encryptionConfiguration"] == {"sseType": "AES256"}


def test_a_new_bucket_can_never_be_classic(client: Any, make_index: Callable[..., str]) -> None:
    """In a bucket made today neither the default nor an index goes back to CLASSIC."""
    arn = make_index()
    client.update_index_mode(indexArn=arn, indexMode="ENHANCED")
    refused(client, "update_index_mode", path="indexMode", indexArn=arn, indexMode="CLASSIC")
    refused(
        client,
        "put_vector_bucket_default_index_mode",
        path="defaultIndexMode",
        vectorBucketName="papers",
        defaultIndexMode="CLASSIC",
    )


def test_an_old_bucket_goes_back_and_forth(
    start: Callable[..., S3VectorsServer], client_of: Callable[..., Any]
) -> None:
    """In an old bucket indexes are CLASSIC until upgraded, and the default shapes only later ones."""
    client = client_of(start(default_mode="CLASSIC"))
    client.create_vector_bucket(vectorBucketName="papers")
    make_index = index_maker(client)

    def mode(arn: str) -> str:
        return str(client.get_index(indexArn=arn)["index"]["indexMode"])

    first = make_index("first")
    client.put_vector_bucket_default_index_mode(vectorBucketName="papers", defaultIndexMode="ENHANCED")
    assert (mode(first), mode(make_index("second"))) == ("CLASSIC", "ENHANCED")
    client.update_index_mode(indexArn=first, indexMode="ENHANCED")
    assert mode(first) == "ENHANCED"
    client.update_index_mode(indexArn=first, indexMode="CLASSIC")
    assert mode(first) == "CLASSIC"


def test_classic_indexes_have_no_text_fields(
    start: Callable[..., S3VectorsServer], client_of: Callable[..., Any]
) -> None:
    """Text fields need ENHANCED at creation and later, and keep an index there."""
    client = client_of(start(default_mode="CLASSIC"))
    client.create_vector_bucket(vectorBucketName="papers")
    arn = index_maker(client)("plain")
    fields: dict[str, Any] = {"textSearchConfigurations": [{"metadataKey": "text"}]}
    refused(client, "create_index", vectorBucketName="papers", metadataConfiguration=fields, **INDEX)
    refused(client, "update_metadata_configuration", indexArn=arn, add=fields)
    client.update_index_mode(indexArn=arn, indexMode="ENHANCED")
    client.update_metadata_configuration(indexArn=arn, add=fields)
    refused(client, "update_index_mode", path="indexMode", indexArn=arn, indexMode="CLASSIC")


def test_text_fields_are_built_before_they_serve(
    start: Callable[..., S3VectorsServer], client_of: Callable[..., Any], clock: Clock
) -> None:
    """A new field is BUILDING and refuses queries until its time has come; the vectors there are found then."""
    client = client_of(start(build_seconds=60.0))
    client.create_vector_bucket(vectorBucketName="papers")
    arn = index_maker(client)()
    vector = {"key": "a", "data": {"float32": [1.0, 2.0]}, "metadata": {"text": "red fox"}}
    client.put_vectors(indexArn=arn, vectors=[vector])
    fields: dict[str, Any] = {"textSearchConfigurations": [{"metadataKey": "text"}]}
    assert client.update_metadata_configuration(indexArn=arn, add=fields)["indexArn"] == arn

    def status() -> str:
        settings = client.get_index(indexArn=arn)["index"]["metadataConfiguration"]
        return str(settings["textSearchConfigurations"][0]["status"])

    query: dict[str, Any] = {
        "indexArn": arn,
        "topK": 1,
        "queryTexts": [{"text": "fox", "metadataKey": "text"}],
    }
    assert status() == "BUILDING"
    refused(client, "query_vectors", path="queryTexts[0].metadataKey", **query)
    clock.now = 60.0
    assert status() == "ACTIVE"
    assert [hit["key"] for hit in client.query_vectors(**query)["vectors"]] == ["a"]


def test_text_fields_come_and_go(client: Any, make_index: Callable[..., str]) -> None:
    """A field can be added once, up to ten, and deleted when it is there; one change a call."""
    arn = make_index()

    def change(**change: list[str]) -> dict[str, Any]:
        shapes = {
            word: {"textSearchConfigurations": [{"metadataKey": k} for k in keys]}
            for word, keys in change.items()
        }
        return {"indexArn": arn, **shapes}

    client.update_metadata_configuration(**change(add=["title", "text"]))
    operation = "update_metadata_configuration"
    refused(client, operation, code="ConflictException", **change(add=["text"]))
    refused(client, operation, path="add", **change(add=["a"], delete=["text"]))
    refused(client, operation, path="add", **change())
    refused(client, operation, **change(add=[f"k{number}" for number in range(9)]))
    refused(
        client,
        operation,
        path="delete.textSearchConfigurations[1].metadataKey",
        **change(delete=["text", "x"]),
    )
    client.update_metadata_configuration(**change(delete=["text"]))
    settings = client.get_index(indexArn=arn)["index"]["metadataConfiguration"]
    assert [one["metadataKey"] for one in settings["textSearchConfigurations"]] == ["title"]


def test_policies_are_kept_and_dropped(client: Any) -> None:
    """A policy is read back as written; what is not JSON is refused."""
    client.create_vector_bucket(vectorBucketName="papers")
    name: dict[str, Any] = {"vectorBucketName": "papers"}
    client.put_vector_bucket_policy(**name, policy='{"Statement": []}')
    assert client.get_vector_bucket_policy(**name)["policy"] == '{"Statement": []}'
    refused(client, "put_vector_bucket_policy", path="policy", **name, policy="allow all")
    client.delete_vector_bucket_policy(**name)
    refused(client, "get_vector_bucket_policy", code="NotFoundException", **name)


def test_tags_are_added_replaced_and_removed(client: Any, make_index: Callable[..., str]) -> None:
    """Tags of an index live by its ARN, at most fifty, none beginning with aws:."""
    arn = make_index(tags={"team": "a", "app": "ragctl"})
    client.tag_resource(resourceArn=arn, tags={"team": "b", "cost": "low"})
    client.untag_resource(resourceArn=arn, tagKeys=["app", "absent"])
    assert client.list_tags_for_resource(resourceArn=arn)["tags"] == {"team": "b", "cost": "low"}
    too_many = {f"t{number}": "" for number in range(49)}
    refused(client, "tag_resource", path="tags", resourceArn=arn, tags=too_many)
    refused(client, "tag_resource", path="tags", resourceArn=arn, tags={"AWS:x": ""})


def test_listings_by_name_are_paged(client: Any, make_index: Callable[..., str]) -> None:
    """Indexes and buckets come in pages of maxResults, by prefix, with nothing left out."""
    for name in ("b-one", "a-two", "a-one", "a-three"):
        make_index(name)
        client.create_vector_bucket(vectorBucketName=name)
    pages = list(
        client.get_paginator("list_indexes").paginate(
            vectorBucketName="papers", prefix="a-", PaginationConfig={"PageSize": 2}
        )
    )
    names = [[index["indexName"] for index in page["indexes"]] for page in pages]
    assert names == [["a-one", "a-three"], ["a-two"]]
    buckets = client.get_paginator("list_vector_buckets").paginate(PaginationConfig={"PageSize": 2})
    names = [[bucket["vectorBucketName"] for bucket in page["vectorBuckets"]] for page in buckets]
    assert names == [["a-one", "a-three"], ["a-two", "b-one"], ["papers"]]
    refused(client, "list_vector_buckets", path="nextToken", nextToken="garbage")
    refused(client, "list_vector_buckets", path="maxResults", maxResults=501)


def test_regions_are_apart(server: S3VectorsServer, client: Any, client_of: Callable[..., Any]) -> None:
    """A bucket of one region is not found in another; ARNs carry the partition of the region."""
    client.create_vector_bucket(vectorBucketName="papers")
    beijing = client_of(server, "cn-north-1")
    refused(beijing, "get_vector_bucket", code="NotFoundException", vectorBucketName="papers")
    refused(beijing, "get_vector_bucket", code="NotFoundException", vectorBucketArn=BUCKET_ARN)
    arn = beijing.create_vector_bucket(vectorBucketName="papers")["vectorBucketArn"]
    assert arn == "arn:aws-cn:s3vectors:cn-north-1:123456789012:bucket/papers"


@pytest.mark.parametrize(
    ("operation", "members", "denied"),
    [
        ("query_vectors", {"topK": 1, "queryVector": {"float32": [1.0, 0.0]}}, "QueryVectors"),
        (
            "query_vectors",
            {"topK": 1, "queryVector": {"float32": [1.0, 0.0]}, "filter": {"a": 1}},
            "GetVectors",
        ),
        ("list_vectors", {"returnMetadata": True}, "GetVectors"),
    ],
)
def test_missing_permissions_name_action_and_resource(
    server: S3VectorsServer,
    client_of: Callable[..., Any],
    operation: str,
    members: dict[str, Any],
    denied: str,
) -> None:
    """Reading metadata or filtering needs GetVectors besides the operation's own action."""
    client = client_of(server)
    client.create_vector_bucket(vectorBucketName="papers")
    arn = index_maker(client)()
    getattr(client, operation)(indexArn=arn, **members)
    server.denied.add(denied)
    message = refused(client, operation, code="AccessDeniedException", indexArn=arn, **members)
    assert f"s3vectors:{denied} on resource: {arn}" in message


def test_tagging_at_creation_needs_its_own_permission(server: S3VectorsServer, client: Any) -> None:
    """Creating with tags is refused without TagResource, and makes nothing."""
    server.denied.add("TagResource")
    named: dict[str, Any] = {"vectorBucketName": "papers"}
    refused(client, "create_vector_bucket", code="AccessDeniedException", tags={"team": "a"}, **named)
    client.create_vector_bucket(**named)


def test_the_quota_of_indexes_is_kept(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str]
) -> None:
    """A bucket that is full of indexes refuses the next with 402."""
    server.indexes_per_bucket = 1
    make_index("first")
    code = "ServiceQuotaExceededException"
    refused(client, "create_index", code=code, vectorBucketName="papers", **INDEX)
