"""The limits of S3 Vectors, checked before any call and on every store: what works locally works on AWS.

Sources: the botocore 1.44.5 model and the S3 Vectors user guide ("Limitations and restrictions"); the sizes in
bytes and the formula of `metadata_size` are from published measurements of the live service.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NoReturn

from ragctl.errors import ConfigError, InputRefused, RecordRefused
from ragctl.filters import EXACT_INTEGER, is_number
from ragctl.records import DOCUMENT
from ragctl.sparse import SparseVector

if TYPE_CHECKING:
    from ragctl.adapters.base import IndexSpec, SearchRequest
    from ragctl.records import Metadata, VectorRecord
    from ragctl.sparse import AnyVector

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
    shapes.) Raises ValueError for a value that no store takes.
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
    known = _shown(document) if isinstance(document, str) else None
    where = f"document {known}, " if known else ""
    key = record.key if len(record.key) <= 80 else f"{record.key[:77]}..."
    raise RecordRefused(f"{where}key {_shown(key)}: {fault}", hint=hint, document=known)


def _shown(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


class _Fault(ValueError):
    """A value that no store takes; the message says why."""


def _bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise _Fault("holds half of a character (a lone surrogate)") from None


# --- key and vector --------------------------------------------------------------------------------------


def _check_key(record: VectorRecord) -> None:
    try:
        size = _bytes(record.key)
    except _Fault as fault:
        _refuse(record, f"the key {fault}")
    if not 1 <= size <= MAX_KEY_BYTES:
        _refuse(record, f"the key has {size:,} bytes, 1 to {MAX_KEY_BYTES:,} are allowed")


def _check_vector(record: VectorRecord, dimension: int, metric: str) -> None:
    if record.vector.shape != (dimension,):
        _refuse(record, f"the vector has {record.vector.size} numbers, the index takes {dimension}")
    if fault := _vector_fault(record.vector, metric):
        _refuse(record, f"the vector {fault}")


def _vector_fault(vector: AnyVector, metric: str) -> str | None:
    import numpy as np

    numbers = vector.values if isinstance(vector, SparseVector) else vector
    # Finite only when every number is, and far quicker than asking each; `vdot` warns of nothing, unlike `@`.
    square = float(np.vdot(numbers, numbers))
    if not math.isfinite(square) and not np.isfinite(numbers).all():
        return "holds NaN or infinity"
    if metric == "cosine" and not 0 < square < math.inf:
        size = "zero" if square == 0 else "too long"
        return f"is {size} in 32-bit numbers, so it has no direction for metric cosine"
    return None


# --- metadata --------------------------------------------------------------------------------------------


def _check_metadata(record: VectorRecord, non_filterable: Collection[str]) -> None:
    if len(record.metadata) > MAX_METADATA_KEYS:
        _refuse(record, f"{len(record.metadata)} metadata keys, at most {MAX_METADATA_KEYS} are allowed")
    sizes = _sizes(record)
    whole = 4 + sum(sizes.values())
    if whole > MAX_METADATA_BYTES:
        fault = f"its metadata and text take {whole:,} bytes, at most {MAX_METADATA_BYTES:,} are allowed"
        _refuse(record, fault, f"the largest is {_largest(sizes)}; cut it, or make chunks smaller")
    if whole <= MAX_FILTERABLE_BYTES:
        return  # so is any part of it
    filterable = {key: size for key, size in sizes.items() if key not in non_filterable}
    part = 4 + sum(filterable.values())
    if part > MAX_FILTERABLE_BYTES:
        fault = f"its filterable metadata take {part:,} bytes, at most {MAX_FILTERABLE_BYTES:,} are allowed"
        _refuse(record, fault, f"the largest is {_largest(filterable)}; name it in store.non_filterable")


def _sizes(record: VectorRecord) -> dict[str, int]:
    sizes = {}
    for key, value in record.metadata.items():
        try:
            sizes[key] = _entry_size(key, value)
        except _Fault as fault:
            _refuse(record, f'metadata "{_shown(str(key)[:80])}": {fault}')
    return sizes


def _largest(sizes: dict[str, int]) -> str:
    key = max(sizes, key=lambda name: sizes[name])
    return f'"{key[:80]}" with {sizes[key]:,} bytes'


def _entry_size(key: str, value: object) -> int:
    if not isinstance(key, str) or len(key) > MAX_METADATA_KEY_CHARACTERS:
        raise _Fault(f"a key is a string of at most {MAX_METADATA_KEY_CHARACTERS:,} characters")
    size = 8 + (len(key) if key.isascii() else _bytes(key))
    if isinstance(value, str):  # every record comes by here, for each of its entries
        return size + (len(value) if value.isascii() else _bytes(value))
    if isinstance(value, bool):
        return size
    return size + (_list_size(value) if isinstance(value, list) else _number_size(value))


def _number_size(value: object) -> int:
    if type(value) is int and -EXACT_INTEGER <= value <= EXACT_INTEGER:
        return 4
    if not is_number(value):
        kind = "null" if value is None else type(value).__name__
        raise _Fault(f"a value is a string, number, boolean, or a list of strings or numbers, not {kind}")
    if isinstance(value, int) and abs(value) > EXACT_INTEGER:
        raise _Fault("an integer beyond 2**53 is not kept exactly; use text")
    if not math.isfinite(value):
        raise _Fault("NaN and infinity are not numbers to a store")
    return 4


def _list_size(values: list[object]) -> int:
    if not values:
        raise _Fault("an empty list is refused; leave the key out")
    strings = [value for value in values if isinstance(value, str)]
    if strings and len(strings) < len(values):
        raise _Fault("a list holds only strings or only numbers")
    sizes = map(_bytes, strings) if strings else map(_number_size, values)
    return sum(4 + size for size in sizes)
