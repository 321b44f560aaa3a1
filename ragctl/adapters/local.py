"""The embedded store: LanceDB in a local folder, a table per index, one process writing at a time.

LanceDB runs threads of its own: a process that has opened a store must not fork.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from ragctl import indexes
from ragctl.adapters import local_rows as rows
from ragctl.adapters import local_search
from ragctl.adapters.base import IndexInfo, IndexSpec, StoreLimits
from ragctl.adapters.lance import connect, release_memory
from ragctl.adapters.local_filters import among
from ragctl.errors import ConfigError, NotFound, PermissionDenied, QuotaExceeded, ServiceError
from ragctl.filters import refuse_non_filterable
from ragctl.limits import MAX_TOP_K, check_query, check_record, check_spec, refuse_doubles
from ragctl.records import TEXT

if TYPE_CHECKING:
    from ragctl.adapters.base import SearchRequest
    from ragctl.config import Experiment
    from ragctl.records import Hit, VectorRecord

LAYOUT = 1  # of the table; raised when ragctl could not read older ones any more
ABOUT = b"ragctl"  # where the table's schema keeps what the index was made for
# A search in another process may still read what a commit has just replaced; none takes this long.
KEEP_VERSIONS = timedelta(minutes=10)
# What is left for later, so that a small change costs little. Records that are not yet in the text index are searched
# one by one (30 ms per 1,000 of them), and their words do not count towards how common a word is.
FRESH_RECORDS = 1_000
FRESH_SHARE = 0.05
MOST_FILES = 512  # searches are as quick as in one
MOST_VERSIONS = 2_000  # a few kilobytes each
PAGE_ROWS = 4_096
# Faults that every further call would meet: number, error, what is wrong, what to do.
_FAULTS_OF_PLACE: tuple[tuple[int, type[ServiceError], str, str], ...] = (
    (
        errno.ENOSPC,
        QuotaExceeded,
        "the disk is full",
        "free some space and run the command again; what was written before is whole",
    ),
    (
        errno.EACCES,
        PermissionDenied,
        "permission denied",
        "let this user write to the folder, or name another one in store.path",
    ),
    (
        errno.EROFS,
        PermissionDenied,
        "the file system is read-only",
        "name a folder that can be written in store.path",
    ),
)
FAULTS = (OSError, RuntimeError, ValueError, pa.ArrowException)  # what LanceDB raises, with its panics


class LocalStore:
    """One index in a LanceDB database, the folder `path`. Nothing is imported or made before it is needed."""

    limits = StoreLimits(
        put_records=2_048,  # a commit is one file and one version: not too many
        put_bytes=16 * 1024 * 1024,
        delete_keys=8_192,
        get_keys=8_192,
        top_k=MAX_TOP_K,
        puts_at_once=2,  # a table of rows is made while another is written
    )

    def __init__(self, path: Path, index: str) -> None:
        self._path = path
        self._name = index
        self._folder = path / f"{index}.lance"
        self._versions = self._folder / "_versions"  # without a version in it there is no index
        self._opened: tuple[Any, IndexInfo] | None = None
        self._opening = threading.Lock()
        self._writing = threading.Lock()  # commits at once would conflict, and be repeated until they do not
        self._before_write: Callable[[], None] = lambda: None
        # Of the index when it was last described, and after our writes since; None once another has written. Guarded by
        # `_writing`.
        self._version: int | None = None

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """Return the experiment's store; nothing is opened."""
        store = experiment.store
        assert store.kind == "local"
        return cls(store.path, store.index)

    # --- the index ---------------------------------------------------------------------------------------

    def describe(self) -> IndexInfo | None:
        """Say what the index is like; None where there is none. ServiceError when its files are damaged."""
        if not self._exists():
            return None
        table, info = self._open()
        with self._writing, self._faults("read"):
            self._version, records = table.version, str(table.count_rows())
        details = {"path": str(self._folder), "records": records}
        return replace(info, version=str(self._version), details=details)

    def create(self, spec: IndexSpec) -> bool:
        """Make the index. False where an equal one is there already; Refused where it differs."""
        check_spec(spec)
        with self._writing:
            made = not self._exists() and self._make(spec)
            _, info = self._open()
            indexes.refuse_other_settings(info, spec)
            self._index_text()
        return made

    def drop(self) -> bool:
        """Remove the index and all that it held; False where there was none."""
        with self._writing, self._opening, self._faults("remove"):
            self._opened = self._version = None
            if not self._folder.exists():
                return False
            if self._versions.exists():
                # First, so that an index half removed is never taken for a whole
                shutil.rmtree(self._versions)
            shutil.rmtree(self._folder)
            if not any(self._path.iterdir()):
                self._path.rmdir()
        return True

    def finish(self) -> None:
        """Take new records into the indexes, and join small files where they have become many."""
        with self._writing:
            for index in (self._index_text, self._index_vectors):
                release_memory()  # so that the peak is that of the larger, not of both
                index()
            table, _ = self._open()
            with self._faults("tidy up"):
                if self._is_untidy(table):
                    table.optimize(cleanup_older_than=KEEP_VERSIONS)

    def close(self) -> None:
        """Let go of the files."""
        with self._opening:
            self._opened = None

    def _exists(self) -> bool:
        return self._versions.is_dir() and any(self._versions.iterdir())

    def _open(self) -> tuple[Any, IndexInfo]:
        """Return the table and what it was made for; opened once."""
        with self._opening:
            if self._opened is None or not self._versions.is_dir():
                self._opened = None
                if not self._exists():
                    raise NotFound(
                        f"there is no index {self._name} in {self._path}",
                        hint="make and fill it: ragctl ingest CONFIG",
                    )
                with self._faults("open"):
                    table = connect(self._path).open_table(self._name)
                    self._opened = table, self._info(table.schema)
            return self._opened

    def _make(self, spec: IndexSpec) -> bool:
        """Make the table; False where another process was faster."""
        about = {"layout": LAYOUT, "created": datetime.now(UTC).isoformat(), **asdict(spec)}
        columns = rows.schema(spec.dimension, {ABOUT: json.dumps(about).encode()})
        with self._faults("make"):
            try:
                connect(self._path).create_table(self._name, schema=columns)
            except ValueError:  # what LanceDB says to a table that exists
                if not self._exists():
                    raise
                return False
        return True

    def _info(self, columns: pa.Schema) -> IndexInfo:
        about = json.loads((columns.metadata or {}).get(ABOUT, b"{}"))
        if about.pop("layout", None) != LAYOUT:
            raise ServiceError(
                f"index {self._name} in {self._path} was not made by this version of ragctl",
                hint="name another folder in store.path, or another index in store.index",
            )
        about["non_filterable"] = tuple(about["non_filterable"])
        return IndexInfo(name=self._name, **about)

    def _index_text(self) -> None:
        """Make the text index, anew when it lacks too many records: LanceDB adds to it only as it tidies up."""
        table, info = self._open()
        with self._faults("index the text of"):
            if info.text_search and _is_behind(table.index_stats("text_idx")):
                table.create_index("text", config=local_search.text_index(info.language))

    def _index_vectors(self) -> None:
        table, info = self._open()
        with self._faults("index the vectors of"):
            size = table.count_rows() * info.dimension * 4
            if size >= local_search.VECTOR_INDEX_BYTES and not local_search.is_indexed(table, "vector"):
                table.create_index("vector", config=local_search.vector_index(info.metric, info.dimension))

    def _is_untidy(self, table: Any) -> bool:
        """Say whether to tidy up, for which LanceDB writes most of the table anew, however little has changed."""
        files = table.stats()["fragment_stats"]["num_small_fragments"]
        return files > MOST_FILES or len(list(self._versions.iterdir())) > MOST_VERSIONS

    # --- records -----------------------------------------------------------------------------------------

    def encoded_size(self, record: VectorRecord) -> int:
        """Return about the bytes that a record takes: its vector and its text."""
        text = record.metadata.get(TEXT)
        return 4 * record.vector.size + (len(text) if isinstance(text, str) else 0)

    def check(self, record: VectorRecord) -> None:
        """Raise RecordRefused when a record breaks a limit, those of S3 Vectors among them."""
        _, info = self._opened or self._open()
        check_record(record, dimension=info.dimension, metric=info.metric, non_filterable=info.non_filterable)

    def before_writes(self, check: Callable[[], None]) -> None:
        """Call `check` before each commit of records, when it is its turn."""
        self._before_write = check

    def put(self, records: Sequence[VectorRecord], *, fresh: bool = False) -> None:
        """Insert records, or replace those with the same key, in one commit: all or none.

        The records have passed `check`. RecordRefused when a key stands twice. Those that are `fresh` are appended:
        to replace by key reads and joins all keys of the table, which costs twice as much as the write itself, and
        80 MB where there are 300,000.
        """
        if not records:
            return
        refuse_doubles(records)
        table, info = self._open()
        with self._faults("write to"):
            new = rows.table(records, table.schema, info.non_filterable)
            with self._writing:
                self._before_write()
                if fresh and table.version == self._version:
                    written = table.add(new)
                else:
                    merge = table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
                    written = merge.execute(new)
                self._wrote(written.version)

    def get(self, keys: Sequence[str], *, vectors: bool = False) -> dict[str, VectorRecord]:
        """Return records by key; an absent one is left out."""
        if not keys:
            return {}
        columns = ["vector"] if vectors else []
        found = self._scan([*columns, *rows.METADATA_COLUMNS], among("key", keys))
        return {row["key"]: rows.record(row) for row in found}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove records by key, in one commit; unknown keys are ignored."""
        if not keys:
            return
        with self._writing:
            table, _ = self._open()
            self._before_write()
            with self._faults("delete from"):
                self._wrote(table.delete(among("key", keys)).version)

    def _wrote(self, version: int) -> None:
        """Note the version that a write of ours has made; any but the next one means that somebody else wrote as well."""
        self._version = version if self._version is not None and version == self._version + 1 else None

    def keys(self) -> Iterator[str]:
        """Yield every key."""
        return (row["key"] for row in self._scan([]))

    def scan(self) -> Iterator[VectorRecord]:
        """Yield every record with its metadata and an empty vector."""
        return (rows.record(row) for row in self._scan([*rows.METADATA_COLUMNS]))

    def _scan(self, columns: list[str], condition: str | None = None) -> Iterator[dict[str, Any]]:
        table, _ = self._open()
        with self._faults("read"):
            query = table.search().select(["key", *columns])
            if condition is not None:
                query = query.where(condition)
            for batch in query.to_batches(PAGE_ROWS):
                yield from batch.to_pylist()

    # --- search ------------------------------------------------------------------------------------------

    def search(self, request: SearchRequest) -> list[Hit]:
        """Return the nearest records, best first, equal ones by key; see `local_search.search` for the scores.

        FilterError when the filter asks for a key that is not filterable; InputRefused when the vector has no
        place or direction.
        """
        table, info = self._open()
        check_query(request, dimension=info.dimension, metric=info.metric)
        if request.filter is not None:
            refuse_non_filterable(request.filter, info.non_filterable)
        if request.mode != "vector" and not info.text_search:
            raise ConfigError(
                f"index {self._name} has no text search",
                hint="set retrieval.mode to vector, or make another index",
            )
        with self._faults("search"):
            return local_search.search(table, info, request)

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        """Turn what LanceDB and the file system raise into a ServiceError that says what was being done."""
        try:
            yield
        except Exception as error:
            # A panic of its native code is of a class that cannot be imported.
            if not isinstance(error, FAULTS) and type(error).__name__ != "RustPanic":
                raise
            kind, reason, hint = _diagnosis(error)
            raise kind(f"cannot {doing} index {self._name} in {self._path}: {reason}", hint=hint) from error


def _diagnosis(error: Exception) -> tuple[type[ServiceError], str, str]:
    """What is wrong and what to do. LanceDB's own words may hold the text that was searched for: only those of the
    operating system are looked for in them, and none are repeated.
    """
    for number, kind, reason, hint in _FAULTS_OF_PLACE:
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return kind, reason, hint
    return (
        ServiceError,
        f"{type(error).__name__} in LanceDB",
        "if its files are damaged, remove the index and ingest again: ragctl teardown CONFIG --index",
    )


def _is_behind(text_index: Any | None) -> bool:
    """Say whether the index is absent or lacks too many records to be left alone."""
    if text_index is None:
        return True
    most = min(FRESH_RECORDS, FRESH_SHARE * text_index.num_indexed_rows)
    return bool(text_index.num_unindexed_rows > most)
