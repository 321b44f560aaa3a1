"""Which keys a table surely does not hold: never wrong about one that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.adapters import local_keys
from ragctl.adapters.local_keys import KnownKeys

keys = st.lists(st.integers(0, 40).map(str), max_size=12, unique=True)


@dataclass
class Table:
    """A table of keys as LanceDB shows it; `reads` counts how often all keys were asked for."""

    held: set[str] = field(default_factory=set)
    version: int = 1
    reads: int = 0

    def write(self, keys: list[str]) -> int:
        self.held |= set(keys)
        self.version += 1
        return self.version

    def search(self) -> Self:
        return self

    def select(self, columns: list[str]) -> Self:
        assert columns == ["key"]
        return self

    def to_batches(self, rows: int) -> Iterator[Any]:
        self.reads += 1
        return iter(pa.table({"key": pa.array(sorted(self.held), pa.string())}).to_batches(rows))


@given(st.lists(st.tuples(keys, st.booleans()), max_size=12))
def test_a_key_that_is_there_is_never_denied(writes: list[tuple[list[str], bool]]) -> None:
    """Whoever writes, this process or another; and what was never written costs no slow write."""
    table, known = Table(), KnownKeys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_keys, "RECENT", 20)
        for batch, by_us in writes:
            assert known.may_hold(table, batch) == bool(table.held.intersection(batch))
            version = table.write(batch)
            if by_us:
                known.wrote(batch, version)
        assert known.may_hold(table, ["never"]) is False


def test_all_keys_are_read_once_while_nobody_else_writes() -> None:
    """What this process writes it remembers; a write of another has the keys read again."""
    table, known = Table({"a"}), KnownKeys()
    for number in range(5):
        assert not known.may_hold(table, [str(number)])
        known.wrote([str(number)], table.write([str(number)]))
    assert table.reads == 1
    table.write(["other"])
    assert known.may_hold(table, ["other"])
    assert table.reads == 2


def test_the_extremes_of_hashes_have_their_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest 64-bit numbers, and those at the bounds of the shards."""
    bounds = [int(bound) + step for bound in local_keys._BOUNDS for step in (-1, 0, 1)]
    numbers = [-(2**63), *bounds, 2**63 - 1]
    monkeypatch.setattr(local_keys, "hash", int, raising=False)
    monkeypatch.setattr(local_keys, "RECENT", 0)
    table, known = Table(), KnownKeys()
    known.may_hold(table, [])
    known.wrote([str(number) for number in numbers], table.write([]))
    assert [known.may_hold(table, [str(number)]) for number in numbers] == [True] * len(numbers)
    assert not known.may_hold(table, [str(number + 9) for number in bounds])
    assert np.concatenate(known._shards).tolist() == sorted(numbers)
