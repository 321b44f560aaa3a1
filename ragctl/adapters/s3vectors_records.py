"""Records of S3 Vectors on the wire.

The SDK walks over every number of a vector three times, in Python: to check it, to convert it, to write it, which
takes more than a core at the rate that an index allows (benchmarks/s3vectors_put.py). So the body of PutVectors is
written here, straight from the arrays, and takes the place of the SDK's own just before the request is signed.
Endpoint, signature, errors and connections stay the SDK's.

A number is written in the shortest form that reads back as the same float32, also by a reader that goes through a
double. Metadata come back as the service gives them: JSON does not tell 1 from 1.0, so a whole number may return as
int or as float; the two are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from ragctl.records import VectorRecord
from ragctl.sparse import dense

if TYPE_CHECKING:
    from ragctl.records import Vector

# Of a float32 at most, with its comma: 9 digits, 2 signs, a point, leading noughts or e-38
NUMBER_BYTES: Final = 17
FRAME_BYTES: Final = len(b'{"key":,"data":{"float32":[]},"metadata":},')

# The SDK wants to see a valid request; the real body stands in for what it makes of this one.
_PLACEHOLDER: Final = ({"key": "-", "data": {"float32": [0.0]}},)
_BODY: Final = "ragctl_body"


class Encoded(bytes):
    """The whole body of a PutVectors request, given as its `vectors`."""

    __slots__ = ()


def encoded_size(record: VectorRecord) -> int:
    """Return an upper bound of the bytes a record adds to a request, without writing out its vector."""
    strings = len(orjson.dumps(record.key)) + len(orjson.dumps(dict(record.metadata)))
    return FRAME_BYTES + NUMBER_BYTES * record.vector.size + strings


def put_body(bucket: str, index: str, records: Sequence[VectorRecord]) -> Encoded:
    """Return the JSON body of PutVectors."""
    vectors = [
        {
            "key": record.key,
            "data": {"float32": np.ascontiguousarray(dense(record.vector))},
            "metadata": dict(record.metadata),
        }
        for record in records
    ]
    request = {"vectorBucketName": bucket, "indexName": index, "vectors": vectors}
    return Encoded(orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY))


def read_record(item: Mapping[str, Any]) -> VectorRecord:
    """Return a record as GetVectors and ListVectors show it; without data its vector is empty, shape (0,)."""
    vector: Vector = np.asarray(item.get("data", {}).get("float32", ()), dtype=np.float32)
    return VectorRecord(item["key"], vector, item.get("metadata", {}))


def install(client: Any) -> None:
    """Make a client take `Encoded` bodies; doing so again changes nothing."""
    events = client.meta.events
    events.register("before-parameter-build.s3vectors.PutVectors", _set_aside, unique_id="ragctl-set-aside")
    events.register("before-call.s3vectors.PutVectors", _put_in_place, unique_id="ragctl-put-in-place")


def _set_aside(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    if isinstance(params.get("vectors"), Encoded):
        context[_BODY] = params["vectors"]
        params["vectors"] = _PLACEHOLDER


def _put_in_place(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    if _BODY in context:
        params["body"] = context.pop(_BODY)
