"""Scores of one question: names, what is ranked, and answers without a judge."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from math import log2

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.datasets import Evidence, Question
from ragctl.errors import ConfigError, MissingExtra
from ragctl.metrics import (
    answer_scores,
    check_metric,
    check_rank_metrics,
    exact_match,
    rank_scores,
    require_ir_measures,
    retrieval_depth,
    rouge_l,
    token_f1,
)
from ragctl.records import DOCUMENT, TEXT, Answer, Hit

RANK = (
    "nDCG@10",
    "nDCG@2",
    "R@1",
    "R@10",
    "P@1",
    "P@5",
    "RR",
    "RR@2",
    "AP",
    "AP@3",
    "Success@1",
    "Success@5",
)


def hit(text: str, document: str = "a") -> Hit:
    return Hit(key=f"{document}-{text}", score=1.0, distance=None, metadata={TEXT: text, DOCUMENT: document})


def golden(*quotes: str) -> Question:
    return Question("q", "?", answer="x", evidence=tuple(Evidence("a", quote) for quote in quotes))


def answer(text: str, *, abstained: bool = False) -> Answer:
    return Answer("?", text, citations=(), hits=(), timings={}, abstained=abstained)


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANK)
def test_names_are_those_that_ir_measures_prints(name: str) -> None:
    """A name in the report can be looked up there, character for character."""
    check_rank_metrics([name])
    assert str(ir_measures.parse_measure(name)) == name


@pytest.mark.parametrize(
    "name", ["ndcg@10", "nDCG", "nDCG@0", "R@1.5", "Success", "P", "RR@", "bpref", "", "R@5 "]
)
def test_other_names_are_refused(name: str) -> None:
    """Also those that ir_measures would take, but that mean something else than they seem."""
    with pytest.raises(ConfigError):
        check_rank_metrics([name])


def test_an_unknown_name_gets_a_suggestion_and_the_known_ones() -> None:
    """A slip in case is the likeliest."""
    with pytest.raises(ConfigError) as caught:
        check_rank_metrics(["R@5", "ndcg@10"])
    assert caught.value.message == (
        "unknown rank metric 'ndcg@10'; did you mean nDCG@10? "
        "known: nDCG@k, R@k, P@k, RR, RR@k, AP, AP@k, Success@k"
    )


def test_a_cut_that_no_ranking_has_is_no_other_name() -> None:
    """The name is right, and what is wrong is said."""
    with pytest.raises(ConfigError, match="unknown metric 'nDCG@0'; k is from 1 to 9999; known: nDCG@k"):
        check_metric("nDCG@0")


def test_a_gate_may_name_answer_and_latency_metrics() -> None:
    """Everything that an evaluation yields, and nothing else."""
    for name in ("token_f1", "abstention_recall", "latency_p95", "latency_embed_p50"):
        check_metric(name)
    with pytest.raises(ConfigError, match=r"unknown metric 'latency_p90'.*latency_p50, _p95 or _p99"):
        check_metric("latency_p90")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first question is asked."""
    monkeypatch.setattr("ragctl.metrics.find_spec", lambda _: None)
    with pytest.raises(MissingExtra) as caught:
        require_ir_measures()
    assert caught.value.hint == 'install it with: pip install "ragctl[eval]"'


def test_depth_reaches_the_cut_offs() -> None:
    """Hits for quotes; documents come in several chunks, so three times as many, and at least 100."""
    beir = Question("q", "?", relevant={"d": 1})
    assert retrieval_depth(["nDCG@10", "R@20"], golden("x")) == 20
    assert retrieval_depth(["AP", "R@20"], golden("x")) == 100
    assert retrieval_depth(["nDCG@10"], beir) == 100
    assert retrieval_depth(["R@50"], beir) == 150


# --- rank metrics on documents ---------------------------------------------------------------------------


