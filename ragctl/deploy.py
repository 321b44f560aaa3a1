"""Deploy the experiment's models: record what is about to exist, make it, wait, probe; undo it on any failure.

What is to be done is decided in deploy_plan.py. Every resource is in the record before its create, so that even a
killed run leaves nothing that teardown does not find.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ragctl import deployment, teardown
from ragctl.cost import per_hour
from ragctl.deploy_plan import Step, Tools, model_of, plan, resources_of
from ragctl.deployment import (
    CREATED_TAG,
    EXPIRES_TAG,
    MODEL_TAG,
    ROLE_TAG,
    STACK_TAG,
    VERSION_TAG,
    Model,
    Record,
    Ref,
)
from ragctl.durations import seconds
from ragctl.errors import LeaseHeld, NotFound, RagctlError, ServiceError
from ragctl.indexes import Resource
from ragctl.state import Conflict

if TYPE_CHECKING:
    from ragctl.blueprint import Blueprint
    from ragctl.config import Experiment
    from ragctl.deploy_plan import Action

log = logging.getLogger("ragctl.deploy")

FIRST_POLL_S, POLL_S = 0.5, 10.0  # between two looks at what is coming up; they become rarer
# A config that was made a moment ago may not be seen by CreateEndpoint yet (SageMaker API reference, CreateEndpoint).
UNSEEN_TRIES: Final = 5
UNSEEN_DELAY_S = 2.0

DONE: Final[Mapping[Action, str]] = {
    "create": "created",
    "keep": "kept",
    "replace": "replaced",
    "use": "in use",
}


# Is told the steps, and what a `run` that was killed has left; says what stays up when the command has ended, None: all.
Begin = Callable[[Sequence[Step], frozenset[Ref]], Collection[Ref] | None]


class Interrupted(Exception):
    """The run was told to stop."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the models."""

    steps: tuple[Step, ...]
    resources: tuple[Resource, ...]
    record: Record | None


def deploy(
    experiment: Experiment,
    tools: Tools,
    *,
    replace_differing: bool = False,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    tell: Callable[[str], None] = lambda _: None,
    begin: Begin = lambda *_: None,
) -> Outcome:
    """Deploy what the experiment's sections of kind sagemaker name; see `plan` for what is refused before.

    Idempotent. When a step fails or `stop` is set, what this run made is removed again; what cannot be removed is
    named in the error and stays in the record for teardown. `begin` is called before anything is changed.
    Raises Interrupted after `stop`.
    """
    record, version = deployment.read(tools.state, experiment.name)
    steps = plan(experiment, tools, record, replace_differing=replace_differing)
    if dry_run:
        shown = tuple(
            Resource("endpoint", s.endpoint, f"would {s.action}", _about(s) + per_hour(s.usd_per_hour))
            for s in steps
        )
        return Outcome(tuple(steps), shown, record)
    for step in steps:
        tell(
            f"{step.role}: {step.action} endpoint {step.endpoint}: {_about(step)}{per_hour(step.usd_per_hour)}"
        )
    stays = begin(steps, record.passing if record else frozenset())
    return _Run(experiment, tools, steps, record, version, stays, stop or threading.Event(), tell).go()


def _about(step: Step) -> str:
    return f"{step.instance_count} x {step.instance_type}, " if step.instance_type else ""


