"""Vector buckets and indexes: names, addresses, settings, tags, and what the service refuses of them."""

import json
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.servers.http import Refusal
from tests.servers.s3vectors_index import VectorIndex
from tests.servers.s3vectors_records import VectorRules, invalid

ACCOUNT = "123456789012"
INDEXES_PER_BUCKET = 10_000
TEXT_FIELDS = 10
TAGS = 50

Mode = Literal["CLASSIC", "ENHANCED"]

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_INDEX_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ARN = re.compile(r"arn:[^:]+:s3vectors:([^:]+):(\d{12}):bucket/([^/]+)(?:/index/([^/]+))?")
_PARTITIONS = {"cn": "aws-cn", "us-gov": "aws-us-gov", "eusc": "aws-eusc"}


@dataclass
class Bucket:
    """A vector bucket; `may_be_classic` says that it is from before 30 September 2026."""

    name: str
    arn: str
    encryption: Mapping[str, str]
    default_mode: Mode
    may_be_classic: bool
    created: float = field(default_factory=time.time)
    policy: str | None = None
    indexes: dict[str, VectorIndex] = field(default_factory=dict)


def bucket_arn(region: str, name: str) -> str:
    """Return the ARN of a bucket, in the partition its region belongs to."""
    partition = next(
        (value for prefix, value in _PARTITIONS.items() if region.startswith(prefix + "-")), "aws"
    )
    return f"arn:{partition}:s3vectors:{region}:{ACCOUNT}:bucket/{name}"


