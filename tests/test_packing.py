"""Vectors between processes."""

import pickle

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from ragctl.adapters.hashing import HashingEmbedder
from ragctl.packing import pack, unpack


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-1, 1, width=32),
        fill=st.just(np.float32(0)),
    )
)
def test_what_comes_out_is_what_went_in(vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    """Every number, shape and type, whether there are many zeros or none."""
    out = unpack(pickle.loads(pickle.dumps(pack(vectors))))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, vectors)


def test_hashed_vectors_take_a_small_part_of_their_size() -> None:
    """A passage has some hundred different words, its vector 2,048 numbers."""
    vectors = (
        HashingEmbedder(2048)
        .embed(["The north wind and the sun argued which was stronger."] * 50, "document")
        .vectors
    )
    assert len(pickle.dumps(pack(vectors))) < vectors.nbytes / 50
    np.testing.assert_array_equal(unpack(pack(vectors)), vectors)
