"""The ledger: what is indexed, per index, in one SQLite file.

SQLite because the ledger of a million documents must load in seconds, be compared in bounded memory and be saved
after every batch without being rewritten. A save is a transaction: whole or not at all, also after a kill.

A key that was, or is about to be, put into the store without a document vouching for it stands in the table `loose`.
It is entered before the put and leaves when its document is saved; the keys that a document no longer has enter as
they are replaced. So whenever a run dies, what must be deleted is known. As its calls to a service may still arrive after
the next run has deleted that, it then stands in the table `late`, to be looked at once more.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ragctl.errors import LeaseLost, StateError

SCHEMA_VERSION = "1"

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
  id TEXT PRIMARY KEY, size INTEGER NOT NULL, stamp TEXT NOT NULL, content_hash TEXT NOT NULL,
  fingerprint TEXT NOT NULL, documents INTEGER NOT NULL, done INTEGER NOT NULL, updated TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE documents (
  id TEXT PRIMARY KEY, file TEXT NOT NULL, content_hash TEXT NOT NULL, fingerprint TEXT NOT NULL,
  keys TEXT NOT NULL, chunks INTEGER NOT NULL, done INTEGER NOT NULL, updated TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX documents_of_file ON documents (file);
CREATE TABLE failures (
  document TEXT PRIMARY KEY, file TEXT NOT NULL, stage TEXT NOT NULL, error TEXT NOT NULL,
  attempts INTEGER NOT NULL, updated TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX failures_of_file ON failures (file);
CREATE TABLE loose (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""
# In ledgers of any age, and so made where it is missing
_LATE = "CREATE TABLE IF NOT EXISTS late (key TEXT PRIMARY KEY) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as it was when it was last worked through; `done` is false while something of it is missing."""

    id: str
    size: int
    stamp: str
    content_hash: str
    fingerprint: str  # of the settings that shape its chunks and their metadata
    documents: int
    done: bool
    updated: str = ""


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document whose chunks are in the store, all of them unless `done` is false."""

    id: str
    file: str
    content_hash: str
    fingerprint: str
    keys: tuple[str, ...]
    done: bool = True
    updated: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A document (or a whole file) that did not get in, and at which stage; kept until it does."""

    document: str
    file: str
    stage: str
    error: str
    attempts: int = 1
    updated: str = ""


def _file_row(row: tuple[str, int, str, str, str, int, int, str]) -> FileRow:
    return FileRow(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6]), row[7])


def _document_row(row: tuple[str, str, str, str, str, int, str]) -> DocumentRow:
    return DocumentRow(row[0], row[1], row[2], row[3], tuple(row[4].split()), bool(row[5]), row[6])


