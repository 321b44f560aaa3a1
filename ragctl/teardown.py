"""Deployed models and how they go away: find, plan, remove in the right order, look again.

`find` asks the account, `plan` decides without asking anybody, `remove` acts and says what is left. Only what
carries ragctl's tags, or what the deployment record says ragctl made or took over, is ever removed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from ragctl import deployment, instances
from ragctl.blueprint import name_prefix
from ragctl.cost import per_hour
from ragctl.deployment import CREATED_TAG, EXPIRES_TAG, KINDS, STACK_TAG, Record, Ref, is_past, scaling_of
from ragctl.errors import PermissionDenied, ServiceError, Throttled
from ragctl.indexes import Resource
from ragctl.lease import hold

if TYPE_CHECKING:
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.config import Experiment
    from ragctl.cost import Price
    from ragctl.instances import Variant
    from ragctl.state import State

log = logging.getLogger("ragctl.teardown")

POLL_S = 5.0
FIRST_POLL_S = 0.1
USERS: Final = ("inference-component", "endpoint", "endpoint-config")  # kinds that use others
GONE_TIMEOUT_S = 1_800.0
BUSY: Final = ("Creating", "Updating", "SystemUpdating", "RollingBack")
WAIT: Final = (
    "an endpoint that is Creating can be deleted once it has failed or is in service (up to an hour): "
)
STILL: Final = "still"
AGAIN: Final = "run this command again"
YOUNG: Final = timedelta(hours=1)  # a model without an endpoint may be one that is being deployed right now

Selection = Literal["stack", "expired", "orphans"]


class Cloud(Protocol):
    """What removing needs of the account."""

    def describe(self, ref: Ref) -> Mapping[str, Any] | None: ...  # None: absent
    def delete(self, ref: Ref) -> bool: ...  # False: there was none


@dataclass(frozen=True, slots=True)
class Found:
    """Something of ours that exists. `uses`: what must outlive it, by its own words."""

    ref: Ref
    stack: str | None
    status: str = ""
    reason: str | None = None  # why it failed, by the service
    created: str | None = None
    expires: str | None = None
    variants: tuple[Variant, ...] = ()  # of an endpoint, and of an endpoint config
    uses: frozenset[Ref] = frozenset()


# --- find ------------------------------------------------------------------------------------------------


def find(control: ControlPlane, *, stack: str | None = None, record: Record | None = None) -> list[Found]:
    """What is ours: of one stack (by record, tags and names), or of the whole account and region (by tags)."""
    recorded = record.resources if record else frozenset()
    refs = set(recorded) | set(_tagged(control, stack))
    if stack is not None:
        refs |= set(control.named_like(name_prefix(stack)))
    found = [
        item for ref in sorted(refs) for item in _look(control, ref, trusted=ref in recorded, stack=stack)
    ]
    return list({item.ref: item for item in found}.values())


def _tagged(control: ControlPlane, stack: str | None) -> Iterable[Ref]:
    try:
        return list(control.tagged(stack))
    except PermissionDenied as error:
        if stack is None:
            raise  # nothing else names what is ours, and a cron job must not say that all is well
        log.warning("looking for models by name and record only: %s", error)
        return ()


def _look(control: ControlPlane, ref: Ref, *, trusted: bool, stack: str | None) -> list[Found]:
    """The thing as it is now, with its scaling; nothing when it is gone or not ours."""
    described = control.describe(ref)
    if described is None:
        return []
    tags = control.tags_of(ref, described)
    owner = tags.get(STACK_TAG)
    if not trusted and (owner is None or (stack is not None and owner != stack)):
        return []
    found = Found(
        ref,
        owner or stack,
        status=str(described.get("EndpointStatus") or described.get("InferenceComponentStatus") or ""),
        reason=described.get("FailureReason"),
        created=tags.get(CREATED_TAG),
        expires=tags.get(EXPIRES_TAG),
        variants=instances.variants(described),
        uses=_uses(ref, described),
    )
    return [found, *(Found(other, found.stack, uses=frozenset({ref})) for other in _scaling(control, ref))]


def _scaling(control: ControlPlane, ref: Ref) -> list[Ref]:
    try:
        return [other for other in scaling_of(ref) if control.describe(other) is not None]
    except PermissionDenied as error:  # most endpoints have none, and what is left of it costs nothing
        log.warning("the scaling of %s is not looked at: %s", ref, error)
        return []


def _uses(ref: Ref, described: Mapping[str, Any]) -> frozenset[Ref]:
    if ref.type == "endpoint" and described.get("EndpointConfigName"):
        return frozenset({Ref("endpoint-config", described["EndpointConfigName"])})
    if ref.type == "endpoint-config":
        names = (variant.get("ModelName") for variant in described["ProductionVariants"])
        return frozenset(Ref("model", name) for name in names if name)
    if ref.type == "inference-component":
        model = described.get("Specification", {}).get("ModelName")
        endpoint = Ref("endpoint", described["EndpointName"])
        return frozenset({endpoint} | ({Ref("model", model)} if model else set()))
    return frozenset()


def behind(endpoint: Found, found: Iterable[Found]) -> tuple[Variant, ...]:
    """What runs behind an endpoint that is among `found`; none where its config is not, or names no instances."""
    config = next((item for item in found if item.ref in endpoint.uses and item.variants), None)
    return instances.running(endpoint.variants, config.variants) if config else ()


# --- plan ------------------------------------------------------------------------------------------------


def plan(found: Collection[Found], selection: Selection, now: datetime | None = None) -> list[Found]:
    """What is to go, in the order in which it must go.

    "stack" is everything; "expired" what is past its time, with all that it alone uses; "orphans" what no endpoint
    uses, and endpoints that failed, unless it is so young that somebody may be deploying it right now.
    """
    moment = now or datetime.now(UTC)
    chosen = {
        "stack": lambda: list(found),
        "expired": lambda: _expired(found, moment),
        "orphans": lambda: _orphans(found, moment),
    }[selection]()
    return sorted(chosen, key=lambda item: (KINDS.index(item.ref.type), item.ref.name))


def _expired(found: Collection[Found], now: datetime) -> list[Found]:
    past = {item.ref for item in found if item.expires is not None and is_past(item.expires, now)}
    alive = {item.ref for item in found if item.ref.type == "endpoint"} - past
    going = _group(past, found) - _group(alive, found)
    return [item for item in found if item.ref in going]


def _orphans(found: Collection[Found], now: datetime) -> list[Found]:
    alive = {item.ref for item in found if item.ref.type == "endpoint" and item.status != "Failed"}
    kept = _group(alive, found)
    old = {item.ref for item in found if item.created is None or is_past(item.created, now - YOUNG)}
    return [item for item in found if item.ref in old - kept]


def _group(refs: Collection[Ref], found: Collection[Found]) -> set[Ref]:
    """The refs, what hangs on them (components, and the scaling of those), and everything that all of them use."""
    first = {item.ref for item in found if item.uses & set(refs)}
    group = {*refs, *first, *(item.ref for item in found if item.uses & first)}
    return group | _closure((item for item in found if item.ref in group), found)


def _closure(items: Iterable[Found], found: Collection[Found]) -> set[Ref]:
    """Everything that the items use, directly or not."""
    by_ref = {item.ref: item for item in found}
    used: set[Ref] = set()
    waiting = [ref for item in items for ref in item.uses]
    while waiting:
        ref = waiting.pop()
        if ref not in used:
            used.add(ref)
            waiting += by_ref[ref].uses if ref in by_ref else ()
    return used


# --- remove ----------------------------------------------------------------------------------------------


def remove(
    cloud: Cloud,
    refs: Collection[Ref],
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Resource]:
    """Remove the refs, what uses others first, wait until each kind is gone, and look again.

    Each comes back as a resource: "deleted", "absent", or "left" with the reason in its status. What is used by
    something that is left is left as well: AWS asks that a config outlives its endpoint, for without it one no
    longer sees what the endpoint costs.
    """
    deadline = time.monotonic() + GONE_TIMEOUT_S
    outcome: list[Resource] = []
    for kind in KINDS:
        mine = {ref for ref in refs if ref.type == kind}
        if any(item.action == "left" and item.type in USERS for item in outcome):
            outcome += [_left(ref, "waits for what uses it") for ref in sorted(mine)]
        else:
            outcome += _remove_all(cloud, mine, tell, deadline)
    return outcome


def _remove_all(
    cloud: Cloud, refs: Collection[Ref], tell: Callable[[str], None], deadline: float
) -> list[Resource]:
    """Remove what does not use one another, all at the same time."""
    outcome: dict[Ref, Resource] = {}
    asked: set[Ref] = set()
    pause, pause_s = threading.Event(), 0.0  # most are gone at once
    while waiting := sorted(set(refs) - outcome.keys()):
        for ref in waiting:
            result = _push(cloud, ref, asked, tell, late=time.monotonic() >= deadline)
            if result is not None:
                outcome[ref] = result
        if len(outcome) < len(refs):
            pause.wait(pause_s)
            pause_s = min(max(2 * pause_s, FIRST_POLL_S), POLL_S)
    return [outcome[ref] for ref in sorted(outcome)]


def _push(
    cloud: Cloud, ref: Ref, asked: set[Ref], tell: Callable[[str], None], *, late: bool
) -> Resource | None:
    """Look at it, ask for its removal where that can help; None: not gone yet.

    It is asked for again while the thing is there: a delete that came during an update is known to have been
    answered well and to have done nothing, and an endpoint that is being created may refuse until it is made.
    """
    status = ""
    try:
        described = cloud.describe(ref)
        if described is None:
            return Resource(ref.type, ref.name, "deleted" if ref in asked else "absent")
        status = str(described.get("EndpointStatus") or described.get("InferenceComponentStatus") or "")
        if status != "Deleting":
            cloud.delete(ref)
            if ref not in asked:
                tell(f"{ref}: deleting")
            asked.add(ref)
    except Throttled as error:
        return _left(ref, error.message) if late else None
    except ServiceError as error:
        if status not in BUSY:
            return _left(ref, error.message)
        if late:
            return _left(ref, f"{STILL} {status}: {error.message}")
        tell(f"{ref}: is {status}; waiting until it can be deleted")
        return None
    return _left(ref, f"{STILL} {status or 'there'}") if late else None


def _left(ref: Ref, why: str) -> Resource:
    return Resource(ref.type, ref.name, "left", why)


def gone(outcome: Iterable[Resource]) -> frozenset[Ref]:
    """Of what `remove` gave, what does not exist any more."""
    return frozenset(
        Ref(resource.type, resource.name)  # type: ignore[arg-type] # `remove` gives the types of refs
        for resource in outcome
        if resource.action in ("deleted", "absent")
    )


# --- the whole of it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Models:
    """The deployed models of an experiment, or of an account and region, and what is to go."""

    control: ControlPlane
    state: State
    stack: str  # of the experiment, whose record is in `state`
    whole_stack: bool  # False: found by their tags in the whole account and region
    planned: tuple[Found, ...]
    found: tuple[Found, ...]

    def resources(self) -> list[Resource]:
        """The plan, for people and JSON."""
        return [Resource(item.ref.type, item.ref.name, "delete", self._about(item)) for item in self.planned]

    def _about(self, item: Found) -> str:
        """Its state and, where others' things may be among them, whose it is and why it goes."""
        words = [item.status]
        if not self.whole_stack:
            words += [f"experiment {item.stack}"] if item.stack else []
            words += [f"expired {item.expires}"] if item.expires and is_past(item.expires) else []
        return ", ".join(filter(None, words))


