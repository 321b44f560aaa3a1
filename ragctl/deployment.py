"""The deployment record: what deploy-models made or took over, kept beside the ledger.

It is written before the first create with the names of all that is about to exist, so that whatever happens then,
teardown knows what to look for. `recorded` is what the adapters read instead of an endpoint's name in the config.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

from ragctl.durations import seconds
from ragctl.errors import ConfigError, StateError
from ragctl.state import State, open_state

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from ragctl.blueprint import Role
    from ragctl.config import Experiment

log = logging.getLogger("ragctl.deployment")

SCHEMA: Final = "ragctl.deployment/1"
VARIANT: Final = "AllTraffic"  # the one production variant of our endpoints

STACK_TAG: Final = "ragctl:stack"
ROLE_TAG: Final = "ragctl:role"
CREATED_TAG: Final = "ragctl:created"
EXPIRES_TAG: Final = "ragctl:expires"
MODEL_TAG: Final = "ragctl:model-id"
VERSION_TAG: Final = "ragctl:model-version"

ALARM: Final = "-no-capacity"  # follows a component's name in that of its alarm

# In the order in which they are removed: what uses others goes first.
Kind = Literal["alarm", "scaling-target", "inference-component", "endpoint", "endpoint-config", "model"]
KINDS: Final[tuple[Kind, ...]] = (
    "alarm",
    "scaling-target",
    "inference-component",
    "endpoint",
    "endpoint-config",
    "model",
)


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Something in the account, by type and name."""

    type: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


def scaling_of(ref: Ref) -> list[Ref]:
    """The scaling targets and alarms that an endpoint or inference component of ours may have."""
    if ref.type == "endpoint":
        return [Ref("scaling-target", f"endpoint/{ref.name}/variant/{VARIANT}")]
    if ref.type == "inference-component":
        return [Ref("scaling-target", f"inference-component/{ref.name}"), Ref("alarm", f"{ref.name}{ALARM}")]
    return []


def scaled_by(ref: Ref) -> str:
    """The name of the endpoint or component that a scaling target or alarm is for; of anything else its own."""
    if ref.type == "scaling-target":
        return ref.name.split("/")[1]
    return ref.name.removesuffix(ALARM) if ref.type == "alarm" else ref.name


@dataclass(frozen=True, slots=True)
class Model:
    """One deployed model. `usd_per_hour`: of all its instances, None when unknown; times are ISO 8601, UTC."""

    endpoint: str
    ready: bool = False
    ours: bool = True  # False: somebody else's endpoint, which teardown leaves alone
    family: str | None = None
    dimension: int | None = None
    model_id: str | None = None
    model_version: str | None = None
    instance_type: str | None = None
    instance_count: int = 1
    inference_component: str | None = None
    usd_per_hour: float | None = None
    price_source: str | None = None
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is deployed. `resources`: all that may exist and is ours to remove; `passing`: those of them that a `run`
    brought up, to be gone when it ends. Where it was killed, the next one removes them.
    """

    stack: str
    region: str
    models: Mapping[str, Model] = field(default_factory=dict)
    resources: frozenset[Ref] = frozenset()
    passing: frozenset[Ref] = frozenset()

    def with_model(self, role: str, model: Model) -> Record:
        return replace(self, models={**self.models, role: model})

    def owning(self, refs: frozenset[Ref]) -> Record:
        return replace(self, resources=self.resources | refs)

    def without(self, refs: frozenset[Ref]) -> Record:
        """The record once `refs` are gone, with the models whose endpoint was among them."""
        gone = {ref.name for ref in refs if ref.type == "endpoint"}
        models = {role: model for role, model in self.models.items() if model.endpoint not in gone}
        return replace(self, models=models, resources=self.resources - refs, passing=self.passing - refs)


# Experiments may share a state location, and each has a record of its own. Neither file is in a folder, for those
# are named after indexes, and an index may be called anything.


def record_name(stack: str) -> str:
    """The record's file in the state location."""
    return f"deployment-{stack}.json"


def lease_name(stack: str) -> str:
    """The file of the lease under which models are deployed and removed."""
    return f"deployment-{stack}.lease"


def read(state: State, stack: str) -> tuple[Record | None, str | None]:
    """The stack's record and its version for `write`; (None, None) where there is none. StateError when damaged."""
    name = record_name(stack)
    found = state.read(name)
    if found is None:
        return None, None
    try:
        document = json.loads(found.data)
        if document["schema"] != SCHEMA:
            raise StateError(
                f"{state.place}/{name}: written by another version of ragctl ({document['schema']})",
                hint="use that version, or remove the models with: ragctl teardown --orphans",
            )
        return _shape().validate_json(found.data, strict=True), found.version
    except (ValueError, TypeError, KeyError) as error:  # a ValidationError is a ValueError
        raise StateError(
            f"{state.place}/{name}: is damaged",
            hint="remove the file; what it named is found by its tags: ragctl teardown CONFIG --models",
        ) from error


def write(state: State, record: Record, version: str | None) -> str:
    """Replace the record of that version; the new version. state.Conflict when somebody else wrote meanwhile."""
    return state.write(record_name(record.stack), _encode(record), expect=version)


def _encode(record: Record) -> bytes:
    document = {
        "schema": SCHEMA,
        "stack": record.stack,
        "region": record.region,
        "models": {role: asdict(model) for role, model in record.models.items()},
        "resources": [asdict(ref) for ref in sorted(record.resources)],
        "passing": [asdict(ref) for ref in sorted(record.passing)],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


@cache
def _shape() -> TypeAdapter[Record]:
    """What a record must look like, down to the types of its values, so that whatever uses it need not ask."""
    from pydantic import TypeAdapter

    return TypeAdapter(Record)


# --- for the commands that use the endpoints -------------------------------------------------------------


def recorded(experiment: Experiment, role: Role) -> dict[str, object]:
    """What is recorded of the role's model, for an adapter; empty when nothing is, or it is not in service yet.

    Warns when the endpoint is past its time. Raises ConfigError when the record is of another model than the
    config names: its vectors or answers would be taken for the other's.
    """
    record, _ = read(open_state(experiment), experiment.name)
    model = record.models.get(role) if record else None
    section = getattr(experiment, role)
    if model is None or not model.ready or section.endpoint not in (None, model.endpoint):
        return {}
    if section.model is not None and section.model != model.model_id:
        raise ConfigError(
            f"{role}.model is {section.model}, but what is deployed at {model.endpoint} is {model.model_id}",
            hint="run: ragctl deploy-models CONFIG --replace",
        )
    if model.expires is not None and is_past(model.expires):
        log.warning(
            "endpoint %s was to be gone at %s and still costs: run ragctl teardown, or deploy-models to renew it",
            model.endpoint,
            model.expires,
        )
    return asdict(model)


def expiry(experiment: Experiment, now: datetime) -> str | None:
    """When what is deployed now expires: ISO 8601 in UTC, or None."""
    after = experiment.deployment.expires_after
    if after is None:
        return None
    return timestamp(now + timedelta(seconds=seconds(after, "deployment.expires_after")))


def timestamp(moment: datetime) -> str:
    """As in tags and records, to the second: 2026-11-20T15:04:05Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_past(time: str, now: datetime | None = None) -> bool:
    """Whether a time of ours has passed; a text that is no time has not, for nothing may be removed because of it."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return False
    return moment.tzinfo is not None and moment <= (now or datetime.now(UTC))
