from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from ragctl.commands.options import (
    Config,
    DryRun,
    Index,
    Json,
    LogJson,
    Output,
    Quiet,
    Set,
    Verbose,
    load,
    no_colour,
    setup,
    shown,
)
from ragctl.commands.recording import recording

if TYPE_CHECKING:
    from pathlib import Path

    from ragctl.config import Evaluation, Experiment
    from ragctl.datasets import Question
    from ragctl.evaluate import Evaluated
    from ragctl.query import QueryEngine
    from ragctl.records import Answer
    from ragctl.report import Run
    from ragctl.spending import EvalBill

WIDE = 1_000  # characters of a line: rich leaves out what a narrower one does not hold, in a pipe at 80


def command(
    config: Config,
    overrides: Set = None,
    *,
    index: Index = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Ask the questions of the experiment's data set, score the answers, hold them against the gate.

    \b
    Exit status:
      0 gate met or none, 3 some questions failed, 4 gate not met, 5 the gate cannot be decided
    \b
    Examples:
      ragctl eval configs/samples.yaml
      ragctl eval configs/samples.yaml --set retrieval.mode=text --json
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.check import check
    from ragctl.datasets import load_questions
    from ragctl.errors import ConfigError
    from ragctl.indexes import named

    evaluation = experiment.evaluation
    if evaluation is None:
        raise ConfigError(
            f"{config} has no evaluation section", hint="name a data set under evaluation.dataset"
        )
    check(experiment, config)
    experiments = named(experiment, index)
    questions = load_questions(evaluation.dataset)
    if dry_run:
        output.result(
            {"schema": "ragctl.eval/1", "dry_run": True, "questions": len(questions)},
            lambda: typer.echo(f"would ask {len(questions):,} questions"),
        )
        return
    done = perform(experiments, evaluation, questions, output)
    output.results(
        {name: one.to_json() for name, one in done.items()},
        lambda name: show(done[name], name if len(done) > 1 else None, output),
    )
    conclude(list(done.values()), output)


@dataclass(frozen=True, slots=True)
class Done:
    """The evaluation of one index, with its record and its page."""

    experiment: Experiment
    evaluated: Evaluated
    run: Run
    page: Path
    bill: EvalBill

    def to_json(self) -> dict[str, object]:
        document = self.evaluated.to_json(str(self.run.path), str(self.page))
        return {**document, "cost": self.bill.to_json()}


def perform(
    experiments: Sequence[Experiment],
    evaluation: Evaluation,
    questions: tuple[Question, ...],
    output: Output,
) -> dict[str, Done]:
    """Evaluate one index after the other, by name, until the budget, which is one for all, is spent."""
    done: dict[str, Done] = {}
    bill: EvalBill | None = None
    for one in experiments:
        done[one.store.index] = found = _evaluate(one, evaluation, questions, output, bill)
        bill = found.bill
        if found.bill.is_spent:
            break
    return done


def conclude(done: Sequence[Done], output: Output) -> None:
    """Track the evaluations, and raise what they end with."""
    try:
        for one in done:
            _track(one, output)
    finally:
        _end(done)  # a gate that is not met outweighs an MLflow that cannot be reached


def _evaluate(
    experiment: Experiment,
    evaluation: Evaluation,
    questions: tuple[Question, ...],
    output: Output,
    before: EvalBill | None,
) -> Done:
    from ragctl.evaluate import evaluate
    from ragctl.loading import masked
    from ragctl.query import QueryEngine
    from ragctl.report import require_jinja, write_page
    from ragctl.spending import EvalBill
    from ragctl.tracking import require_mlflow

    require_jinja()
    if experiment.tracking is not None:
        require_mlflow(experiment.tracking)
    bill = EvalBill.of(experiment, before)
    with recording("eval", experiment) as run, QueryEngine(experiment) as engine:
        _warn_of_absent(experiment, questions)
        if questions:
            # So that latencies are those of a warm engine
            engine.warm_up(questions[0].question, questions[0].tenant)
        done = _Counter(len(questions), output)
        ask = bill.limited(lambda question: _ask(engine, evaluation, question))
        evaluated = evaluate(questions, ask, evaluation, lambda _: done.step())
        done.close()
        run.finish(
            "interrupted" if bill.is_spent else "done", {**evaluated.payload(), "cost": bill.to_json()}
        )
    # After the record is closed: a page that cannot be written must not turn it into that of a failed run.
    page = write_page(evaluated, run, masked(experiment))
    return Done(experiment, evaluated, run, page, bill)


def _warn_of_absent(experiment: Experiment, questions: tuple[Question, ...]) -> None:
    """Say how many documents that should be found are not in the index: their questions cannot score.

    Without a ledger nobody knows, and that is said instead.
    """
    import logging

    from ragctl.ingest import reading_ledger
    from ragctl.matching import warn_unless_filled
    from ragctl.state import open_state
    from ragctl.tenancy import per_index

    absent = {document for question in questions for document in question.documents}
    state = open_state(experiment)
    for one in per_index(experiment, state):
        with reading_ledger(state, one.store.index) as ledger:
            if not warn_unless_filled(ledger, one.store.index):
                return
            absent = {id_ for id_ in absent if ledger.document(id_) is None and not ledger.file(id_)}
    if absent:
        some = ", ".join(sorted(absent)[:3])
        logging.getLogger("ragctl.eval").warning(
            "%d documents of the data set are not indexed: %s", len(absent), some
        )


def _ask(engine: QueryEngine, evaluation: Evaluation, question: Question) -> Answer:
    from ragctl.evaluate import depth, wants_answer
    from ragctl.query import QueryOptions

    options = QueryOptions(
        filter=question.filter,
        tenant=question.tenant,
        depth=depth(question, evaluation),
        retrieve_only=not wants_answer(question, evaluation),
    )
    return engine.ask(question.question, options)


def _track(done: Done, output: Output) -> None:
    """Log to MLflow where the experiment says so; the evaluation is saved by then, whatever happens here."""
    experiment, run = done.experiment, done.run
    if experiment.tracking is None:
        return
    from ragctl.ingest import reading_ledger
    from ragctl.state import open_state
    from ragctl.tenancy import per_index
    from ragctl.tracking import parameters, track

    state = open_state(experiment)
    chunks, seconds = 0, 0.0
    for one in per_index(experiment, state):
        with reading_ledger(state, one.store.index) as ledger:
            chunks += ledger.counts()[1]
            seconds += float(ledger.meta("chunking_seconds") or 0)
    params = parameters(experiment, chunks=chunks, chunking_seconds=seconds or None)
    tags = {"ragctl.run": run.id, "ragctl.gate": done.evaluated.gate.verdict}
    where = track(experiment.tracking, run.id, params, done.evaluated.metrics, tags, [run.path, done.page])
    output.say(f"tracked: {where}")


class _Counter:
    """Questions answered so far, as a bar where there is a terminal."""

    def __init__(self, total: int, output: Output) -> None:
        self._bar = None
        if output.has_bar:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" questions", file=sys.stderr, leave=False)

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def show(done: Done, index: str | None, output: Output) -> None:
    from rich.console import Console

    from ragctl.report import render_table

    evaluated = done.evaluated
    if index is not None:
        typer.echo(f"index {index}")
    Console(no_color=no_colour(), highlight=False, width=WIDE).print(render_table(evaluated))
    for outcome in evaluated.gate.outcomes:
        if outcome.verdict == "pass":
            continue
        reason = f" ({outcome.reason})" if outcome.reason else ""
        typer.echo(f"gate: {outcome.rule.metric} {outcome.rule}: {outcome.verdict}{reason}")
    for failure in evaluated.failures:
        output.complain(f"failed: {failure['question']} ({failure['stage']}): {failure['error']}")
    typer.echo(f"report: {shown(done.page)}")


def _end(results: Sequence[Done]) -> None:
    from ragctl.errors import GateFailed, GateUndecided, PartialFailure, Refused

    if any(result.bill.is_spent for result in results):
        raise Refused(
            "budget.eval_usd is reached: the other questions were not asked; what was answered is in the report",
            hint="raise budget.eval_usd, or ask fewer questions",
        )
    done = [result.evaluated for result in results]
    verdicts = {evaluated.gate.verdict for evaluated in done}
    if "fail" in verdicts:
        raise GateFailed("the gate is not met")
    if "cannot-tell" in verdicts:
        raise GateUndecided(
            "the gate cannot be decided: too few questions scored, or an interval straddles the bar"
        )
    if failed := sum(len(evaluated.failures) for evaluated in done):
        asked = sum(len(evaluated.rows) for evaluated in done)
        raise PartialFailure(f"{failed:,} of {asked:,} questions failed")
