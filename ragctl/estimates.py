"""From scores to a value with its 95 % interval. An unscored question is counted beside the value, not as 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Z = 1.959964  # 97.5th percentile of the normal distribution
RESAMPLES = 2_000
BLOCK = 1_000_000  # numbers drawn at once: 8 MB
SEED = 0  # so that the same scores always have the same interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric over a set of questions. `value`, `low` and `high` are None when none of them was scored."""

    value: float | None
    low: float | None
    high: float | None
    scored: int
    unscored: int  # questions to which the metric applies, but that failed

    def to_json(self) -> dict[str, float | int | None]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "scored": self.scored,
            "unscored": self.unscored,
        }


def rate(scores: Sequence[float], unscored: int) -> Estimate:
    """The share of ones among zeros and ones, with Wilson's interval."""
    return _wilson(scores, unscored) if scores else mean(scores, unscored)


def mean(scores: Sequence[float], unscored: int) -> Estimate:
    """The mean of scores between 0 and 1, with a percentile bootstrap interval.

    Resampling scores that are all the same says nothing about what other questions would score. Then the interval
    is Wilson's, which is cautious: no scores between 0 and 1 with this mean vary more than zeros and ones do.
    """
    if not scores:
        return Estimate(None, None, None, 0, unscored)
    if len(set(scores)) == 1:
        return _wilson(scores, unscored)
    import numpy as np

    values = np.asarray(scores, dtype=np.float64)
    means = np.concatenate([values[draw].mean(axis=1) for draw in _draws(len(values))])
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(values.mean()), float(low), float(high), len(scores), unscored)


def percentiles(seconds: Sequence[float], unscored: int, percents: Sequence[int]) -> dict[int, Estimate]:
    """Percentiles of times in seconds (linear between neighbours), with percentile bootstrap intervals."""
    if not seconds:
        return {percent: Estimate(None, None, None, 0, unscored) for percent in percents}
    import numpy as np

    values = np.asarray(seconds, dtype=np.float64)
    blocks = [np.percentile(values[draw], percents, axis=1) for draw in _draws(len(values))]
    lows, highs = np.percentile(np.concatenate(blocks, axis=1), (2.5, 97.5), axis=1)
    found = np.percentile(values, percents)
    return {
        percent: Estimate(float(found[i]), float(lows[i]), float(highs[i]), len(seconds), unscored)
        for i, percent in enumerate(percents)
    }


def by_metric(
    scores: Sequence[Mapping[str, float | None]], is_rate: Callable[[str], bool]
) -> dict[str, Estimate]:
    """Estimate every metric that occurs; None is a question to which it applies and that has no score."""
    names = dict.fromkeys(name for row in scores for name in row)
    columns = {name: [row[name] for row in scores if name in row] for name in names}
    return {name: (rate if is_rate(name) else mean)(*_parted(column)) for name, column in columns.items()}


def _parted(column: Sequence[float | None]) -> tuple[list[float], int]:
    scored = [score for score in column if score is not None]
    return scored, len(column) - len(scored)


def _wilson(scores: Sequence[float], unscored: int) -> Estimate:
    """Wilson's score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953); clipped against rounding."""
    n = len(scores)
    p = sum(scores) / n
    spread = Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    low, high = (p + Z * Z / (2 * n) - spread) / scale, (p + Z * Z / (2 * n) + spread) / scale
    return Estimate(p, max(0.0, min(low, p)), min(1.0, max(high, p)), n, unscored)


def _draws(n: int) -> Iterator[NDArray[np.int64]]:
    """The positions that each resample takes from n values, (resamples, n), in blocks that fit into memory."""
    import numpy as np

    random = np.random.default_rng(SEED)
    block = max(1, BLOCK // n)
    for first in range(0, RESAMPLES, block):
        yield random.integers(n, size=(min(block, RESAMPLES - first), n))
