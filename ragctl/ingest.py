"""ingest: list, compare with the ledger, refuse what looks like an accident, work through the rest, prune."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from ragctl import fingerprints, indexes, matching, repeats, workers
from ragctl.chunking import token_counter
from ragctl.embedding import Probed
from ragctl.errors import Refused
from ragctl.guard import DeleteGuard
from ragctl.lease import hold
from ragctl.manifest import Failure, Ledger, copy_ledger, fence_seen
from ragctl.matching import Mismatch
from ragctl.ownership import refuse_shared
from ragctl.parsing import RECORD_FORMATS, suffix
from ragctl.pipeline import Pipeline
from ragctl.planning import Listing, Plan, Planned
from ragctl.remote_ledger import RemoteLedger
from ragctl.repeats import Repeats
from ragctl.reuse import KnownTexts
from ragctl.scratch import scratch_folder
from ragctl.settling import delete_keys
from ragctl.spending import IngestBill
from ragctl.state import LocalState, lease_name, ledger_name
from ragctl.tenancy import has_index_each
from ragctl.under_way import Counts, Services

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.lease import Lease
    from ragctl.saved_plan import SavedPlan
    from ragctl.state import State

log = logging.getLogger("ragctl.ingest")

SCRATCH = 2**62  # a fence above that of every holder: nobody else writes the copy


@dataclass(frozen=True, slots=True)
class IngestOptions:
    dry_run: bool = False
    max_delete: float | None = None  # None: what the experiment says
    checksum: bool = False  # look into every file whatever its size and time
    only_failed: bool = False  # files with failures, and no others
    wait_s: float = 0.0  # for the lease
    saved: SavedPlan | None = None  # the plan that the run must still be like
    spent_usd: float = 0.0  # of budget.ingest_usd, by the same command on other indexes


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What an ingest did. `failures` are those of this run."""

    index: str
    counts: Counts
    documents: int  # in the index now
    chunks: int
    seconds: float
    stages: dict[str, float]
    failures: list[Failure]
    interrupted: bool = False
    planned: Planned | None = None
    restored: bool = False  # the index had lost chunks that the ledger knew
    dry_run: bool = False
    bill: IngestBill | None = None  # None: nothing was done
    gave_up: bool = False  # ended early, because more failed than `ingest.fail_threshold` allows
    ignored: Mapping[str, int] = field(
        default_factory=dict
    )  # files of the sources that nothing reads, by ending

    @property
    def over_budget(self) -> bool:
        """Whether the run ended early because its budget does not bear more."""
        return self.bill is not None and self.bill.is_spent

    def to_json(self, run: str | None) -> dict[str, Any]:
        """The result as design.md gives it."""
        head = {
            "schema": "ragctl.ingest/1",
            "run": run,
            "seconds": round(self.seconds, 3),
            "dry_run": self.dry_run,
        }
        return {**head, **self.payload(), **(self._foreseen() if self.dry_run else {})}

    def _foreseen(self) -> dict[str, Any]:
        """What a dry run knows. How many documents and chunks are in files that are new or differ, nobody knows before
        they are read: null.
        """
        planned, known = self.planned, {"documents": ("unchanged", "deleted"), "chunks": ("total",)}
        assert planned is not None
        counts = {
            of: {name: number if name in names else None for name, number in self.payload()[of].items()}
            for of, names in known.items()
        }
        files = {
            "added": planned.add,
            "checked": planned.check,
            "unchanged": planned.keep,
            "deleted": planned.delete,
        }
        return {"files": files, **counts}

    def payload(self) -> dict[str, Any]:
        """What run.json keeps of an ingest."""
        c = self.counts
        return {
            "index": self.index,
            "documents": {
                "seen": c.seen,
                "added": c.added,
                "changed": c.changed,
                "unchanged": c.unchanged,
                "deleted": c.deleted,
                "failed": c.failed,
                "empty": c.empty,
            },
            "chunks": {
                "total": self.chunks,
                "embedded": c.embedded,
                "reused": c.reused,
                "cached": c.cached,
                "written": c.written,
                "deleted": c.removed,
            },
            "tokens": c.tokens,
            "throttles": c.throttles,
            "retries": c.retries,
            "bytes": c.bytes,
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "restored": self.restored,
            "gave_up": self.gave_up,
            "ignored": dict(self.ignored),
            "cost": self.bill.to_json() if self.bill else None,
            "failures": [{"document": f.document, "stage": f.stage, "error": f.error} for f in self.failures],
        }