class Ledger:
    """One index's ledger. Used by one thread; every method that writes is one transaction.

    `fence` is our lease's token, None to read only; `place` is named in messages, where the file is a copy.
    Raises StateError for a damaged, unreadable or full file.
    """

    def __init__(self, path: Path, *, fence: int | None = None, place: str | None = None) -> None:
        self.path = path
        self.place = place or str(path)
        self._fence = fence
        with self._errors(), ExitStack() as undo:
            if fence is None:
                self._db = sqlite3.connect(_address(path, "ro"), uri=True, check_same_thread=False)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            undo.callback(self._db.close)
            if fence is not None:
                self._prepare(fence)
            self._check_version()
            undo.pop_all()

    def close(self) -> None:
        self._db.close()

    # --- reading -----------------------------------------------------------------------------------------

    def meta(self, name: str) -> str | None:
        """A fact about the index: "embedder", "dimension" ..."""
        with self._errors():
            found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else None

    def files(self) -> Iterator[FileRow]:
        """Every file in order of id, as a stream."""
        with self._errors():
            for row in self._db.execute(
                "SELECT id, size, stamp, content_hash, fingerprint, documents, done, updated FROM files ORDER BY id"
            ):
                yield _file_row(row)

    def file(self, file_id: str) -> FileRow | None:
        with self._errors():
            row = self._db.execute(
                "SELECT id, size, stamp, content_hash, fingerprint, documents, done, updated FROM files WHERE id = ?",
                (file_id,),
            ).fetchone()
        return _file_row(row) if row else None

    def documents(self, file: str | None = None) -> Iterator[DocumentRow]:
        """The documents of a file, or all of them, in order of id."""
        where, values = ("WHERE file = ? ", (file,)) if file is not None else ("", ())
        with self._errors():
            for row in self._db.execute(
                "SELECT id, file, content_hash, fingerprint, keys, done, updated FROM documents "  # noqa: S608  constant
                f"{where}ORDER BY id",
                values,
            ):
                yield _document_row(row)

    def document(self, document_id: str) -> DocumentRow | None:
        with self._errors():
            row = self._db.execute(
                "SELECT id, file, content_hash, fingerprint, keys, done, updated FROM documents WHERE id = ?",
                (document_id,),
            ).fetchone()
        return _document_row(row) if row else None

    def counts(self) -> tuple[int, int]:
        """How many documents and how many chunks are indexed."""
        with self._errors():
            row = self._db.execute("SELECT count(*), coalesce(sum(chunks), 0) FROM documents").fetchone()
        return int(row[0]), int(row[1])

    def file_count(self) -> int:
        with self._errors():
            return int(self._db.execute("SELECT count(*) FROM files").fetchone()[0])

    def documents_of_files(self) -> int:
        """How many documents the files say that they have, each as it was when it was last worked through."""
        with self._errors():
            return int(self._db.execute("SELECT ifnull(sum(documents), 0) FROM files").fetchone()[0])

    def failures(self) -> list[Failure]:
        with self._errors():
            rows = self._db.execute(
                "SELECT document, file, stage, error, attempts, updated FROM failures ORDER BY document"
            ).fetchall()
        return [Failure(*row) for row in rows]

    def holds(self, failure: Failure) -> bool:
        """Whether an old version of what failed is in the index; where that is a file of records, any of them.

        A line that is no record says no id, so that nobody knows which document it was.
        """
        column = "file" if failure.document == failure.file else "id"
        with self._errors():
            row = self._db.execute(
                f"SELECT 1 FROM documents WHERE {column} = ? AND chunks > 0 LIMIT 1",  # noqa: S608  constant
                (failure.document,),
            ).fetchone()
        return row is not None

    def sample_keys(self, limit: int) -> list[str]:
        """Keys of up to `limit` documents spread over the ledger, one of each; others each time."""
        with self._errors():
            step = max(1, self.counts()[0] // limit)
            skipped = random.randrange(step)  # noqa: S311  nothing is kept secret by it
            keys: list[str] = []
            last = ""
            while len(keys) < limit:  # a window function would take ten times as long
                row = self._db.execute(
                    "SELECT id, keys FROM documents WHERE id > ? AND chunks > 0 ORDER BY id LIMIT 1 OFFSET ?",
                    (last, skipped),
                ).fetchone()
                if row is None:
                    break
                last, skipped = row[0], step - 1
                keys.append(random.choice(row[1].split()))  # noqa: S311  as above
            return keys

    def loose(self, limit: int) -> list[str]:
        """Up to `limit` keys that may be in the store and that no document vouches for."""
        with self._errors():
            return [row[0] for row in self._db.execute("SELECT key FROM loose LIMIT ?", (limit,))]

    def late(self) -> list[str]:
        """Keys that calls of a run that died may put or delete even now."""
        with self._errors():
            return [row[0] for row in self._db.execute("SELECT key FROM late")]

    @contextmanager
    def attached(self, db: sqlite3.Connection) -> Iterator[None]:
        """Let another connection, one that takes addresses as URIs, read the ledger's tables as `ledger.files` and so
        on. Nothing may be written to the ledger while it does.
        """
        with self._errors():
            db.execute("ATTACH DATABASE ? AS ledger", (_address(self.path, "ro"),))
            try:
                yield
            finally:
                db.execute("DETACH DATABASE ledger")

    # --- writing -----------------------------------------------------------------------------------------

    def set_meta(self, **facts: str) -> None:
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", facts.items())

    def publish(self, *, force: bool = False) -> bool:  # noqa: ARG002  a remote ledger's
        """Whether everything that was saved is where the next run will look; a local file always is."""
        return True

    def declare(self, rewritten: Iterable[str], added: Iterable[str], keys: Iterable[str]) -> None:  # noqa: ARG002  a remote ledger's
        """Before a put: these documents are being rewritten, these are new to the ledger, and these keys to the store.

        The files of the former are not done, either: one that is put back as it was, with its old stamp, must be
        looked at.
        """
        ids = [(document_id,) for document_id in rewritten]
        with self._transaction():
            self._db.executemany("UPDATE documents SET done = 0 WHERE id = ? AND done", ids)
            self._db.executemany(
                "UPDATE files SET done = 0 WHERE done AND id = (SELECT file FROM documents WHERE documents.id = ?)",
                ids,
            )
            self._db.executemany("INSERT OR IGNORE INTO loose VALUES (?)", ((key,) for key in keys))

    def settle(
        self,
        documents: Sequence[DocumentRow],
        files: Sequence[FileRow],
        failures: Sequence[Failure],
        failing: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> list[str]:
        """Save what is now in the store. The keys that documents had before and have no more become loose:
        they are returned, to be deleted. `failing`: files that were worked through, with the documents of each
        that failed; what failed there before and is not among them does so no more.
        """
        with self._transaction():
            gone = self._loosen({row.id: row.keys for row in documents})
            self._settle_documents(documents)
            for failure in failures:
                self._add_failure(failure)
            for file_id, failed in failing.items():
                self._forget_failures(self._failed_before(file_id) - set(failed))
            self._settle_files(files)
        return gone

    def forget(self, documents: Iterable[str], files: Iterable[str]) -> list[str]:
        """These documents and files are gone from the source: their keys become loose and are returned."""
        ids, file_ids = list(documents), [(file_id,) for file_id in files]
        with self._transaction():
            gone = self._loosen(dict.fromkeys(ids, ()))
            self._db.executemany(
                "DELETE FROM documents WHERE id = ?", ((document_id,) for document_id in ids)
            )
            self._forget_failures(ids)
            self._db.executemany("DELETE FROM files WHERE id = ?", file_ids)
            self._db.executemany("DELETE FROM failures WHERE file = ?", file_ids)
        return gone

    def invalidate(self, file_ids: Iterable[str]) -> None:
        """Have the next plan look at these files again: the store lost chunks of theirs."""
        ids = [(file_id,) for file_id in file_ids]
        with self._transaction():
            self._db.executemany("UPDATE files SET done = 0 WHERE id = ?", ids)
            self._db.executemany("UPDATE documents SET done = 0 WHERE file = ?", ids)

    def loosen(self, keys: Iterable[str]) -> None:
        """These keys are in the store and no document vouches for them."""
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO loose VALUES (?)", ((key,) for key in keys))

    def expect_late_calls(self, since: str) -> None:
        """A run died at what is loose: calls of it may still be on their way."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO late SELECT key FROM loose")
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('late_since', ?)", (since,))

    def expect_none_late(self) -> None:
        """What was late has been looked at."""
        with self._transaction():
            self._db.execute("DELETE FROM late")

    def deleted(self, keys: Iterable[str]) -> None:
        """These loose keys are no longer in the store."""
        with self._transaction():
            self._db.executemany("DELETE FROM loose WHERE key = ?", ((key,) for key in keys))

    def _settle_documents(self, documents: Sequence[DocumentRow]) -> None:
        # until its last document is in, a file has a row and is not done: a run that dies amid it leaves no document
        # that no plan meets again, and a file that is put back as it was is looked at
        self._db.executemany(
            "INSERT INTO files VALUES (?, -1, '', '', '', 0, 0, datetime('now')) "
            "ON CONFLICT (id) DO UPDATE SET done = 0",
            ((file,) for file in dict.fromkeys(row.file for row in documents)),
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, datetime('now'))",
            (
                (
                    row.id,
                    row.file,
                    row.content_hash,
                    row.fingerprint,
                    " ".join(row.keys),
                    len(row.keys),
                    row.done,
                )
                for row in documents
            ),
        )
        self._db.executemany(
            "DELETE FROM loose WHERE key = ?", ((key,) for row in documents for key in row.keys)
        )
        self._forget_failures(row.id for row in documents)

    def _loosen(self, kept: Mapping[str, Collection[str]]) -> list[str]:
        """Make the keys of documents loose, but for those of each to keep."""
        gone: list[str] = []
        for document_id, keep in kept.items():
            found = self._db.execute("SELECT keys FROM documents WHERE id = ?", (document_id,)).fetchone()
            if found:
                keys = frozenset(keep)
                gone += [key for key in found[0].split() if key not in keys]
        self._db.executemany("INSERT OR IGNORE INTO loose VALUES (?)", ((key,) for key in gone))
        return gone

    def _add_failure(self, failure: Failure) -> None:
        self._db.execute(
            "INSERT INTO failures VALUES (?, ?, ?, ?, 1, datetime('now')) ON CONFLICT (document) DO UPDATE SET "
            "stage = excluded.stage, error = excluded.error, attempts = attempts + 1, updated = excluded.updated",
            (failure.document, failure.file, failure.stage, failure.error),
        )

    def _failed_before(self, file_id: str) -> set[str]:
        return {
            row[0] for row in self._db.execute("SELECT document FROM failures WHERE file = ?", (file_id,))
        }

    def _forget_failures(self, documents: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM failures WHERE document = ?", ((name,) for name in documents))

    def _settle_files(self, files: Sequence[FileRow]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, datetime('now'))",
            (
                (row.id, row.size, row.stamp, row.content_hash, row.fingerprint, row.documents, row.done)
                for row in files
            ),
        )
        self._db.executemany("DELETE FROM failures WHERE file = ?", ((row.id,) for row in files if row.done))

    # --- the file ----------------------------------------------------------------------------------------

    def _prepare(self, fence: int) -> None:
        """Make the tables of a new ledger, and leave our fence where every earlier holder will see it."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("BEGIN IMMEDIATE")
        if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in _TABLES.strip().split(";\n"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))
        self._refuse_foreign()
        self._db.execute(_LATE)
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('fence', '0')")
        self._refuse_newer(fence)
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'fence'", (str(fence),))
        self._db.execute("COMMIT")

    def _refuse_foreign(self) -> None:
        """Nothing is written into a database that somebody else made."""
        columns = {row[0] for row in self._db.execute("SELECT name FROM pragma_table_info('meta')")}
        if not columns >= {"name", "value"}:
            raise StateError(
                f"{self.place}: is a database, but no ledger of ragctl",
                hint="if state: names the right place, make the ledger anew: ragctl ledger rebuild CONFIG",
            )

    def _check_version(self) -> None:
        self._refuse_foreign()
        version = self.meta("schema")
        if version != SCHEMA_VERSION:
            raise StateError(
                f"{self.place}: a ledger of version {version}, this ragctl knows version {SCHEMA_VERSION}",
                hint="use the ragctl that wrote it, or rebuild it: ragctl ledger rebuild CONFIG",
            )

    def _refuse_newer(self, fence: int) -> None:
        seen = int(self._db.execute("SELECT value FROM meta WHERE name = 'fence'").fetchone()[0])
        if seen > fence:
            raise LeaseLost(
                "another run took over this index while this one was paused",
                hint="what is saved is consistent; run the command again",
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        assert self._fence is not None, "the ledger was opened for reading"
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._refuse_newer(self._fence)
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _errors(self) -> AbstractContextManager[None]:
        return _sqlite_errors(self.place)


def _address(path: Path, mode: str) -> str:
    """A file as SQLite takes it with a mode, whatever signs its name has."""
    return f"{path.absolute().as_uri()}?mode={mode}"


def copy_ledger(path: Path, target: Path) -> None:
    """Copy a ledger that another process may be writing, or was killed writing: what its last save left."""
    with (
        _sqlite_errors(str(path)),
        closing(sqlite3.connect(_address(path, "rw"), uri=True)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


def fence_seen(path: Path) -> int:
    """The greatest fence that the ledger has seen; 0 where there is no ledger, or none that says so."""
    try:
        with closing(sqlite3.connect(_address(path, "rw"), uri=True)) as db:
            return int(db.execute("SELECT value FROM meta WHERE name = 'fence'").fetchone()[0])
    except (sqlite3.Error, TypeError, ValueError):  # what is wrong with it is told by whoever opens it
        return 0


def replace_ledger(path: Path, new: Path, *, fence: int) -> None:
    """Put `new`, which is closed and whole, into the place of a ledger that may be damaged or absent: at every moment
    one of the two stands there.

    Raises LeaseLost when a run with a higher fence has written the old one, StateError when somebody is writing it.
    """
    if path.exists():
        try:
            Ledger(path, fence=fence).close()  # which undoes half a save, and keeps out every earlier holder
        except StateError as error:
            code = getattr(error.__cause__, "sqlite_errorcode", 0)
            if code & 0xFF == sqlite3.SQLITE_BUSY:  # the low byte: sqlite.org/rescode.html
                raise
    with _sqlite_errors(str(path)):
        Path(f"{path}-journal").unlink(missing_ok=True)  # SQLite would take it for that of the new file
        new.replace(path)


@contextmanager
def _sqlite_errors(place: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StateError(
            f"{place}: the ledger cannot be read or written: {error}",
            hint="check the disk and the permissions; nothing that was saved is lost",
        ) from error
    except sqlite3.DatabaseError as error:
        raise StateError(
            f"{place}: the ledger is damaged: {error}",
            hint="rebuild it from the index: ragctl ledger rebuild CONFIG",
        ) from error
    except OSError as error:
        raise StateError(f"{place}: {error.strerror}") from error