class _Run:
    """One deployment under way: what it has made so far, and the record as it is saved."""

    def __init__(
        self,
        experiment: Experiment,
        tools: Tools,
        steps: Sequence[Step],
        record: Record | None,
        version: str | None,
        stays: Collection[Ref] | None,
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> None:
        self._experiment, self._tools, self._steps = experiment, tools, steps
        self._stop, self._tell = stop, tell
        self._control = tools.control
        self._version = version
        self._stays = stays
        self._halt = threading.Event()  # one model failed, or the run is to stop: the others end their waits
        self._made: set[Ref] = set()
        self._now = datetime.now(UTC)
        self._expires = deployment.expiry(experiment, self._now)
        from ragctl.adapters.aws import region

        self._before = self._record = record or Record(experiment.name, region(experiment))

    def go(self) -> Outcome:
        """Make everything or nothing."""
        self._save(self._announced())
        try:
            self._make_all()
            models = self._probed()
            self._tidy()
            self._save(replace(self._record, models={**self._record.models, **models}))
        except LeaseHeld:  # the endpoints may be theirs by now
            raise
        except BaseException as error:
            self._undo(error)
            raise
        resources = tuple(
            Resource(ref.type, ref.name, DONE[step.action] if ref == step.ref else _did(ref in self._made))
            for step in self._steps
            for ref in sorted(
                resources_of(self._experiment, step), key=lambda ref: deployment.KINDS.index(ref.type)
            )
        )
        return Outcome(tuple(self._steps), resources, self._record)

    # --- the record ---

    def _announced(self) -> Record:
        """The record with all that is about to exist, or is taken over."""
        record = self._record
        for step in self._steps:
            if step.action == "create" or step.role not in record.models or self._changes_vectors(step):
                record = record.with_model(
                    step.role, replace(model_of(self._experiment, step, self._expires), ready=False)
                )
            if step.ours:
                record = record.owning(resources_of(self._experiment, step) | step.old)
        return replace(record, passing=self._passing(record))

    def _passing(self, record: Record) -> frozenset[Ref]:
        """What is to be gone when a `run` ends. Of what a killed one has left, deploy-models keeps what it was asked for."""
        if self._stays is not None:
            return record.resources - frozenset(self._stays)
        asked_for = (resources_of(self._experiment, step) | step.old for step in self._steps)
        return record.passing.difference(*asked_for)

    def _changes_vectors(self, step: Step) -> bool:
        """Whether for a while nobody knows which model embeds: what uses the record must not mix their vectors."""
        before, now = self._before.models.get(step.role), model_of(self._experiment, step, self._expires)
        if before is None or step.action != "replace" or step.role != "embedding":
            return False
        return (before.model_id, before.model_version) != (now.model_id, now.model_version)

    def _save(self, record: Record) -> None:
        try:
            self._version = deployment.write(self._tools.state, record, self._version)
        except Conflict as error:
            raise LeaseHeld(
                f"{self._tools.state.place}: somebody else deploys this experiment at the same time",
                hint="run the command again when they are done",
            ) from error
        self._record = record

    # --- making ---

    def _make_all(self) -> None:
        with ThreadPoolExecutor(max(1, len(self._steps)), "deploy") as pool:
            futures = [pool.submit(self._make, step) for step in self._steps]
            try:
                waiting: set[Any] = set(futures)
                while waiting and not self._stop.is_set():
                    done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                self._halt.set()
        if self._stop.is_set():
            raise Interrupted

    def _make(self, step: Step) -> None:
        wanted = step.blueprint
        if wanted is None or step.action == "use":
            self._await(step.ref)
            return
        if step.action == "create" and step.old:
            self._remove_failed(step)
        self._ensure(step, Ref("model", wanted.model_name), wanted.model)
        self._ensure(step, Ref("endpoint-config", wanted.config_name), wanted.config)
        if step.action == "replace":
            self._update(step)
        else:
            self._ensure_endpoint(step, wanted)
        endpoint = self._await(step.ref)
        if endpoint.get("EndpointConfigName") != wanted.config_name:
            raise ServiceError(
                f"endpoint {step.endpoint} went back to its old config: "
                f"{endpoint.get('FailureReason', 'the service gives no reason')}",
                hint=_LOGS,
            )
        if wanted.component_name and wanted.component:
            component = Ref("inference-component", wanted.component_name)
            self._ensure(step, component, {"EndpointName": step.endpoint, **wanted.component})
            self._await(component)
        self._scale(step, wanted)

    def _ensure(self, step: Step, ref: Ref, request: Mapping[str, Any]) -> None:
        """Make it unless it is there; it counts as made from before the call, whose reply may be lost."""
        self._go_on()
        if self._control.describe(ref) is None:
            self._made.add(ref)
            self._control.create(ref, request, self._tags(step))
            self._tell(f"{step.role}: {ref} created")

    def _ensure_endpoint(self, step: Step, wanted: Blueprint) -> None:
        request = {"EndpointConfigName": wanted.config_name}
        for tried in range(1, UNSEEN_TRIES + 1):
            try:
                self._ensure(step, step.ref, request)
            except NotFound:
                if tried == UNSEEN_TRIES:
                    raise
                self._halt.wait(UNSEEN_DELAY_S)
            else:
                return

    def _update(self, step: Step) -> None:
        self._go_on()
        assert step.blueprint is not None
        found = self._control.describe(step.ref)
        if found is not None and found["EndpointConfigName"] != step.blueprint.config_name:
            self._control.update_endpoint(step.endpoint, step.blueprint.config_name)
            self._tell(f"{step.role}: {step.ref} updating; the old instances serve until the new ones do")

    def _remove_failed(self, step: Step) -> None:
        self._tell(f"{step.role}: {step.ref} has failed before and is removed first")
        teardown.refuse_leftovers(teardown.remove(self._control, step.old, tell=self._tell))

    def _scale(self, step: Step, wanted: Blueprint) -> None:
        bounds = getattr(self._experiment.deployment, step.role).autoscaling
        if bounds is None:
            return
        # The target before its alarm
        for ref in sorted(resources_of(self._experiment, step) - wanted.refs, reverse=True):
            self._go_on()
            if self._control.describe(ref) is None:
                self._made.add(ref)
            if ref.type == "scaling-target":
                self._control.scaling.register(ref, bounds, self._tags(step))
            else:
                assert wanted.component_name is not None
                self._control.scaling.wake(ref, wanted.component_name, self._tags(step))

    def _await(self, ref: Ref) -> Mapping[str, Any]:
        """What the service says once it is in service. ServiceError when it fails, vanishes or takes too long."""
        limit = self._experiment.deployment.timeout
        deadline = time.monotonic() + seconds(limit, "deployment.timeout")
        status, pause_s = "", FIRST_POLL_S
        while True:
            self._go_on()
            described = self._control.describe(ref)
            if described is None:
                raise ServiceError(f"{ref} is gone: somebody removed it while it was waited for")
            now = str(described.get("EndpointStatus") or described.get("InferenceComponentStatus"))
            if now == "InService":
                return described
            if now in ("Failed", "UpdateRollbackFailed", "Deleting", "OutOfService"):
                raise ServiceError(
                    f"{ref} is {now}: {described.get('FailureReason', 'no reason given')}", hint=_LOGS
                )
            if now != status:
                self._tell(f"{ref}: {now}")
                status = now
            if time.monotonic() >= deadline:
                raise ServiceError(
                    f"{ref} is still {now} after {limit}",
                    hint="a missing image, role or capacity looks like this; a large model may need a longer "
                    "deployment.timeout",
                )
            self._halt.wait(min(pause_s, POLL_S))
            pause_s *= 1.5

    def _go_on(self) -> None:
        if self._halt.is_set() or self._stop.is_set():
            raise Interrupted

    def _tags(self, step: Step) -> dict[str, str]:
        resolved = step.blueprint.resolved if step.blueprint else None
        tags = {
            STACK_TAG: self._experiment.name,
            ROLE_TAG: step.role,
            CREATED_TAG: deployment.timestamp(self._now),
            EXPIRES_TAG: self._expires,
            MODEL_TAG: resolved.model_id if resolved else None,
            VERSION_TAG: resolved.version if resolved else None,
            # The tags by which AWS's own console and SDK know a JumpStart model.
            "sagemaker-sdk:jumpstart-model-id": resolved.model_id if resolved else None,
            "sagemaker-sdk:jumpstart-model-version": resolved.version if resolved else None,
        }
        return {key: value for key, value in tags.items() if value is not None}

    # --- the end, good or bad ---

    def _probed(self) -> dict[str, Model]:
        """The models as they are recorded once ready, with the dimension that the embedding model answers."""
        models: dict[str, Model] = {
            step.role: model_of(self._experiment, step, self._expires) for step in self._steps
        }
        if "embedding" in models:
            dimension = self._tools.probe(asdict(models["embedding"]))
            models["embedding"] = replace(models["embedding"], dimension=dimension)
        return models

    def _tidy(self) -> None:
        """Renew the leases of what was there before, mark what is taken over, remove what is not needed any more."""
        for step in self._steps:
            if not step.ours:
                continue
            kept = resources_of(self._experiment, step) | (
                step.old if step.blueprint is None else frozenset()
            )
            for ref in sorted(kept - self._made):
                self._renew(step, ref)
            if step.action != "use":
                self._remove_stale(step)

    def _remove_stale(self, step: Step) -> None:
        """What the endpoint was made of before and is not any more: by this run, or by one that ended too early."""
        wanted = frozenset(ref for each in self._steps for ref in resources_of(self._experiment, each))
        assert step.blueprint is not None
        before = {ref for ref in self._record.resources if step.blueprint.is_version_of_ours(ref)}
        outcome = teardown.remove(self._control, (step.old | before) - wanted, tell=self._tell)
        self._record = self._record.without(teardown.gone(outcome))
        for item in outcome:
            if item.action == "left":
                log.warning(
                    "%s %s is not needed any more and could not be removed: %s",
                    item.type,
                    item.name,
                    item.status,
                )

    def _renew(self, step: Step, ref: Ref) -> None:
        arn = self._control.arn(ref)
        if arn is None:
            return
        tags = {key: value for key, value in self._tags(step).items() if key != CREATED_TAG}
        if self._expires is None:
            self._control.remove_tags(arn, EXPIRES_TAG)
        self._control.add_tags(arn, tags)

    def _undo(self, error: BaseException) -> None:
        """Remove what this run made; what is left stays in the record, and the error says so."""
        self._tell("undoing what was made")
        made, models = set(self._made), dict(self._record.models)
        for step in self._steps:
            if step.action != "replace":
                continue
            if self._is_on_new(step):  # the update was accepted and cannot be called back; both stay recorded
                made -= resources_of(self._experiment, step)
            elif step.role in self._before.models:
                models[step.role] = self._before.models[step.role]
        outcome = teardown.remove(self._control, made, tell=self._tell)
        passing = self._record.passing | self._before.passing
        try:
            self._save(replace(self._record, models=models, passing=passing).without(teardown.gone(outcome)))
        except ServiceError as fault:
            log.warning("the record still names what is gone, which the next teardown puts right: %s", fault)
        left = [f"{item.type} {item.name} ({item.status})" for item in outcome if item.action == "left"]
        if left:
            words = (
                f"still there, and perhaps costing: {', '.join(left)}; run: ragctl teardown CONFIG --models"
            )
            log.error("%s", words)
            if isinstance(error, RagctlError):
                error.message = f"{error.message}; {words}"
                error.args = (error.message,)

    def _is_on_new(self, step: Step) -> bool:
        """Whether the endpoint is, or may be, on the new config, once an update that is under way has ended."""
        wanted = step.blueprint
        if wanted is None or Ref("endpoint-config", wanted.config_name) not in self._made:
            return False
        deadline = time.monotonic() + seconds(self._experiment.deployment.timeout, "deployment.timeout")
        pause = threading.Event()
        while time.monotonic() < deadline:
            try:
                found = self._control.describe(step.ref)
            except ServiceError:
                return True
            if found is None or found["EndpointStatus"] not in ("Updating", "RollingBack"):
                return found is not None and found["EndpointConfigName"] == wanted.config_name
            pause.wait(POLL_S)
        return True


def _did(made: bool) -> str:
    return "created" if made else "kept"


_LOGS: Final = "the container's log is in CloudWatch, group /aws/sagemaker/Endpoints/NAME"