@dataclass(slots=True)
class Progress:
    """What a display may show of a run under way."""

    counts: Counts = field(default_factory=Counts)
    bill: IngestBill = field(default_factory=IngestBill)
    files: int = 0  # to work through
    pipeline: Pipeline | None = None
    stopping: threading.Event = field(default_factory=threading.Event)  # set it to end early, consistently
    repeats: Repeats = field(default_factory=repeats.so_far)  # up to which `counts` has them

    def count_repeats(self) -> None:
        """Take in what adapters have repeated since the last time."""
        so_far = repeats.so_far()
        new, self.repeats = so_far - self.repeats, so_far
        self.counts.throttles += new.throttles
        self.counts.retries += new.retries


def ingest(
    experiment: Experiment,
    state: State,
    options: IngestOptions,
    progress: Progress,
    tick: Callable[[], None] = lambda: None,
) -> IngestResult:
    """Bring the index up to date with the sources.

    Raises Refused before anything is changed when the listing is incomplete, when too much would be deleted, when
    the index was made with other settings or is another experiment's, or when a saved plan does not hold any more;
    LeaseHeld when another run works on the index. Where the budget does not bear everything, as many documents as it bears get in whole.
    """
    if experiment.chunking.tokenizer:
        token_counter(experiment.chunking)  # a fault of the experiment must not become one of every document
    probed = None
    if not options.dry_run:
        probed = _probed(experiment)  # first, for the bill may take a while: it wants to know the region
        progress.bill = IngestBill.of(experiment, state, before=options.spent_usd)
    if has_index_each(experiment):
        from ragctl.tenants import ingest_tenants

        return ingest_tenants(experiment, state, options, progress, tick, probed)
    guard = DeleteGuard(experiment, options.max_delete)
    files = partial(list_sources, experiment)
    return ingest_index(experiment, state, options, progress, tick, files=files, guard=guard, probed=probed)


def _probed(experiment: Experiment) -> Probed:
    from ragctl.adapters import open_embedder

    return Probed(open_embedder(experiment))


def ingest_index(
    experiment: Experiment,
    state: State,
    options: IngestOptions,
    progress: Progress,
    tick: Callable[[], None],
    *,
    files: Callable[[], Listing],
    guard: DeleteGuard,
    probed: Probed | None,
    looks: bool = True,
) -> IngestResult:
    """Bring one index up to date with the files that belong into it, which are listed under its lease.

    `probed`: the embedder, None for a dry run, which asks it for nothing where there is no index. `looks` false:
    such a run goes by the ledger alone and does not look at the index.
    """
    start = monotonic()
    index = experiment.store.index
    with ExitStack() as stack:
        if probed is None:
            ledger = stack.enter_context(scratch_ledger(state, index))
            refuse_shared(experiment, ledger, state)
            listing = _listed(experiment, ledger, options, files)
            if looks:
                _match_dry(experiment, ledger, guard)
            return _dry_run(experiment, ledger, options, start, listing, guard)
        lease = stack.enter_context(
            hold(state, lease_name(index), "ingest", wait_s=options.wait_s, stopping=progress.stopping.is_set)
        )
        ledger = stack.enter_context(writing_ledger(state, index, lease))
        refuse_shared(experiment, ledger, state)
        if ledger.meta("created") is None:
            workers.prepare(experiment)  # a first ingest has files to parse
        run = _Run(experiment, ledger, lease, options, progress, stack, guard, probed)
        return run.work(start, tick, _listed(experiment, ledger, options, files))


def _listed(
    experiment: Experiment, ledger: Ledger, options: IngestOptions, files: Callable[[], Listing]
) -> Listing:
    listing = files()
    if options.saved is not None:
        options.saved.check(experiment, ledger, listing)
    return listing


