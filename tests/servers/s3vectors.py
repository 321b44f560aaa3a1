"""An S3 Vectors service in memory, as strict as the real one is known to be.

    with S3VectorsServer() as server:
        client = boto3.client("s3vectors", endpoint_url=server.url)

or, as a process of its own, `python -m tests.servers.s3vectors --port 0`, which prints its URL first.

Where the service's behaviour is not known, the stricter guess is taken (a key twice in one PutVectors, operators
mixed on one key, a text field under a CLASSIC default are all refused), or an option chooses
(`missing_ne_matches`). State is per region, told from the signature of the request.
"""

import argparse
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from botocore import xform_name

from tests.servers.http import Fault, Handler, LoopbackServer, Refusal, Request
from tests.servers.model_check import check_request, service_model
from tests.servers.process import run_until_told
from tests.servers.s3vectors_control import (
    ACCOUNT,
    INDEXES_PER_BUCKET,
    Bucket,
    Mode,
    actions,
    add_text_fields,
    bucket_address,
    bucket_arn,
    check_bucket_name,
    check_mode,
    check_policy,
    check_tags,
    delete_text_fields,
    describe_bucket,
    describe_index,
    encryption,
    index_address,
    new_index,
    read_arn,
    resource_arn,
    summarise_bucket,
    summarise_index,
)
from tests.servers.s3vectors_index import VectorIndex
from tests.servers.s3vectors_paging import page_by_name, page_of_vectors
from tests.servers.s3vectors_query import QuerySessions, search
from tests.servers.s3vectors_records import check_batch, check_keys, invalid
from tests.servers.s3vectors_writes import Write, WriteLog

BODY_BYTES = 20_971_520
BATCH = 500

_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/s3vectors/aws4_request")

Asked = Mapping[str, Any]
Answer = dict[str, Any]


