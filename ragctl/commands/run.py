from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragctl.commands.options import Config, DryRun, Json, LogJson, Output, Quiet, Set, Verbose, load, setup
from ragctl.commands.signals import cleaning_up, stopping_on_signals

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.datasets import Question
    from ragctl.deploy_plan import Step
    from ragctl.deployment import Ref
    from ragctl.errors import PartialFailure, StateError

# "ragctl.run/1" is the record that every command leaves.
SCHEMA = "ragctl.run-command/1"


def command(
    config: Config,
    overrides: Set = None,
    *,
    accept_eula: Annotated[
        bool, typer.Option("--accept-eula", help="You have read the models' licenses and accept them.")
    ] = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Deploy the models, make the index, ingest, evaluate, and remove the models again: all in one go.

    The models that this run deploys are removed whatever happens: a failure, a gate that is not met, Ctrl-C. Models
    that were up before stay up, and the index stays. An experiment without models to deploy goes through the rest.

    \b
    Examples:
      ragctl run configs/samples.yaml
      ragctl run configs/s3vectors-jumpstart.yaml --set deployment.expires_after=4h
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    eulas = [f"deployment.{role}.accept_eula=true" for role in ("embedding", "generation", "reranking")]
    experiment = load(config, [*(overrides or ()), *(eulas if accept_eula else ())])
    questions = _prepare(experiment, config)
    run = _Run(experiment, questions, output)
    try:
        if dry_run:
            run.rehearse()
        else:
            with cleaning_up():
                run.perform()
    finally:
        output.result({"schema": SCHEMA, "dry_run": dry_run, "stages": run.stages}, lambda: None)


def _prepare(experiment: Experiment, config: Path) -> tuple[Question, ...]:
    """The questions; everything that can be found wrong is found before anything is paid for."""
    from ragctl.check import check
    from ragctl.ownership import refuse_any_shared
    from ragctl.spending import EvalBill, IngestBill
    from ragctl.state import open_state

    check(experiment, config)
    state = open_state(experiment)
    IngestBill.of(experiment, state)
    refuse_any_shared(experiment, state)
    evaluation = experiment.evaluation
    if evaluation is None:
        return ()
    from ragctl.datasets import load_questions
    from ragctl.evaluate import rank_metrics
    from ragctl.metrics import require_ir_measures
    from ragctl.report import require_jinja
    from ragctl.tracking import require_mlflow

    EvalBill.of(experiment)
    require_jinja()
    if rank_metrics(evaluation):
        require_ir_measures()
    if experiment.tracking is not None:
        require_mlflow(experiment.tracking)
    return load_questions(evaluation.dataset)


@dataclass(slots=True)
class _Run:
    experiment: Experiment
    questions: tuple[Question, ...]
    output: Output
    stages: dict[str, Any] = field(default_factory=dict)  # what each command would have printed

    def perform(self) -> None:
        with self._models():
            self._create_index(dry_run=False)
            incomplete = self._ingest()
            self._evaluate()
            if incomplete is not None:
                raise incomplete

    def rehearse(self) -> None:
        """Every stage's dry run. What is made by the one before is not there, so some can only say what they are."""
        from ragctl.commands import deploy_models
        from ragctl.deploy_plan import wants_models

        if wants_models(self.experiment):
            outcome, _ = deploy_models.perform(self.experiment, self.output, replace=False, dry_run=True)
            self._say(
                "deploy-models", deploy_models.payload(outcome), lambda: deploy_models.show(outcome, None)
            )
        else:
            self._create_index(dry_run=True)
        self._ingest(dry_run=True)
        self._say(
            "eval",
            {"questions": len(self.questions)},
            lambda: typer.echo(f"would ask {len(self.questions):,} questions"),
        )

    def _say(self, stage: str, document: Any, show: Callable[[], None]) -> None:
        self.stages[stage] = document
        if not self.output.json:
            show()

    # --- the models --------------------------------------------------------------------------------------

    @contextmanager
    def _models(self) -> Iterator[None]:
        """The models are up within the block, and those that it brought up are gone after it."""
        from ragctl import teardown
        from ragctl.commands import deploy_models
        from ragctl.deploy_plan import standing, wants_models

        if not wants_models(self.experiment):
            yield
            return
        stays: frozenset[Ref] | None = None  # None: nothing is begun, so nothing is to be removed

        def begin(steps: Sequence[Step], left: frozenset[Ref]) -> frozenset[Ref]:
            nonlocal stays
            before = teardown.models(self.experiment)
            stays = standing(self.experiment, before.control, before.found, steps) - left
            if left:
                self.output.say(
                    f"{len(left)} resources of models were left by a run that was killed, and go when this one ends"
                )
            return stays

        try:
            outcome, path = deploy_models.perform(
                self.experiment, self.output, replace=False, dry_run=False, begin=begin
            )
            self._say(
                "deploy-models", deploy_models.payload(outcome), lambda: deploy_models.show(outcome, path)
            )
            yield
        finally:
            unwritten = None if stays is None else self._remove_models(stays)
        if unwritten is not None:
            raise unwritten

    def _remove_models(self, stays: Collection[Ref]) -> StateError | None:
        """Why its report is not written, when all else is done: that keeps no model up."""
        import threading
        from dataclasses import replace

        from ragctl import cost, teardown
        from ragctl.adapters.aws import region
        from ragctl.commands.deploy_models import teller
        from ragctl.commands.recording import recording_if_possible
        from ragctl.state import open_state

        prices, where = cost.at_hand(open_state(self.experiment)), region(self.experiment)
        with (
            stopping_on_signals(threading.Event()),
            recording_if_possible("teardown", self.experiment) as record,
        ):
            found = teardown.models(self.experiment)
            ours = tuple(item for item in found.planned if item.ref not in stays)
            outcome = teardown.remove_models(
                replace(found, planned=ours),
                lambda kind: prices.instance(kind, where),
                teller(self.output),
                keep=stays,
            )
            resources = [asdict(resource) for resource in outcome]
            record.finish("done", {"resources": resources})
        self._say("teardown", {"run": record.path, "resources": resources}, lambda: _show_removed(resources))
        if stays:
            self.output.say(f"{len(stays)} resources of models were up before this run, and stay")
        return record.fault

    # --- index, ingest, eval -----------------------------------------------------------------------------

    def _create_index(self, *, dry_run: bool) -> None:
        from ragctl.commands import create_index
        from ragctl.indexes import named

        made = [
            resource
            for one in named(self.experiment)
            for resource in create_index.perform(one, upgrade=False, dry_run=dry_run)
        ]

        def show() -> None:
            for resource in made:
                typer.echo(f"index {resource.name}: {resource.action} ({resource.status})")

        self._say("create-index", {"resources": [asdict(resource) for resource in made]}, show)

    def _ingest(self, *, dry_run: bool = False) -> PartialFailure | None:
        """What is to be said of documents that failed, once the evaluation is done as well."""
        from ragctl.commands import ingest
        from ragctl.errors import PartialFailure
        from ragctl.indexes import named
        from ragctl.ingest import IngestOptions

        options = IngestOptions(dry_run=dry_run)
        done = list(ingest.perform(named(self.experiment), options, self.output))

        def show() -> None:
            for result, path in done:
                ingest.show(result, path, self.output)

        self._say("ingest", {result.index: result.to_json(path) for result, path in done}, show)
        try:
            ingest.conclude([result for result, _ in done])
        except PartialFailure as incomplete:
            return incomplete
        return None

    def _evaluate(self) -> None:
        from ragctl.commands import evaluate
        from ragctl.indexes import named

        evaluation = self.experiment.evaluation
        if evaluation is None:
            self.output.say("the experiment has no evaluation section, so nothing is evaluated")
            return
        done = evaluate.perform(named(self.experiment), evaluation, self.questions, self.output)

        def show() -> None:
            for name, one in done.items():
                evaluate.show(one, name if len(done) > 1 else None, self.output)

        self._say("eval", {name: one.to_json() for name, one in done.items()}, show)
        evaluate.conclude(list(done.values()), self.output)


def _show_removed(resources: list[dict[str, Any]]) -> None:
    for resource in resources:
        typer.echo(f"{resource['type']} {resource['name']}: {resource['action']}")