class _Run:
    """One ingest: the steps in order, each a method."""

    def __init__(
        self,
        experiment: Experiment,
        ledger: Ledger,
        lease: Lease,
        options: IngestOptions,
        progress: Progress,
        stack: ExitStack,
        guard: DeleteGuard,
        probed: Probed,
    ) -> None:
        from ragctl.adapters import open_store
        from ragctl.cache import open_cache

        self._experiment = experiment
        self._options = options
        self._progress = progress
        self._guard = guard
        self._probed, embedder = probed, probed.embedder
        self._before = 0  # documents in the index before anything was done: of them so many may go
        store = open_store(experiment)
        stack.callback(store.close)
        store.before_writes(lease.check)
        cache = open_cache(experiment, embedder.identity)
        if cache is not None:
            stack.callback(cache.close)
        self._s = Services(
            experiment, ledger, store, embedder, lease, cache, fingerprints.of_sources(experiment)
        )

    def work(self, start: float, tick: Callable[[], None], listing: Listing) -> IngestResult:
        s = self._s
        counts = self._progress.counts
        before = counts.written + counts.removed
        mismatch = self._match_index(listing.ignored)
        plan = _plan(s.ledger, listing, s.fingerprints, self._options)
        self._before = s.ledger.counts()[0]
        self._refuse_mass_delete(plan.planned.delete_documents)
        counts.seen += plan.planned.keep_documents
        counts.unchanged += plan.planned.keep_documents
        self._progress.files = plan.planned.add + plan.planned.check
        known = KnownTexts(chain((key for row in plan.vanished() for key in row.keys), mismatch.strays))
        pipeline = self._progress.pipeline = Pipeline(
            s,
            counts,
            known,
            self._progress.stopping,
            self._progress.bill,
            coming=None if plan.holds_records else self._progress.files,
            kept=plan.planned.keep_documents,
            knows_all=not mismatch.strays,
        )
        if self._progress.files:
            with closing(plan.todos()) as todos:  # which reads the ledger as long as it is open
                pipeline.run(todos, tick)
        interrupted = self._progress.stopping.is_set()
        if not (interrupted or pipeline.gave_up or self._progress.bill.is_spent):
            self._prune(plan, pipeline)
            if not self._options.only_failed:  # else files that were passed over may claim what is left
                matching.settle(s.ledger, s.store)
        self._clean()
        plan.close()
        known.close()
        wrote = counts.written + counts.removed > before
        if wrote or mismatch.compared:  # the run that wrote last may have died before, or within
            s.store.finish()
        if wrote or mismatch.compared:
            matching.leave(s.ledger, s.store)
        self._note_chunking(pipeline.seconds["chunk"])
        self._progress.count_repeats()  # beside those that reached the pipeline
        documents, chunks = s.ledger.counts()
        return IngestResult(
            self._experiment.store.index,
            counts,
            documents,
            chunks,
            monotonic() - start,
            pipeline.seconds,
            sorted(pipeline.failures, key=lambda failure: failure.document),  # they come in any order
            interrupted,
            plan.planned,
            mismatch.lost,
            bill=self._progress.bill,
            gave_up=pipeline.gave_up,
            ignored=listing.ignored,
        )

    def _match_index(self, ignored: Mapping[str, int]) -> Mismatch:
        """Make the index if it is absent, remove what a run that was killed left in it, and see what else is off."""
        s = self._s
        spec = indexes.spec_of(self._experiment, self._probed.ready())
        info = s.store.describe()
        if info is None:
            s.store.create(spec)
            info = indexes.require(s.store, self._experiment.store.index)
        indexes.refuse_other_settings(info, spec)
        matching.refuse_lost_ledger(s.ledger, s.store, info)
        is_new = s.ledger.meta("created") is None
        lost = matching.look_again(s.ledger, s.store, info)
        self._clean()
        mismatch = matching.match(s.ledger, s.store, info, self._guard.share)
        mismatch = replace(mismatch, lost=mismatch.lost or lost)
        s.ledger.set_meta(
            embedder=spec.embedder,
            dimension=str(spec.dimension),
            created=info.created,
            experiment=s.ledger.meta("experiment") or self._experiment.name,  # whose it is, for teardown
            ignored=json.dumps(ignored),  # for status, which does not list the sources
        )
        if is_new:  # before the first put, so that a run that dies is not taken for a lost ledger
            s.ledger.publish(force=True)
        return mismatch

    def _note_chunking(self, seconds: float) -> None:
        """Keep how long the chunking of what is in the index took, for the evaluations that report it."""
        if seconds:
            before = float(self._s.ledger.meta("chunking_seconds") or 0)
            self._s.ledger.set_meta(chunking_seconds=f"{before + seconds:.3f}")

    def _prune(self, plan: Plan, pipeline: Pipeline) -> None:
        """Delete the documents that the sources no longer have, and the chunks of those that have no text any more."""
        s, emptied = self._s, pipeline.emptied
        gone = pipeline.vanished + [row.id for row in plan.vanished()]
        if not (gone or emptied or plan.planned.delete):
            return
        self._refuse_mass_delete(len(gone), emptied=len(emptied))
        self._progress.counts.deleted += len(gone)
        s.ledger.forget(gone, plan.vanished_files())
        s.ledger.settle(emptied, pipeline.shrunk, [])

    def _refuse_mass_delete(self, deleted: int, *, emptied: int = 0) -> None:
        self._guard.expect(self._experiment.store.index, deleted, self._before, emptied=emptied)
        self._guard.check()

    def _clean(self) -> None:
        """Delete every loose key from the store: nothing is in flight, so no document is about to claim one."""
        loose = self._s.ledger.loose(-1)
        if loose:
            self._s.ledger.publish(force=True)
            self._progress.counts.removed += delete_keys(self._s, loose)


