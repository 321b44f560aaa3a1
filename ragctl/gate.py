"""The gate: rules on metrics, and what an evaluation says to them.

A rule is a metric, an operator and a bar: `nDCG@10: ">= 0.6"`. The measured value decides. A rule that asks for
confidence, `">= 0.6 at 95%"`, holds the whole 95 % interval against the bar: it passes when every value in the interval
would, fails when none would, and cannot tell when the interval straddles the bar. Either way a rule cannot tell when
nothing was scored, or a smaller share of the questions than `evaluation.min_scored`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Literal

from ragctl.errors import ConfigError
from ragctl.estimates import Estimate
from ragctl.metrics import check_metric

RuleVerdict = Literal["pass", "fail", "cannot-tell"]
Verdict = Literal["pass", "fail", "cannot-tell", "none"]

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {">=": ge, ">": gt, "<=": le, "<": lt}
_RULE = re.compile(
    r"\s*(?P<operator>>=|<=|>|<)\s*(?P<bar>\d+(?:\.\d+)?|\.\d+)(?P<confident>\s+at\s+95\s*%)?\s*"
)


@dataclass(frozen=True, slots=True)
class Rule:
    metric: str
    operator: str  # ">=", ">", "<=" or "<"
    bar: float
    confident: bool  # the interval decides, not the value

    def __str__(self) -> str:
        return f"{self.operator} {self.bar:.12g}{' at 95%' if self.confident else ''}"

    def met_by(self, value: float) -> bool:
        return _OPERATORS[self.operator](value, self.bar)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation says to one rule, and why."""

    rule: Rule
    verdict: RuleVerdict
    reason: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """The outcomes; a failed rule outweighs one that cannot tell, and that one the rules that pass."""

    outcomes: tuple[Outcome, ...]

    @property
    def verdict(self) -> Verdict:
        verdicts = {outcome.verdict for outcome in self.outcomes}
        ranked: tuple[RuleVerdict, ...] = ("fail", "cannot-tell", "pass")
        return next((verdict for verdict in ranked if verdict in verdicts), "none")

    def to_json(self) -> dict[str, object]:
        return {
            "verdict": self.verdict,
            "rules": [
                {
                    "metric": outcome.rule.metric,
                    "rule": str(outcome.rule),
                    "value": outcome.value,
                    "verdict": outcome.verdict,
                    "reason": outcome.reason,
                }
                for outcome in self.outcomes
            ],
        }


def parse_rule(metric: str, text: str) -> Rule:
    """A rule such as (`nDCG@10`, `>= 0.6`). Raises ConfigError for an unknown metric or a rule that is none."""
    check_metric(metric)
    match = _RULE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{metric}: {text!r} is no rule; write an operator and a number: '>= 0.6', '<= 1.5 at 95%'"
        )
    return Rule(metric, match["operator"], float(match["bar"]), confident=match["confident"] is not None)


def parse_gate(gate: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of a gate. Raises ConfigError with every fault."""
    rules, faults = [], []
    for metric, text in gate.items():
        try:
            rules.append(parse_rule(metric, text))
        except ConfigError as error:
            faults.append(error.message)
    if faults:
        raise ConfigError("; ".join(faults))
    return tuple(rules)


def decide(gate: Mapping[str, str], metrics: Mapping[str, Estimate], min_scored: float) -> GateResult:
    """Hold metrics against a gate; `min_scored` is the smallest share of scored questions that may decide."""
    return GateResult(
        tuple(_outcome(rule, metrics.get(rule.metric), min_scored) for rule in parse_gate(gate))
    )


def _outcome(rule: Rule, estimate: Estimate | None, min_scored: float) -> Outcome:
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return Outcome(rule, "cannot-tell", "no question was scored")
    count = estimate.scored + estimate.unscored
    if estimate.scored < min_scored * count:
        reason = f"{estimate.scored} of {count} questions were scored, fewer than {min_scored:.0%}"
        return Outcome(rule, "cannot-tell", reason, estimate.value)
    interval = f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
    met = {
        rule.met_by(end) for end in ((estimate.low, estimate.high) if rule.confident else (estimate.value,))
    }
    if len(met) == 2:
        return Outcome(rule, "cannot-tell", f"{interval} straddles the bar", estimate.value)
    verdict: RuleVerdict = "pass" if met == {True} else "fail"
    return Outcome(rule, verdict, interval, estimate.value)
