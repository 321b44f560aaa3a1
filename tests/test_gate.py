"""The gate's rules and verdicts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.errors import ConfigError
from ragctl.estimates import Estimate
from ragctl.gate import Rule, decide, parse_gate, parse_rule

SURE = Estimate(0.6, 0.55, 0.65, scored=100, unscored=0)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (">= 0.6", Rule("R@5", ">=", 0.6, confident=False)),
        (">0.3", Rule("R@5", ">", 0.3, confident=False)),
        ("<= 1.5", Rule("R@5", "<=", 1.5, confident=False)),
        (" < .5 ", Rule("R@5", "<", 0.5, confident=False)),
        (">= 0.6 at 95%", Rule("R@5", ">=", 0.6, confident=True)),
    ],
)
def test_rules_are_an_operator_and_a_bar(text: str, rule: Rule) -> None:
    """With or without space."""
    assert parse_rule("R@5", text) == rule


@pytest.mark.parametrize(
    "text", ["0.6", "= 0.6", "== 0.6", "=> 0.6", ">= 60%", ">= 0.6 at 90%", ">= ", ">= 1e3", ""]
)
def test_anything_else_is_no_rule(text: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(ConfigError) as caught:
        parse_rule("R@5", text)
    assert caught.value.message == (
        f"R@5: {text!r} is no rule; write an operator and a number: '>= 0.6', '<= 1.5 at 95%'"
    )


def test_all_faults_of_a_gate_are_told_at_once() -> None:
    """An unknown metric is found before anything is asked."""
    with pytest.raises(
        ConfigError, match=r"unknown metric 'ndcg@5'; did you mean nDCG@5.*; R@5: 'high' is no rule"
    ):
        parse_gate({"ndcg@5": ">= 1", "R@5": "high"})


@given(st.sampled_from([">=", ">", "<=", "<"]), st.decimals(0, 10, places=3), st.booleans())
def test_a_rule_reads_back_as_it_is_written(operator: str, bar: object, confident: bool) -> None:
    """What the report shows can be pasted into an experiment."""
    rule = parse_rule("latency_p95", f"{operator} {bar}{' at 95%' if confident else ''}")
    assert parse_rule("latency_p95", str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (">= 0.6", "pass"),
        ("> 0.6", "fail"),
        ("<= 0.6", "pass"),
        ("< 0.6", "fail"),
        (">= 0.64", "fail"),
        (">= 0.55 at 95%", "pass"),
        ("> 0.55 at 95%", "cannot-tell"),
        (">= 0.6 at 95%", "cannot-tell"),
        (">= 0.66 at 95%", "fail"),
        ("<= 0.65 at 95%", "pass"),
        ("< 0.5 at 95%", "fail"),
    ],
)
def test_the_value_decides_unless_the_rule_asks_for_confidence(text: str, verdict: str) -> None:
    """0.6 in [0.55, 0.65]: only a rule "at 95%" minds that the bar lies within."""
    assert decide({"R@5": text}, {"R@5": SURE}, 0.95).verdict == verdict


@pytest.mark.parametrize(
    ("scored", "verdict", "reason"),
    [
        (95, "pass", "0.6 [0.55, 0.65]"),
        (94, "cannot-tell", "94 of 100 questions were scored, fewer than 95%"),
    ],
)
def test_too_few_scored_questions_decide_nothing(scored: int, verdict: str, reason: str) -> None:
    """The questions that failed may be the hard ones."""
    estimate = Estimate(0.6, 0.55, 0.65, scored, 100 - scored)
    (outcome,) = decide({"R@5": ">= 0.5"}, {"R@5": estimate}, 0.95).outcomes
    assert (outcome.verdict, outcome.reason) == (verdict, reason)


@pytest.mark.parametrize("metrics", [{}, {"R@5": Estimate(None, None, None, 0, 0)}])
def test_nothing_scored_is_not_a_pass(metrics: dict[str, Estimate]) -> None:
    """A gate on a metric that applies to no question cannot be met."""
    (outcome,) = decide({"R@5": ">= 0"}, metrics, 0.95).outcomes
    assert (outcome.verdict, outcome.reason) == ("cannot-tell", "no question was scored")


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ({}, "none"),
        ({"R@5": ">= 0.5"}, "pass"),
        ({"R@5": ">= 0.5", "P@5": ">= 0.5"}, "cannot-tell"),
        ({"R@5": ">= 0.9", "P@5": ">= 0.5"}, "fail"),
    ],
)
def test_the_worst_rule_is_the_verdict(gate: dict[str, str], verdict: str) -> None:
    """A failure is certain whatever the others could not tell."""
    assert decide(gate, {"R@5": SURE}, 0.95).verdict == verdict


def test_the_result_as_json() -> None:
    """In the shape that `eval --json` promises."""
    assert decide({"R@5": ">= 0.60"}, {"R@5": SURE}, 0.95).to_json() == {
        "verdict": "pass",
        "rules": [
            {"metric": "R@5", "rule": ">= 0.6", "value": 0.6, "verdict": "pass", "reason": "0.6 [0.55, 0.65]"}
        ],
    }