def _plan(ledger: Ledger, listing: Listing, settings: Mapping[str, str], options: IngestOptions) -> Plan:
    failed = {failure.file for failure in ledger.failures()} if options.only_failed else None
    return Plan(ledger, listing, settings, checksum=options.checksum, only=failed)


def list_sources(experiment: Experiment) -> Listing:
    """The files of all sources. Raises Refused when two files come under one id, or when a listing is incomplete."""
    from ragctl.sources import open_source

    tenancy = experiment.tenancy
    listing = Listing(tenancy.key if tenancy else None)
    for section in experiment.sources:
        listing.add(open_source(section, experiment).list(listing.ignored))
    _refuse_ids_of_records(listing)
    if not len(listing):
        log.warning("the sources list no file at all")
    return listing


def _refuse_ids_of_records(listing: Listing) -> None:
    """Refuse a file whose name could be the id of a record of another: `a.jsonl#7.txt` beside `a.jsonl`."""
    for name in listing.names_with("#"):
        for end in (place for place, sign in enumerate(name) if sign == "#"):
            if suffix(name[:end]) in RECORD_FORMATS and name[:end] in listing:
                raise Refused(
                    f"{name} and a record of {name[:end]} could come under one document id",
                    hint="rename the file, or exclude it",
                )


def _match_dry(experiment: Experiment, ledger: Ledger, guard: DeleteGuard) -> None:
    """Refuse what a run would refuse, and have the plan do what the index lacks."""
    from ragctl.adapters import open_embedder, open_store

    with closing(open_store(experiment)) as store:
        info = store.describe()
        if info is not None:
            indexes.refuse_other_settings(info, indexes.spec_of(experiment, open_embedder(experiment)))
        matching.refuse_lost_ledger(ledger, store, info)
        matching.match(ledger, store, info, guard.share)


def _dry_run(
    experiment: Experiment,
    ledger: Ledger,
    options: IngestOptions,
    start: float,
    listing: Listing,
    guard: DeleteGuard,
) -> IngestResult:
    plan = _plan(ledger, listing, fingerprints.of_sources(experiment), options)
    planned = plan.planned
    documents, chunks = ledger.counts()
    guard.expect(experiment.store.index, planned.delete_documents, documents)
    guard.check()
    counts = Counts(unchanged=planned.keep_documents, deleted=planned.delete_documents)
    plan.close()
    return IngestResult(
        experiment.store.index,
        counts,
        documents,
        chunks,
        monotonic() - start,
        {},
        [],
        planned=planned,
        dry_run=True,
        ignored=listing.ignored,
    )


@contextmanager
def writing_ledger(state: State, index: str, lease: Lease) -> Iterator[Ledger]:
    """The index's ledger, to be written under our lease."""
    name = ledger_name(index)
    with ExitStack() as stack:
        ledger = (
            Ledger(state.path(name), fence=lease.fence_above(fence_seen(state.path(name))))
            if isinstance(state, LocalState)
            else RemoteLedger(state, name, stack.enter_context(scratch_folder()) / "ledger.sqlite", lease)
        )
        try:
            yield ledger
        finally:
            try:
                ledger.publish(force=True)
            finally:
                ledger.close()


@contextmanager
def reading_ledger(state: State, index: str) -> Iterator[Ledger]:
    """A copy of the index's ledger as it is, or an empty one where there is none."""
    with _copied(state, index) as (path, place), closing(Ledger(path, place=place)) as ledger:
        yield ledger


@contextmanager
def scratch_ledger(state: State, index: str) -> Iterator[Ledger]:
    """The same, to be written as a run would write it, and thrown away."""
    with _copied(state, index) as (path, place), closing(Ledger(path, fence=SCRATCH, place=place)) as ledger:
        yield ledger


@contextmanager
def _copied(state: State, index: str) -> Iterator[tuple[Path, str]]:
    name = ledger_name(index)
    with scratch_folder() as folder:
        path = folder / "ledger.sqlite"
        if isinstance(state, LocalState) and state.path(name).exists():
            copy_ledger(state.path(name), path)
        elif found := state.read(name):
            path.write_bytes(found.data)
        else:
            Ledger(path, fence=0).close()
        yield path, f"{state.place.rstrip('/')}/{name}"
