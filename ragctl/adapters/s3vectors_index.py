"""The settings of an S3 Vectors index: as it was made, as it should be, and what differs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from ragctl import indexes
from ragctl.adapters.base import IndexInfo
from ragctl.errors import ConfigError
from ragctl.records import TEXT

if TYPE_CHECKING:
    from ragctl.adapters.base import IndexSpec
    from ragctl.backends import S3VectorsStore

EMBEDDER_TAG: Final = "ragctl:embedder"
BUCKET_TAG: Final = "ragctl:bucket"  # on a vector bucket that ragctl made and may remove
MAX_TAG_VALUE: Final = 256  # characters (model)
IDENTITY_TAGS: Final = 8  # of the 50 that an index may have; 40 are left to the config

# \w also allows letters and digits of other scripts, as the service does
_TAG: Final = re.compile(r"[\w .:/=+@-]*")


@dataclass(frozen=True, slots=True)
class Found:
    """An index as the service shows it."""

    info: IndexInfo
    enhanced: bool
    text_ready: bool  # False while the text search is being built
    kms_key_arn: str | None

    @classmethod
    def read(cls, index: Mapping[str, Any], tags: Mapping[str, str]) -> Found:
        """From the answers of GetIndex and ListTagsForResource."""
        settings = index.get("metadataConfiguration", {})
        fields = {field["metadataKey"]: field for field in settings.get("textSearchConfigurations", ())}
        encryption = index.get("encryptionConfiguration", {})
        arn, mode = str(index["indexArn"]), str(index.get("indexMode", "CLASSIC"))
        info = IndexInfo(
            name=index["indexName"],
            dimension=index["dimension"],
            metric=index["distanceMetric"],
            embedder=read_identity(tags),
            non_filterable=tuple(settings.get("nonFilterableMetadataKeys", ())),
            text_search=TEXT in fields,
            language=fields.get(TEXT, {}).get("language"),
            created=f"{_iso(index['creationTime'])} {arn}",
            details={
                "arn": arn,
                "bucket": index["vectorBucketName"],
                "mode": mode,
                "encryption": " ".join(map(str, encryption.values())),
            },
        )
        ready = fields.get(TEXT, {}).get("status", "ACTIVE") == "ACTIVE"
        return cls(info, mode == "ENHANCED", ready, encryption.get("kmsKeyArn"))

    def differences(self, spec: IndexSpec, kms_key_arn: str | None) -> list[str]:
        """Name every setting that is not as asked for. Where no key is asked for, any encryption will do."""
        there, here = self.kms_key_arn or "none", kms_key_arn
        key = f"KMS key: the index has {there}, the experiment asks for {here}"
        return [*indexes.differences(self.info, spec), *([key] if here not in (None, there) else [])]


def index_settings(spec: IndexSpec, settings: S3VectorsStore) -> dict[str, Any]:
    """Return the members of CreateIndex, without the names."""
    metadata: dict[str, Any] = {"nonFilterableMetadataKeys": list(spec.non_filterable)}
    if spec.text_search:
        metadata["textSearchConfigurations"] = [text_field(spec.language)]
    return {
        "dataType": "float32",
        "dimension": spec.dimension,
        "distanceMetric": spec.metric,
        "metadataConfiguration": metadata,
        "tags": {**settings.tags, **identity_tags(spec.embedder)},
        **encryption(settings),
    }


def encryption(settings: S3VectorsStore) -> dict[str, Any]:
    """Return the encryption member of CreateIndex and CreateVectorBucket; without a key, what is the default there."""
    if settings.kms_key_arn is None:
        return {}
    return {"encryptionConfiguration": {"sseType": "aws:kms", "kmsKeyArn": settings.kms_key_arn}}


def text_field(language: str | None) -> dict[str, str]:
    """Return the text search configuration of the chunk text."""
    return {"metadataKey": TEXT} | ({"language": language} if language else {})


# --- tags ------------------------------------------------------------------------------------------------


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise ConfigError for tags that the service would refuse, or that are ours."""
    for key, value in tags.items():
        if key.lower().startswith(("aws:", "ragctl:")):
            raise ConfigError(f"store.tags: {key}: names that start with aws: or ragctl: are taken")
        if not 1 <= len(key) <= 128 or len(value) > MAX_TAG_VALUE or not _TAG.fullmatch(key + value):
            raise ConfigError(
                f"store.tags: {key[:128]}: a name takes 1 to 128 characters and a value at most {MAX_TAG_VALUE}: "
                "letters, digits, spaces and _ . : / = + - @"
            )


def identity_tags(identity: str) -> dict[str, str]:
    """Return the tags that keep an embedder's identity: more than one where it is longer than a value may be.

    What a value may not hold, spaces and the equals sign are written as = and two hexadecimal digits per byte.
    """
    safe = quote(identity, safe="/:+@").replace("%", "=").replace("~", "=7E")
    parts = [safe[start : start + MAX_TAG_VALUE] for start in range(0, len(safe), MAX_TAG_VALUE)]
    if len(parts) > IDENTITY_TAGS:
        raise ConfigError(
            f"the embedder's identity takes {len(safe):,} characters, too many for an index's tags"
        )
    return dict(zip(_identity_names(), parts, strict=False))


def read_identity(tags: Mapping[str, str]) -> str | None:
    """Return the identity that the tags of an index keep; None where there is none."""
    parts = [tags[name] for name in _identity_names() if name in tags]
    return unquote("".join(parts).replace("=", "%")) if parts else None


def _identity_names() -> list[str]:
    return [EMBEDDER_TAG, *(f"{EMBEDDER_TAG}-{number}" for number in range(2, IDENTITY_TAGS + 1))]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()  # the SDK gives it in the time zone of this machine
