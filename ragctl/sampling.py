"""A sample of files from which totals over all of them are estimated, with an interval.

Within each type of file (a stratum) the files lie end to end in the order of their names, and points are set at even
distances: a file is drawn for every point that falls into it, so with a chance in proportion to its size. Chunks,
characters and tokens go with size, which makes the estimate of Hansen and Hurwitz (1943, doi:10.1214/aoms/1177731356)
a sharp one: the mean over the points of what a byte gives, times all bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Self

from ragctl.estimates import Z

LEAST_DRAWS = 30  # of a stratum that has so many files: a variance can be told from them


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with its 95 % interval, which is the number itself where it was counted."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Self:
        return cls(value, value, value)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def __add__(self, other: Amount) -> Amount:
        """Intervals are added end by end, which is cautious: errors that cancel out are not counted on."""
        return Amount(self.value + other.value, self.low + other.low, self.high + other.high)

    def __sub__(self, other: Amount) -> Amount:
        """As `+`, end by end."""
        return Amount(self.value - other.value, self.low - other.high, self.high - other.low)

    def times(self, factor: float) -> Amount:
        return Amount(self.value * factor, self.low * factor, self.high * factor)

    def to_json(self) -> int | dict[str, int]:
        """Whole numbers: one where it was counted, three where it was estimated."""
        if self.is_exact:
            return round(self.value)
        return {"estimate": round(self.value), "low": int(self.low), "high": ceil(self.high)}


ZERO = Amount.exact(0)


@dataclass(frozen=True, slots=True)
class File:
    """What the draw knows of a file."""

    id: str
    stratum: str
    size: int  # bytes


@dataclass(slots=True)
class Stratum:
    """All files of one type."""

    files: int = 0
    size: int = 0
    squares: int = 0  # sum of squared sizes
    draws: int = 0


class Sample:
    """Which files are drawn, and how often. Give it the same files in the same order twice."""

    def __init__(self, files: Iterable[File], *, most_files: int, most_bytes: int) -> None:
        """First pass. All files are taken where neither bound is passed."""
        self.strata: dict[str, Stratum] = {}
        for file in files:
            stratum = self.strata.setdefault(file.stratum, Stratum())
            stratum.files += 1
            stratum.size += file.size
            stratum.squares += file.size**2
        self.files = sum(stratum.files for stratum in self.strata.values())
        self.size = sum(stratum.size for stratum in self.strata.values())
        self.is_whole = self.files <= most_files and self.size <= most_bytes
        self.drawn: dict[str, tuple[File, int]] = {}  # by id: the file, and the points that fell into it
        if not self.is_whole:
            self._allot(most_files, most_bytes)

    def _allot(self, most_files: int, most_bytes: int) -> None:
        """Points go to the strata by their bytes; as many as the bytes that a draw reads on average allow."""
        mean = sum(s.squares for s in self.strata.values()) / max(1, self.size)
        points = min(most_files, most_bytes / max(1.0, mean))
        for stratum in self.strata.values():
            share = ceil(points * stratum.size / max(1, self.size))
            stratum.draws = max(share, min(LEAST_DRAWS, stratum.files)) if stratum.size else 0

    def draw(self, files: Iterable[File]) -> None:
        """Second pass: fill `drawn`."""
        at: dict[str, int] = {}
        for file in files:
            stratum = self.strata[file.stratum]
            before = at.get(file.stratum, 0)
            at[file.stratum] = after = before + file.size
            points = _points(after, stratum) - _points(before, stratum)
            if points:
                self.drawn[file.id] = (file, points)

    def total(self, amounts: Mapping[str, float]) -> Amount:
        """Estimate the total over all files of what `amounts` holds by id for those that were drawn; absent: 0."""
        total = ZERO
        variance = 0.0
        for name, stratum in self.strata.items():
            rows = [(file, points) for file, points in self.drawn.values() if file.stratum == name]
            if len(rows) == stratum.files or not rows:
                total += Amount.exact(sum(amounts.get(file.id, 0) for file, _ in rows))
                continue
            value, spread = _hansen_hurwitz(stratum.size, rows, amounts)
            total += Amount.exact(value)
            variance += spread
        half = Z * sqrt(variance)
        return Amount(total.value, max(0.0, total.value - half), total.value + half)


def _points(end: int, stratum: Stratum) -> int:
    """How many points lie before byte `end` of the stratum, the first half a distance from its start."""
    return int(end * stratum.draws / stratum.size + 0.5) if stratum.size else 0


def _hansen_hurwitz(
    size: int, rows: Iterable[tuple[File, int]], amounts: Mapping[str, float]
) -> tuple[float, float]:
    """The estimated total of a stratum of `size` bytes, and its variance."""
    ratios = [(amounts.get(file.id, 0) / file.size, points) for file, points in rows]
    n = sum(points for _, points in ratios)
    mean = sum(ratio * points for ratio, points in ratios) / n
    if n < 2:
        return size * mean, (size * mean) ** 2  # one point tells nothing of the spread: as wide as the total
    spread = sum(points * (ratio - mean) ** 2 for ratio, points in ratios) / (n - 1)
    return size * mean, size**2 * spread / n
