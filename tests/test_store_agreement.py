"""The sample questions find the same on `local` and on `s3vectors`: what docs/aws.md says of moving an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.store_agreement import ENVIRONMENT, SAMPLES, compare, ingested
from ragctl.config import Experiment
from ragctl.datasets import load_questions

Pair = tuple[Experiment, Experiment]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with ingested(tmp_path, SAMPLES) as pair:
        yield pair


def test_the_same_experiment_finds_the_same_on_both_stores(pair: Pair) -> None:
    """By vector the same ten in the same order; by words and by both as alike as the page says."""
    assert pair[0].evaluation
    questions = load_questions(pair[0].evaluation.dataset)
    by_vector, by_words, by_both = (compare(pair, questions, mode) for mode in ("vector", "text", "hybrid"))
    assert by_vector.same_order == by_vector.questions == 60
    assert by_words.overlap >= 0.68
    assert by_both.overlap >= 0.82