def test_documents_rank_by_their_best_hit() -> None:
    """Further chunks of a document neither help it nor push others down."""
    question = Question("q", "?", relevant={"b": 1, "c": 2, "z": 0})
    hits = [hit("1", "a"), hit("2", "a"), hit("3", "b"), hit("4", "a"), hit("5", "c")]
    scores = rank_scores(["RR", "P@2", "R@2", "R@3", "nDCG@3"], question, hits)
    assert list(scores) == ["RR", "P@2", "R@2", "R@3", "nDCG@3"]
    ideal = 2 / log2(2) + 1 / log2(3)
    expected = {"RR": 1 / 2, "P@2": 1 / 2, "R@2": 1 / 2, "R@3": 1.0}
    assert scores == pytest.approx({**expected, "nDCG@3": (1 / log2(3) + 2 / log2(4)) / ideal})


def test_the_order_of_hits_counts_and_not_their_scores() -> None:
    """Equal scores are common after fusion; trec_eval would order them by id."""
    question = Question("q", "?", relevant={"a": 1})
    assert rank_scores(["RR"], question, [hit("", "a"), hit("", "b")]) == {"RR": 1.0}
    assert rank_scores(["RR"], question, [hit("", "b"), hit("", "a")]) == {"RR": 0.5}


@pytest.mark.parametrize(
    "question", [golden("x"), Question("q", "?", relevant={"d": 1}), Question("q", "?", relevant={"d": 0})]
)
def test_a_question_without_hits_scores_0_everywhere(question: Question) -> None:
    """It is neither left out nor not a number."""
    assert rank_scores(RANK, question, []) == dict.fromkeys(RANK, 0.0)


def test_random_runs_agree_with_ir_measures_over_all_questions() -> None:
    """One question at a time, as we score, gives the means that ir_measures gives for the whole run."""
    dice = random.Random(7)
    ids = [f"d{i}" for i in range(40)]
    questions = [
        Question(f"q{i}", "?", relevant={d: dice.randrange(4) for d in dice.sample(ids, 8)})
        for i in range(50)
    ]
    ranked = {question.id: dice.sample(ids, dice.randrange(1, 40)) for question in questions}
    mine = [rank_scores(RANK, q, [hit("", d) for d in ranked[q.id]]) for q in questions]
    theirs = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(name) for name in RANK],
        {question.id: dict(question.relevant) for question in questions},
        {name: {d: 1.0 / (i + 1) for i, d in enumerate(found)} for name, found in ranked.items()},
    )
    means = {name: sum(scores[name] for scores in mine) / len(mine) for name in RANK}
    assert means == pytest.approx({str(measure): value for measure, value in theirs.items()})


# --- rank metrics on evidence ----------------------------------------------------------------------------


def test_a_hit_that_repeats_evidence_gains_nothing() -> None:
    """Overlapping chunks would otherwise make precision of one quote."""
    hits = [hit("red apples"), hit("red apples again"), hit("green pears")]
    scores = rank_scores(["P@3", "R@2", "R@3", "RR", "AP"], golden("red apples", "green pears"), hits)
    assert scores == pytest.approx({"P@3": 2 / 3, "R@2": 1 / 2, "R@3": 1.0, "RR": 1.0, "AP": (1 + 2 / 3) / 2})


def test_one_hit_may_hold_all_the_evidence() -> None:
    """Recall counts evidence, so a large chunk has found it all; precision and success count hits."""
    hits = [hit("red apples, green pears"), hit("nothing")]
    scores = rank_scores(
        ["R@1", "nDCG@1", "P@1", "P@2", "Success@1"], golden("red apples", "green pears"), hits
    )
    assert scores == pytest.approx({"R@1": 1.0, "nDCG@1": 1.0, "P@1": 1.0, "P@2": 0.5, "Success@1": 1.0})


def test_hits_that_bring_several_items_do_not_push_others_past_the_cut() -> None:
    """The cut-off counts hits: what the k-th hit brings is within it."""
    hits = [hit("one two"), hit("three four"), hit("five")]
    question = golden("one", "two", "three", "four", "five", "six")
    assert rank_scores(["R@3"], question, hits) == pytest.approx({"R@3": 5 / 6})


