"""Reciprocal rank fusion, with sums that can be checked by hand."""

from __future__ import annotations

import pytest

from ragctl.fusion import depth, fuse
from ragctl.records import Hit, Ranks


def near(key: str, distance: float) -> Hit:
    return Hit(key, 1 - distance, distance, {"text": key})


def worded(key: str, score: float) -> Hit:
    return Hit(key, score, None, {"text": key})


def test_ranks_add_up() -> None:
    """A hit of both searches scores 1/(60 + rank) from each; the others keep what they have."""
    fused = fuse([near("a", 0.1), near("b", 0.2), near("c", 0.3)], [worded("b", 7), worded("d", 5)])
    assert [hit.key for hit in fused] == ["b", "a", "d", "c"]
    assert [hit.score for hit in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])


def test_ranks_and_scores_of_both_searches_are_kept() -> None:
    """--explain can show how a hit came to its place; a distance is there only where a vector was compared."""
    both, only_text = fuse([near("a", 0.25)], [worded("b", 7), worded("a", 5)])
    assert both.ranks == Ranks(1, 0.25, 2, 5, 1 / 61 + 1 / 62)
    assert both.distance == 0.25
    assert only_text.ranks == Ranks(None, None, 1, 7, 1 / 61)
    assert only_text.distance is None


def test_equal_scores_are_ordered_by_key() -> None:
    """The same ranks give the same order on every run."""
    assert [hit.key for hit in fuse([near("z", 0)], [worded("a", 1)])] == ["a", "z"]
    assert [hit.key for hit in fuse([near("a", 0)], [worded("z", 1)])] == ["a", "z"]


def test_nothing_fuses_to_nothing() -> None:
    """An empty ranking adds nothing."""
    assert fuse([], []) == []
    assert [hit.key for hit in fuse([], [worded("a", 1)])] == ["a"]


def test_depth_is_deep_enough_for_few_and_many() -> None:
    """Both rankings are read further than the hits that are wanted."""
    assert depth(1) == 100
    assert depth(1_000) == 3_000
