"""The figures of a plan: counted by a rehearsal of everything, or estimated from a rehearsal of a sample of the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import TYPE_CHECKING, Final

from ragctl.estimates import Z
from ragctl.parsing import RECORD_FORMATS, suffix
from ragctl.rehearsal import Rehearsal, Rehearsed, Tally, sizes_of
from ragctl.sampling import ZERO, Amount, File, Sample

if TYPE_CHECKING:
    from ragctl.adapters.base import VectorStore
    from ragctl.ingest import Progress
    from ragctl.manifest import Failure, Ledger
    from ragctl.planning import Plan

KNOWN_RECORDS: Final = 100  # of the index, looked at to know the size of what is already there

Puts = tuple[Sequence[float], Sequence[float], Sequence[float]]
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Above how many files or bytes a sample stands for all."""

    files: int = 2_000
    size: int = 200_000_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What an ingest into one index would do.

    `puts` holds the logical bytes of each put request: at the estimate, and at both ends of its interval.
    """

    documents: Mapping[str, Amount]  # added, changed, unchanged, deleted, failed, empty
    chunks: Mapping[str, Amount]  # written, embedded, and total: in the index afterwards
    tokens: Amount  # to embed
    stored: Amount  # logical bytes of all that is in the index afterwards
    queried: Amount  # likewise, the part of one record that every query reads
    puts: Puts
    failures: Sequence[Failure] = ()
    emptied: int = 0  # documents that have no text any more, among the files that were looked into
    sample: tuple[int, int] | None = None  # files drawn, of so many


@dataclass(frozen=True, slots=True)
class Before:
    """The index before the ingest: its chunks, and what a record of it takes, 0 where it has none."""

    chunks: int
    stored: Amount
    queried: Amount

    @classmethod
    def of(cls, rehearsal: Rehearsal) -> Before:
        """Look at some records of the index that the ledger knows."""
        store, ledger = rehearsal.store, rehearsal.ledger
        chunks = ledger.counts()[1]
        wanted = min(KNOWN_RECORDS, store.limits.get_keys) if rehearsal.exists and chunks else 0
        records = store.get(ledger.sample_keys(wanted)).values() if wanted else ()
        sizes = [sizes_of(record, rehearsal.spec) for record in records]
        return cls(chunks, _mean([size[0] for size in sizes]), _mean([size[1] for size in sizes]))


def figures(
    rehearsal: Rehearsal, plan: Plan, sampling: Sampling | None, progress: Progress, tick: Tick
) -> Figures:
    """Rehearse the plan; `sampling` None: every file, however many there are."""
    before = Before.of(rehearsal)
    bounds = sampling or Sampling(2**63, 2**63)
    sample = Sample(_files(plan), most_files=bounds.files, most_bytes=bounds.size)
    if sample.is_whole:
        return _counted(rehearsal, plan, before, rehearsal.run(plan, None, progress, tick))
    sample.draw(_files(plan))
    return _estimated(rehearsal, plan, before, progress, tick, sample)


def _files(plan: Plan) -> Iterator[File]:
    files = (todo.task.file for todo in plan.todos())
    return (File(file.id, suffix(file.id), file.size) for file in files)


# --- counted ---------------------------------------------------------------------------------------------


def _counted(rehearsal: Rehearsal, plan: Plan, before: Before, done: Rehearsed) -> Figures:
    """Exact, but for the sizes of what was in the index before."""
    ledger, counts, exact = rehearsal.ledger, done.counts, Amount.exact
    gone = [*done.vanished, *(row.id for row in plan.vanished())]
    ledger.forget(gone, plan.vanished_files())
    ledger.settle(done.emptied, [], [])
    chunks = {
        "written": exact(done.total.records),
        "embedded": exact(done.texts),
        "total": exact(ledger.counts()[1]),
    }
    puts = list(map(float, done.puts))
    return Figures(
        documents={
            "added": exact(counts.added),
            "changed": exact(counts.changed),
            "unchanged": exact(counts.unchanged + plan.planned.keep_documents),
            "deleted": exact(len(gone)),
            "failed": exact(counts.failed),
            "empty": exact(counts.empty),
        },
        chunks=chunks,
        tokens=exact(done.tokens),
        stored=exact(done.total.stored) + _staying(chunks, before),
        queried=_queried(done, before),
        puts=(puts, puts, puts),
        failures=done.failures,
        emptied=len(done.emptied),
    )


def _staying(chunks: Mapping[str, Amount], before: Before) -> Amount:
    """Bytes of the chunks that are in the index and stay as they are."""
    return before.stored.times(max(0.0, chunks["total"].value - chunks["written"].value))


def _queried(done: Rehearsed, before: Before) -> Amount:
    total = done.total
    return Amount.exact(total.queried / total.records) if total.records else before.queried


# --- estimated -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _FileTally:
    """What became of one file of the sample."""

    chunks: int = 0
    fates: Counter[str] = field(default_factory=Counter)  # of its documents
    tally: Tally = field(default_factory=Tally)


def _estimated(
    rehearsal: Rehearsal, plan: Plan, before: Before, progress: Progress, tick: Tick, sample: Sample
) -> Figures:
    """With intervals; texts that stand in several documents are only known to be the same within the sample."""
    ledger = rehearsal.ledger
    touched = _chunks_of_steps(ledger, plan)
    old = {row.id for id_ in sample.drawn for row in ledger.documents(id_)}
    done = rehearsal.run(plan, sample.drawn, progress, tick)
    rows = {id_: _tally_of(ledger, id_, done, old) for id_ in sample.drawn}
    for failure in done.failures:
        rows[failure.file].fates["failed"] += 1
    records, texts = max(1, done.total.records), max(1, done.texts)
    written = sample.total({id_: row.tally.records for id_, row in rows.items()})
    embedded = written.times(done.texts / records)
    found = sample.total({id_: row.chunks for id_, row in rows.items()})
    total = Amount.exact(before.chunks - touched) + found
    chunks = {"written": written, "embedded": embedded, "total": total}
    return Figures(
        documents=_documents(plan, sample, rows),
        chunks=chunks,
        tokens=embedded.times(done.tokens / texts),
        stored=sample.total({id_: row.tally.stored for id_, row in rows.items()}) + _staying(chunks, before),
        queried=_queried(done, before),
        puts=_even_puts(written, done.total, rehearsal.store),
        failures=done.failures,
        sample=(len(sample.drawn), sample.files),
    )


def _tally_of(ledger: Ledger, file_id: str, done: Rehearsed, old: Collection[str]) -> _FileTally:
    """What the rehearsal left in the ledger, and counted, of one file."""
    row = _FileTally()
    failed, vanished = {failure.document for failure in done.failures}, set(done.vanished)
    for document in ledger.documents(file_id):
        put = done.by_document.get(document.id)
        if put is not None:
            row.tally.add(put)
        if document.id in vanished:
            row.fates["deleted"] += 1
        elif document.id not in failed:
            row.chunks += len(document.keys)
            row.fates[_fate(document.id, document.keys, put is not None, old)] += 1
    return row


def _fate(document: str, keys: Sequence[str], was_put: bool, old: Collection[str]) -> str:
    if not keys:
        return "empty"
    if document not in old:
        return "added"
    return "changed" if was_put else "unchanged"


def _documents(plan: Plan, sample: Sample, rows: Mapping[str, _FileTally]) -> dict[str, Amount]:
    """Documents by what becomes of them. A file that holds no records is one document, so new ones of those are
    known in number, but for the few that turn out to be empty or not to be read.
    """
    found = {
        fate: sample.total({id_: row.fates[fate] for id_, row in rows.items()})
        for fate in ("added", "changed", "unchanged", "deleted", "failed", "empty")
    }
    new = {todo.task.file.id for todo in plan.todos() if todo.row is None and _is_plain(todo.task.file.id)}
    lost = {id_: row.fates["failed"] + row.fates["empty"] for id_, row in rows.items() if id_ in new}
    in_records = {id_: row.fates["added"] for id_, row in rows.items() if id_ not in new}
    return found | {
        "added": Amount.exact(len(new)) - sample.total(lost) + sample.total(in_records),
        "unchanged": found["unchanged"] + Amount.exact(plan.planned.keep_documents),
        "deleted": found["deleted"] + Amount.exact(plan.planned.delete_documents),
    }


def _is_plain(file_id: str) -> bool:
    return suffix(file_id) not in RECORD_FORMATS


def _chunks_of_steps(ledger: Ledger, plan: Plan) -> int:
    """Chunks of all files that are not simply kept."""
    files = [*(todo.task.file.id for todo in plan.todos() if todo.row), *plan.vanished_files()]
    return sum(len(row.keys) for file_id in files for row in ledger.documents(file_id))


def _even_puts(written: Amount, total: Tally, store: VectorStore) -> Puts:
    """Requests for so many records of the mean size, cut as the pipeline cuts them."""
    records = max(1, total.records)
    by_bytes = store.limits.put_bytes * records // max(1, total.encoded)
    per_put, mean = max(1, min(store.limits.put_records, by_bytes)), total.stored / records

    def cut(count: float) -> list[float]:
        full, rest = divmod(ceil(count), per_put)
        return [per_put * mean] * full + ([rest * mean] if rest else [])

    return cut(written.value), cut(written.low), cut(written.high)


def _mean(sizes: Sequence[int]) -> Amount:
    """The mean with its interval; 0 of nothing."""
    if not sizes:
        return ZERO
    n = len(sizes)
    mean = sum(sizes) / n
    half = Z * sqrt(sum((size - mean) ** 2 for size in sizes) / max(1, n - 1) / n)
    return Amount(mean, max(0.0, mean - half), mean + half)
