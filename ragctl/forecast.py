"""plan: what an ingest would do to each index of an experiment, before it does it.

Nothing is changed. A model that does not tell the length of its vectors is asked once, as ingest asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

from ragctl import fingerprints, indexes, matching
from ragctl.chunking import token_counter
from ragctl.errors import CredentialsError, RagctlError, ServiceError
from ragctl.figures import Figures, Sampling, figures
from ragctl.guard import DeleteGuard
from ragctl.ingest import Progress, list_sources, scratch_ledger
from ragctl.ownership import refuse_shared
from ragctl.planning import Plan, Planned
from ragctl.rehearsal import CountingEmbedder, Rehearsal
from ragctl.sampling import Amount
from ragctl.saved_plan import World
from ragctl.sources.listing import not_read
from ragctl.tenancy import Registry, has_index_each, of_tenant

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, IndexInfo, VectorStore
    from ragctl.config import Experiment
    from ragctl.planning import Listing
    from ragctl.state import State

UNKNOWN_DIMENSION: Final = (
    "the length of a vector is not known before the model is up, so neither is what is put and stored: "
    "set embedding.dimension"
)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an ingest into one index would do. `dimension` None: not known yet, and then sizes are not either."""

    index: str
    files: Planned
    figures: Figures
    dimension: int | None
    vectors_per_second: int | None  # the store's limit
    world: World
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Counts; an estimate with its interval where files were sampled."""
        files, figures, known = self.files, self.figures, self.dimension is not None
        drawn = figures.sample
        return {
            "files": {"add": files.add, "check": files.check, "keep": files.keep, "delete": files.delete},
            "sampled": None if drawn is None else {"files": drawn[0], "of": drawn[1]},
            "documents": {name: amount.to_json() for name, amount in figures.documents.items()},
            "chunks": {name: amount.to_json() for name, amount in figures.chunks.items()},
            "tokens": figures.tokens.to_json(),
            "dimension": self.dimension,
            "puts": len(figures.puts[0]) if known else None,
            "stored_bytes": figures.stored.to_json() if known else None,
            "failures": [
                {"document": f.document, "stage": f.stage, "error": f.error} for f in figures.failures
            ],
            "notes": list(self.notes),
        }


def forecast(
    experiment: Experiment,
    state: State,
    sampling: Sampling | None,
    progress: Progress,
    tick: Callable[[], None] = lambda: None,
) -> list[Forecast]:
    """What an ingest would do, by index: one, or one for each tenant. `sampling` None: count every file.

    Raises Refused where an ingest would be refused, and what listing the sources and reading the store raise.
    """
    guard = DeleteGuard(experiment, None)
    with closing(list_sources(experiment)) as listing:
        found = [
            _of_index(one, state, files, guard, sampling, progress, tick)
            for one, files in _parts(experiment, state, listing)
        ]
        guard.check()
        if has_index_each(experiment) and found:
            found[0] = _with_strays(found[0], experiment, listing)
        if listing.ignored and found:
            found[0] = replace(found[0], notes=(*found[0].notes, not_read(listing.ignored)))
    return found


def _parts(experiment: Experiment, state: State, listing: Listing) -> Iterator[tuple[Experiment, Listing]]:
    """An experiment for each index, with the files that belong into it."""
    if not has_index_each(experiment):
        yield experiment, listing
        return
    for tenant in sorted({*Registry(experiment, state).tenants(), *listing.tenants()}):
        yield of_tenant(experiment, tenant), listing.of(tenant)


def _with_strays(first: Forecast, experiment: Experiment, listing: Listing) -> Forecast:
    """With the files that no index takes, which an ingest tells as failures."""
    from ragctl.tenants import strays

    lost, old = strays(experiment, listing), first.figures
    documents = {**old.documents, "failed": old.documents["failed"] + Amount.exact(len(lost))}
    return replace(first, figures=replace(old, documents=documents, failures=[*old.failures, *lost]))


def _of_index(
    experiment: Experiment,
    state: State,
    listing: Listing,
    guard: DeleteGuard,
    sampling: Sampling | None,
    progress: Progress,
    tick: Callable[[], None],
) -> Forecast:
    from ragctl.adapters import open_store

    index, notes = experiment.store.index, list[str]()
    with scratch_ledger(state, index) as ledger, closing(open_store(experiment)) as store:
        refuse_shared(experiment, ledger, state)
        world = World.of(experiment, ledger, listing)
        info = _look(store, notes)
        embedder = _embedder(experiment)
        dimension = _dimension(experiment, embedder, info)
        if dimension is None:
            notes.append(UNKNOWN_DIMENSION)
        stand_in = cast("Embedder", CountingEmbedder(dimension or 1, len))
        spec = indexes.spec_of(experiment, embedder or stand_in)
        if info is not None and embedder is not None:
            indexes.refuse_other_settings(info, spec)
        matching.refuse_lost_ledger(ledger, store, info)
        mismatch = matching.match(ledger, store, info, guard.share)
        prints = fingerprints.of_sources(experiment)
        with closing(Plan(ledger, listing, prints)) as plan:
            guard.expect(index, plan.planned.delete_documents, ledger.counts()[0])
            rehearsal = Rehearsal(
                experiment,
                ledger,
                store,
                spec,
                exists=info is not None,
                fingerprints=prints,
                count_tokens=token_counter(experiment.chunking),
                cache=_cache(experiment, embedder),
                strays=mismatch.strays,
            )
            documents = ledger.counts()[0]
            found = figures(rehearsal, plan, sampling, progress, tick)
            # At the least, where files were sampled; what is not sure to be too much is left to the ingest.
            guard.expect(index, int(found.documents["deleted"].low), documents, emptied=found.emptied)
            limit = store.limits.vectors_per_second
            return Forecast(index, plan.planned, found, dimension, limit, world, tuple(notes))


def _look(store: VectorStore, notes: list[str]) -> IndexInfo | None:
    try:
        return store.describe()
    except CredentialsError as error:  # a plan is wanted before there is an account as well
        notes.append(f"whether the index is there was not looked up: {error.message}")
        return None


def _embedder(experiment: Experiment) -> Embedder | None:
    """The embedder, ready to say its dimension; None where it cannot be asked yet."""
    from ragctl.adapters import open_embedder

    try:
        embedder = open_embedder(experiment)
        _ = embedder.dimension
    except ServiceError:
        return None
    except RagctlError:
        if experiment.embedding.kind != "sagemaker":  # an endpoint that is not deployed yet has no name
            raise
        return None
    return embedder


def _dimension(experiment: Experiment, embedder: Embedder | None, info: IndexInfo | None) -> int | None:
    if embedder is not None:
        return embedder.dimension
    return info.dimension if info is not None else getattr(experiment.embedding, "dimension", None)


def _cache(experiment: Experiment, embedder: Embedder | None) -> Any:
    from ragctl.cache import open_cache

    return open_cache(experiment, embedder.identity) if embedder is not None else None