HOLDINGS = st.lists(st.frozensets(st.integers(0, 4)), max_size=12)
WORDS = ("zero", "one", "two", "three", "four")


@given(HOLDINGS)
def test_evidence_metrics_keep_their_bounds_and_meaning(holdings: Sequence[frozenset[int]]) -> None:
    """R@k is the share of evidence in the first k hits, Success@k whether there is any; all lie within 0 and 1."""
    hits = [hit(" ".join(WORDS[i] for i in sorted(holding))) for holding in holdings]
    scores = rank_scores(RANK, golden(*WORDS), hits)
    assert all(0 <= score <= 1 + 1e-9 for score in scores.values())
    assert scores["R@10"] == pytest.approx(len(frozenset().union(*holdings[:10])) / 5)
    assert scores["Success@5"] == float(any(holdings[:5]))
    assert scores["RR"] == next((1 / (i + 1) for i, holding in enumerate(holdings) if holding), 0.0)


# --- answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right", "exact", "f1", "rouge"),
    [
        ("The 5 million!", "5 million", 1.0, 1.0, 0.8),
        ("“5 million”", "5 Million.", 1.0, 1.0, 1.0),
        ("It was 5 million", "5 million", 0.0, 2 * 2 / 6, 2 * 2 / 6),
        ("million 5", "5 million", 0.0, 1.0, 0.5),
        ("none", "5 million", 0.0, 0.0, 0.0),
        ("", "5 million", 0.0, 0.0, 0.0),
    ],
)
def test_answers_against_a_reference(text: str, right: str, exact: float, f1: float, rouge: float) -> None:
    """Figures that a reader can check: SQuAD's normalisation, bag overlap, longest common subsequence."""
    scores = [score(text, right) for score in (exact_match, token_f1, rouge_l)]
    assert scores == pytest.approx([exact, f1, rouge])


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(mine: list[str], theirs: list[str]) -> None:
    """Against the definition, written down as a recursion."""

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(mine) or j == len(theirs):
            return 0
        if mine[i] == theirs[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    common = longest(0, 0)
    expected = 2 * common / (len(mine) + len(theirs)) if common else 0.0
    assert rouge_l(" ".join(mine), " ".join(theirs)) == pytest.approx(expected)


def test_markers_are_no_part_of_an_answer_and_aliases_count() -> None:
    """The closest of the right answers is the measure."""
    question = Question("q", "?", answer="five million euros", aliases=("5 million",))
    assert answer_scores(question, answer("5 million [1][2].")) == {
        "exact_match": 1.0,
        "token_f1": 1.0,
        "rouge_l": 1.0,
        "answered_rate": 1.0,
    }


def test_abstaining_where_there_is_an_answer_scores_0() -> None:
    """Words that "the corpus does not say" shares with the reference earn nothing."""
    question = Question("q", "?", answer="the corpus")
    assert answer_scores(question, answer("The corpus does not say.", abstained=True)) == {
        "exact_match": 0.0,
        "token_f1": 0.0,
        "rouge_l": 0.0,
        "answered_rate": 0.0,
        "abstention_precision": 0.0,
    }


def test_abstention_is_right_where_there_is_no_answer() -> None:
    """Precision is about abstentions alone, so an answer has none."""
    question = Question("q", "?")
    abstention = answer_scores(question, answer("I do not know", abstained=True))
    assert abstention == {"abstention_recall": 1.0, "abstention_precision": 1.0}
    assert answer_scores(question, answer("5 million")) == {"abstention_recall": 0.0}


def test_a_question_with_evidence_and_without_reference_is_only_answered_or_not() -> None:
    """There is no text to compare with."""
    question = Question("q", "?", evidence=(Evidence("a", "b"),))
    assert answer_scores(question, answer("anything")) == {"answered_rate": 1.0}
