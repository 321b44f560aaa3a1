"""sampling.py: files drawn in proportion to their size, and totals over all files with an interval that holds them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ragctl.sampling import Amount, File, Sample

SIZES = st.lists(st.integers(0, 100_000), min_size=1, max_size=300)


def files(sizes: list[int], kinds: int = 2) -> list[File]:
    return [File(f"docs/{i:04d}", f".{i % kinds}", size) for i, size in enumerate(sizes)]


def drawn(population: list[File], *, most_files: int, most_bytes: int = 10**12) -> Sample:
    sample = Sample(population, most_files=most_files, most_bytes=most_bytes)
    if not sample.is_whole:
        sample.draw(population)
    return sample


@given(SIZES)
def test_few_files_are_all_taken(sizes: list[int]) -> None:
    """Below both bounds there is nothing to draw."""
    assert drawn(files(sizes), most_files=len(sizes)).is_whole
    assert drawn(files(sizes), most_files=len(sizes), most_bytes=max(1, sum(sizes))).is_whole


@given(SIZES, st.integers(1, 50))
def test_what_goes_with_size_is_known_exactly(sizes: list[int], most: int) -> None:
    """A number that is three to the byte in every file: the estimate is the total itself, whatever was drawn."""
    population = files(sizes)
    sample = drawn(population, most_files=most)
    if sample.is_whole:
        return
    total = sample.total({file.id: 3.0 * file.size for file, _ in sample.drawn.values()})
    assert abs(total.value - 3 * sum(sizes)) <= 1e-6 * (1 + sum(sizes))


@given(SIZES, st.integers(1, 50))
def test_an_empty_file_is_never_drawn_and_no_type_is_forgotten(sizes: list[int], most: int) -> None:
    """Every type that has a byte is in the sample."""
    population = files(sizes)
    sample = drawn(population, most_files=most)
    if sample.is_whole:
        return
    taken = {file.stratum for file, _ in sample.drawn.values()}
    assert taken == {file.stratum for file in population if file.size}
    assert all(file.size and points for file, points in sample.drawn.values())


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 corpora whose files differ in what a byte gives: at least nine in ten, at the 95 % level."""
    held = 0
    for seed in range(200):
        chance = random.Random(seed)
        population = files([chance.randint(100, 50_000) for _ in range(500)])
        truth = {file.id: file.size * chance.uniform(0.5, 1.5) for file in population}
        sample = drawn(population, most_files=100)
        total = sample.total({id_: truth[id_] for id_ in sample.drawn})
        held += total.low <= sum(truth.values()) <= total.high
        assert not total.is_exact
    assert held >= 180


def test_bytes_bound_the_sample_as_well() -> None:
    """Large files: so few are drawn that the bytes to read stay near the bound."""
    population = files([10_000_000] * 400, kinds=1)
    sample = drawn(population, most_files=2_000, most_bytes=500_000_000)
    assert 45 <= len(sample.drawn) <= 55


def test_sums_keep_their_ends() -> None:
    """Intervals add up end by end, and turn round where one is taken away."""
    some = Amount(10, 8, 13) + Amount.exact(5)
    assert some == Amount(15, 13, 18)
    assert Amount.exact(20) - some == Amount(5, 2, 7)
    assert some.times(2).to_json() == {"estimate": 30, "low": 26, "high": 36}
    assert Amount.exact(3).to_json() == 3
