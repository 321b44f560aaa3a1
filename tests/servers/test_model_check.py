"""What the model check accepts and finds."""

from typing import Any

import numpy as np
import pytest

from tests.servers.model_check import check_error, check_reply, check_request, find_operation

INDEX: dict[str, Any] = {
    "vectorBucketName": "papers",
    "indexName": "chunks",
    "indexArn": "arn:aws:s3vectors:eu-west-1:123456789012:bucket/papers/index/chunks",
    "creationTime": 1_790_000_000.5,
    "dataType": "float32",
    "dimension": 2,
    "distanceMetric": "cosine",
}


def test_a_whole_reply_has_no_faults() -> None:
    """A reply with every required member and right values passes."""
    assert check_reply("s3vectors", "GetIndex", {"index": INDEX}) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"dimension": 4097}, "index.dimension: must be at most 4096"),
        ({"dimension": True}, "index.dimension: must be an integer, not bool"),
        ({"distanceMetric": "dot"}, "index.distanceMetric: must be one of euclidean, cosine"),
        ({"indexName": "ab"}, "index.indexName: must be at least 3 characters"),
        ({"vectors": 7}, "index.vectors: is not a member of Index"),
        ({"creationTime": None}, "index.creationTime: must be a time, not NoneType"),
    ],
)
def test_a_wrong_member_is_named(change: dict[str, Any], fault: str) -> None:
    """Ranges, types, enums, lengths and unknown members are each found, with the path."""
    assert check_reply("s3vectors", "GetIndex", {"index": INDEX | change}) == [fault]


def test_a_missing_member_is_named() -> None:
    """A required member that is left out is found."""
    assert check_reply("s3vectors", "QueryVectors", {"vectors": []}) == ["distanceMetric: is required"]


def test_vectors_may_be_numpy_rows() -> None:
    """A float array passes as a list of floats; an integer array does not."""
    good = {"vectors": [{"key": "a", "data": {"float32": np.ones(3, dtype=np.float32)}}]}
    assert check_reply("s3vectors", "GetVectors", good) == []
    bad = {"vectors": [{"key": "a", "data": {"float32": np.ones(3, dtype=np.int64)}}]}
    assert check_reply("s3vectors", "GetVectors", bad) != []


def test_requests_are_checked_beyond_what_boto3_checks() -> None:
    """Maxima and patterns, which boto3 lets through, are found in requests."""
    keys = {"indexArn": "chunks", "keys": ["a"] * 501}
    paths = [problem.path for problem in check_request("s3vectors", "DeleteVectors", keys)]
    assert paths == ["indexArn", "keys"]


def test_errors_are_checked_too() -> None:
    """A field of a ValidationException without its path is found; unknown errors are not checked."""
    body = {"message": "no", "fieldList": [{"message": "no"}]}
    assert check_error("s3vectors", "ValidationException", body) == ["fieldList[0].path: is required"]
    assert check_error("s3vectors", "SerializationException", {}) == []


@pytest.mark.parametrize(
    ("service", "method", "path", "operation", "labels"),
    [
        ("s3vectors", "POST", "/PutVectors", "PutVectors", {}),
        ("s3vectors", "GET", "/tags/arn%3Aa%2Fb", "ListTagsForResource", {"resourceArn": "arn:a/b"}),
        ("bedrock-runtime", "POST", "/model/m.v2%3A0/converse", "Converse", {"modelId": "m.v2:0"}),
        (
            "sagemaker-runtime",
            "POST",
            "/endpoints/gte/invocations",
            "InvokeEndpoint",
            {"EndpointName": "gte"},
        ),
    ],
)
def test_paths_name_operations(
    service: str, method: str, path: str, operation: str, labels: dict[str, str]
) -> None:
    """A request line is matched by method and path, and its labels are decoded."""
    match = find_operation(service, method, path)
    assert match is not None
    assert (match.operation, match.labels) == (operation, labels)


def test_other_paths_name_nothing() -> None:
    """A path or method that is in no model is not guessed at."""
    assert find_operation("s3vectors", "POST", "/InsertVectors") is None
    assert find_operation("s3vectors", "GET", "/PutVectors") is None
