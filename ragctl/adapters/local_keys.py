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
RECENT = 65_536  # hashes that are kept apart, until they are taken in together
SHARDS = 16
_BOUNDS = np.arange(1 - SHARDS // 2, SHARDS // 2, dtype=np.int64) * (2**64 // SHARDS)  # between neighbours


class KnownKeys:
    """64-bit hashes of the keys of one table as it was at one version, and of keys that have left it since.

    Eight bytes a key, in shards by size: to take in new ones copies a shard, and never all at once. It is done
    seldom, for arrays that grow a little with every write leave holes in the heap that nothing fits in. Two keys that
    share a hash only cost a slower write. Used under the store's write lock.
    """

    def __init__(self) -> None:
        self._version: int | None = None
        self._clear()

    def may_hold(self, table: Any, keys: Sequence[str]) -> bool:
        """Say whether the table may hold one of the keys; never False when it does."""
        if table.version != self._version:  # the first write of this process, or somebody else has written
            self._read(table)
        wanted = _hashes(keys)
        return _overlap(self._recent, wanted) or any(map(_overlap, self._shards, _sharded(wanted)))

    def wrote(self, keys: Sequence[str], version: int) -> None:
        """Take in keys that were just written, which made this version of the table."""
        self._add(keys)
        # Any other version means that somebody else wrote in between: read the keys again.
        self._version = version if self._version is not None and version == self._version + 1 else None

    def _read(self, table: Any) -> None:
        version = table.version
        self._clear()
        for page in table.search().select(["key"]).to_batches(PAGE_ROWS):
            self._add(page["key"].to_pylist())
        self._version = version

    def _clear(self) -> None:
        self._recent: Hashes = np.empty(0, np.int64)
        self._shards: list[Hashes] = [np.empty(0, np.int64)] * SHARDS

    def _add(self, keys: Sequence[str]) -> None:
        self._recent = _merged(self._recent, _hashes(keys))
        if len(self._recent) > RECENT:
            for place, new in enumerate(_sharded(self._recent)):  # in turn, so that only one is there twice
                self._shards[place] = _merged(self._shards[place], new)
            self._recent = np.empty(0, np.int64)


def _hashes(keys: Iterable[str]) -> Hashes:
    return np.sort(np.fromiter(map(hash, keys), np.int64))


def _sharded(hashes: Hashes) -> list[Hashes]:
    return np.split(hashes, np.searchsorted(hashes, _BOUNDS))


def _merged(hashes: Hashes, new: Hashes) -> Hashes:
    return np.insert(hashes, np.searchsorted(hashes, new), new)


def _overlap(hashes: Hashes, wanted: Hashes) -> bool:
    places = np.searchsorted(hashes, wanted)
    inside = places < len(hashes)
    return bool((hashes[places[inside]] == wanted[inside]).any())
