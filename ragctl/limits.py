"""The limits of S3 Vectors, checked before any call and on every store: what works locally works on AWS.

Sources: the botocore 1.44.5 model and the S3 Vectors user guide ("Limitations and restrictions"); the sizes in
bytes and the formula of `metadata_size` are from published measurements of the live service.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

from ragctl.errors import ConfigError, InputRefused, RecordRefused
from ragctl.filters import EXACT_INTEGER
from ragctl.records import DOCUMENT

if TYPE_CHECKING:
    from ragctl.adapters.base import IndexSpec, SearchRequest
    from ragctl.records import Metadata, Vector, VectorRecord

MAX_DIMENSION = 4_096  # model
MAX_KEY_BYTES = 1_024  # UTF-8 bytes of a record's key; the model says characters, the service counts bytes
MAX_METADATA_KEYS = 50  # user guide
MAX_METADATA_KEY_CHARACTERS = 1_024  # measured
MAX_METADATA_BYTES = 40_960  # user guide: 40 KB; measured in bytes
MAX_FILTERABLE_BYTES = 2_048  # user guide: 2 KB; measured in bytes
MAX_NON_FILTERABLE_KEYS = 10  # model
MAX_NON_FILTERABLE_CHARACTERS = 63  # model
MAX_TOP_K = 10_000  # user guide since June 2026; the model carries no maximum
MAX_PUT_RECORDS = 500  # model; the next two as well
MAX_DELETE_KEYS = 500
MAX_GET_KEYS = 100
MAX_REQUEST_BYTES = 20 * 1024 * 1024  # of the JSON body, measured exactly


def metadata_size(metadata: Metadata) -> int:
    """Return the bytes that S3 Vectors counts for metadata, which is not the length of their JSON.

    4 + the sum over the entries of 8 + UTF-8 bytes of the key + the value: a string its UTF-8 bytes, a number 4,
    a boolean 0, an array 4 per element and the elements. (Formula found by measuring the service, exact on 24
    shapes.)
    """
    return 4 + sum(_entry_size(key, value) for key, value in metadata.items())


def check_spec(spec: IndexSpec) -> None:
    """Raise ConfigError when no index could be made like this."""
    if not 1 <= spec.dimension <= MAX_DIMENSION:
        raise ConfigError(f"dimension {spec.dimension}: an index takes 1 to {MAX_DIMENSION:,}")
    if len(spec.non_filterable) > MAX_NON_FILTERABLE_KEYS:
        raise ConfigError(
            f"{len(spec.non_filterable)} non-filterable keys, at most {MAX_NON_FILTERABLE_KEYS} are allowed"
        )
    for key in spec.non_filterable:
        if not 1 <= len(key) <= MAX_NON_FILTERABLE_CHARACTERS:
            raise ConfigError(
                f"non-filterable key of {len(key)} characters: "
                f"a name takes 1 to {MAX_NON_FILTERABLE_CHARACTERS}"
            )


def check_record(
    record: VectorRecord, *, dimension: int, metric: str, non_filterable: Collection[str]
) -> None:
    """Raise RecordRefused, naming document, key and figures, when a record breaks a limit of S3 Vectors.

    The vector is (dimension,) of finite float32, and for `cosine` longer than 0.
    """
    _check_key(record)
    _check_vector(record, dimension, metric)
    _check_metadata(record, non_filterable)


def refuse_doubles(records: Iterable[VectorRecord]) -> None:
    """Raise RecordRefused when a key stands twice in a batch: which of the two would stay is not defined."""
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            _refuse(record, "stands twice in one batch")
        seen.add(record.key)


def check_query(request: SearchRequest, *, dimension: int, metric: str) -> None:
    """Raise when no store could answer: ConfigError for top_k or dimension, InputRefused for the vector's values."""
    if not 1 <= request.top_k <= MAX_TOP_K:
        raise ConfigError(f"top_k {request.top_k}: a search returns 1 to {MAX_TOP_K:,} hits")
    if request.vector is None:
        return
    if request.vector.shape != (dimension,):
        raise ConfigError(
            f"the question's vector has {request.vector.size} numbers, the index takes {dimension}",
            hint="the index was filled with another embedder",
        )
    if fault := _vector_fault(request.vector, metric):
        raise InputRefused(f"the question's vector {fault}")


def _refuse(record: VectorRecord, fault: str, hint: str | None = None) -> NoReturn:
    document = record.metadata.get(DOCUMENT)
    known = document if isinstance(document, str) and _bytes(document) >= 0 else None
    where = f"document {known}, " if known else ""
    key = record.key if len(record.key) <= 80 else f"{record.key[:77]}..."
    shown = key.encode(errors="backslashreplace").decode()
    raise RecordRefused(f"{where}key {shown}: {fault}", hint=hint, document=known)


