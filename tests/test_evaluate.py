"""Asking, scoring and aggregating: nothing falls out, nothing is lost, order is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from ragctl.datasets import Question
from ragctl.errors import CredentialsError, MissingExtra, RagctlError, ServiceError, Throttled
from ragctl.evaluate import depth, evaluate, rank_metrics, wants_answer
from ragctl.records import Answer
from tests.evaluations import QUESTIONS, ask, evaluated, hit, section

LATENCIES = ["latency_p50", "latency_p95", "latency_p99"]


def quick(question: Question) -> Answer:
    return Answer(question.question, None, citations=(), hits=(), timings={})


def failing(*errors: RagctlError) -> Callable[[Question], Answer]:
    """Raises one error after the other, then answers."""
    waiting = iter(errors)

    def ask_or_raise(question: Question) -> Answer:
        for error in waiting:
            raise error
        return quick(question)

    return ask_or_raise


# --- figures ---------------------------------------------------------------------------------------------


def test_the_figures_of_a_small_evaluation() -> None:
    """Each metric counts the questions to which it applies; the failed one is unscored in all of them."""
    metrics = evaluated().metrics
    quality = {
        name: (estimate.value, estimate.scored, estimate.unscored)
        for name, estimate in metrics.items()
        if not name.startswith("latency")
    }
    assert quality == {
        "RR@10": (0.75, 2, 1),
        "R@1": (0.5, 2, 1),
        "exact_match": (0.5, 2, 1),
        "token_f1": (pytest.approx((1 + 4 / 5) / 2), 2, 1),
        "rouge_l": (pytest.approx((1 + 4 / 5) / 2), 2, 1),
        "answered_rate": (1.0, 2, 1),
        "abstention_precision": (1.0, 1, 1),
        "abstention_recall": (1.0, 1, 0),
    }


def test_latencies_by_stage_and_in_all() -> None:
    """The stages are the answer's own; the total is what the caller waited. A stage nobody went through is absent."""
    metrics = evaluated().metrics
    assert metrics["latency_generate_p95"].value == pytest.approx(0.7)
    assert metrics["latency_p50"].scored == 3
    assert [name for name in metrics if name.startswith("latency") and "_p50" in name] == [
        "latency_p50",
        "latency_embed_p50",
        "latency_search_p50",
        "latency_generate_p50",
    ]


def test_what_the_generator_did_not_read_still_counts_as_found() -> None:
    """The ranking is the hits and then what was cut, so nDCG@10 does not depend on top_k."""
    second = evaluated().rows[1]
    assert second.scores["RR@10"] == 0.5
    assert [(found.document, found.relevant) for found in second.hits] == [("a", False), ("b", True)]


def test_metrics_stand_in_the_order_of_the_configuration() -> None:
    """Whichever question came first, so that two reports can be laid side by side."""
    reversed_questions = evaluate(QUESTIONS[::-1], ask, section(metrics=["RR@10", "R@1"]))
    assert list(reversed_questions.metrics) == list(evaluated().metrics)


def test_tags_break_the_scores_down() -> None:
    """A tag shows the metrics that apply to its questions."""
    tags = evaluated().tags
    assert list(tags) == ["fruit", "none"]
    assert (tags["fruit"]["R@1"].value, tags["fruit"]["R@1"].unscored) == (0.5, 1)
    assert list(tags["none"]) == ["abstention_recall", "abstention_precision"]


def test_the_gate_brings_its_own_rank_metrics() -> None:
    """A rule on a metric that is not listed is computed, not undecided."""
    assert rank_metrics(section(metrics=["R@1"], gate={"P@1": ">= 0", "token_f1": ">= 0"})) == ("R@1", "P@1")
    assert evaluated({"P@1": ">= 0.5"}).gate.verdict == "pass"


def test_retrieval_only_scores_no_answers() -> None:
    """With `answers: false` there are rank metrics and latencies, and no answer is wanted of anybody."""
    evaluation = section(metrics=["R@1"], answers=False)
    result = evaluate(QUESTIONS[:2], quick, evaluation)
    assert list(result.metrics) == ["R@1", *LATENCIES]
    assert result.metrics["R@1"].value == 0.0
    assert not any(wants_answer(question, evaluation) for question in QUESTIONS)


def test_a_beir_query_wants_documents_and_no_answer() -> None:
    """Generating one would cost and could not be scored; enough hits are asked for to rank documents."""
    query = Question("q", "?", relevant={"a": 1})
    evaluation = section(metrics=["nDCG@10"])
    assert (wants_answer(query, evaluation), depth(query, evaluation)) == (False, 100)
    result = evaluate([query], lambda _: Answer("?", None, (), (hit("b", ""), hit("a", "")), {}), evaluation)
    assert result.metrics["nDCG@10"].value == pytest.approx(0.6309, abs=1e-4)
    assert [found.relevant for found in result.rows[0].hits] == [False, True]


