"""Records of S3 Vectors on the wire: exact numbers, and sizes that are never too small."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ragctl.adapters.s3vectors import PUT_BYTES
from ragctl.adapters.s3vectors_records import encoded_size, put_body
from ragctl.errors import RecordRefused
from ragctl.limits import MAX_REQUEST_BYTES
from ragctl.records import VectorRecord
from tests.faketime import FakeTime
from tests.s3vectors_stores import SPEC, opening, record, serving

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
METADATA: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    TEXTS,
    st.one_of(TEXTS, st.booleans(), st.integers(-(2**53), 2**53), st.lists(TEXTS, min_size=1, max_size=5)),
    max_size=5,
)


@given(vector=arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_numbers_arrive_as_the_same_float32(vector: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Read as a double by any JSON reader and narrowed again, each number has its very bits."""
    (sent,) = json.loads(put_body("b", "i", [VectorRecord("k", vector, {})]))["vectors"]
    back = np.array(sent["data"]["float32"], dtype=np.float64).astype(np.float32)
    assert back.tobytes() == vector.tobytes()


@settings(max_examples=200)
@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    vector=arrays(np.float32, st.integers(1, 40), elements=FLOATS),
    metadata=METADATA,
)
@example(key="k", vector=np.full(40, -1.17549435e-38, np.float32), metadata={"text": "\x01" * 40})
@example(key="k", vector=np.full(40, -0.000012345679, np.float32), metadata={"text": '"\\' * 20})
def test_the_size_of_a_record_is_never_below_what_it_takes(
    key: str, vector: np.ndarray[Any, np.dtype[np.float32]], metadata: dict[str, Any]
) -> None:
    """A batch that is cut by the sizes of its records fits, whatever the numbers and characters."""
    one = VectorRecord(key, vector, metadata)
    assert len(put_body("b", "i", [one, one])) - len(put_body("b", "i", [one])) <= encoded_size(one)


def test_a_row_of_any_layout_is_written() -> None:
    """A column of a matrix, or float64, goes out like any vector."""
    table = np.arange(6, dtype=np.float64).reshape(2, 3)
    for vector in (table[:, 1], table[:, 1].astype(np.float32), table.astype(np.float32)[:, 1]):
        (sent,) = json.loads(put_body("b", "i", [VectorRecord("k", vector, {})]))["vectors"]  # type: ignore[arg-type]  # on purpose
        assert sent["data"]["float32"] == [1.0, 4.0]


@pytest.mark.parametrize("filler", ["word ", "\x01", "é", '"'])
def test_a_batch_of_the_largest_records_stays_below_20_mib(filler: str) -> None:
    """500 records of 3,584 dimensions and 3 KB of text, cut as ingest cuts them, never exceed the limit."""
    time = FakeTime()
    rows = np.random.default_rng(0).standard_normal((500, 3_584), dtype=np.float32) * 1e-5
    text = (filler * 3_072)[: 3_072 // len(filler.encode())]
    with serving(time) as server, opening(server, time) as open_store:
        store = open_store()
        spec = type(SPEC)(dimension=3_584, metric="cosine", embedder="large")
        store.create(spec)
        batch: list[VectorRecord] = []
        size = 0
        for number, row in enumerate(rows):
            one = VectorRecord(f"k{number}", row, {"text": text, "document": "a.pdf"})
            store.check(one)
            if size + store.encoded_size(one) > store.limits.put_bytes:
                store.put(batch)
                batch, size = [], 0
            batch.append(one)
            size += store.encoded_size(one)
        store.put(batch)
        assert len(list(store.keys())) == 500
        bodies = [call.body_bytes for call in server.calls_of("PutVectors")]
        assert max(bodies) <= PUT_BYTES <= MAX_REQUEST_BYTES
        assert len(bodies) <= 3


def test_a_record_of_41_kb_fails_alone_with_its_document() -> None:
    """The others of its batch are not its victims."""
    time = FakeTime()
    with serving(time) as server, opening(server, time) as open_store:
        store = open_store()
        store.create(SPEC)
        records = [
            record(f"k{n}", text="x" * (41_000 if n == 7 else 30), document=f"d{n}.md") for n in range(20)
        ]
        with pytest.raises(
            RecordRefused, match=r"document d7\.md, key k7: its metadata and text take 41,"
        ) as caught:
            store.check(records.pop(7))
        assert caught.value.document == "d7.md"
        for one in records:
            store.check(one)
        store.put(records)
        assert sorted(store.keys()) == sorted(f"k{n}" for n in range(20) if n != 7)


@pytest.mark.parametrize("damage", [{"key": "half \ud800"}, {"text": "half \udfff"}])
def test_half_a_character_is_refused_per_record(damage: dict[str, str]) -> None:
    """A lone surrogate would fail the whole request at the service."""
    time = FakeTime()
    with serving(time) as server, opening(server, time) as open_store:
        store = open_store()
        store.create(SPEC)
        with pytest.raises(RecordRefused, match="lone surrogate"):
            store.check(record(damage.get("key", "k"), text=damage.get("text", "")))
