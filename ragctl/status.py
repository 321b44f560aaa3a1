"""status: what exists, what it costs, how the last runs ended. Nothing is changed.

What cannot be looked at is a fault beside the rest: a missing permission for one thing must not hide the others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ragctl import cost, deployment, instances, inventory
from ragctl.deployment import Ref, is_past
from ragctl.errors import RagctlError
from ragctl.lease import held_by
from ragctl.process import Process
from ragctl.state import lease_name

if TYPE_CHECKING:
    from ragctl.adapters.base import IndexInfo, VectorStore
    from ragctl.adapters.s3vectors_account import Bucket
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.config import Experiment
    from ragctl.cost import Price
    from ragctl.instances import Variant
    from ragctl.inventory import Found
    from ragctl.manifest import Ledger
    from ragctl.state import State

log = logging.getLogger("ragctl.status")

T = TypeVar("T")

SHOWN_RUNS: Final = 5
READ_RUNS: Final = 200  # folders that are looked into for them


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint that somebody pays for. Times are ISO 8601 in UTC, prices US dollars; None: unknown, or none."""

    name: str
    state: str
    reason: str | None = None  # why it failed, by the service
    stack: str | None = None
    ours: bool = True
    created: str | None = None
    age_hours: float | None = None
    expires: str | None = None
    expired: bool = False
    orphan: bool = False
    instances: str | None = None
    usd_per_hour: float | None = None
    usd_per_day: float | None = None
    last_used: str | None = None
    use: str = "unknown"  # "known": `last_used` None means not since `use_known_since`
    use_known_since: str | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """An index, as its store and its ledger know it."""

    name: str
    exists: bool
    mode: str | None
    dimension: int | None
    documents: int
    chunks: int
    failures: int
    holder: str | None
    ledger_lost: bool | None = False  # it holds chunks of which there is no ledger; None: that is not known
    ignored: Mapping[str, int] = field(
        default_factory=dict
    )  # files of the last ingest that nothing reads, by ending


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended. `verdict`: of an evaluation's gate.

    `status` is that of its record, but where the record says "running": then "died" of a run that has ended without a
    word, and "unknown" of one that nobody here can see.
    """

    id: str
    command: str
    status: str
    started: str
    seconds: float | None
    verdict: str | None
    path: str


@dataclass(slots=True)
class Status:
    """What there is. `faults`: what could not be looked at, and why."""

    endpoints: list[Endpoint] = field(default_factory=list)
    # Of ours, beside endpoints: type, name, orphan
    others: list[dict[str, Any]] = field(default_factory=list)
    indexes: list[Index] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)
    runs: list[RunEnd] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"schema": "ragctl.status/1", **asdict(self)}

    def look(self, part: Callable[[], T]) -> T | None:
        """What `part` gives; None, with a fault that says why and what to do, where it cannot be looked at."""
        try:
            return part()
        except RagctlError as error:
            self.faults.append(f"{error.message} ({error.hint})" if error.hint else error.message)
            return None


def of_experiment(experiment: Experiment, indexes: Sequence[Experiment]) -> Status:
    """What one experiment has; `indexes` is an experiment for each of its indexes."""
    from ragctl.state import open_state

    status, state = Status(), open_state(experiment)
    status.look(partial(_add_models, status, experiment, state))
    for named in indexes:
        status.look(partial(_add_indexes, status, named, state))
    status.runs = list(islice(_runs(experiment, state), SHOWN_RUNS))
    return status


def of_account(experiment: Experiment) -> Status:
    """Everything in the account and region that carries ragctl's tags; of `experiment` only `aws` counts, and `state`
    for its prices.
    """
    status = Status()
    status.look(partial(_add_tagged_models, status, experiment))
    status.look(partial(_add_buckets, status, experiment))
    return status


# --- models ----------------------------------------------------------------------------------------------


def _add_models(status: Status, experiment: Experiment, state: State) -> None:
    """The experiment's models; without its record they are found by tags and names, without prices they have none."""
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.deploy_plan import wants_models

    read = status.look(lambda: deployment.read(state, experiment.name))
    record = read[0] if read else None
    if read and record is None and not wants_models(experiment):
        return  # no account is needed for an experiment that has nothing in one
    prices = status.look(lambda: cost.load(state)) or cost.Prices()
    control = ControlPlane.from_config(experiment)
    found = inventory.find(control, stack=experiment.name, record=record)
    _add_found(status, experiment, found, (), prices)
    known = {endpoint.name for endpoint in status.endpoints}
    recorded = {role: model.endpoint for role, model in record.models.items()} if record else {}
    names = (getattr(experiment, role).endpoint or recorded.get(role) for role in wants_models(experiment))
    for name in sorted({name for name in names if name} - known):
        status.endpoints.append(_foreign(control, name))


