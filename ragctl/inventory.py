"""The deployed models that exist in an account, and which of them are to go. Nothing is changed here.

`find` asks the account, `plan` decides without asking anybody; teardown.py removes. Only what carries ragctl's tags, or
what the deployment record says ragctl made or took over, is ever to go.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from ragctl import instances
from ragctl.blueprint import name_prefix
from ragctl.deployment import CREATED_TAG, EXPIRES_TAG, KINDS, STACK_TAG, Record, Ref, is_past, scaling_of
from ragctl.errors import PermissionDenied, ServiceError

if TYPE_CHECKING:
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.instances import Variant

log = logging.getLogger("ragctl.inventory")

SHARED: Final = ("endpoint-config", "model")  # kinds that several may use
CARRIERS: Final = ("endpoint", "inference-component")  # kinds that use them, and cost
YOUNG: Final = timedelta(hours=1)  # a model without an endpoint may be one that is being deployed right now

Selection = Literal["stack", "expired", "orphans"]


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
    config: Ref | None = None  # of an endpoint: what it is on; an update under way uses another one as well


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
        config=_config(described) if ref.type == "endpoint" else None,
    )
    return [found, *(Found(other, found.stack, uses=frozenset({ref})) for other in _scaling(control, ref))]


def _scaling(control: ControlPlane, ref: Ref) -> list[Ref]:
    try:
        return [other for other in scaling_of(ref) if control.describe(other) is not None]
    except PermissionDenied as error:  # most endpoints have none, and what is left of it costs nothing
        log.warning("the scaling of %s is not looked at: %s", ref, error)
        return []


def _uses(ref: Ref, described: Mapping[str, Any]) -> frozenset[Ref]:
    if ref.type == "endpoint":
        configs = _config(described), _config(described.get("PendingDeploymentSummary", {}))
        return frozenset(config for config in configs if config)
    if ref.type == "endpoint-config":
        variants = [*described["ProductionVariants"], *described.get("ShadowProductionVariants", ())]
        names = (variant.get("ModelName") for variant in variants)
        return frozenset(Ref("model", name) for name in names if name)
    if ref.type == "inference-component":
        model = described.get("Specification", {}).get("ModelName")
        endpoint = Ref("endpoint", described["EndpointName"])
        return frozenset({endpoint} | ({Ref("model", model)} if model else set()))
    return frozenset()


def _config(described: Mapping[str, Any]) -> Ref | None:
    """The config of an endpoint, or of what an update brings."""
    name = described.get("EndpointConfigName")
    return Ref("endpoint-config", name) if name else None


def others(control: ControlPlane, found: Collection[Found]) -> list[Found]:
    """What is not among `found` and may use what is: every other endpoint and inference component of the account and
    region, and the configs between them and their models.
    """
    known = {item.ref for item in found}
    users = {ref for kind in CARRIERS for ref in control.listed(kind)} - known
    described = _described(control, users)
    configs = {ref for item in [*found, *described] for ref in item.uses if ref.type == "endpoint-config"}
    return described + _described(control, configs - known)


def _described(control: ControlPlane, refs: Iterable[Ref]) -> list[Found]:
    """What is there of these, and what it uses."""
    looked = ((ref, control.describe(ref)) for ref in sorted(refs))
    return [Found(ref, None, uses=_uses(ref, described)) for ref, described in looked if described]


def behind(endpoint: Found, found: Iterable[Found]) -> tuple[Variant, ...]:
    """What runs behind an endpoint that is among `found`; none where its config is not, or names no instances."""
    config = next((item for item in found if item.ref == endpoint.config), None)
    return instances.running(endpoint.variants, config.variants) if config else ()


# --- plan ------------------------------------------------------------------------------------------------


def plan(
    found: Collection[Found],
    selection: Selection,
    now: datetime | None = None,
    others: Collection[Found] = (),
) -> list[Found]:
    """What is to go, in the order in which it must go.

    "stack" is everything; "expired" what is past its time, with all that it alone uses; "orphans" what no endpoint
    uses, and endpoints that failed, unless it is so young that somebody may be deploying it right now. What `others`,
    which are not ours, use stays.
    """
    moment = now or datetime.now(UTC)
    chosen = {
        "stack": lambda: list(found),
        "expired": lambda: _expired(found, others, moment),
        "orphans": lambda: _orphans(found, others, moment),
    }[selection]()
    return sorted(chosen, key=lambda item: (KINDS.index(item.ref.type), item.ref.name))


def _expired(found: Collection[Found], others: Collection[Found], now: datetime) -> list[Found]:
    everything = [*found, *others]
    past = {item.ref for item in found if item.expires is not None and is_past(item.expires, now)}
    alive = {item.ref for item in everything if item.ref.type == "endpoint"} - past
    going = group(past, everything) - group(alive, everything)
    return [item for item in found if item.ref in going]


def _orphans(found: Collection[Found], others: Collection[Found], now: datetime) -> list[Found]:
    everything = [*found, *others]
    alive = {item.ref for item in everything if item.ref.type == "endpoint" and item.status != "Failed"}
    kept = group(alive, everything)
    old = {item.ref for item in found if item.created is None or is_past(item.created, now - YOUNG)}
    return [item for item in found if item.ref in old - kept]


def group(refs: Collection[Ref], found: Collection[Found]) -> set[Ref]:
    """The refs, what hangs on them (components, and the scaling of those), and everything that all of them use."""
    first = {item.ref for item in found if item.uses & set(refs)}
    whole = {*refs, *first, *(item.ref for item in found if item.uses & first)}
    return whole | _closure((item for item in found if item.ref in whole), found)


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


def in_account(control: ControlPlane, found: Collection[Found], *selections: Selection) -> list[Found]:
    """As `plan`, of what was found in a whole account and region: no config and no model goes that an endpoint uses
    which is not ours. Where that cannot be looked at they stay, with a warning: they cost nothing.
    """

    def chosen(others: Collection[Found]) -> list[Found]:
        refs = {item.ref for selection in selections for item in plan(found, selection, others=others)}
        return plan([item for item in found if item.ref in refs], "stack")

    planned = chosen(())
    if not any(item.ref.type in SHARED for item in planned):
        return planned
    try:
        return chosen(others(control, found))
    except ServiceError as error:
        log.warning("endpoint configs and models stay, for who else uses them cannot be looked at: %s", error)
        return [item for item in planned if item.ref.type not in SHARED]
