"""What there is to do: the files of the sources, held against those of the ledger."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

from ragctl.errors import Refused
from ragctl.manifest import Ledger
from ragctl.parsing import RECORD_FORMATS, suffix
from ragctl.records import SourceFile
from ragctl.tenancy import tenant_of
from ragctl.under_way import Todo
from ragctl.worker import Task

if TYPE_CHECKING:
    from ragctl.manifest import DocumentRow


@dataclass(frozen=True, slots=True)
class Step:
    """What a run has to do about a file that is not as the ledger has it. "check": its stamp or settings differ, or
    something of it is missing, so that its content must be looked at. `documents`: so many it had.
    """

    action: Literal["add", "check", "delete"]
    id: str
    documents: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would do, in files; `keep_documents` and `delete_documents` count documents."""

    add: int
    check: int
    keep: int
    keep_documents: int
    delete: int
    delete_documents: int


_Row = tuple[str, str | bytes, int, str, str, str, str | None]  # of a listing

ROWS = 200  # of a listing that one statement takes: a sixth less time than one by one
CACHE_KB = 256  # of each temporary database, which is read in its order: more would only stay there
_FILES = "SELECT id, location, size, stamp, source, metadata FROM files"
_LISTED = """
WITH settings (source, fingerprint) AS (VALUES {settings}), listed AS (SELECT * FROM files {part})
SELECT iif(row.id IS NULL, 'add', 'check'), listed.id, ifnull(row.documents, 0)
FROM listed LEFT JOIN ledger.files AS row ON row.id = listed.id LEFT JOIN settings USING (source)
WHERE row.id IS NULL OR :checksum OR NOT row.done OR row.size <> listed.size OR row.stamp <> listed.stamp
    OR row.fingerprint IS NOT settings.fingerprint
ORDER BY listed.id
"""
_GONE = """
WITH listed AS (SELECT id FROM files {part})
SELECT 'delete', row.id, row.documents FROM ledger.files AS row
WHERE NOT EXISTS (SELECT 1 FROM listed WHERE listed.id = row.id)
ORDER BY row.id
"""


class Listing:
    """The files of all sources in order of id, in a temporary database that goes to disk when it is large.

    `tenant_key`: the metadata key that names a file's tenant, where the files of each are wanted apart.
    """

    def __init__(self, tenant_key: str | None = None) -> None:
        self._tenant_key = tenant_key
        # "": private, deleted when closed (sqlite.org/inmemorydb.html)
        self._db = sqlite3.connect("", uri=True, check_same_thread=False)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        self._db.execute(
            "CREATE TABLE files (id TEXT PRIMARY KEY, location BLOB, size INTEGER, stamp TEXT, source TEXT, "
            "metadata TEXT, tenant TEXT) WITHOUT ROWID"
        )
        if tenant_key is not None:
            self._db.execute("CREATE INDEX files_of_tenant ON files (tenant, id)")
        self._part, self._tenant = "", dict[str, str | None]()
        self.ignored = Counter[str]()  # files beside them that nothing reads, by ending

    def add(self, files: Iterable[SourceFile]) -> None:
        """Take in the files of a source. Raises Refused when an id is there already."""
        key = self._tenant_key
        rows = (
            (
                file.id,
                _saved(file.location),
                file.size,
                file.stamp,
                file.source,
                json.dumps(dict(file.metadata)) if file.metadata else "{}",
                tenant_of(file.metadata, key) if key is not None else None,
            )
            for file in files
        )
        while some := list(islice(rows, ROWS)):
            try:
                self._insert(some)
            except sqlite3.IntegrityError:  # nothing of them is in
                for row in some:
                    self._insert_new(row)
        self._db.commit()

    def _insert(self, rows: list[_Row]) -> None:
        places = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * len(rows))
        self._db.execute(f"INSERT INTO files VALUES {places}", list(chain.from_iterable(rows)))  # noqa: S608  places alone

    def _insert_new(self, row: _Row) -> None:
        """Take in one file. Raises Refused that names both where another has its id."""
        if row[0] in self:
            first, second = sorted(map(_shown, (self.file(row[0]).location, os.fsdecode(row[1]))))
            raise Refused(
                f"sources.{row[4]}: two files come under one document id, {row[0]}: {first} and {second}",
                hint="rename one: they differ only in how accents are encoded, in bytes that are no UTF-8, "
                "or in ./ within a zip",
            )
        self._insert([row])

    def file(self, file_id: str) -> SourceFile:
        """The listed file `file_id`."""
        return _source_file(self._db.execute(f"{_FILES} WHERE id = ?", (file_id,)).fetchone())

    def __contains__(self, file_id: object) -> bool:
        return self._db.execute("SELECT 1 FROM files WHERE id = ?", (file_id,)).fetchone() is not None

    def names_with(self, sign: str) -> list[str]:
        """The ids that hold a sign, sorted."""
        return [
            row[0] for row in self._db.execute("SELECT id FROM files WHERE instr(id, ?) ORDER BY id", (sign,))
        ]

    def tenants(self) -> list[str]:
        """Every tenant that has a file, sorted."""
        rows = self._db.execute("SELECT DISTINCT tenant FROM files WHERE tenant IS NOT NULL ORDER BY tenant")
        return [row[0] for row in rows]

    def of(self, tenant: str | None) -> Listing:
        """The files of one tenant, or those that have none; over the same database, which stays open for others."""
        return _Part(self._db, tenant)

    def steps(
        self, ledger: Ledger, fingerprints: Mapping[str, str], *, checksum: bool = False
    ) -> Generator[Step]:
        """A step for each file that is not as the ledger has it, those that are gone last; SQLite compares, nothing is
        held.

        `fingerprints` gives each source's settings; `checksum` looks into every file whatever its stamp.
        Nothing may be written to the ledger before the last step was taken.
        """
        settings = ", ".join(f"(:source{n}, :fingerprint{n})" for n in range(len(fingerprints)))
        values: dict[str, object] = {"checksum": checksum, **self._tenant}
        for n, (source, fingerprint) in enumerate(fingerprints.items()):
            values |= {f"source{n}": source, f"fingerprint{n}": fingerprint}
        known = ledger.file_count()
        with ledger.attached(self._db), closing(self._db.cursor()) as steps:
            new = 0
            for action, file_id, documents in steps.execute(
                _LISTED.format(settings=settings, part=self._part), values
            ):
                new += action == "add"
                yield Step(action, file_id, documents)
            if len(self) - new == known:  # each file of the ledger was met
                return
            for action, file_id, documents in steps.execute(_GONE.format(part=self._part), self._tenant):
                yield Step(action, file_id, documents)

    def __iter__(self) -> Iterator[SourceFile]:
        return map(_source_file, self._db.execute(f"{_FILES} {self._part} ORDER BY id", self._tenant))

    def __len__(self) -> int:
        found = self._db.execute(f"SELECT count(*) FROM files {self._part}", self._tenant)  # noqa: S608  a constant
        return int(found.fetchone()[0])

    def close(self) -> None:
        self._db.close()