def models(experiment: Experiment, *selections: Selection) -> Models:
    """Find and plan: "stack" (the default) is what the experiment deployed, the others look at the whole account
    and region, and may be asked for together.

    Nothing is changed. Raises PermissionDenied where an account cannot be searched by tags.
    """
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.state import open_state

    control, state, stack = ControlPlane.from_config(experiment), open_state(experiment), experiment.name
    whole_stack = not selections or "stack" in selections
    found = (
        find(control, stack=stack, record=deployment.read(state, stack)[0]) if whole_stack else find(control)
    )
    chosen = {item.ref for selection in selections or ("stack",) for item in plan(found, selection)}
    planned = plan([item for item in found if item.ref in chosen], "stack")
    return Models(control, state, stack, whole_stack, tuple(planned), tuple(found))


def remove_models(
    found: Models,
    prices: Callable[[str], Price | None],
    tell: Callable[[str], None] = lambda _: None,
    *,
    keep: Collection[Ref] = (),
) -> list[Resource]:
    """As `take_down`, but raises ServiceError (exit 8) naming what still exists and what it costs."""
    outcome = with_costs(take_down(found, tell, keep=keep), found, prices)
    refuse_leftovers(outcome)
    return outcome


def take_down(
    found: Models, tell: Callable[[str], None] = lambda _: None, *, keep: Collection[Ref] = ()
) -> list[Resource]:
    """Remove what is planned and bring the record up to date; `keep` stays.

    Raises LeaseHeld while the experiment is being deployed.
    """
    refs = {item.ref for item in found.planned}
    if not found.whole_stack:
        outcome = remove(found.control, refs - set(keep), tell=tell)
        record, _ = deployment.read(found.state, found.stack)
        if record is not None and record.resources & gone(outcome):
            with hold(found.state, deployment.lease_name(found.stack), "teardown"):
                _forget(found, gone(outcome))
        return outcome
    with hold(found.state, deployment.lease_name(found.stack), "teardown"):
        record, _ = deployment.read(found.state, found.stack)
        refs |= record.resources if record else set()  # absent ones leave the record as well
        outcome = remove(found.control, refs - set(keep), tell=tell)
        _forget(found, gone(outcome))
    return outcome


