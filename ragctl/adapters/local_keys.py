"""Which keys a LanceDB table surely does not hold, so that new records can be appended.

Replacing by key reads and joins the table's keys with every write, which costs twice as much as the write itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_ROWS = 65_536


class KnownKeys:
    """64-bit hashes of the keys of one table as it was at one version, and of keys that have left it since.

    Eight bytes a key. Two keys that share a hash only cost a slower write. Used under the store's write lock.
    """

    def __init__(self) -> None:
        self._hashes: NDArray[np.int64] = np.empty(0, np.int64)  # ascending
        self._version: int | None = None

    def may_hold(self, table: Any, keys: Sequence[str]) -> bool:
        """Say whether the table may hold one of the keys; never False when it does."""
        if table.version != self._version:  # the first write of this process, or somebody else has written
            self._read(table)
        wanted = _hashes(keys)
        places = np.searchsorted(self._hashes, wanted)
        inside = places < len(self._hashes)
        return bool((self._hashes[places[inside]] == wanted[inside]).any())

    def wrote(self, keys: Sequence[str], version: int) -> None:
        """Take in keys that were just written, which made this version of the table."""
        new = np.sort(_hashes(keys))
        self._hashes = np.insert(self._hashes, np.searchsorted(self._hashes, new), new)
        # Any other version means that somebody else wrote in between: read the keys again.
        self._version = version if self._version is not None and version == self._version + 1 else None

    def _read(self, table: Any) -> None:
        version = table.version
        pages = table.search().select(["key"]).to_batches(PAGE_ROWS)
        parts = [_hashes(page["key"].to_pylist()) for page in pages]
        self._hashes = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
        self._version = version


def _hashes(keys: Iterable[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys), np.int64)