def _bytes(text: str) -> int:
    """Return the UTF-8 bytes of a text; -1 for one with a lone surrogate, which has none."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


# --- key and vector --------------------------------------------------------------------------------------


def _check_key(record: VectorRecord) -> None:
    size = _bytes(record.key)
    if size < 0:
        _refuse(record, "the key holds half of a character (a lone surrogate)")
    if not 1 <= size <= MAX_KEY_BYTES:
        _refuse(record, f"the key has {size:,} bytes, 1 to {MAX_KEY_BYTES:,} are allowed")


def _check_vector(record: VectorRecord, dimension: int, metric: str) -> None:
    if record.vector.shape != (dimension,):
        _refuse(record, f"the vector has {record.vector.size} numbers, the index takes {dimension}")
    if fault := _vector_fault(record.vector, metric):
        _refuse(record, f"the vector {fault}")


def _vector_fault(vector: Vector, metric: str) -> str | None:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        square = float(vector @ vector)  # finite only when every number is, and far quicker than asking each
    if not math.isfinite(square) and not np.isfinite(vector).all():
        return "holds NaN or infinity"
    if metric == "cosine" and not 0 < square < math.inf:
        size = "zero" if square == 0 else "too long"
        return f"is {size} in 32-bit numbers, so it has no direction for metric cosine"
    return None


# --- metadata --------------------------------------------------------------------------------------------


def _check_metadata(record: VectorRecord, non_filterable: Collection[str]) -> None:
    metadata = record.metadata
    if len(metadata) > MAX_METADATA_KEYS:
        _refuse(record, f"{len(metadata)} metadata keys, at most {MAX_METADATA_KEYS} are allowed")
    for fault in _faults(metadata):
        _refuse(record, fault)
    sizes = {key: _entry_size(key, value) for key, value in metadata.items()}
    whole = 4 + sum(sizes.values())
    filterable = {key: size for key, size in sizes.items() if key not in non_filterable}
    part = 4 + sum(filterable.values())
    if whole > MAX_METADATA_BYTES:
        fault = f"its metadata and text take {whole:,} bytes, at most {MAX_METADATA_BYTES:,} are allowed"
        _refuse(record, fault, f"the largest is {_largest(sizes)}; cut it, or make chunks smaller")
    if part > MAX_FILTERABLE_BYTES:
        fault = f"its filterable metadata take {part:,} bytes, at most {MAX_FILTERABLE_BYTES:,} are allowed"
        _refuse(record, fault, f"the largest is {_largest(filterable)}; name it in store.non_filterable")


def _largest(sizes: dict[str, int]) -> str:
    key = max(sizes, key=lambda name: sizes[name])
    return f'"{key[:80]}" with {sizes[key]:,} bytes'


def _entry_size(key: str, value: object) -> int:
    return 8 + _bytes(key) + _value_size(value)


def _value_size(value: object) -> int:
    if isinstance(value, str):
        return _bytes(value)
    if isinstance(value, list):
        return sum(4 + _value_size(element) for element in value)
    return 0 if isinstance(value, bool) else 4


def _faults(metadata: Metadata) -> Iterator[str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or _bytes(key) < 0 or len(key) > MAX_METADATA_KEY_CHARACTERS:
            yield f"a metadata key is not a string of at most {MAX_METADATA_KEY_CHARACTERS:,} characters"
        elif fault := _value_fault(value):
            yield f'metadata "{key[:80]}": {fault}'


def _value_fault(value: object) -> str | None:
    if isinstance(value, list):
        return _list_fault(value)
    if isinstance(value, str):
        return "holds half of a character (a lone surrogate)" if _bytes(value) < 0 else None
    return None if isinstance(value, bool) else _number_fault(value)


def _number_fault(value: object) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        kind = "null" if value is None else type(value).__name__
        return f"a value is a string, number, boolean, or a list of strings or numbers, not {kind}"
    if isinstance(value, int):
        return (
            None if abs(value) <= EXACT_INTEGER else "an integer beyond 2**53 is not kept exactly; use text"
        )
    return None if math.isfinite(value) else "NaN and infinity are not numbers to a store"


def _list_fault(values: list[object]) -> str | None:
    if not values:
        return "an empty list is refused; leave the key out"
    if not (
        all(isinstance(value, str) for value in values) or not any(isinstance(value, str) for value in values)
    ):
        return "a list holds only strings or only numbers"
    check = _value_fault if isinstance(values[0], str) else _number_fault
    return next((fault for value in values if (fault := check(value))), None)