def _forget(found: Models, refs: frozenset[Ref]) -> None:
    """Take what is gone out of the record; models of somebody else's endpoints go with the last of ours."""
    record, version = deployment.read(found.state, found.stack)
    if record is None:
        return
    left = record.without(refs)
    if left.resources:
        deployment.write(found.state, left, version)
    else:
        found.state.delete(deployment.record_name(found.stack))


def with_costs(
    resources: Iterable[Resource], found: Models, prices: Callable[[str], Price | None]
) -> list[Resource]:
    """The resources, each that is or stays there with what it costs in its status; `prices` are of instance types."""
    costs = _costs(found.found, prices)
    return [
        replace(item, status=", ".join(filter(None, (item.status, costs.get((item.type, item.name))))))
        if item.action in ("delete", "left")
        else item
        for item in resources
    ]


def _costs(found: Collection[Found], prices: Callable[[str], Price | None]) -> dict[tuple[str, str], str]:
    """What each endpoint costs, by type and name, in words."""
    costs: dict[tuple[str, str], str] = {}
    for item in found:
        if item.ref.type == "endpoint" and (variants := behind(item, found)):
            usd = instances.usd_per_hour(variants, prices)
            kinds = ", ".join(dict.fromkeys(str(variant.instance_type) for variant in variants))
            words = f"an unknown price ({kinds})" if usd is None else per_hour(usd)
            costs[item.ref.type, item.ref.name] = f"costs {words}"
    return costs


def refuse_leftovers(outcome: Iterable[Resource]) -> None:
    """Raise ServiceError naming what is left, with what its status says of it."""
    left = [resource for resource in outcome if resource.action == "left"]
    if left:
        lines = [f"{item.type} {item.name}: {item.status}" for item in left]
        wait = any(item.status.startswith(f"{STILL} Creating") for item in left)
        raise ServiceError(
            "some resources still exist:\n  " + "\n  ".join(lines), hint=(WAIT if wait else "") + AGAIN
        )
