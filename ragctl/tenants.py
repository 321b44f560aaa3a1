"""An index for each tenant: the ordinary ingest, once for each, over the files that the listing gives to it.

Every index has its own ledger and lease, so all that holds of one index holds of each. What is common to the run is
one listing, one lease beside the registry of tenants, and one guard that counts what is to go from all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from ragctl.guard import DeleteGuard
from ragctl.ingest import (
    IngestOptions,
    IngestResult,
    Progress,
    ingest_index,
    list_sources,
)
from ragctl.lease import hold
from ragctl.manifest import Failure
from ragctl.pipeline import log_failure
from ragctl.planning import Listing, Planned
from ragctl.state import lease_name
from ragctl.tenancy import Registry, fault, has_index_each, of_tenant
from ragctl.under_way import Counts

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.embedding import Probed
    from ragctl.state import State

Tally = TypeVar("Tally", Counts, Planned)


def ingest_tenants(
    experiment: Experiment,
    state: State,
    options: IngestOptions,
    progress: Progress,
    tick: Callable[[], None],
    probed: Probed | None,
) -> IngestResult:
    """Bring the index of every tenant up to date. Raises as `ingest.ingest` does.

    Files without a tenant are failures, told again by every run until they have one.
    """
    start = monotonic()
    registry = Registry(experiment, state)
    if options.dry_run:
        listing = list_sources(experiment)
        planned = _each(experiment, state, options, Progress(), listing, _union(registry, listing), probed)
        _guard(experiment, options, planned).check()
        counts = _sum(Counts, [result.counts for result in planned])
        result = _joined(experiment, planned, strays(experiment, listing), counts, start)
        return replace(result, dry_run=True, ignored=listing.ignored)
    stopping = progress.stopping.is_set
    with hold(state, lease_name(experiment.store.index), "ingest", wait_s=options.wait_s, stopping=stopping):
        listing = list_sources(experiment)
        tenants = registry.add(listing.tenants())
        dry = replace(options, dry_run=True)
        looked = _each(experiment, state, dry, Progress(), listing, tenants, None, looks=False)
        guard = _guard(experiment, options, looked)
        guard.check()  # before anything of any tenant is removed
        done = _each(experiment, state, options, progress, listing, tenants, probed, tick, guard)
        lost = strays(experiment, listing)
        for failure in lost:
            log_failure(failure)
        listing.close()
    progress.counts.failed += len(lost)
    result = _joined(experiment, done, lost, progress.counts, start)
    return replace(result, bill=progress.bill, ignored=listing.ignored)


def strays(experiment: Experiment, listing: Listing) -> list[Failure]:
    """The files that no tenant's index takes: their path says no tenant."""
    tenancy = experiment.tenancy
    assert tenancy is not None
    return [
        Failure(file.id, file.id, "metadata", fault(file.metadata, tenancy.key, required=True) or "")
        for file in listing.of(None)
    ]


def indexes_wanted(
    experiment: Experiment, state: State, *, enter: bool = False, listing: Listing | None = None
) -> list[Experiment]:
    """An experiment for each index that this one has or is to have: itself, or one for each tenant of the registry
    and of the sources, who are entered into the registry where they are about to get an index.

    `listing`: the sources' files, where they are listed already.
    """
    if not has_index_each(experiment):
        return [experiment]
    registry = Registry(experiment, state)
    if listing is None:
        with closing(list_sources(experiment)) as listed:
            return indexes_wanted(experiment, state, enter=enter, listing=listed)
    tenants = registry.add(listing.tenants()) if enter else _union(registry, listing)
    return [of_tenant(experiment, tenant) for tenant in tenants]


def _union(registry: Registry, listing: Listing) -> list[str]:
    return sorted({*registry.tenants(), *listing.tenants()})


def _each(
    experiment: Experiment,
    state: State,
    options: IngestOptions,
    progress: Progress,
    listing: Listing,
    tenants: Iterable[str],
    probed: Probed | None,
    tick: Callable[[], None] = lambda: None,
    guard: DeleteGuard | None = None,
    *,
    looks: bool = True,
) -> list[IngestResult]:
    """Ingest for each tenant, until the run is told to stop; without a guard, whatever is to go may."""
    done: list[IngestResult] = []
    for tenant in tenants:
        result = ingest_index(
            of_tenant(experiment, tenant),
            state,
            options,
            progress,
            tick,
            files=partial(listing.of, tenant),
            guard=guard or DeleteGuard(experiment, 1.0),
            probed=probed,
            looks=looks,
        )
        done.append(result)
        if result.interrupted or result.gave_up or progress.bill.is_spent:
            break
    return done


def _guard(experiment: Experiment, options: IngestOptions, planned: Iterable[IngestResult]) -> DeleteGuard:
    guard = DeleteGuard(experiment, options.max_delete)
    for result in planned:
        assert result.planned is not None
        guard.expect(result.index, result.planned.delete_documents, result.documents)
    return guard


def _joined(
    experiment: Experiment, results: list[IngestResult], lost: list[Failure], counts: Counts, start: float
) -> IngestResult:
    """One result over all indexes; `counts` are those of the whole run."""
    stages: Counter[str] = Counter()
    for result in results:
        stages.update(result.stages)
    return IngestResult(
        index=experiment.store.index,
        counts=counts,
        documents=sum(result.documents for result in results),
        chunks=sum(result.chunks for result in results),
        seconds=monotonic() - start,
        stages=dict(stages),
        failures=[failure for result in results for failure in result.failures] + lost,
        interrupted=any(result.interrupted for result in results),
        planned=_sum(Planned, [result.planned for result in results if result.planned]),
        restored=any(result.restored for result in results),
        gave_up=any(result.gave_up for result in results),
    )


def _sum(kind: type[Tally], parts: list[Tally]) -> Tally:
    return kind(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(kind)})
