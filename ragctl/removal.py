"""`ragctl teardown`: all that an experiment made goes away, what costs by the hour first, what others are found by last.

`plan` looks and changes nothing; `Removal.carry_out` acts part by part, looks again, and says what is left. What a
service refuses of one part, be it only to say what is there, keeps no other part from going.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Protocol

from ragctl import cost, deployment, teardown, tenancy
from ragctl.adapters import open_store, s3vectors_store
from ragctl.backends import Deployment
from ragctl.config import Aws
from ragctl.deploy_plan import wants_models
from ragctl.errors import ConfigError, LeaseHeld, Refused, ServiceError, StateError
from ragctl.indexes import Resource, named
from ragctl.inventory import Selection
from ragctl.lease import held_by, hold
from ragctl.leftover_files import CACHE, CachePart, StatePart
from ragctl.state import lease_name, ledger_name, open_state

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.cost import Price
    from ragctl.state import State

log = logging.getLogger("ragctl.removal")

BUCKET: Final = "vector bucket"
MODELS: Final = "models"


@dataclass(frozen=True, slots=True)
class Scope:
    """What is asked for. `everything` is all but the embedding cache, which other experiments may use."""

    models: bool = False
    index: bool = False
    only: str | None = None  # of several indexes, this one
    bucket: bool = False
    state: bool = False
    everything: bool = False
    expired: bool = False
    orphans: bool = False

    @property
    def of_account(self) -> bool:
        """Whether it is about the whole account and region, whoever made what is there."""
        return self.expired or self.orphans

    def check(self) -> None:
        """Raise ConfigError unless it says what to remove, and in one sense only."""
        of_experiment = self.models or self.index or self.bucket or self.state or self.everything
        if not (of_experiment or self.of_account):
            raise ConfigError(
                "say what to remove: --models, --index, --bucket, --state, --all, --expired or --orphans",
                hint="look first: --dry-run",
            )
        if of_experiment and self.of_account:
            raise ConfigError(
                "--expired and --orphans are about the models of a whole account and region",
                hint="remove what this experiment made with a command of its own",
            )
        if self.only is not None and not self.index:
            raise ConfigError("--only says which index to remove", hint="say --index --only NAME")

    def refuse_what_is_left(self, outcome: Sequence[Resource]) -> None:
        """Raise ServiceError naming what still exists or may, Refused where the bucket that was asked for is kept."""
        teardown.refuse_leftovers(outcome)
        for resource in outcome:
            if self.bucket and resource.type == BUCKET and resource.action == "kept":
                raise Refused(
                    resource.status, hint="remove what is in it, or leave it: an empty bucket costs nothing"
                )


class Part(Protocol):
    """One kind of thing that is to go."""

    def leases(self) -> list[str]: ...  # in the state location; nobody else may hold them
    def plan(self) -> list[Resource]: ...  # action: "delete", "absent" or "kept"; ServiceError
    def remove(self, tell: Callable[[str], None]) -> list[Resource]: ...  # or "deleted", "left"


@dataclass(frozen=True, slots=True)
class Removal:
    """The parts in the order in which they go, each with its plan."""

    state: State
    parts: Sequence[tuple[Part, list[Resource]]]

    @property
    def resources(self) -> list[Resource]:
        """The plan."""
        return [resource for _, planned in self.parts for resource in planned]

    def carry_out(self, tell: Callable[[str], None] = lambda _: None) -> list[Resource]:
        """Remove what is planned; what still exists then is "left", with the reason and its cost in the status, and
        what could not be looked at "unknown".

        Raises LeaseHeld, before anything is removed, while another run works with one of the parts.
        """
        for part, _ in self.parts:
            for name in part.leases():
                if holder := held_by(self.state, name):
                    raise LeaseHeld(
                        f"another run is at work: {holder}", hint=f"let it end; its lease is {name}"
                    )
        return [resource for part, planned in self.parts for resource in _removed(part, planned, tell)]


def plan(experiment: Experiment, scope: Scope) -> Removal:
    """What is there to be removed; what could not be looked at is "unknown", with the reason in its status.

    Raises ConfigError for a scope that makes no sense for the experiment, and ServiceError where nothing of it could
    be looked at.
    """
    scope.check()
    state = open_state(experiment)
    asked = _account_parts(experiment, scope) if scope.of_account else _parts(experiment, scope, state)
    parts = [each.look() for each in asked]
    errors = [part.error for part, _ in parts if isinstance(part, ToldPart) and part.error]
    if errors and len(errors) == len(parts):
        raise errors[0]
    return Removal(state, parts)


@dataclass(frozen=True, slots=True)
class Asked:
    """A part that is asked for, by what it is called, and how to get at it: `make` may have to ask a service."""

    type: str
    name: str
    make: Callable[[], Part]

    def look(self) -> tuple[Part, list[Resource]]:
        """The part with its plan. One that cannot be looked at keeps no other from going."""
        try:
            part = self.make()
            return part, part.plan()
        except ServiceError as error:
            why = "; ".join(filter(None, (error.message, error.hint)))
            unseen = ToldPart(Resource(self.type, self.name, "unknown", why), error)
            return unseen, unseen.plan()


@dataclass(frozen=True, slots=True)
class ToldPart:
    """What is only told and left alone; `error`: why it could not be looked at."""

    resource: Resource
    error: ServiceError | None = None

    def leases(self) -> list[str]:
        """None: nothing is done."""
        return []

    def plan(self) -> list[Resource]:
        """See `Part`; here "unknown" or "skipped"."""
        return [self.resource]

    def remove(self, tell: Callable[[str], None]) -> list[Resource]:
        """See `Part`."""
        tell(f"{self.resource.type} {self.resource.name}: {self.resource.action}")
        return self.plan()


def _account_parts(experiment: Experiment, scope: Scope) -> Iterator[Asked]:
    wanted: dict[Selection, bool] = {"expired": scope.expired, "orphans": scope.orphans}
    selections = [selection for selection, asked in wanted.items() if asked]
    yield Asked(MODELS, "of the account and region", partial(ModelsPart, experiment, selections))


def _parts(experiment: Experiment, scope: Scope, state: State) -> Iterator[Asked]:
    with_models, with_indexes = scope.models or scope.everything, scope.index or scope.everything
    indexes = named(experiment, scope.only)

    @cache
    def each() -> dict[str, list[Experiment]]:
        return {index.store.index: tenancy.per_index(index, state) for index in indexes}

    def going() -> frozenset[str]:
        return frozenset(one.store.index for ones in each().values() for one in ones if with_indexes)

    if with_models:
        yield from _asked_models(experiment, scope, state)
    if with_indexes:
        for index in indexes:
            yield Asked("index", index.store.index, partial(_index_part, index, state))
    if scope.bucket or (scope.everything and experiment.store.kind == "s3vectors"):
        name = getattr(experiment.store, "bucket", "")
        yield Asked(BUCKET, name, lambda: BucketPart(experiment, going()))
    if scope.state or scope.everything:
        yield Asked(
            "state",
            experiment.name,
            lambda: StatePart(experiment, state, each(), going(), models_go=with_models),
        )
        if experiment.cache is not None:
            yield Asked(CACHE, experiment.cache.path, lambda: CachePart(experiment, asked=scope.state))


def _asked_models(experiment: Experiment, scope: Scope, state: State) -> Iterator[Asked]:
    """The models, where anything hints at them or they are asked for by name. An experiment that has nothing in an
    account is removed without one; where one is named and not looked at, that is told.
    """
    name = experiment.name
    told = state.read(deployment.record_name(name)) is not None or any(
        getattr(experiment, role).model is not None or getattr(experiment.deployment, role).take_over
        for role in wants_models(experiment)
    )
    hinted = scope.models or experiment.deployment != Deployment()
    if told or (hinted and _has_region(experiment)):
        yield Asked(MODELS, name, partial(ModelsPart, experiment, ["stack"]))
    elif scope.models:
        why = "nothing names any, and no AWS region is known; to look: --set aws.region=REGION"
        yield Asked(MODELS, name, partial(ToldPart, Resource(MODELS, name, "skipped", why)))
    elif experiment.aws != Aws():
        why = "nothing names any; to look all the same: --models, or --orphans in the whole account"
        yield Asked(MODELS, name, partial(ToldPart, Resource(MODELS, name, "skipped", why)))


def _has_region(experiment: Experiment) -> bool:
    from ragctl.adapters.aws import region

    try:
        region(experiment)
    except ConfigError:
        return False
    return True


def _removed(part: Part, planned: Sequence[Resource], tell: Callable[[str], None]) -> list[Resource]:
    try:
        return part.remove(tell)
    except ServiceError as error:
        return [
            replace(resource, action="left", status=error.message)
            if resource.action == "delete"
            else resource
            for resource in planned
        ]


# --- models ----------------------------------------------------------------------------------------------


class ModelsPart:
    """Deployed models with all that is theirs, and the record of them."""

    def __init__(self, experiment: Experiment, selections: Sequence[Selection]) -> None:
        """Look at the account; nothing is changed."""
        self._experiment = experiment
        self._found = teardown.models(experiment, *selections)

    def leases(self) -> list[str]:
        """That of deploy-models, where its record is at stake."""
        return [deployment.lease_name(self._found.stack)] if self._found.whole_stack else []

    def plan(self) -> list[Resource]:
        """See `Part`; what costs says so."""
        resources = teardown.with_costs(self._found.resources(), self._found, self._price)
        return [*resources, *self._record("delete")]

    def remove(self, tell: Callable[[str], None]) -> list[Resource]:
        """See `Part`."""
        if not self.plan():
            return []
        recorded = self._record("deleted")
        outcome = teardown.with_costs(teardown.take_down(self._found, tell), self._found, self._price)
        if any(resource.type == teardown.RECORD for resource in outcome):
            return outcome
        return [*outcome, *(self._record("kept", "names what is left") or recorded)]

    def _record(self, action: str, status: str = "") -> list[Resource]:
        if not self._found.whole_stack or deployment.read(self._found.state, self._found.stack)[0] is None:
            return []
        return [Resource(teardown.RECORD, deployment.record_name(self._found.stack), action, status)]

    def _price(self, instance_type: str) -> Price | None:
        from ragctl.adapters.aws import region

        return cost.at_hand(self._found.state).instance(instance_type, region(self._experiment))


# --- indexes and their bucket ----------------------------------------------------------------------------


def _index_part(experiment: Experiment, state: State) -> Part:
    kind = TenantsPart if tenancy.has_index_each(experiment) else IndexPart
    return kind(experiment, state)


@dataclass(frozen=True, slots=True)
class IndexPart:
    """An index and its ledger."""

    experiment: Experiment
    state: State

    @property
    def _name(self) -> str:
        return self.experiment.store.index

    def leases(self) -> list[str]:
        """That of the index."""
        return [lease_name(self._name)]

    def plan(self) -> list[Resource]:
        """See `Part`."""
        has_ledger = self.state.read(ledger_name(self._name)) is not None
        owner = self._owner() if has_ledger else None
        if owner not in (None, self.experiment.name):
            why = f"of experiment {owner}; to remove it: --set name={owner}"
            return [Resource("index", self._name, "kept", why), Resource("ledger", self._name, "kept", why)]
        with closing(open_store(self.experiment)) as store:
            info = store.describe()
        if info is not None and info.embedder is None and not has_ledger:
            return [
                Resource("index", self._name, "kept", "was not made by ragctl"),
                Resource("ledger", self._name, "absent"),
            ]
        return [
            Resource("index", self._name, "absent" if info is None else "delete"),
            Resource("ledger", self._name, "delete" if has_ledger else "absent"),
        ]

    def _owner(self) -> str | None:
        """The experiment that filled the index first; None where the ledger cannot be read or does not say."""
        from ragctl.ingest import reading_ledger

        try:
            with reading_ledger(self.state, self._name) as ledger:
                return ledger.meta("experiment")
        except StateError:
            return None

    def remove(self, tell: Callable[[str], None]) -> list[Resource]:
        """See `Part`. The ledger of an index that is left is kept."""
        planned = self.plan()
        if not any(resource.action == "delete" for resource in planned):
            return planned
        with hold(self.state, lease_name(self._name), "teardown"):
            tell(f"index {self._name}: deleting")
            try:
                with closing(open_store(self.experiment)) as store:
                    dropped = store.drop()
                    why = "is still there" if store.describe() is not None else None
            except ServiceError as error:
                why = error.message
            if why is not None:
                return self._left(why)
            for name in (ledger_name(self._name), *self.state.names(f"{ledger_name(self._name)}.journal/")):
                self.state.delete(name)
        return [
            Resource("index", self._name, "deleted" if dropped else "absent"),
            Resource("ledger", self._name, "deleted" if planned[1].action == "delete" else "absent"),
        ]

    def _left(self, why: str) -> list[Resource]:
        status = ", ".join(filter(None, (why, _storage_cost(self.experiment, self.state))))
        return [
            Resource("index", self._name, "left", status),
            Resource("ledger", self._name, "kept", "its index is there"),
        ]


@dataclass(frozen=True, slots=True)
class TenantsPart:
    """The indexes of all tenants, and the list of who they are."""

    experiment: Experiment
    state: State

    def leases(self) -> list[str]:
        """That under which indexes of tenants are made, and that of each."""
        own = lease_name(self.experiment.store.index)
        return [own, *(lease for part in self._each() for lease in part.leases())]

    def plan(self) -> list[Resource]:
        """See `Part`."""
        return [resource for part in self._each() for resource in part.plan()]

    def remove(self, tell: Callable[[str], None]) -> list[Resource]:
        """See `Part`. No tenant is forgotten while an index of one is left."""
        planned = self.plan()
        if not any(resource.action == "delete" for resource in planned):
            return planned
        with hold(self.state, lease_name(self.experiment.store.index), "teardown"):
            removed = [resource for part in self._each() for resource in part.remove(tell)]
            if not any(resource.action == "left" for resource in removed):
                tenancy.Registry(self.experiment, self.state).remove()
        return removed

    def _each(self) -> list[IndexPart]:
        return [IndexPart(one, self.state) for one in tenancy.per_index(self.experiment, self.state)]


@dataclass(frozen=True, slots=True)
class BucketPart:
    """The vector bucket, when ragctl made it and nothing is in it once the indexes `going` are gone."""

    experiment: Experiment
    going: frozenset[str]

    def leases(self) -> list[str]:
        """None: the service refuses to remove a bucket that is not empty."""
        return []

    def plan(self) -> list[Resource]:
        """See `Part`."""
        store = s3vectors_store(self.experiment)
        try:
            action = "delete" if store.can_drop_bucket(self.going) else "absent"
        except Refused as error:
            return [Resource(BUCKET, store.bucket, "kept", error.message)]
        return [Resource(BUCKET, store.bucket, action)]

    def remove(self, tell: Callable[[str], None]) -> list[Resource]:
        """See `Part`."""
        store = s3vectors_store(self.experiment)
        tell(f"{BUCKET} {store.bucket}: deleting if it is empty")
        try:
            dropped = store.drop_bucket()
            still_there = dropped and store.can_drop_bucket()
        except Refused as error:
            return [Resource(BUCKET, store.bucket, "kept", error.message)]
        if still_there:
            return [Resource(BUCKET, store.bucket, "left", "is still there; empty it costs nothing")]
        return [Resource(BUCKET, store.bucket, "deleted" if dropped else "absent")]


def _storage_cost(experiment: Experiment, state: State) -> str:
    """What an index costs while it is there, in words; nothing is said of a disk of one's own."""
    if experiment.store.kind == "local":
        return ""
    from ragctl.adapters.aws import region

    prices = cost.at_hand(state).s3vectors(region(experiment))
    return f"costs ${prices.storage_gb_month:g} a GB and month" if prices else "costs an unknown price"