def test_an_answer_that_was_due_and_did_not_come_is_unscored() -> None:
    """Retrieval is scored all the same."""
    row = evaluate(QUESTIONS[:1], quick, section(metrics=["R@1"])).rows[0]
    assert row.scores == {
        "R@1": 0.0,
        "exact_match": None,
        "token_f1": None,
        "rouge_l": None,
        "answered_rate": None,
        "abstention_precision": None,
    }


def test_the_same_answers_give_the_same_figures_to_the_last_digit() -> None:
    """Intervals are drawn from a fixed seed; only times differ."""
    first, second = (
        {name: e for name, e in evaluated().metrics.items() if name not in LATENCIES} for _ in range(2)
    )
    assert first == second


# --- asking ----------------------------------------------------------------------------------------------


def test_questions_are_asked_at_once_and_reported_in_their_order() -> None:
    """Four wait for one another, so fewer threads would wait for ever; the first to end is not the first row."""
    together = threading.Barrier(4, timeout=30)
    last_answered = threading.Event()

    def slow_first(question: Question) -> Answer:
        together.wait()
        if question.id == "0":
            last_answered.wait(30)
        if question.id == "3":
            last_answered.set()
        return quick(question)

    questions = [Question(str(i), "?") for i in range(4)]
    seen: list[str] = []
    result = evaluate(
        questions, slow_first, section(answers=False, concurrency=4), lambda row: seen.append(row.question.id)
    )
    assert [row.question.id for row in result.rows] == seen == ["0", "1", "2", "3"]


def test_a_failed_question_is_listed_and_the_others_go_on() -> None:
    """With its stage and error, for exit 3."""
    result = evaluated()
    assert result.failures == [
        {"question": "broken", "stage": "query", "error": "ServiceError: the model is down"}
    ]
    assert [row.failure is None for row in result.rows] == [True, True, True, False]


def test_after_an_error_that_all_would_meet_the_rest_is_not_asked() -> None:
    """Expired credentials in the middle cost the rest of the questions, and not what was answered."""
    asked: list[str] = []

    def expiring(question: Question) -> Answer:
        asked.append(question.id)
        if question.id == "1":
            raise CredentialsError("the token has expired")
        return quick(question)

    questions = [Question(str(i), "?") for i in range(4)]
    result = evaluate(questions, expiring, section(answers=False, concurrency=1))
    assert asked == ["0", "1"]
    assert [failure["stage"] for failure in result.failures] == ["query", "not asked", "not asked"]
    assert {failure["error"] for failure in result.failures} == {"CredentialsError: the token has expired"}


def test_when_every_question_fails_the_first_error_is_raised() -> None:
    """There is nothing to report, and its exit status says more than "some failed"."""
    errors = (Throttled("slow down"), ServiceError("b"), ServiceError("c"), ServiceError("d"))
    with pytest.raises(Throttled, match="slow down"):
        evaluate(QUESTIONS, failing(*errors), section(concurrency=1))


def test_a_bug_is_not_a_failed_question() -> None:
    """It ends the evaluation with its own traceback."""

    def buggy(_: Question) -> Answer:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(QUESTIONS, buggy, section())


def test_a_missing_extra_is_found_before_the_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that cannot be scored are not paid for."""
    monkeypatch.setattr("ragctl.metrics.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="rank metrics needs an optional package"):
        evaluate(QUESTIONS, lambda _: pytest.fail("asked"), section())


# --- JSON ------------------------------------------------------------------------------------------------


def test_json_on_stdout_has_the_promised_shape() -> None:
    """What a CI job reads."""
    result = json.loads(
        json.dumps(evaluated({"R@1": ">= 0.9"}).to_json("runs/x/run.json", "runs/x/report.html"))
    )
    assert list(result) == ["schema", "run", "metrics", "gate", "failures", "report"]
    assert (result["schema"], result["gate"]["verdict"]) == ("ragctl.eval/1", "fail")
    assert list(result["metrics"]["R@1"]) == ["value", "low", "high", "scored", "unscored"]


def test_the_record_keeps_every_question() -> None:
    """With its answer, hits, scores, times and failure; texts of documents are not in it."""
    payload = json.loads(json.dumps(evaluated().payload()))
    assert payload["counts"] == {"questions": 4, "failed": 1}
    assert payload["tokens"] == {"input": 300, "output": 30}
    first, *_, broken = payload["rows"]
    assert (first["answer"], first["reference"]) == ("Red apples [1].", "red apples")
    assert first["citations"] == [{"marker": 1, "key": "a-1", "document": "a", "page": 1}]
    assert first["hits"][0] == {"key": "a-1", "document": "a", "page": 1, "score": 0.5, "relevant": True}
    assert broken["failure"] == {"stage": "query", "error": "ServiceError: the model is down"}
    assert set(broken["scores"].values()) == {None}
    assert "We sell" not in json.dumps(payload)


def test_ask_sees_the_question_itself() -> None:
    """Filter and tenant travel with it."""
    seen: list[Question] = []

    def remember(question: Question) -> Answer:
        seen.append(question)
        return ask(question)

    evaluate(QUESTIONS[:1], remember, section(metrics=["R@1"]))
    assert seen == [QUESTIONS[0]]
