"""Values with their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped] # scipy has no types

from ragctl.estimates import Estimate, by_metric, mean, percentiles, rate

UNIT = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=200))
def test_rates_have_wilsons_interval(scores: list[float]) -> None:
    """The same as scipy's."""
    estimate = rate(scores, 0)
    theirs = stats.binomtest(int(sum(scores)), len(scores)).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@given(UNIT)
def test_intervals_hold_the_value_and_stay_within_bounds(scores: list[float]) -> None:
    """Also for one question and for scores that are all the same."""
    estimate = mean(scores, 0)
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low <= estimate.value + 1e-9
    assert estimate.value - 1e-9 <= estimate.high <= 1
    assert estimate == mean(scores, 0)


def test_a_bootstrap_interval_is_near_that_of_the_normal_distribution() -> None:
    """With many questions both say the same: the mean and 1.96 standard errors."""
    scores = np.random.default_rng(1).beta(2, 3, size=1_500)
    estimate = mean(list(scores), 0)
    error = scores.std() / len(scores) ** 0.5
    assert (estimate.low, estimate.high) == pytest.approx(
        (scores.mean() - 1.96 * error, scores.mean() + 1.96 * error), abs=0.1 * error
    )


def test_scores_that_are_all_the_same_are_not_certain() -> None:
    """Five right answers of five do not prove that the sixth will be right."""
    estimate = mean([1.0] * 5, 0)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(0.5655, abs=1e-4)


def test_nothing_scored_has_no_value() -> None:
    """It is not 0."""
    assert mean([], 3) == rate([], 3) == Estimate(None, None, None, 0, 3)
    assert percentiles([], 3, (50,)) == {50: Estimate(None, None, None, 0, 3)}


def test_percentiles_of_times() -> None:
    """Linear between neighbours; the intervals hold them."""
    found = percentiles([float(i) for i in range(101)], 1, (50, 95))
    assert [(e.value, e.scored, e.unscored) for e in found.values()] == [(50.0, 101, 1), (95.0, 101, 1)]
    assert all(
        e.low is not None and e.value is not None and e.high is not None and e.low < e.value < e.high
        for e in found.values()
    )


def test_a_failed_question_is_counted_beside_the_mean() -> None:
    """None is unscored, an absent metric does not apply."""
    found = by_metric([{"a": 1.0}, {"a": None, "b": 0.5}, {"a": 0.0, "b": 1.0}], lambda name: name == "a")
    assert {name: (e.value, e.scored, e.unscored) for name, e in found.items()} == {
        "a": (0.5, 2, 1),
        "b": (0.75, 2, 0),
    }
