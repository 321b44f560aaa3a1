"""Vectors without their zeros."""

import pickle

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ragctl.adapters.hashing import HashingEmbedder

EMBEDDER = HashingEmbedder(64)


@given(
    st.lists(
        st.text(max_size=60) | st.sampled_from(["", "the", "the of and", "!", "north wind"]), max_size=70
    )
)
def test_vectors_come_out_of_a_pipe_as_they_went_in(texts: list[str]) -> None:
    """Whatever the texts: the same numbers as of each text by itself, in its own row."""
    vectors = pickle.loads(pickle.dumps(EMBEDDER.sparse(texts))).dense()
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 64)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_array_equal(vector, EMBEDDER.embed([text], "document").vectors[0])
        assert np.isclose(np.linalg.norm(vector), 1)


def test_hashed_vectors_take_a_small_part_of_their_size() -> None:
    """A passage has some hundred different words, its vector 2,048 numbers."""
    texts = ["The north wind and the sun argued which was stronger."] * 50
    sparse = HashingEmbedder(2_048).sparse(texts)
    assert len(pickle.dumps(sparse)) < sparse.dense().nbytes / 50
