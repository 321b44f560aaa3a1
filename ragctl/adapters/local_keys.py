"""Which keys a LanceDB table surely does not hold, so that new records can be appended.

Replacing by key reads and joins the table's keys with every write, which costs twice as much as the write itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.int64]  # ascending

PAGE_ROWS = 65_536
SHARDS = 16
_BOUNDS = np.arange(1 - SHARDS // 2, SHARDS // 2, dtype=np.int64) * (2**64 // SHARDS)  # between neighbours


class KnownKeys:
    """64-bit hashes of the keys of one table as it was at one version, and of keys that have left it since.

    Eight bytes a key, in shards by size: to take in new ones copies a shard, and never all at once. Two keys that
    share a hash only cost a slower write. Used under the store's write lock.
    """

    def __init__(self) -> None:
        self._shards: list[Hashes] = [np.empty(0, np.int64)] * SHARDS
        self._version: int | None = None

    def may_hold(self, table: Any, keys: Sequence[str]) -> bool:
        """Say whether the table may hold one of the keys; never False when it does."""
        if table.version != self._version:  # the first write of this process, or somebody else has written
            self._read(table)
        return any(map(_overlap, self._shards, _sharded(keys)))

    def wrote(self, keys: Sequence[str], version: int) -> None:
        """Take in keys that were just written, which made this version of the table."""
        self._add(keys)
        # Any other version means that somebody else wrote in between: read the keys again.
        self._version = version if self._version is not None and version == self._version + 1 else None

    def _read(self, table: Any) -> None:
        version = table.version
        self._shards = [np.empty(0, np.int64)] * SHARDS
        for page in table.search().select(["key"]).to_batches(PAGE_ROWS):
            self._add(page["key"].to_pylist())
        self._version = version

    def _add(self, keys: Sequence[str]) -> None:
        self._shards = [
            np.insert(shard, np.searchsorted(shard, new), new)
            for shard, new in zip(self._shards, _sharded(keys), strict=True)
        ]


def _sharded(keys: Iterable[str]) -> list[Hashes]:
    hashes = np.sort(np.fromiter(map(hash, keys), np.int64))
    return np.split(hashes, np.searchsorted(hashes, _BOUNDS))


def _overlap(shard: Hashes, wanted: Hashes) -> bool:
    places = np.searchsorted(shard, wanted)
    inside = places < len(shard)
    return bool((shard[places[inside]] == wanted[inside]).any())
