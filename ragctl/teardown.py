"""How deployed models go away: those that inventory.py finds, in the right order; then look again, say what is left,
and bring the record up to date. The command of the same name, which removes more than models, is removal.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from ragctl import deployment, instances
from ragctl.cost import per_hour
from ragctl.deployment import KINDS, Ref, is_past
from ragctl.errors import LeaseHeld, ServiceError, Throttled
from ragctl.indexes import Resource
from ragctl.inventory import Found, Selection, behind, find, in_account, plan
from ragctl.lease import hold

if TYPE_CHECKING:
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.config import Experiment
    from ragctl.cost import Price
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
RECORD: Final = "deployment record"
STILL: Final = "still"
AGAIN: Final = "run this command again"
UNSETTLED: Final = ("left", "unknown")  # actions of resources that are there, or may be


class Cloud(Protocol):
    """What removing needs of the account."""

    def describe(self, ref: Ref) -> Mapping[str, Any] | None: ...  # None: absent
    def delete(self, ref: Ref) -> bool: ...  # False: there was none


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
    if whole_stack:
        found = find(control, stack=stack, record=deployment.read(state, stack)[0])
        planned = plan(found, "stack")
    else:
        found = find(control)
        planned = in_account(control, found, *selections)
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
        return [*outcome, *_record_left(found, partial(_forget_some, found, gone(outcome)))]
    with _lease(found):
        record, _ = deployment.read(found.state, found.stack)
        refs |= record.resources if record else set()  # absent ones leave the record as well
        outcome = remove(found.control, refs - set(keep), tell=tell)
        return [*outcome, *_record_left(found, partial(_forget, found, gone(outcome)))]


@contextmanager
def _lease(found: Models) -> Iterator[None]:
    """Hold the lease of the deployment. A full disk keeps nothing up that costs: where nobody else is seen to hold the
    lease and it cannot be written, there is a warning, and whoever deploys now finds out by what is gone.
    """
    with ExitStack() as held:
        try:
            held.enter_context(hold(found.state, deployment.lease_name(found.stack), "teardown"))
        except ServiceError as error:
            log.warning("removing models without a lease: %s", error)
        yield


def _record_left(found: Models, bring_up_to_date: Callable[[], None]) -> list[Resource]:
    """The record as something that is left, where it still names what is gone."""
    try:
        bring_up_to_date()
    except (ServiceError, LeaseHeld) as error:
        return [Resource(RECORD, deployment.record_name(found.stack), "left", error.message)]
    return []


def _forget_some(found: Models, refs: frozenset[Ref]) -> None:
    """As `_forget`, under the lease, where the record names any of what is gone."""
    record, _ = deployment.read(found.state, found.stack)
    if record is not None and record.resources & refs:
        with hold(found.state, deployment.lease_name(found.stack), "teardown"):
            _forget(found, refs)


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
    """Raise ServiceError naming what is left or not known to be gone, with what its status says of it."""
    left = [resource for resource in outcome if resource.action in UNSETTLED]
    if left:
        still = "may still exist" if any(item.action == "unknown" for item in left) else "still exist"
        lines = [f"{item.type} {item.name}: {item.status}" for item in left]
        wait = any(item.status.startswith(f"{STILL} Creating") for item in left)
        raise ServiceError(
            f"some resources {still}:\n  " + "\n  ".join(lines), hint=(WAIT if wait else "") + AGAIN
        )