class _Part(Listing):
    """What `Listing.of` gives."""

    def __init__(self, db: sqlite3.Connection, tenant: str | None) -> None:
        self._db = db
        self._part, self._tenant = "WHERE tenant IS :tenant", {"tenant": tenant}
        self.ignored = Counter()  # nobody knows whose they are

    def close(self) -> None:
        """Nothing is ours."""


def _saved(location: str) -> str | bytes:
    """A name that is not UTF-8 is no text to SQLite."""
    return location if location.isascii() else os.fsencode(location)


def _shown(location: str) -> str:
    """A place for people; as a shell takes it where it is not UTF-8."""
    if location.isascii():
        return location
    raw = os.fsencode(location)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"${repr(raw)[1:]}"


def _source_file(row: tuple[str, str | bytes, int, str, str, str]) -> SourceFile:
    return SourceFile(
        row[0], os.fsdecode(row[1]), row[2], row[3], row[4], json.loads(row[5]) if row[5] != "{}" else {}
    )


class Plan:
    """The steps of a run, in a temporary database that goes to disk when it is large. Closes the listing.

    `only`: of these files and no others.
    """

    def __init__(
        self,
        ledger: Ledger,
        listing: Listing,
        fingerprints: Mapping[str, str],
        *,
        checksum: bool = False,
        only: Collection[str] | None = None,
    ) -> None:
        self._ledger = ledger
        self._listing = listing
        self._fingerprints = fingerprints
        self._db = sqlite3.connect("", check_same_thread=False)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        self._db.execute("CREATE TABLE steps (id TEXT PRIMARY KEY, action TEXT) WITHOUT ROWID")
        self.holds_records = (
            False  # files among those to work through that hold many documents, nobody knows how many
        )
        self.planned = self._fill(listing.steps(ledger, fingerprints, checksum=checksum), only)

    def _fill(self, steps: Iterator[Step], only: Collection[str] | None) -> Planned:
        counts = {"add": 0, "check": 0, "delete": 0}
        changed = had = lost = 0  # files listed, documents that they had, documents of files that are gone
        for step in steps:
            changed += step.action != "delete"
            had += step.documents
            if only is not None and step.id not in only:
                continue
            counts[step.action] += 1
            if step.action == "delete":
                lost += sum(1 for _ in self._ledger.documents(step.id))
            elif suffix(step.id) in RECORD_FORMATS:
                self.holds_records = True
            self._db.execute("INSERT INTO steps VALUES (?, ?)", (step.id, step.action))
        kept = len(self._listing) - changed
        documents = self._ledger.documents_of_files() - had
        return Planned(counts["add"], counts["check"], kept, documents, counts["delete"], lost)

    def todos(self) -> Generator[Todo]:
        """The files to work through, with what the ledger knows of each. Used by one thread at a time."""
        reader = Ledger(self._ledger.path)
        try:
            ids = self._db.execute(
                "SELECT id, action FROM steps WHERE action IN ('add', 'check') ORDER BY id"
            )
            for file_id, action in ids:
                file = self._listing.file(file_id)
                if action == "add":
                    yield Todo(Task(file), None)
                    continue
                row = reader.file(file_id)
                documents = list(reader.documents(file_id))
                same = row is not None and row.done and row.fingerprint == self._fingerprints[file.source]
                keys = frozenset(key for document in documents if document.done for key in document.keys)
                yield Todo(Task(file, row.content_hash if row and same else None, keys), row)
        finally:
            reader.close()

    def vanished_files(self) -> list[str]:
        """Files that the sources no longer have."""
        return [
            row[0] for row in self._db.execute("SELECT id FROM steps WHERE action = 'delete' ORDER BY id")
        ]

    def vanished(self) -> Iterator[DocumentRow]:
        """The documents of those files."""
        for file_id in self.vanished_files():
            yield from list(self._ledger.documents(file_id))

    def close(self) -> None:
        self._db.close()
        self._listing.close()
