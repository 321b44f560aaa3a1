"""What deploying the experiment's models means: which endpoints to make, keep, use or replace, and what is refused.

Nothing is changed here. The record, the account and JumpStart's catalogue are read, and all that can be refused is
refused before anything is paid for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from ragctl.blueprint import ROLES, Blueprint, Role, blueprint, differences, payload_family
from ragctl.deployment import STACK_TAG, Model, Record, Ref, scaling_of
from ragctl.errors import ConfigError, NotFound, PermissionDenied, QuotaExceeded, Refused, ServiceError
from ragctl.inventory import group

if TYPE_CHECKING:
    from ragctl.adapters.jumpstart import Catalogue
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.backends import ModelDeployment
    from ragctl.blueprint import Resolved
    from ragctl.config import Experiment
    from ragctl.cost import Price
    from ragctl.inventory import Found
    from ragctl.state import State

log = logging.getLogger("ragctl.deploy_plan")

Action = Literal["create", "keep", "replace", "use"]


@dataclass(frozen=True, slots=True)
class Tools:
    """What deploying asks of the world; tests hand in others."""

    control: ControlPlane
    state: State
    resolve: Callable[[Role, str, str], Resolved]
    probe: Callable[[Mapping[str, object]], int]  # the dimension of the embedding model that is recorded so
    quota: Callable[[str], float | None]  # instances of a type for endpoints; None: unknown
    price: Callable[[str], Price | None]  # of an instance type; None: unknown


def tools(experiment: Experiment) -> Tools:
    """The real ones. The SageMaker SDK is imported with the first model that is resolved: MissingExtra without it."""
    from ragctl import cost
    from ragctl.adapters.aws import region
    from ragctl.adapters.quotas import endpoint_quota
    from ragctl.adapters.sagemaker import SageMakerEmbedder
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.state import open_state

    state = open_state(experiment)
    prices, where = cost.load(state), region(experiment)

    @cache
    def catalogue() -> Catalogue:
        from ragctl.adapters.jumpstart import Catalogue

        return Catalogue(experiment)

    return Tools(
        control=ControlPlane.from_config(experiment),
        state=state,
        resolve=lambda role, model_id, version: catalogue().resolve(role, model_id, version),
        probe=lambda model: SageMakerEmbedder.from_config(experiment, model).dimension,
        quota=lambda instance_type: endpoint_quota(experiment, instance_type),
        price=lambda instance_type: prices.instance(instance_type, where),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done for one model. `old`: what it leaves behind, removed before a create, after a replace."""

    role: Role
    action: Action
    endpoint: str
    blueprint: Blueprint | None = None  # None: an endpoint that is used as it is
    ours: bool = True
    differences: tuple[str, ...] = ()
    old: frozenset[Ref] = frozenset()
    price: Price | None = None
    # Of an endpoint as it is: instance type, count, family.
    in_use: tuple[str, int, str | None] = ("", 1, None)

    @property
    def ref(self) -> Ref:
        return Ref("endpoint", self.endpoint)

    @property
    def instance_type(self) -> str:
        return self.blueprint.resolved.instance_type if self.blueprint else self.in_use[0]

    @property
    def instance_count(self) -> int:
        return self.blueprint.instance_count if self.blueprint else self.in_use[1]

    @property
    def usd_per_hour(self) -> float | None:
        return None if self.price is None else self.price.usd * self.instance_count


def resources_of(experiment: Experiment, step: Step) -> frozenset[Ref]:
    """What the step makes or uses, with the scaling that the experiment asks for."""
    if step.blueprint is None or step.action == "use":
        return frozenset({step.ref})
    refs = step.blueprint.refs
    settings: ModelDeployment = getattr(experiment.deployment, step.role)
    if settings.autoscaling is None:
        return refs
    carrier = "inference-component" if step.blueprint.component else "endpoint"
    return refs | {other for ref in refs if ref.type == carrier for other in scaling_of(ref)}


def model_of(experiment: Experiment, step: Step, expires: str | None) -> Model:
    """What is recorded of the step's model once it serves; the dimension is not known before it is asked."""
    section = getattr(experiment, step.role)
    resolved = step.blueprint.resolved if step.blueprint else None
    component = step.blueprint.component_name if step.blueprint else section.inference_component
    return Model(
        endpoint=step.endpoint,
        ready=True,
        ours=step.ours,
        family=section.family or (resolved.family if resolved else step.in_use[2]),
        model_id=resolved.model_id if resolved else None,
        model_version=resolved.version if resolved else None,
        instance_type=step.instance_type or None,
        instance_count=step.instance_count,
        inference_component=component,
        usd_per_hour=step.usd_per_hour,
        price_source=step.price.source if step.price else None,
        expires=expires if step.ours else None,
    )


