"""The vector buckets and indexes of an account and region that carry ragctl's tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragctl.adapters.aws import aws_errors, client
from ragctl.adapters.s3vectors_index import BUCKET_TAG, read_identity

if TYPE_CHECKING:
    from ragctl.config import Experiment


@dataclass(frozen=True, slots=True)
class Bucket:
    """A vector bucket. `ours`: ragctl made it; `indexes`: those in it that ragctl made."""

    name: str
    ours: bool
    indexes: tuple[str, ...]


def buckets(experiment: Experiment) -> Iterator[Bucket]:
    """Every vector bucket that is ours, or in which something is."""
    vectors = client("s3vectors", experiment)
    with aws_errors("s3vectors:ListVectorBuckets", "the vector buckets of the account"):
        pages = vectors.get_paginator("list_vector_buckets").paginate()
        found = [bucket for page in pages for bucket in page["vectorBuckets"]]
    for bucket in found:
        name = bucket["vectorBucketName"]
        ours = BUCKET_TAG in _tags(vectors, bucket["vectorBucketArn"])
        indexes = tuple(_indexes(vectors, name))
        if ours or indexes:
            yield Bucket(name, ours, indexes)


def _indexes(vectors: Any, bucket: str) -> Iterator[str]:
    with aws_errors("s3vectors:ListIndexes", f"vector bucket {bucket}"):
        pages = vectors.get_paginator("list_indexes").paginate(vectorBucketName=bucket)
        found = [index for page in pages for index in page["indexes"]]
    for index in found:
        if read_identity(_tags(vectors, index["indexArn"])) is not None:
            yield str(index["indexName"])


def _tags(vectors: Any, arn: str) -> dict[str, str]:
    with aws_errors("s3vectors:ListTagsForResource", arn):
        tags: dict[str, str] = vectors.list_tags_for_resource(resourceArn=arn).get("tags", {})
    return tags
