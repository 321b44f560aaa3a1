"""How records lie in a LanceDB table: one row each, the chunk's text apart from the other metadata."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa

from ragctl.adapters.local_filters import facets
from ragctl.records import TEXT, VectorRecord
from ragctl.sparse import stack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragctl.records import Metadata, MetadataValue, Vector

METADATA_COLUMNS = ("text", "metadata")
# To compress strings takes LanceDB as long as to write all the rest, and saves a twentieth of an index of 2,048
# dimensions, a fifth of one of 384.
PLAIN = {b"lance-encoding:compression": b"none"}


def schema(dimension: int, about: dict[bytes, bytes]) -> pa.Schema:
    """Return the columns of an index; `about` is kept with the table."""
    columns = [
        pa.field("key", pa.string(), nullable=False, metadata=PLAIN),
        pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
        pa.field("text", pa.string(), metadata=PLAIN),  # metadata[TEXT], searched by words; null for none
        pa.field("metadata", pa.string(), nullable=False, metadata=PLAIN),  # all the rest, as JSON
        pa.field("facets", pa.string(), nullable=False, metadata=PLAIN),  # what filters look at
    ]
    return pa.schema(columns, metadata=about)


def table(records: Sequence[VectorRecord], columns: pa.Schema, non_filterable: Collection[str]) -> pa.Table:
    """Return records as rows."""
    numbers = stack([record.vector for record in records])
    split = [_split(record.metadata) for record in records]
    arrays = [
        _strings([record.key for record in records]),
        pa.FixedSizeListArray.from_arrays(_numbers(numbers), numbers.shape[1]),
        _strings([text for text, _ in split]),
        _strings([orjson.dumps(rest).decode() for _, rest in split]),
        _strings([facets(record.metadata, non_filterable) for record in records]),
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


# pa.array() would do for both, but it loads pandas where that is installed: 0.2 s.


def _strings(values: Sequence[str | None]) -> pa.Array:
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()


def _numbers(values: NDArray[np.float32]) -> pa.Array:
    flat = np.ascontiguousarray(values, dtype=np.float32).ravel()
    return pa.Array.from_buffers(pa.float32(), len(flat), [None, pa.py_buffer(flat)])


def _split(metadata: Metadata) -> tuple[str | None, dict[str, MetadataValue]]:
    text = metadata.get(TEXT)
    if not isinstance(text, str):
        return None, dict(metadata)
    return text, {key: value for key, value in metadata.items() if key != TEXT}


def metadata(row: dict[str, Any]) -> Metadata:
    """Return the metadata that a row was made from."""
    rest: dict[str, MetadataValue] = orjson.loads(row["metadata"])
    return rest if row["text"] is None else {TEXT: row["text"], **rest}


def record(row: dict[str, Any]) -> VectorRecord:
    """Return the record of a row; its vector is empty, shape (0,), where the row has none."""
    vector = np.asarray(row.get("vector", ()), dtype=np.float32)
    return VectorRecord(row["key"], vector, metadata(row))


def query_vector(vector: Vector) -> list[pa.Array]:
    """Return a vector (dimension,) as the list of one Arrow array that a query takes."""
    return [_numbers(vector)]