def bucket_address(asked: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (region or None, name) from exactly one of vectorBucketName and vectorBucketArn."""
    name, arn = asked.get("vectorBucketName"), asked.get("vectorBucketArn")
    if (name is None) == (arn is None):
        raise invalid("Must specify either vectorBucketArn or vectorBucketName", "vectorBucketName")
    if arn is None:
        return None, str(name)
    region, bucket, _ = read_arn(arn)
    return region, bucket


def index_address(asked: Mapping[str, Any]) -> tuple[str | None, str, str]:
    """Return (region or None, bucket, index) from either indexArn or both names."""
    bucket, index, arn = (asked.get(name) for name in ("vectorBucketName", "indexName", "indexArn"))
    if (arn is not None and (bucket or index)) or (arn is None and not (bucket and index)):
        raise invalid("Must specify either indexArn or both vectorBucketName and indexName", "indexArn")
    return read_arn(arn) if arn is not None else (None, str(bucket), str(index))


def read_arn(arn: str) -> tuple[str, str, str]:
    """Return (region, bucket, index or "") of an ARN of this account."""
    found = _ARN.fullmatch(arn)
    if not found:
        raise invalid("Invalid ARN", "resourceArn")
    region, account, bucket, index = found.groups()
    if account != ACCOUNT:
        raise Refusal(403, "AccessDeniedException", f"Account {account} is not accessible")
    return region, bucket, index or ""


def check_bucket_name(name: str) -> None:
    """Refuse a name that is not lower-case letters, digits and hyphens."""
    if not _BUCKET_NAME.fullmatch(name):
        raise invalid("Invalid vector bucket name", "vectorBucketName")


def new_index(bucket: Bucket, asked: Mapping[str, Any], field_ready_at: float) -> VectorIndex:
    """Check the settings of CreateIndex and return the index, which is not in the bucket yet."""
    name = asked["indexName"]
    if not _INDEX_NAME.fullmatch(name):
        raise invalid("Invalid index name", "indexName")
    settings = asked.get("metadataConfiguration", {})
    non_filterable = settings.get("nonFilterableMetadataKeys", [])
    _check_unique(non_filterable, "metadataConfiguration.nonFilterableMetadataKeys")
    index = VectorIndex(
        bucket=bucket.name,
        name=name,
        arn=f"{bucket.arn}/index/{name}",
        rules=VectorRules(asked["dimension"], asked["distanceMetric"], frozenset(non_filterable)),
        mode=bucket.default_mode,
        encryption=encryption(asked["encryptionConfiguration"])
        if "encryptionConfiguration" in asked
        else bucket.encryption,
    )
    fields = settings.get("textSearchConfigurations", [])
    if fields:
        add_text_fields(index, fields, field_ready_at, "metadataConfiguration")
    return index


def add_text_fields(
    index: VectorIndex, fields: Sequence[Mapping[str, Any]], ready_at: float, path: str
) -> None:
    """Make further keys searchable; refuses repeats, more than ten, and an index in CLASSIC mode."""
    _require_enhanced(index)
    names = [one["metadataKey"] for one in fields]
    _check_unique(names, f"{path}.textSearchConfigurations")
    if index.text_fields.keys() & set(names):
        raise Refusal(409, "ConflictException", "A text search configuration with this key already exists")
    if len(index.text_fields) + len(names) > TEXT_FIELDS:
        raise invalid(f"At most {TEXT_FIELDS} text search configurations", f"{path}.textSearchConfigurations")
    for one in fields:
        index.add_text_field(one["metadataKey"], one.get("language"), ready_at)


def delete_text_fields(index: VectorIndex, fields: Sequence[Mapping[str, Any]]) -> None:
    """Make keys no longer searchable; refuses keys that are not."""
    _require_enhanced(index)
    for number, one in enumerate(fields):
        if one["metadataKey"] not in index.text_fields:
            path = f"delete.textSearchConfigurations[{number}].metadataKey"
            raise invalid("No text search configuration with this key", path)
    for one in fields:
        index.text_fields.pop(one["metadataKey"], None)


def encryption(asked: Mapping[str, str]) -> dict[str, str]:
    """Return an encryption configuration as it will be read back; a key and aws:kms need each other."""
    kind, key = asked.get("sseType", "AES256"), asked.get("kmsKeyArn")
    if (kind == "aws:kms") != (key is not None):
        message = "kmsKeyArn is required with sseType aws:kms, and allowed with no other"
        raise invalid(message, "encryptionConfiguration.kmsKeyArn")
    return {"sseType": kind} if key is None else {"sseType": kind, "kmsKeyArn": key}


def describe_index(index: VectorIndex, now: float) -> dict[str, Any]:
    """Return what GetIndex shows; there is no count and no size."""
    settings: dict[str, Any] = {}
    if index.rules.non_filterable:
        settings["nonFilterableMetadataKeys"] = sorted(index.rules.non_filterable)
    if index.text_fields:
        settings["textSearchConfigurations"] = [
            {
                "metadataKey": name,
                "status": "ACTIVE" if now >= one.ready_at else "BUILDING",
                **({"language": one.language} if one.language else {}),
            }
            for name, one in index.text_fields.items()
        ]
    return {
        **summarise_index(index),
        "dataType": "float32",
        "dimension": index.rules.dimension,
        "distanceMetric": index.rules.metric,
        "encryptionConfiguration": index.encryption,
        "indexMode": index.mode,
        **({"metadataConfiguration": settings} if settings else {}),
    }


def summarise_index(index: VectorIndex) -> dict[str, Any]:
    """Return what ListIndexes shows."""
    names = {"vectorBucketName": index.bucket, "indexName": index.name}
    return {**names, "indexArn": index.arn, "creationTime": index.created}


def describe_bucket(bucket: Bucket) -> dict[str, Any]:
    """Return what GetVectorBucket shows."""
    modes = {"encryptionConfiguration": bucket.encryption, "defaultIndexMode": bucket.default_mode}
    return {**summarise_bucket(bucket), **modes}


def summarise_bucket(bucket: Bucket) -> dict[str, Any]:
    """Return what ListVectorBuckets shows."""
    names = {"vectorBucketName": bucket.name, "vectorBucketArn": bucket.arn}
    return {**names, "creationTime": bucket.created}


def check_mode(mode: str, bucket: Bucket, path: str) -> None:
    """Refuse CLASSIC in a bucket made on or after 30 September 2026."""
    if mode == "CLASSIC" and not bucket.may_be_classic:
        raise invalid("CLASSIC is not supported for this vector bucket", path)


def check_policy(policy: str) -> None:
    """Refuse a policy that is not a JSON object."""
    try:
        value = json.loads(policy)
    except ValueError as error:
        raise invalid("The policy is not valid JSON", "policy") from error
    if not isinstance(value, dict):
        raise invalid("The policy is not a JSON object", "policy")


def check_tags(tags: Mapping[str, str], total: int) -> None:
    """Refuse reserved keys, other characters than the allowed, and more than fifty tags in all."""
    for key, value in tags.items():
        if key.lower().startswith("aws:"):
            raise invalid("Tag keys must not start with aws:", "tags")
        if not all(map(_allowed_in_tag, key + value)):
            raise invalid("Tags may hold letters, digits, spaces and _ . : / = + - @", "tags")
    if total > TAGS:
        raise invalid(f"At most {TAGS} tags per resource", "tags")


def actions(operation: str, asked: Mapping[str, Any]) -> list[str]:
    """Return the IAM actions a request needs."""
    reads = {
        "QueryVectors": ("filter", "queryTexts", "returnMetadata"),
        "ListVectors": ("returnData", "returnMetadata"),
    }
    if any(asked.get(name) for name in reads.get(operation, ())):
        return [operation, "GetVectors"]
    if operation in ("CreateIndex", "CreateVectorBucket") and asked.get("tags"):
        return [operation, "TagResource"]
    return [operation]


def resource_arn(region: str, asked: Mapping[str, Any]) -> str:
    """Return the ARN a refusal names."""
    for name in ("indexArn", "vectorBucketArn", "resourceArn"):
        if name in asked:
            return str(asked[name])
    if "vectorBucketName" not in asked:
        return "*"
    arn = bucket_arn(region, asked["vectorBucketName"])
    return f"{arn}/index/{asked['indexName']}" if "indexName" in asked else arn


def _allowed_in_tag(character: str) -> bool:
    return character in "_.:/=+-@" or unicodedata.category(character)[0] in "LZN"


def _require_enhanced(index: VectorIndex) -> None:
    if index.mode != "ENHANCED":
        raise invalid("Text search configurations require an index in ENHANCED mode", "indexMode")


def _check_unique(names: Sequence[str], path: str) -> None:
    if len(set(names)) < len(names):
        raise invalid("Metadata keys must be unique", path)