class S3VectorsServer(LoopbackServer):
    """S3 Vectors on 127.0.0.1, driven by boto3 with any credentials.

    `denied` holds IAM actions, such as "GetVectors", that every caller lacks. `writes` logs the accepted writes
    by index ARN. `indexes_per_bucket` may be lowered to meet the quota, `batch_capacity` to have larger PutVectors
    answered 503, as the service does when a batch exceeds what it can take at the moment.
    """

    services = ("s3vectors",)

    def __init__(
        self,
        *,
        port: int = 0,
        latency: Mapping[str, float] | None = None,
        default_mode: Mode = "ENHANCED",
        build_seconds: float = 0.0,
        token_seconds: float = 300.0,
        missing_ne_matches: bool = False,
        enforce_rate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the server; seconds are those of `clock`.

        `default_mode="CLASSIC"` makes buckets as before 30 September 2026, which may go back and forth.
        A new text field is BUILDING for `build_seconds`; a query's nextToken lives `token_seconds`.
        `missing_ne_matches` says whether $ne and $nin match vectors without the key (not known of the service).
        `enforce_rate` answers 429 above 2,500 vectors/s or 1,000 requests/s per index.
        """
        super().__init__(port=port, latency=latency)
        self.denied: set[str] = set()
        self.writes: defaultdict[str, WriteLog] = defaultdict(WriteLog)
        self.indexes_per_bucket = INDEXES_PER_BUCKET
        self.batch_capacity = BATCH
        self._default_mode: Mode = default_mode
        self._build_seconds = build_seconds
        self._missing_ne_matches = missing_ne_matches
        self._enforce_rate = enforce_rate
        self._clock = clock
        self._sessions = QuerySessions(token_seconds, clock)
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self._handlers: dict[str, Handler] = {
            operation: partial(self._serve, getattr(self, f"_{xform_name(operation)}"))
            for operation in service_model("s3vectors").operation_names
            if hasattr(self, f"_{xform_name(operation)}")
        }

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods that answer, by operation name."""
        return self._handlers

    def report(self) -> Answer:
        """Return what happened so far, with the writes and the vectors of each index."""
        indexes = [index for bucket in self._buckets.values() for index in bucket.indexes.values()]
        return {
            **super().report(),
            "vectors": {index.arn: len(index) for index in indexes},
            "peak_vectors_per_second": {arn: log.peak(5).vectors for arn, log in self.writes.items()},
            "peak_requests_per_second": {arn: log.peak(5).requests for arn, log in self.writes.items()},
            "writing_seconds": {arn: log.seconds() for arn, log in self.writes.items()},
        }

    def _serve(self, answer: Callable[[str, Asked], Answer], request: Request) -> Answer:
        """Let a method answer what is signed, not too big, of the model's shape, and permitted."""
        if len(request.body) > BODY_BYTES:
            raise Refusal(400, "ValidationException", "Request body exceeds max allowed size")
        signed = _CREDENTIAL.match(request.headers.get("Authorization", ""))
        if not signed:
            raise Refusal(403, "AccessDeniedException", "Missing Authentication Token")
        asked = {**request.document, **request.match.labels, **request.query}
        operation = request.match.operation
        problems = check_request("s3vectors", operation, asked)
        if problems:
            fields = [{"path": problem.path, "message": problem.message} for problem in problems]
            message = f"{len(problems)} validation error(s) detected: {problems[0]}"
            raise Refusal(400, "ValidationException", message, fieldList=fields)
        with self._lock:
            self._permit(signed[1], operation, asked)
            return answer(signed[1], asked)

    def _permit(self, region: str, operation: str, asked: Asked) -> None:
        for action in actions(operation, asked):
            if action in self.denied:
                user, resource = f"arn:aws:iam::{ACCOUNT}:user/test", resource_arn(region, asked)
                message = (
                    f"User: {user} is not authorized to perform: s3vectors:{action} on resource: {resource}"
                )
                raise Refusal(403, "AccessDeniedException", message)

    def _bucket(self, region: str, asked: Asked) -> Bucket:
        arn_region, name = bucket_address(asked)
        return self._bucket_named(region, arn_region, name)

    def _bucket_named(self, region: str, arn_region: str | None, name: str) -> Bucket:
        bucket = self._buckets.get((region, name))
        if bucket is None or arn_region not in (None, region):
            raise Refusal(404, "NotFoundException", "The specified vector bucket could not be found")
        return bucket

    def _index(self, region: str, asked: Asked) -> VectorIndex:
        arn_region, bucket_name, name = index_address(asked)
        index = self._bucket_named(region, arn_region, bucket_name).indexes.get(name)
        if index is None:
            raise Refusal(404, "NotFoundException", "The specified index could not be found")
        return index

    def _create_vector_bucket(self, region: str, asked: Asked) -> Answer:
        name = asked["vectorBucketName"]
        check_bucket_name(name)
        settings, tags = encryption(asked.get("encryptionConfiguration", {})), asked.get("tags", {})
        check_tags(tags, len(tags))
        if (region, name) in self._buckets:
            raise Refusal(409, "ConflictException", "A vector bucket with the specified name already exists")
        arn, old = bucket_arn(region, name), self._default_mode == "CLASSIC"
        self._buckets[region, name] = Bucket(name, arn, settings, self._default_mode, may_be_classic=old)
        self._tags[arn] = dict(tags)
        return {"vectorBucketArn": arn}

    def _get_vector_bucket(self, region: str, asked: Asked) -> Answer:
        return {"vectorBucket": describe_bucket(self._bucket(region, asked))}

    def _list_vector_buckets(self, region: str, asked: Asked) -> Answer:
        buckets = (bucket for (where, _), bucket in self._buckets.items() if where == region)
        page, more = page_by_name(buckets, asked)
        return {"vectorBuckets": [summarise_bucket(bucket) for bucket in page], **more}

    def _delete_vector_bucket(self, region: str, asked: Asked) -> Answer:
        bucket = self._bucket(region, asked)
        if bucket.indexes:
            raise Refusal(409, "ConflictException", "The specified vector bucket is not empty")
        del self._buckets[region, bucket.name], self._tags[bucket.arn]
        return {}

    def _put_vector_bucket_policy(self, region: str, asked: Asked) -> Answer:
        bucket = self._bucket(region, asked)
        check_policy(asked["policy"])
        bucket.policy = asked["policy"]
        return {}

    def _get_vector_bucket_policy(self, region: str, asked: Asked) -> Answer:
        policy = self._bucket(region, asked).policy
        if policy is None:
            raise Refusal(404, "NotFoundException", "The specified vector bucket policy could not be found")
        return {"policy": policy}

    def _delete_vector_bucket_policy(self, region: str, asked: Asked) -> Answer:
        self._bucket(region, asked).policy = None
        return {}

    def _put_vector_bucket_default_index_mode(self, region: str, asked: Asked) -> Answer:
        bucket = self._bucket(region, asked)
        check_mode(asked["defaultIndexMode"], bucket, "defaultIndexMode")
        bucket.default_mode = asked["defaultIndexMode"]
        return {}

    def _create_index(self, region: str, asked: Asked) -> Answer:
        bucket = self._bucket(region, asked)
        index = new_index(bucket, asked, self._clock() + self._build_seconds)
        tags = asked.get("tags", {})
        check_tags(tags, len(tags))
        if index.name in bucket.indexes:
            raise Refusal(409, "ConflictException", "An index with the specified name already exists")
        if len(bucket.indexes) >= self.indexes_per_bucket:
            message = f"At most {self.indexes_per_bucket} indexes per vector bucket"
            raise Refusal(402, "ServiceQuotaExceededException", message)
        bucket.indexes[index.name] = index
        self._tags[index.arn] = dict(tags)
        return {"indexArn": index.arn}

    def _get_index(self, region: str, asked: Asked) -> Answer:
        return {"index": describe_index(self._index(region, asked), self._clock())}

    def _list_indexes(self, region: str, asked: Asked) -> Answer:
        page, more = page_by_name(self._bucket(region, asked).indexes.values(), asked)
        return {"indexes": [summarise_index(index) for index in page], **more}

    def _delete_index(self, region: str, asked: Asked) -> Answer:
        index = self._index(region, asked)
        del self._buckets[region, index.bucket].indexes[index.name], self._tags[index.arn]
        return {}

    def _update_index_mode(self, region: str, asked: Asked) -> Answer:
        index = self._index(region, asked)
        check_mode(asked["indexMode"], self._buckets[region, index.bucket], "indexMode")
        if asked["indexMode"] == "CLASSIC" and index.text_fields:
            raise invalid("An index with text search configurations cannot be CLASSIC", "indexMode")
        index.mode = asked["indexMode"]
        return {}

    def _update_metadata_configuration(self, region: str, asked: Asked) -> Answer:
        index = self._index(region, asked)
        if ("add" in asked) == ("delete" in asked):
            raise invalid("Specify either add or delete, but not both", "add")
        if "add" in asked:
            fields = asked["add"].get("textSearchConfigurations", [])
            add_text_fields(index, fields, self._clock() + self._build_seconds, "add")
        else:
            delete_text_fields(index, asked["delete"].get("textSearchConfigurations", []))
        return {"indexArn": index.arn}

    def _put_vectors(self, region: str, asked: Asked) -> Answer:
        index, records = self._index(region, asked), asked["vectors"]
        if len(records) > self.batch_capacity:
            raise Refusal(503, "ServiceUnavailableException", "Currently unable to handle the request")
        self._throttle(index, len(records))
        rows = check_batch(records, index.rules)
        metadata = [record.get("metadata", {}) for record in records]
        index.put([record["key"] for record in records], rows, metadata)
        self._log_write(index, len(records))
        return {}

    def _delete_vectors(self, region: str, asked: Asked) -> Answer:
        index, keys = self._index(region, asked), asked["keys"]
        self._throttle(index, len(keys))
        check_keys(keys, "keys[{}]")
        index.delete(keys)
        self._log_write(index, len(keys))
        return {}

    def _throttle(self, index: VectorIndex, vectors: int) -> None:
        if self._enforce_rate and not self.writes[index.arn].admits(self._clock(), vectors):
            raise Refusal(429, "TooManyRequestsException", "Request rate exceeded, slow down")

    def _log_write(self, index: VectorIndex, vectors: int) -> None:
        self.writes[index.arn].writes.append(Write(self._clock(), vectors))

    def _get_vectors(self, region: str, asked: Asked) -> Answer:
        index = self._index(region, asked)
        check_keys(asked["keys"], "keys[{}]")
        return {"vectors": [_show(index, key, asked) for _, key in index.places(asked["keys"])]}

    def _list_vectors(self, region: str, asked: Asked) -> Answer:
        index = self._index(region, asked)
        page, more = page_of_vectors(index, asked)
        return {"vectors": [_show(index, key, asked) for _, key in page], **more}

    def _query_vectors(self, region: str, asked: Asked) -> Answer:
        index = self._index(region, asked)
        find = partial(search, index, asked, now=self._clock(), missing_ne_matches=self._missing_ne_matches)
        return self._sessions.page(asked, index, find)

    def _tag_resource(self, region: str, asked: Asked) -> Answer:
        tags = self._tags_of(region, asked)
        check_tags(asked["tags"], len(tags | asked["tags"]))
        tags.update(asked["tags"])
        return {}

    def _untag_resource(self, region: str, asked: Asked) -> Answer:
        tags = self._tags_of(region, asked)
        for key in asked["tagKeys"]:
            tags.pop(key, None)
        return {}

    def _list_tags_for_resource(self, region: str, asked: Asked) -> Answer:
        return {"tags": self._tags_of(region, asked)}

    def _tags_of(self, region: str, asked: Asked) -> dict[str, str]:
        arn = asked["resourceArn"]
        if read_arn(arn)[0] != region or arn not in self._tags:
            raise Refusal(404, "NotFoundException", "The specified resource could not be found")
        return self._tags[arn]


def _show(index: VectorIndex, key: str, asked: Asked) -> Answer:
    """Return what GetVectors and ListVectors show of a vector."""
    shown: Answer = {"key": key}
    if asked.get("returnData"):
        shown["data"] = {"float32": index.vector(key)}
    if asked.get("returnMetadata"):
        shown["metadata"] = index.metadata[key]
    return shown


def main() -> None:
    """Serve until told to stop; the URL is the first line on stdout."""
    parser = argparse.ArgumentParser(description="A strict in-memory S3 Vectors service on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--default-mode", choices=("ENHANCED", "CLASSIC"), default="ENHANCED")
    parser.add_argument("--build-seconds", type=float, default=0.0, help="how long a text field is BUILDING")
    parser.add_argument("--missing-ne-matches", action="store_true")
    parser.add_argument("--enforce-rate", action="store_true", help="answer 429 above the write limits")
    parser.add_argument("--latency", type=json.loads, default={}, help='JSON, such as {"PutVectors": 0.08}')
    parser.add_argument("--faults", type=json.loads, default=[], help="JSON array of the members of Fault")
    options = vars(parser.parse_args())
    faults = [Fault(**members) for members in options.pop("faults")]
    server = S3VectorsServer(**options)
    server.faults.add(*faults)
    run_until_told(server)


if __name__ == "__main__":
    main()
