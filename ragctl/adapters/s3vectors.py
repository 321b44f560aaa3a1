"""Amazon S3 Vectors: one index of a vector bucket, with vector, text and hybrid search."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from ragctl import backends
from ragctl.adapters.aws import client as aws_client
from ragctl.adapters.base import IndexInfo, IndexSpec, SearchRequest, StoreLimits
from ragctl.adapters.s3vectors_calls import BULK_S, MISSING, ONE_ATTEMPT, Calls, Conflict, Invalid
from ragctl.adapters.s3vectors_index import (
    BUCKET_TAG,
    Found,
    check_tags,
    encryption,
    index_settings,
    text_field,
)
from ragctl.adapters.s3vectors_records import encoded_size, install, put_body, read_record
from ragctl.adapters.s3vectors_search import UPGRADE, check_request, hits, query
from ragctl.errors import ConfigError, NotFound, Refused, ServiceError
from ragctl.fusion import fuse
from ragctl.indexes import OTHER_INDEX
from ragctl.limiter import Limiter
from ragctl.limits import (
    MAX_DELETE_KEYS,
    MAX_GET_KEYS,
    MAX_PUT_RECORDS,
    MAX_REQUEST_BYTES,
    MAX_TOP_K,
    check_record,
    check_spec,
    refuse_doubles,
)

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.records import Hit, VectorRecord

log = logging.getLogger("ragctl.s3vectors")

# Stays clear of the limit: beyond it the connection may just end
PUT_BYTES: Final = MAX_REQUEST_BYTES - 512 * 1024
LIST_PAGE: Final = 1_000  # model
BUILD_S: Final = 600.0  # how long a text search may take to be built
BUILD_POLL_S: Final = 5.0


class S3VectorsStore:
    """One S3 Vectors index; see `adapters.base.VectorStore` for what each method means.

    Writes are paced by one limiter, which all threads share; calls are tried again in `s3vectors_calls` alone.
    """

    def __init__(
        self,
        client: Any,
        settings: backends.S3VectorsStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`client` makes single attempts. Raises ConfigError when its SDK is too old; nothing is called."""
        _check_sdk(client)
        check_tags(settings.tags)
        install(client)
        self._settings = settings
        self._clock, self._sleep = clock, sleep
        limiter = Limiter(
            vectors_per_second=settings.vectors_per_second,
            requests_per_second=settings.requests_per_second,
            clock=clock,
            sleep=sleep,
        )
        self._calls = Calls(client, settings.bucket, settings.index, limiter, clock=clock, sleep=sleep)
        self._encode = partial(put_body, settings.bucket, settings.index)
        self._name = f"index {settings.bucket}/{settings.index}"
        self._found: Found | None = None
        self.bucket = settings.bucket
        # No more at once than may be written in a second: a call is signed before it waits for its turn, and a signature
        # is good for minutes only.
        self.limits = StoreLimits(
            put_records=min(MAX_PUT_RECORDS, settings.vectors_per_second),
            put_bytes=PUT_BYTES,
            delete_keys=min(MAX_DELETE_KEYS, settings.vectors_per_second),
            get_keys=MAX_GET_KEYS,
            top_k=MAX_TOP_K,
            vectors_per_second=settings.vectors_per_second,
        )

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The store of a config; nothing is called."""
        settings = experiment.store
        assert isinstance(settings, backends.S3VectorsStore)
        return cls(aws_client("s3vectors", experiment, **ONE_ATTEMPT), settings)

    # --- the index ---------------------------------------------------------------------------------------

    def describe(self) -> IndexInfo | None:
        """What the index is like; None when it, or its bucket, does not exist."""
        found = self._read()
        return None if found is None else found.info

    def create(self, spec: IndexSpec) -> bool:
        """Make the index, and its bucket where there is none; True when it was not there.

        Raises Refused, with all differences, when an index of this name is otherwise, and when it would have to be
        made in CLASSIC mode, which has no text search.
        """
        check_spec(spec)
        made = self._read() is None and self._make(spec)
        if not made:
            self._refuse_differences(spec)
        self._wait_for_text()
        return made

    def upgrade(self, spec: IndexSpec, *, dry_run: bool = False) -> list[str]:
        """Turn bucket and index to ENHANCED and make the text searchable, in place; say what is changed.

        The bucket's default touches indexes that are made later; its other indexes stay as they are.
        """
        steps = list(self._upgrades(spec))
        if not dry_run:
            for _, change in steps:
                change()
            self._wait_for_text()
        return [what for what, _ in steps]

    def drop(self) -> bool:
        """Remove the index and all that is in it; False when there was none."""
        self._found = None
        try:
            self._calls.of_index("DeleteIndex")
        except NotFound:
            return False
        return True

    def can_drop_bucket(self, going: Collection[str] = ()) -> bool:
        """Whether there is a vector bucket to remove once the indexes `going` are; False when there is none.

        Raises Refused when another index stands in it, and when ragctl did not make it.
        """
        bucket = self._settings.bucket
        try:
            arn = self._calls.of_bucket("GetVectorBucket")["vectorBucket"]["vectorBucketArn"]
            found = self._indexes()
            tags = self._calls.of_resource("ListTagsForResource", arn).get("tags", {})
        except NotFound:
            return False
        if names := [name for name in found if name not in going]:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise Refused(f"vector bucket {bucket} holds indexes: {shown}", hint="remove them first")
        if BUCKET_TAG not in tags:
            raise Refused(
                f"vector bucket {bucket} was not made by ragctl (it has no tag {BUCKET_TAG})",
                hint="remove it with the AWS console or CLI if nobody needs it",
            )
        return True

    def _indexes(self) -> list[str]:
        """The names of all indexes of the bucket, of which a page holds 500 at most."""
        names: list[str] = []
        token: dict[str, Any] = {}
        while True:
            page = self._calls.of_bucket("ListIndexes", **token)
            names += (index["indexName"] for index in page["indexes"])
            if not page.get("nextToken"):
                return names
            token = {"nextToken": page["nextToken"]}

    def drop_bucket(self) -> bool:
        """Remove the vector bucket; False when there is none. Raises Refused as `can_drop_bucket` does."""
        if not self.can_drop_bucket():
            return False
        try:
            self._calls.of_bucket("DeleteVectorBucket")
        except NotFound:
            return False
        except Conflict as error:
            raise Refused(
                f"vector bucket {self._settings.bucket}: somebody has just made an index in it"
            ) from error
        return True

    def _read(self) -> Found | None:
        try:
            index = self._calls.of_index("GetIndex")["index"]
            tags = self._calls.of_resource("ListTagsForResource", index["indexArn"]).get("tags", {})
        except NotFound:
            self._found = None
        else:
            self._found = Found.read(index, tags)
        return self._found

    def _known(self) -> Found:
        found = self._found or self._read()
        if found is None:
            raise NotFound(f"there is no {self._name}", hint=MISSING)
        return found

    def _make(self, spec: IndexSpec) -> bool:
        """Make the index; False when somebody else was quicker."""
        mode = self._bucket_mode()
        if mode is None:
            self._make_bucket()
            mode = self._bucket_mode()
        if mode == "CLASSIC" and spec.text_search:
            raise Refused(
                f"vector bucket {self._settings.bucket} makes indexes in CLASSIC mode, which have no text search",
                hint=f"turn it to ENHANCED, at no charge: {UPGRADE}; or set store.text_search: false",
            )
        try:
            self._calls.of_index("CreateIndex", **index_settings(spec, self._settings))
        except Conflict:
            made = False
        else:
            made = True
        self._read()
        return made

    def _make_bucket(self) -> None:
        tags = {**self._settings.tags, BUCKET_TAG: "made-by-ragctl"}
        try:
            self._calls.of_bucket("CreateVectorBucket", tags=tags, **encryption(self._settings))
        except Conflict:
            log.info("vector bucket %s: somebody else has just made it", self._settings.bucket)

    def _bucket_mode(self) -> str | None:
        """The mode of new indexes; None when there is no such bucket."""
        try:
            bucket = self._calls.of_bucket("GetVectorBucket")["vectorBucket"]
        except NotFound:
            return None
        return str(bucket.get("defaultIndexMode", "ENHANCED"))

    def _refuse_differences(self, spec: IndexSpec) -> None:
        found = self._known()
        differences = found.differences(spec, self._settings.kms_key_arn)
        if not differences:
            return
        hint = OTHER_INDEX
        if spec.text_search and not found.info.text_search:
            hint += f"; text search alone can be added: {UPGRADE}"
        raise Refused(f"{self._name} was made with other settings\n  " + "\n  ".join(differences), hint=hint)

    def _upgrades(self, spec: IndexSpec) -> Iterator[tuple[str, Callable[[], object]]]:
        """What an upgrade has to change, in this order, and how."""
        if self._bucket_mode() == "CLASSIC":
            enhance = partial(
                self._calls.of_bucket, "PutVectorBucketDefaultIndexMode", defaultIndexMode="ENHANCED"
            )
            yield f"vector bucket {self._settings.bucket}: new indexes are ENHANCED", enhance
        found = self._read()
        if found is None:
            return
        if not found.enhanced:
            yield (
                f"{self._name}: ENHANCED",
                partial(self._calls.of_index, "UpdateIndexMode", indexMode="ENHANCED"),
            )
        if spec.text_search and not found.info.text_search:
            yield f"{self._name}: text search", partial(self._add_text, spec)

    def _add_text(self, spec: IndexSpec) -> None:
        field = text_field(spec.language)
        try:
            self._calls.of_index("UpdateMetadataConfiguration", add={"textSearchConfigurations": [field]})
        except Conflict:
            log.info("%s: somebody else has just added its text search", self._name)

    def _wait_for_text(self) -> None:
        """Wait until the text search is built: an index that is still building it answers no such query."""
        until = self._clock() + BUILD_S
        pause = 0.1
        while (found := self._read()) is not None and not found.text_ready:
            if self._clock() > until:
                raise ServiceError(
                    f"{self._name}: its text search is still being built after {BUILD_S / 60:.0f} minutes",
                    hint="run the same command again later; nothing has to be repeated",
                )
            pause = min(2 * pause, BUILD_POLL_S)
            self._sleep(pause)

    # --- records -----------------------------------------------------------------------------------------

    def encoded_size(self, record: VectorRecord) -> int:
        """Bytes that a record adds to a put at most; it has passed `check`."""
        return encoded_size(record)

    def check(self, record: VectorRecord) -> None:
        """Raise RecordRefused when a record breaks a limit. Nothing is called once the index is known."""
        info = self._known().info
        check_record(record, dimension=info.dimension, metric=info.metric, non_filterable=info.non_filterable)

    def before_writes(self, check: Callable[[], None]) -> None:
        """See `Calls`: after the wait for the limiter, before each attempt."""
        self._calls.before_write = check

    def put(self, records: Sequence[VectorRecord], *, fresh: bool = False) -> None:  # noqa: ARG002  the service looks
        """Insert or replace records, which have passed `check`. RecordRefused when a key stands twice.

        A batch that is stopped half-way, after its halves were sent apart, may be put again as it is.
        """
        _check_count("put", len(records), MAX_PUT_RECORDS)
        refuse_doubles(records)
        self._calls.write("PutVectors", records, lambda batch: {"vectors": self._encode(batch)})

    def get(self, keys: Sequence[str], *, vectors: bool = False) -> dict[str, VectorRecord]:
        """Records by key; what is absent is left out."""
        _check_count("get", len(keys), MAX_GET_KEYS)
        if not keys:
            return {}
        answer = self._calls.of_index(
            "GetVectors", patience_s=BULK_S, keys=list(keys), returnData=vectors, returnMetadata=True
        )
        return {item["key"]: read_record(item) for item in answer["vectors"]}

    def delete(self, keys: Sequence[str]) -> None:
        """Delete records; unknown keys are ignored."""
        _check_count("delete", len(keys), MAX_DELETE_KEYS)
        self._calls.write("DeleteVectors", keys, lambda batch: {"keys": list(batch)})

    def keys(self) -> Iterator[str]:
        """Every key, in no order."""
        return (item["key"] for item in self._list())

    def scan(self) -> Iterator[VectorRecord]:
        """Every record with its metadata, vectors empty."""
        return (read_record(item) for item in self._list(returnMetadata=True))

    def _list(self, **options: bool) -> Iterator[dict[str, Any]]:
        token: dict[str, Any] = {}
        while True:
            page = self._calls.of_index(
                "ListVectors", patience_s=BULK_S, maxResults=LIST_PAGE, **options, **token
            )
            yield from page["vectors"]
            if not page.get("nextToken"):
                return
            token = {"nextToken": page["nextToken"]}

    # --- search ------------------------------------------------------------------------------------------

    def search(self, request: SearchRequest) -> list[Hit]:
        """Hits, best first; fewer than asked for is normal: the search is approximate, and a filter may leave few.

        Raises ConfigError for what the index cannot do, FilterError for a key that it does not filter by.
        """
        found = self._known()
        check_request(request, found)
        if request.mode != "vector" and not (request.text or "").strip():
            return [] if request.mode == "text" else self._by_vector_alone(request)
        asked = query(request, found)
        try:
            results = self._all_pages(asked, request.top_k)
        except _PageLostError:
            log.info("%s: a page of a search came too late, searching again", self._name)
            results = self._all_pages(asked, request.top_k)
        return hits(results, request, found.info.metric)

    def _by_vector_alone(self, request: SearchRequest) -> list[Hit]:
        """A hybrid search without words, which the service would refuse."""
        return fuse(self.search(replace(request, mode="vector", text=None)), [])

    def _all_pages(self, asked: dict[str, Any], top_k: int) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        token: dict[str, Any] = {}
        while True:
            try:
                page = self._calls.of_index("QueryVectors", **asked, **token)
            except (Invalid, NotFound) as error:
                if not token:
                    raise
                raise _PageLostError(error.message, hint=error.hint) from error
            results += page["vectors"]
            if not page.get("nextToken") or len(results) >= top_k:
                return results[:top_k]
            token = {"nextToken": page["nextToken"]}

    # --- the end -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Nothing is left to do: what a write has returned from is in every later search."""

    def close(self) -> None:
        """Nothing is held open: the client belongs to the process."""


class _PageLostError(ServiceError):
    """The service no longer takes the token of the next page."""


def _check_sdk(client: Any) -> None:
    shape = client.meta.service_model.operation_model("QueryVectors").input_shape
    if "queryTexts" not in shape.members:
        raise ConfigError(
            "the installed boto3 knows S3 Vectors without text search", hint='pip install "boto3>=1.44.5"'
        )


def _check_count(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{what}: {count:,} at once, at most {most:,} are allowed")