def _add_tagged_models(status: Status, experiment: Experiment) -> None:
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.state import open_state

    prices = status.look(lambda: cost.load(open_state(experiment))) or cost.Prices()
    control = ControlPlane.from_config(experiment)
    found = inventory.find(control)
    orphans = {item.ref for item in inventory.in_account(control, found, "orphans")}
    _add_found(status, experiment, found, orphans, prices)


def _add_found(
    status: Status,
    experiment: Experiment,
    found: Collection[Found],
    orphans: Collection[Ref],
    prices: cost.Prices,
) -> None:
    from ragctl.adapters.aws import region

    where = region(experiment)
    price = cache(lambda kind: prices.instance(kind, where))
    for item in sorted(found, key=lambda item: item.ref):
        if item.ref.type == "endpoint":
            behind = inventory.behind(item, found)
            endpoint = _endpoint(item, behind, price, orphan=item.ref in orphans)
            names = [variant.name for variant in item.variants or behind]
            status.endpoints.append(_with_use(experiment, endpoint, names))
        else:
            name = {"type": item.ref.type, "name": item.ref.name, "stack": item.stack}
            status.others.append({**name, "orphan": item.ref in orphans})


def _endpoint(
    item: Found, behind: Sequence[Variant], price: Callable[[str], Price | None], *, orphan: bool
) -> Endpoint:
    hourly = instances.usd_per_hour(behind, price)
    return Endpoint(
        name=item.ref.name,
        state=item.status,
        reason=item.reason,
        stack=item.stack,
        created=item.created,
        age_hours=_hours_since(item.created),
        expires=item.expires,
        expired=item.expires is not None and is_past(item.expires),
        orphan=orphan,
        instances=" + ".join(map(str, behind)) or None,
        usd_per_hour=hourly,
        usd_per_day=None if hourly is None else 24 * hourly,
    )


def _with_use(experiment: Experiment, endpoint: Endpoint, variants: Sequence[str]) -> Endpoint:
    from ragctl.adapters.usage import LOOKED_BACK, last_used

    try:
        used = [last_used(experiment, endpoint.name, variant) for variant in variants]
    except RagctlError as error:
        log.warning("the last use of %s is not known: %s", endpoint.name, error)
        return endpoint
    if not used:
        return endpoint  # its variants are not known, so nobody was asked
    last = max(filter(None, used), default=None)
    since = datetime.now(UTC) - LOOKED_BACK
    made = _moment(endpoint.created)
    return replace(
        endpoint,
        last_used=deployment.timestamp(last) if last else None,
        use="known",
        use_known_since=deployment.timestamp(max(since, made) if made else since),
    )


def _foreign(control: ControlPlane, name: str) -> Endpoint:
    """An endpoint that the experiment uses and that is not ours to remove."""
    described = control.describe(Ref("endpoint", name))
    return Endpoint(name, str(described["EndpointStatus"]) if described else "absent", ours=False)


def _hours_since(time: str | None) -> float | None:
    moment = _moment(time)
    return None if moment is None else round((datetime.now(UTC) - moment).total_seconds() / 3_600, 2)


