"""What every service that embeds has in common: how its answer is read and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from ragctl.errors import InputRefused, ServiceError

if TYPE_CHECKING:
    from ragctl.records import Vectors


def read_json(body: bytes) -> Any:
    """The document in an answer. ValueError where it is none.

    As Python's own reader has it, which takes NaN and half a surrogate pair too, but in a seventh of the time: a batch
    of vectors has hundreds of kilobytes of digits, and no other thread runs while they are read.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)


def as_vectors(rows: Any, *, count: int, dimension: int | None, where: str) -> Vectors:
    """A service's rows of numbers as (count, dimension) float32, checked; `dimension` None takes any.

    Raises ServiceError, naming `where`, when the number of vectors or of their components is not as expected, and
    InputRefused when a vector is not finite as float32: some text is beyond the model, and the caller finds it.
    """
    if not isinstance(rows, Sequence) or len(rows) != count:
        got = f"{len(rows)} vectors" if isinstance(rows, Sequence) else "no list of vectors"
        raise ServiceError(f"{where}: answered {got} for {count} texts")
    try:
        with np.errstate(over="ignore"):  # what overflows is found below
            vectors = np.array(rows, dtype=np.float32)  # null, as some writers put NaN, becomes NaN again
    except (TypeError, ValueError) as error:
        raise ServiceError(f"{where}: the vectors are not rows of numbers of one length") from error
    if vectors.ndim != 2 or not vectors.size:
        raise ServiceError(f"{where}: the vectors are not rows of numbers of one length")
    if dimension is not None and vectors.shape[1] != dimension:
        raise ServiceError(
            f"{where}: answered vectors of {vectors.shape[1]} dimensions, expected {dimension}",
            hint="set embedding.dimension to what the model gives, or choose the model that the index was made with",
        )
    if not np.isfinite(vectors).all():
        raise InputRefused(f"{where}: the model answered a vector that is not finite")
    return vectors
