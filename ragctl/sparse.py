"""Vectors of which most numbers are zero, as they are made and passed from one process to another.

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


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """The numbers of a matrix that are not zero, and where each stands when the rows lie end to end."""

    shape: tuple[int, int]
    places: NDArray[np.int64]
    values: NDArray[np.float32]

    def dense(self) -> Vectors:
        """All the numbers: vectors (n, dimension)."""
        import numpy as np

        vectors = np.zeros(self.shape, np.float32)
        vectors.ravel()[self.places] = self.values
        return vectors