def _moment(time: str | None) -> datetime | None:
    """A time of a tag; None for a text that is none, or that does not say where on earth."""
    try:
        moment = datetime.fromisoformat(time or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else None


# --- indexes ---------------------------------------------------------------------------------------------


def _add_buckets(status: Status, experiment: Experiment) -> None:
    from ragctl.adapters.s3vectors_account import buckets

    status.buckets.extend(buckets(experiment))


def _add_indexes(status: Status, experiment: Experiment, state: State) -> None:
    from ragctl.tenancy import per_index

    for one in per_index(experiment, state):
        status.look(partial(_add_index, status, one, state))


def _add_index(status: Status, experiment: Experiment, state: State) -> None:
    status.indexes.append(_index(experiment, state))


def _index(experiment: Experiment, state: State) -> Index:
    from contextlib import closing

    from ragctl.adapters import open_store
    from ragctl.ingest import reading_ledger

    name = experiment.store.index
    with closing(open_store(experiment)) as store, reading_ledger(state, name) as ledger:
        info = store.describe()
        documents, chunks = ledger.counts()
        failures = len(ledger.failures())
        lost = _is_lost(ledger, store, info)
        ignored = json.loads(ledger.meta("ignored") or "{}")
    holder = held_by(state, lease_name(name))
    return Index(
        name=name,
        exists=info is not None,
        mode=info.details.get("mode", experiment.store.kind) if info else None,
        dimension=info.dimension if info else None,
        documents=documents,
        chunks=chunks,
        failures=failures,
        holder=str(holder) if holder else None,
        ledger_lost=lost,
        ignored=ignored,
    )


def _is_lost(ledger: Ledger, store: VectorStore, info: IndexInfo | None) -> bool | None:
    from ragctl.matching import is_lost

    try:
        return is_lost(ledger, store, info)
    except RagctlError as error:  # of a right, for instance, that nothing else here needs
        log.warning("whether the ledger of %s is lost is not known: %s", ledger.place, error)
        return None


# --- runs ------------------------------------------------------------------------------------------------


def _runs(experiment: Experiment, state: State) -> Iterator[RunEnd]:
    """The runs of this experiment, newest first; a folder may hold those of others as well."""
    if not experiment.runs.is_dir():
        return
    folders = sorted(experiment.runs.iterdir(), reverse=True)[:READ_RUNS]
    for _, same_second in groupby(folders, key=lambda folder: folder.name.partition("-")[0]):
        runs = [_run_end(folder / "run.json", experiment.name, state) for folder in same_second]
        yield from sorted(filter(None, runs), key=lambda run: (run.started, run.id), reverse=True)


def _run_end(path: Path, name: str, state: State) -> RunEnd | None:
    """How the run of this record ended; None where it is of another experiment, or there is none to be read."""
    try:
        record = json.loads(path.read_bytes())
        if record["config"]["name"] != name:
            return None
        seconds, gate = record.get("seconds"), record.get("gate")
        return RunEnd(
            id=str(record["id"]),
            command=str(record["command"]),
            status=_state_of(record, state) if record["status"] == "running" else str(record["status"]),
            started=str(record["started"]),
            seconds=None if seconds is None else float(seconds),
            verdict=None if gate is None else str(gate["verdict"]),
            path=str(path),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("%s cannot be read, so this run is not shown: %s", path, error.strerror)
    except (ValueError, LookupError, TypeError, AttributeError):
        log.warning("%s is damaged, so this run is not shown", path)
    return None


def _state_of(record: Mapping[str, Any], state: State) -> str:
    """Whether a run that has not said how it ended goes on: "running", "died", or "unknown".

    Its process tells where it can be seen from here, else the lease that it needs: who does not hold it any more, and
    nobody else does, has ended. One that somebody else holds may be one that the run waits for.
    """
    process = Process(**record["process"]) if "process" in record else None
    if process is not None and process.is_here:
        return "died" if process.is_dead else "running"
    lease = _lease_of(record)
    if lease is None:
        return "unknown"
    try:
        holder = held_by(state, lease)
    except RagctlError as error:
        log.warning("whether %s still runs is not known: %s", record["id"], error)
        return "unknown"
    if holder is None:
        return "died"
    return "running" if holder.process == process else "unknown"


def _lease_of(record: Mapping[str, Any]) -> str | None:
    """The lease that a run needs for all that it does; None where there is no such one."""
    if record["command"] == "ingest":
        return lease_name(record["config"]["store"]["index"])
    if record["command"] == "deploy-models":
        return deployment.lease_name(record["config"]["name"])
    return None
