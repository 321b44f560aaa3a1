"""Ask the questions of a data set, score the answers, and hold the result against the gate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

from ragctl.config import Evaluation
from ragctl.datasets import Question
from ragctl.errors import (
    ConfigError,
    CredentialsError,
    NotFound,
    PermissionDenied,
    RagctlError,
    Refused,
    TenantLeak,
)
from ragctl.estimates import Estimate, by_metric, percentiles
from ragctl.evidence import held
from ragctl.gate import GateResult, decide
from ragctl.metrics import (
    ANSWER_METRICS,
    PERCENTILES,
    STAGES,
    answer_metrics,
    answer_scores,
    is_rank_metric,
    is_rate,
    latency_metric,
    rank_applies,
    rank_scores,
    require_ir_measures,
    retrieval_depth,
)
from ragctl.records import Answer, Citation, Hit, Usage

failures_log = logging.getLogger("ragctl.failure")

Ask = Callable[[Question], Answer]

KEPT_HITS = 10  # per question, for the report
EXCERPT = 300  # characters kept of a hit's text

# Errors after which no other question can fare better: the rest is not asked, what was answered is kept.
_FINAL = (ConfigError, CredentialsError, PermissionDenied, NotFound, Refused)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question has no answer."""

    stage: str  # "query", or "not asked" after an error that every question would meet
    error: str


@dataclass(frozen=True, slots=True)
class Found:
    """A hit as the report shows it."""

    key: str
    document: str
    page: int | None
    score: float
    relevant: bool  # holds evidence, also if a hit before it did; or is of a document judged relevant
    excerpt: str


@dataclass(frozen=True, slots=True)
class Row:
    """One question with its answer and scores; a score of None: the metric applies, but the question failed."""

    question: Question
    scores: Mapping[str, float | None]
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage, and "total"
    hits: tuple[Found, ...] = ()
    answer: str | None = None
    abstained: bool = False
    citations: tuple[Citation, ...] = ()
    usage: Usage = field(default_factory=Usage)
    failure: Failure | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.question.id,
            "question": self.question.question,
            "tags": list(self.question.tags),
            "reference": self.question.answer,
            "answer": self.answer,
            "abstained": self.abstained,
            "citations": [
                {"marker": c.marker, "key": c.key, "document": c.document, "page": c.page}
                for c in self.citations
            ],
            "hits": [
                {
                    "key": h.key,
                    "document": h.document,
                    "page": h.page,
                    "score": h.score,
                    "relevant": h.relevant,
                }
                for h in self.hits
            ],
            "scores": dict(self.scores),
            "seconds": dict(self.seconds),
            "failure": {"stage": self.failure.stage, "error": self.failure.error} if self.failure else None,
        }


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The result of an evaluation; rows stand in the order of the questions."""

    metrics: Mapping[str, Estimate]
    tags: Mapping[str, Mapping[str, Estimate]]  # tag -> metrics of its questions, without latencies
    rows: tuple[Row, ...]
    gate: GateResult

    @property
    def failures(self) -> list[dict[str, str]]:
        return [
            {"question": row.question.id, "stage": row.failure.stage, "error": row.failure.error}
            for row in self.rows
            if row.failure
        ]

    @property
    def usage(self) -> Usage:
        return sum((row.usage for row in self.rows), Usage())

    def to_json(self, run: str, report: str) -> dict[str, object]:
        """What `eval --json` prints; `run` and `report` are the paths of run.json and report.html."""
        return {
            "schema": "ragctl.eval/1",
            "run": run,
            **self._results(),
            "failures": self.failures,
            "report": report,
        }

    def payload(self) -> dict[str, object]:
        """What run.json keeps of an evaluation."""
        return {
            **self._results(),
            "tags": {tag: _plain(metrics) for tag, metrics in self.tags.items()},
            "counts": {"questions": len(self.rows), "failed": len(self.failures)},
            "tokens": {"input": self.usage.input_tokens, "output": self.usage.output_tokens},
            "failures": self.failures,
            "rows": [row.to_json() for row in self.rows],
        }

    def _results(self) -> dict[str, object]:
        return {"metrics": _plain(self.metrics), "gate": self.gate.to_json()}


def _plain(metrics: Mapping[str, Estimate]) -> dict[str, object]:
    return {name: estimate.to_json() for name, estimate in metrics.items()}


def rank_metrics(evaluation: Evaluation) -> tuple[str, ...]:
    """The rank metrics to compute: those asked for, and those that the gate asks about."""
    return tuple(dict.fromkeys([*evaluation.metrics, *filter(is_rank_metric, evaluation.gate)]))


def depth(question: Question, evaluation: Evaluation) -> int:
    """How many hits `ask` should retrieve; the generator may read fewer, the rest then stands in `Answer.cut`."""
    return retrieval_depth(rank_metrics(evaluation), question)


def wants_answer(question: Question, evaluation: Evaluation) -> bool:
    """Whether `ask` should generate an answer: a BEIR query has none to compare with, so none is paid for."""
    return evaluation.answers and bool(answer_metrics(question))


def evaluate(
    questions: Sequence[Question],
    ask: Ask,
    evaluation: Evaluation,
    on_row: Callable[[Row], None] | None = None,
) -> Evaluated:
    """Ask every question, `evaluation.concurrency` at a time, and score what comes back.

    `ask` is called from several threads. Its hits, followed by `Answer.cut`, are the ranking. A RagctlError fails
    its question and no other; when every question fails, the first error is raised, for there is nothing to report,
    and a TenantLeak always is. `on_row` is called in this thread for each question, in order. MissingExtra comes
    before the first question.
    """
    names = rank_metrics(evaluation)
    if names:
        require_ir_measures()
    rows, errors = [], []
    for question, reply in zip(questions, _replies(questions, ask, evaluation.concurrency), strict=True):
        row = _row(question, reply, names, evaluation)
        rows.append(row)
        errors += [reply.error] if isinstance(reply, _Failed) else []
        if on_row:
            on_row(row)
    if errors and len(errors) == len(rows):
        raise errors[0]
    return _aggregated(tuple(rows), evaluation)


# --- asking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answered:
    answer: Answer
    seconds: float  # as the caller of `ask` waits


@dataclass(frozen=True, slots=True)
class _Failed:
    stage: str
    error: RagctlError


class _Asker:
    """Asks one question and times it; stops asking after an error that every question would meet."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._final: RagctlError | None = None  # written once or more, always with an error just as final

    def __call__(self, question: Question) -> _Answered | _Failed:
        if self._final is not None:
            return _Failed("not asked", self._final)
        started = perf_counter()
        try:
            return _Answered(self._ask(question), perf_counter() - started)
        except TenantLeak:
            raise  # no score is worth having from a store that mixes tenants up
        except RagctlError as error:
            fields = {"question": question.id, "stage": "query", "error": error.message}
            failures_log.warning("question failed", extra={"fields": fields})
            if isinstance(error, _FINAL):
                self._final = error
            return _Failed("query", error)


