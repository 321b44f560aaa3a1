"""Vectors on their way from one process to another: of rows that are mostly zeros, only the rest is sent.

A pipe passes 64 KB at a time, and the reader needs the interpreter's lock for each: sent whole, the hashed vectors of
8,000 chunks a second would keep it from anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragctl.records import Vectors

SPARSE = 0.25  # share of numbers other than zero up to which leaving the zeros out pays


@dataclass(frozen=True, slots=True)
class Packed:
    """The numbers of a matrix that are not zero, and where each stands when the rows lie end to end."""

    shape: tuple[int, int]
    places: NDArray[np.int32]
    values: NDArray[np.float32]


def pack(vectors: Vectors) -> Packed | Vectors:
    """The vectors (n, dimension), or less that says the same."""
    import numpy as np

    flat = vectors.ravel()
    if np.count_nonzero(flat) > SPARSE * flat.size or flat.size >= 2**31:
        return vectors
    places = np.flatnonzero(flat)
    return Packed((vectors.shape[0], vectors.shape[1]), places.astype(np.int32), flat[places])


def unpack(packed: Packed | Vectors) -> Vectors:
    """The vectors that were packed, equal in every number."""
    import numpy as np

    if not isinstance(packed, Packed):
        return packed
    vectors = np.zeros(packed.shape, np.float32)
    vectors.ravel()[packed.places] = packed.values
    return vectors
