"""What S3 Vectors checks of keys, vectors and metadata before it stores or searches anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.servers.http import Refusal

KEY_BYTES = 1_024
METADATA_KEYS = 50
METADATA_KEY_CHARACTERS = 1_024
METADATA_BYTES = 40_960
FILTERABLE_BYTES = 2_048

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class VectorRules:
    """What an index asks of its vectors."""

    dimension: int
    metric: str
    non_filterable: frozenset[str]


def invalid(message: str, path: str) -> Refusal:
    """Return a ValidationException about one field."""
    return Refusal(400, "ValidationException", message, fieldList=[{"path": path, "message": message}])


def check_keys(keys: Sequence[str], path: str) -> None:
    """Refuse keys over 1,024 UTF-8 bytes; characters are the model's to count."""
    for number, key in enumerate(keys):
        if len(key.encode()) > KEY_BYTES:
            raise invalid(f"Key must have at most {KEY_BYTES} bytes", path.format(number))


def check_batch(records: Sequence[Mapping[str, Any]], rules: VectorRules) -> Rows:
    """Check the records of one PutVectors and return their vectors as float32, (records, dimension).

    Whether the service takes a key twice in one call is not documented, so this refuses it.
    """
    keys = [record["key"] for record in records]
    check_keys(keys, "vectors[{}].key")
    if len(set(keys)) < len(keys):
        raise invalid("Keys must be unique within a request", "vectors")
    for number, record in enumerate(records):
        fault = metadata_fault(record.get("metadata", {}), rules.non_filterable)
        if fault:
            raise invalid(f"Invalid record for key '{record['key']}': {fault}", f"vectors[{number}].metadata")
    faults = (_length_fault(record["data"], rules.dimension) for record in records)
    _refuse_first(faults, keys)
    rows = _float32([record["data"]["float32"] for record in records])
    _refuse_first(_value_faults(rows, rules.metric), keys)
    return rows


def check_query_vector(data: Mapping[str, Any], rules: VectorRules) -> Rows:
    """Check the vector of a query and return it as float32, (dimension,)."""
    fault = _length_fault(data, rules.dimension)
    if fault:
        raise invalid(f"Invalid query vector: {fault}", "queryVector")
    row = _float32([data["float32"]])
    (fault,) = _value_faults(row, rules.metric)
    if fault:
        raise invalid(f"Invalid query vector: {fault}", "queryVector")
    checked: Rows = row[0]
    return checked


def metadata_fault(metadata: Any, non_filterable: frozenset[str]) -> str | None:
    """Return what is wrong with a vector's metadata, if anything."""
    if not isinstance(metadata, dict):
        return "Metadata must be an object"
    if len(metadata) > METADATA_KEYS:
        return f"Metadata object must have at most {METADATA_KEYS} keys"
    for key, value in metadata.items():
        if len(key) > METADATA_KEY_CHARACTERS:
            return f"Metadata keys must have at most {METADATA_KEY_CHARACTERS} characters"
        if not _is_storable(value):
            return f"Metadata value of key '{key}' must be a string, number, boolean, or array of strings or numbers"
    if metadata_bytes(metadata) > METADATA_BYTES:
        return f"Metadata must have at most {METADATA_BYTES} bytes"
    if metadata_bytes({k: v for k, v in metadata.items() if k not in non_filterable}) > FILTERABLE_BYTES:
        return f"Filterable metadata must have at most {FILTERABLE_BYTES} bytes"
    return None


def metadata_bytes(metadata: Mapping[str, Any]) -> int:
    """Return the size the service gives metadata: 4, and per entry 8 + the key's UTF-8 bytes + the value's size."""
    return 4 + sum(8 + len(key.encode()) + _value_bytes(value) for key, value in metadata.items())


def _value_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(4 + _value_bytes(element) for element in value)
    return 0 if isinstance(value, bool) else 4


def _is_storable(value: Any) -> bool:
    if isinstance(value, list):
        kinds = set(map(type, value))
        return kinds == {str} or (bool(kinds) and kinds <= {int, float})
    return isinstance(value, str | int | float)


def _length_fault(data: Mapping[str, Any], dimension: int) -> str | None:
    length = len(data["float32"])
    return None if length == dimension else f"vector must have length {dimension}, but has length {length}"


def _float32(vectors: Sequence[Sequence[Any]]) -> Rows:
    """Narrow to float32 as the service does before it checks; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(vectors, dtype=np.float64).astype(np.float32)


def _value_faults(rows: Rows, metric: str) -> list[str | None]:
    return [_value_fault(row, metric) for row in rows]


def _value_fault(row: Rows, metric: str) -> str | None:
    if not np.isfinite(row).all():
        return "vector must contain only finite values"
    if metric == "cosine" and not row.any():
        return "vector must not be zero with the cosine metric"
    return None


def _refuse_first(faults: Any, keys: Sequence[str]) -> None:
    for number, fault in enumerate(faults):
        if fault:
            raise invalid(f"Invalid record for key '{keys[number]}': {fault}", f"vectors[{number}].data")