def wants_models(experiment: Experiment) -> list[Role]:
    """The roles whose section is of kind sagemaker."""
    return [role for role in ROLES if getattr(getattr(experiment, role), "kind", None) == "sagemaker"]


def standing(
    experiment: Experiment, control: ControlPlane, found: Collection[Found], steps: Iterable[Step]
) -> frozenset[Ref]:
    """What is there before the steps are taken and stays there when what they make is removed again.

    `found`: what is ours so far. An endpoint that failed and is made anew is not among it, nor what is that one's
    alone; an endpoint that is kept or used is, also where it becomes ours with these steps.
    """
    endpoints = {item.ref for item in found if item.ref.type == "endpoint"}
    anew = {step.ref for step in steps if step.action == "create"}
    used = {
        ref
        for step in steps
        if step.action != "create"
        for ref in resources_of(experiment, step) | step.old
        if control.describe(ref) is not None
    }
    lost = group(anew, found) - group(endpoints - anew, found)
    return frozenset({item.ref for item in found} - lost | used)


# --- plan ------------------------------------------------------------------------------------------------


def plan(
    experiment: Experiment, tools: Tools, record: Record | None, *, replace_differing: bool = False
) -> list[Step]:
    """What is to be done for each model. Nothing is changed.

    Raises what `Tools.resolve` raises; Refused for a license that is not accepted, an endpoint of somebody else, or
    one that differs and is not to be replaced; QuotaExceeded before anything is paid for.
    """
    steps = [
        _step(experiment, tools, role, record, replace_differing=replace_differing)
        for role in wants_models(experiment)
    ]
    _check_quota(steps, tools)
    return steps


def _step(
    experiment: Experiment, tools: Tools, role: Role, record: Record | None, *, replace_differing: bool
) -> Step:
    section = getattr(experiment, role)
    if section.model is None:
        return _as_it_is(experiment, tools, role)
    resolved = tools.resolve(role, section.model, _version(section, role, record, replace_differing))
    wanted = blueprint(experiment, role, resolved, endpoint=section.endpoint)
    _check_family(role, section.family or resolved.family, wanted.endpoint)
    price = tools.price(resolved.instance_type)
    found = tools.control.describe(Ref("endpoint", wanted.endpoint))
    if found is None:
        return Step(role, "create", wanted.endpoint, wanted, price=price)
    _check_owner(experiment, tools, role, found, record)
    step = Step(role, "keep", wanted.endpoint, wanted, price=price)
    if found["EndpointStatus"] == "Failed":
        return replace(step, action="create", old=_parts(tools, found) - wanted.refs | {step.ref})
    return _compared(tools, step, found, record, replace_differing=replace_differing)


def _version(section: Any, role: Role, record: Record | None, newest: bool) -> str:
    """The version to resolve: one that is deployed and fits the config stays, also when a newer one comes out."""
    model = record.models.get(role) if record else None
    deployed = model.model_version if model and model.model_id == section.model else None
    if deployed and not newest and fnmatchcase(deployed, section.model_version):
        return deployed
    return str(section.model_version)


def _check_family(role: Role, family: str | None, endpoint: str) -> None:
    if family is None:
        raise ConfigError(
            f"{role}: nothing tells which payload family endpoint {endpoint} speaks",
            hint=f"set {role}.family",
        )


def _check_owner(
    experiment: Experiment, tools: Tools, role: Role, found: Mapping[str, Any], record: Record | None
) -> None:
    ref = Ref("endpoint", found["EndpointName"])
    settings: ModelDeployment = getattr(experiment.deployment, role)
    if settings.take_over or (record and ref in record.resources):
        return
    owner = tools.control.tags_of(ref, found).get(STACK_TAG)
    if owner != experiment.name:
        whose = f"belongs to the experiment {owner}" if owner else "was not made by ragctl"
        raise Refused(
            f"{role}: there is an endpoint {ref.name} that {whose}",
            hint=f"choose another name under {role}.endpoint, or set deployment.{role}.take_over: true",
        )


