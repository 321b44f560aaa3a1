"""Vectors of which most numbers are zero, from where they are made to where they are stored.

Hashed vectors of 2,048 numbers hold some 80 that are not zero. Written out as soon as they are made, those of 8,000
chunks a second would be passed between processes 64 KB at a time, and be copied and read once for each stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragctl.records import Vector, Vectors

AnyVector: TypeAlias = "Vector | SparseVector"


@dataclass(frozen=True, slots=True)
class SparseVector:
    """A vector (size,): the numbers that are not zero, and where each stands, ascending."""

    size: int
    places: NDArray[np.int32]
    values: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int]:
        return (self.size,)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        return self.places.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """A matrix `shape` by rows: those of row i lie in places and values from starts[i] up to starts[i + 1]."""

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[SparseVectors]) -> SparseVectors:
        """The rows of all parts, at least one, one part after the other."""
        import numpy as np

        ends = np.cumsum([len(part.places) for part in parts])
        starts = [part.starts[:-1] + end - len(part.places) for part, end in zip(parts, ends, strict=True)]
        return cls(
            (sum(part.shape[0] for part in parts), parts[0].shape[1]),
            np.concatenate([*starts, ends[-1:]]),
            np.concatenate([part.places for part in parts]),
            np.concatenate([part.values for part in parts]),
        )

    def rows(self) -> list[SparseVector]:
        """Each row as a vector; nothing is copied."""
        size, starts = self.shape[1], self.starts.tolist()
        return [
            SparseVector(size, self.places[start:end], self.values[start:end])
            for start, end in pairwise(starts)
        ]

    def dense(self) -> Vectors:
        """All the numbers: vectors (n, size)."""
        import numpy as np

        count, size = self.shape
        vectors = np.zeros(self.shape, np.float32)
        row_starts = np.repeat(np.arange(count) * size, np.diff(self.starts))
        vectors.ravel()[row_starts + self.places] = self.values
        return vectors


def stack(vectors: Sequence[AnyVector]) -> Vectors:
    """Vectors (n, size) of all the numbers of n vectors of one size, n at least 1."""
    import numpy as np

    sparse = [vector for vector in vectors if isinstance(vector, SparseVector)]
    if len(sparse) < len(vectors):
        return np.concatenate([dense(vector) for vector in vectors]).reshape(len(vectors), -1)
    starts = np.cumsum([0, *(len(vector.places) for vector in sparse)])
    places = np.concatenate([vector.places for vector in sparse])
    values = np.concatenate([vector.values for vector in sparse])
    return SparseVectors((len(sparse), sparse[0].size), starts, places, values).dense()


def dense(vector: AnyVector) -> Vector:
    """All the numbers of a vector, (size,), as float32."""
    import numpy as np

    return stack([vector])[0] if isinstance(vector, SparseVector) else np.asarray(vector, dtype=np.float32)
