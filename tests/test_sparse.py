"""Vectors without their zeros."""

import pickle

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ragctl.adapters.hashing import HashingEmbedder
from ragctl.sparse import SparseVector, SparseVectors, dense, stack

EMBEDDER = HashingEmbedder(64)
TEXTS = st.text(max_size=60) | st.sampled_from(["", "the", "the of and", "!", "north wind"])


@given(st.lists(TEXTS, max_size=70))
def test_vectors_come_out_of_a_pipe_as_they_went_in(texts: list[str]) -> None:
    """Whatever the texts: the same numbers as of each text by itself, in its own row."""
    sparse = pickle.loads(pickle.dumps(EMBEDDER.sparse(texts)))
    vectors = sparse.dense()
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 64)
    for text, vector, row in zip(texts, vectors, sparse.rows(), strict=True):
        np.testing.assert_array_equal(vector, EMBEDDER.embed([text], "document").vectors[0])
        np.testing.assert_array_equal(vector, dense(row))
        assert np.isclose(np.linalg.norm(vector), 1)


@given(st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, max_size=20))
def test_vectors_of_both_kinds_stack(texts: list[tuple[str, bool]]) -> None:
    """A put may hold new vectors without their zeros beside some that a store or a cache gave back."""
    rows = EMBEDDER.sparse([text for text, _ in texts]).rows()
    mixed = [row if sparse else dense(row) for row, (_, sparse) in zip(rows, texts, strict=True)]
    stacked = stack(mixed)
    assert stacked.dtype == np.float32
    np.testing.assert_array_equal(stacked, np.array([dense(row) for row in rows]))


@given(st.lists(TEXTS, min_size=1, max_size=40), st.integers(1, 12))
def test_vectors_made_a_few_at_a_time_are_the_same(texts: list[str], at_once: int) -> None:
    """A document of any length is hashed in bounded memory."""
    parts = [EMBEDDER.sparse(texts[first : first + at_once]) for first in range(0, len(texts), at_once)]
    joined, whole = SparseVectors.joined(parts), EMBEDDER.sparse(texts)
    np.testing.assert_array_equal(joined.dense(), whole.dense())
    for one, other in zip(joined.rows(), whole.rows(), strict=True):
        np.testing.assert_array_equal(dense(one), dense(other))


def test_hashed_vectors_take_a_small_part_of_their_size() -> None:
    """A passage has some hundred different words, its vector 2,048 numbers."""
    texts = ["The north wind and the sun argued which was stronger."] * 50
    sparse = HashingEmbedder(2_048).sparse(texts)
    assert len(pickle.dumps(sparse)) < sparse.dense().nbytes / 50
    row = sparse.rows()[0]
    assert isinstance(row, SparseVector)
    assert (row.shape, row.size) == ((2_048,), 2_048)
    assert row.nbytes < dense(row).nbytes / 50