def _compared(
    tools: Tools, step: Step, found: Mapping[str, Any], record: Record | None, *, replace_differing: bool
) -> Step:
    """Keep the endpoint that is there, use it as it is, replace it, or refuse."""
    wanted = step.blueprint
    assert wanted is not None
    component = _recorded_component(step.role, record)
    if found["EndpointConfigName"] == wanted.config_name and component in (None, wanted.component_name):
        return step
    parts = _parts(tools, found) | ({Ref("inference-component", component)} if component else set())
    differing = tuple(_differences(tools, wanted, parts))
    if not differing:
        return replace(step, action="use")
    if not replace_differing:
        raise Refused(
            f"{step.role}: endpoint {step.endpoint} is not as the experiment asks:\n  "
            + "\n  ".join(differing),
            hint="--replace puts it right, serving all the while; or change the experiment",
        )
    if found["EndpointStatus"] != "InService":
        raise ServiceError(
            f"endpoint {step.endpoint} is {found['EndpointStatus']} and cannot be replaced now",
            hint="wait for it",
        )
    old = parts - wanted.refs - {step.ref}
    return replace(step, action="replace", differences=differing, old=frozenset(old))


def _recorded_component(role: Role, record: Record | None) -> str | None:
    model = record.models.get(role) if record else None
    return model.inference_component if model else None


def _differences(tools: Tools, wanted: Blueprint, parts: Iterable[Ref]) -> list[str]:
    described = {ref.type: tools.control.describe(ref) for ref in parts}
    found = differences(wanted, described.get("endpoint-config") or {}, described.get("model"))
    component = described.get("inference-component")
    if (component is None) != (wanted.component is None):
        found.append(
            f"inference component: the endpoint has {'none' if component is None else 'one'}, "
            f"the experiment asks for {'one' if component is None else 'none'}"
        )
    return found


def _parts(tools: Tools, endpoint: Mapping[str, Any]) -> frozenset[Ref]:
    """An endpoint's config and the models behind it, as far as they exist."""
    config = Ref("endpoint-config", endpoint.get("EndpointConfigName") or "")
    described = tools.control.describe(config) if config.name else None
    if described is None:
        return frozenset()
    names = (variant.get("ModelName") for variant in described["ProductionVariants"])
    return frozenset({config, *(Ref("model", name) for name in names if name)})


def _as_it_is(experiment: Experiment, tools: Tools, role: Role) -> Step:
    """An endpoint that the config names without a model: somebody else's, or taken over."""
    section, settings = getattr(experiment, role), getattr(experiment.deployment, role)
    if section.endpoint is None:
        raise ConfigError(f"{role} names neither a model nor an endpoint", hint=f"set {role}.model")
    found = tools.control.describe(Ref("endpoint", section.endpoint))
    if found is None:
        raise NotFound(
            f"{role}: there is no endpoint {section.endpoint}", hint=f"set {role}.model to deploy one"
        )
    if found["EndpointStatus"] == "Failed":
        raise ServiceError(
            f"endpoint {section.endpoint} has failed: {found.get('FailureReason', 'no reason given')}"
        )
    described = {ref.type: tools.control.describe(ref) for ref in _parts(tools, found)}
    variant = ((described.get("endpoint-config") or {}).get("ProductionVariants") or [{}])[0]
    image = (described.get("model") or {}).get("PrimaryContainer", {}).get("Image", "")
    family = section.family or payload_family(role, (), image)
    _check_family(role, family, section.endpoint)
    instance_type = str(variant.get("InstanceType", ""))
    return Step(
        role,
        "use",
        section.endpoint,
        ours=settings.take_over,
        price=tools.price(instance_type) if instance_type else None,
        in_use=(instance_type, int(variant.get("InitialInstanceCount", 1)), family),
        old=_parts(tools, found) if settings.take_over else frozenset(),
    )


def _check_quota(steps: Sequence[Step], tools: Tools) -> None:
    """Raise QuotaExceeded where the account may not run what is about to be made; unknown quotas pass, with a word."""
    needed: dict[str, int] = {}
    for step in steps:
        if step.action in ("create", "replace"):
            needed[step.instance_type] = needed.get(step.instance_type, 0) + step.instance_count
    for instance_type, count in needed.items():
        try:
            quota = tools.quota(instance_type)
        except PermissionDenied as error:
            log.warning("the quota for %s is not checked: %s", instance_type, error)
            continue
        if quota is not None and quota < count:
            raise QuotaExceeded(
                f'{count} x {instance_type} needed, and the quota "{instance_type} for endpoint usage" is {quota:g}',
                hint="ask for more in Service Quotas, service Amazon SageMaker, or choose another instance type",
            )