def _replies(questions: Sequence[Question], ask: Ask, concurrency: int) -> Iterator[_Answered | _Failed]:
    """In the order of the questions. On Ctrl-C or a bug the questions under way end, the others never start."""
    executor = ThreadPoolExecutor(concurrency, thread_name_prefix="ask")
    try:
        yield from executor.map(_Asker(ask), questions)
    finally:
        executor.shutdown(cancel_futures=True)


# --- scoring ---------------------------------------------------------------------------------------------


def _row(question: Question, reply: _Answered | _Failed, names: Sequence[str], evaluation: Evaluation) -> Row:
    ranked = names if rank_applies(question) else ()
    answered = answer_metrics(question) if wants_answer(question, evaluation) else ()
    if isinstance(reply, _Failed):
        failure = Failure(reply.stage, f"{type(reply.error).__name__}: {reply.error.message}")
        return Row(question, dict.fromkeys((*ranked, *answered)), failure=failure)
    answer = reply.answer
    hits = (*answer.hits, *answer.cut)
    scores: dict[str, float | None] = {**rank_scores(ranked, question, hits)}
    if answered:
        scores |= answer_scores(question, answer) if answer.text is not None else dict.fromkeys(answered)
    return Row(
        question,
        scores,
        seconds={**answer.timings, "total": reply.seconds},
        hits=_kept(question, hits[:KEPT_HITS]),
        answer=answer.text,
        abstained=answer.abstained,
        citations=answer.citations,
        usage=answer.usage,
    )


def _kept(question: Question, hits: Sequence[Hit]) -> tuple[Found, ...]:
    return tuple(
        Found(
            key=hit.key,
            document=hit.document,
            page=hit.page,
            score=hit.score,
            relevant=bool(holding) or question.relevant.get(hit.document, 0) > 0,
            excerpt=hit.text[:EXCERPT],
        )
        for hit, holding in zip(hits, held(question.evidence, hits), strict=True)
    )


def _aggregated(rows: tuple[Row, ...], evaluation: Evaluation) -> Evaluated:
    metrics = {**_estimates(rows), **_latencies(rows)}
    tags = sorted({tag for row in rows for tag in row.question.tags})
    return Evaluated(
        metrics=metrics,
        tags={tag: _estimates([row for row in rows if tag in row.question.tags]) for tag in tags},
        rows=rows,
        gate=decide(evaluation.gate, metrics, evaluation.min_scored),
    )


def _estimates(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Rank metrics in the order of the configuration, then answer metrics in that of `ANSWER_METRICS`."""
    found = by_metric([row.scores for row in rows], is_rate)
    ranked = [name for name in found if name not in ANSWER_METRICS]
    return {name: found[name] for name in (*ranked, *ANSWER_METRICS) if name in found}


def _latencies(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Percentiles of every stage that some question went through; a failed question has no time."""
    unscored = sum(row.failure is not None for row in rows)
    found: dict[str, Estimate] = {}
    for stage in ("total", *STAGES):
        seconds = [row.seconds[stage] for row in rows if stage in row.seconds]
        if seconds:
            for percent, estimate in percentiles(seconds, unscored, PERCENTILES).items():
                found[latency_metric(stage, percent)] = estimate
    return found
