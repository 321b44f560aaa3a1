"""A ledger on a full disk, a damaged one, one that is none: told in plain words, and mended by what they say."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragctl import lease
from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.errors import LeaseLost, ServiceError
from ragctl.manifest import Ledger
from ragctl.records import VectorRecord
from tests.cli import in_process
from tests.places import PickyServer, Place, embedding_at
from tests.processes import Run
from tests.servers.s3vectors import S3VectorsServer

NOTES = {f"d{i:03}.md": f"Note {i} of the harbour master, and of the tide.\n" for i in range(200)}
RECORDS = {"rows.jsonl": "".join(f'{{"id": "{i}", "text": "Crane {i} lifts."}}\n' for i in range(50))}
Damage = Callable[[Path], object]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An experiment over S3 Vectors and an embedding server that is new to its documents."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with S3VectorsServer() as store, PickyServer() as models:
        place = Place(tmp_path, store, {"embedding": embedding_at(models.url, dimension=64)})
        place.write(NOTES | RECORDS)
        place.configure()
        yield place
    assert (store.unexpected, store.broken) == ([], [])


def ledger_of(place: Place, index: str = "test") -> Path:
    return place.folder / "state" / index / "ledger.sqlite"


def converges(place: Place) -> None:
    """One run brings everything in, and a second one finds nothing to do."""
    assert place.ragctl("ingest").status == 0
    assert place.held() == place.undisturbed()
    again = place.ragctl("ingest", "--json")
    assert (again.status, again.json["chunks"]["written"], again.json["chunks"]["deleted"]) == (0, 0, 0)


# --- no space left ---------------------------------------------------------------------------------------


def fill_up(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """A disk with room for so many pages of a ledger: SQLite then says what it says when there is no space left."""
    connect = sqlite3.connect

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*arguments, **options)
        if str(arguments[0]).endswith("ledger.sqlite"):
            db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(sqlite3, "connect", connected)


@pytest.mark.parametrize("pages", [1, 9, 12, 20])
def test_a_disk_that_fills_up(place: Place, monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """When the ledger is made, before a put or after it: exit 8 and why; with room again one run does the rest."""
    with monkeypatch.context() as full:
        fill_up(full, pages)
        ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.out) == (8, "")
    assert ended.err == (
        f"ragctl: error: {ledger_of(place)}: the ledger cannot be read or written: database or disk is full\n"
        "  hint: check the disk and the permissions; nothing that was saved is lost\n"
    )
    converges(place)


def test_a_disk_that_fills_up_under_a_full_ledger(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in before stays as it is, the vectors of what was not saved go, and new ones come."""
    assert place.ragctl("ingest").status == 0
    before = place.held()
    place.write({f"e{i:03}.md": f"Letter {i} to the harbour.\n" for i in range(300)})
    place.write({"d001.md": "Note 1, written anew.\n"})
    with monkeypatch.context() as full:
        fill_up(full, ledger_of(place).stat().st_size // 4096 + 4)
        ended = place.ragctl("ingest")
    assert (ended.status, ended.out) == (8, "")
    assert "database or disk is full" in ended.err
    after = place.held()
    assert {key: after.get(key) for key in before} == before
    converges(place)


def test_a_file_that_may_not_grow(place: Place) -> None:
    """A quota that ends a write in the middle is an error of the disk, not a damaged ledger."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (40_960, resource.RLIM_INFINITY))"
    with Run(place.folder, "ingest", place.folder / "experiment.yaml", prelude=limit) as run:
        ended = run.end()
    assert (ended.status, ended.out) == (8, "")
    assert f"{ledger_of(place)}: the ledger cannot be read or written: disk I/O error" in ended.err
    converges(place)


# --- a ledger that is damaged ----------------------------------------------------------------------------


def overwrite_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(4_096, len(data) - 4_096, 4_096):
        data[at : at + 200] = b"\xa5" * 200
    path.write_bytes(bytes(data))


def replace_by(path: Path, statements: str) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(statements)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "garbage": (
        lambda path: path.write_bytes(b"rubbish " * 900),
        "the ledger is damaged: file is not a database",
    ),
    "cut in the middle": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "the ledger is damaged: database disk image is malformed",
    ),
    "cut in the first page": (
        lambda path: path.write_bytes(path.read_bytes()[:700]),
        "the ledger is damaged: database disk image is malformed",
    ),
    "pages overwritten": (overwrite_pages, "the ledger is damaged: database disk image is malformed"),
    "another program's": (
        lambda path: replace_by(path, "CREATE TABLE songs (title TEXT); INSERT INTO songs VALUES ('Low');"),
        "is a database, but no ledger of ragctl",
    ),
    "another program's, with tables of the same names": (
        lambda path: replace_by(path, "CREATE TABLE meta (k TEXT, v TEXT); CREATE TABLE files (path TEXT);"),
        "is a database, but no ledger of ragctl",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger(place: Place, damage: str) -> None:
    """Exit 8, the file and the way out; after the rebuild nothing that is there is embedded or put again."""
    assert place.ragctl("ingest").status == 0
    before = place.held()
    spoil, words = DAMAGES[damage]
    spoil(ledger_of(place))
    spoilt = ledger_of(place).read_bytes()
    ended = place.ragctl("ingest")
    assert (ended.status, ended.out) == (8, "")
    assert f"ragctl: error: {ledger_of(place)}: {words}" in ended.err
    assert ": ragctl ledger rebuild CONFIG" in ended.err
    assert place.ragctl("ingest", "--dry-run").err == ended.err  # of the ledger, not of the copy that is read
    assert ledger_of(place).read_bytes() == spoilt  # it may be somebody else's, or be mended by other means
    assert place.held() == before

    rebuilt = in_process("ledger", "rebuild", place.folder / "experiment.yaml", "--json")
    assert (rebuilt.status, rebuilt.json["documents"], rebuilt.json["chunks"]) == (0, 250, 250)
    ended = place.ragctl("ingest", "--json")
    chunks = ended.json["chunks"]
    assert (ended.status, chunks["embedded"], chunks["written"], chunks["deleted"]) == (0, 0, 0, 0)
    assert place.held() == before
    assert place.ragctl("ingest").out == "test: nothing to do, 250 documents in 250 chunks\n"


def test_a_ledger_that_is_lost(place: Place) -> None:
    """Exit 6 instead of embedding everything a second time; an empty file in its place is no ledger either."""
    assert place.ragctl("ingest").status == 0
    before = place.held()
    ledger_of(place).unlink()
    for _ in range(2):  # the first of which makes an empty one
        ended = place.ragctl("ingest")
        assert (ended.status, ended.out) == (6, "")
        assert ended.err == (
            f"ragctl: error: index test holds chunks, but there is no whole ledger of it ({ledger_of(place)})\n"
            "  hint: if state: names the right place, make the ledger anew: ragctl ledger rebuild CONFIG\n"
        )
        assert place.held() == before
    assert in_process("ledger", "rebuild", place.folder / "experiment.yaml").status == 0
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["chunks"]["embedded"], ended.json["chunks"]["written"]) == (0, 0, 0)
    converges(place)


KILLED_AFTER_40 = """
import os, ragctl.rebuild as rebuild
rebuild.BATCH = 40
from ragctl.manifest import Ledger
settle, left = Ledger.settle, [2]
def settled(*arguments):
    left[0] -= 1
    return settle(*arguments) if left[0] else os._exit(9)
Ledger.settle = settled
"""


def kill_a_rebuild(place: Place) -> None:
    """End a rebuild when it has saved 40 documents of 250."""
    config = place.folder / "experiment.yaml"
    with Run(place.folder, "ledger", "rebuild", config, prelude=KILLED_AFTER_40) as run:
        assert run.end().status == 9
    with closing(sqlite3.connect(f"{ledger_of(place)}.new")) as db:
        assert db.execute("SELECT count(*) FROM documents").fetchone() == (40,)


def test_a_rebuild_that_is_killed(place: Place) -> None:
    """Half a ledger is never where a whole one belongs: exit 6 until a rebuild has come to its end."""
    assert place.ragctl("ingest").status == 0
    before = place.held()
    ledger_of(place).unlink()
    kill_a_rebuild(place)
    assert not ledger_of(place).exists()
    ended = place.ragctl("ingest")
    assert (ended.status, "there is no whole ledger of it" in ended.err) == (6, True)
    assert place.held() == before
    assert in_process("ledger", "rebuild", place.folder / "experiment.yaml").status == 0
    assert not Path(f"{ledger_of(place)}.new").exists()
    converges(place)


def test_a_rebuild_that_is_killed_leaves_a_good_ledger_as_it_is(place: Place) -> None:
    """The next ingest knows all that it knew before."""
    assert place.ragctl("ingest").status == 0
    saved = ledger_of(place).read_bytes()
    kill_a_rebuild(place)
    assert ledger_of(place).read_bytes() == saved
    assert place.ragctl("ingest").out == "test: nothing to do, 250 documents in 250 chunks\n"


def test_a_rebuild_that_fails_leaves_a_good_ledger_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store ends in the middle of what it holds."""
    assert place.ragctl("ingest").status == 0
    saved = ledger_of(place).read_bytes()
    scan = S3VectorsStore.scan

    def broken(store: S3VectorsStore) -> Iterator[VectorRecord]:
        yield next(scan(store))
        raise ServiceError("the store is gone")

    with monkeypatch.context() as patch:
        patch.setattr(S3VectorsStore, "scan", broken)
        ended = in_process("ledger", "rebuild", place.folder / "experiment.yaml")
    assert (ended.status, ended.out, ended.err) == (8, "", "ragctl: error: the store is gone\n")
    assert ledger_of(place).read_bytes() == saved
    assert place.ragctl("ingest").out == "test: nothing to do, 250 documents in 250 chunks\n"


def test_a_rebuild_needs_no_source(place: Place) -> None:
    """It warns and goes by the index alone; when the sources are back nothing is embedded or put a second time."""
    assert place.ragctl("ingest").status == 0
    before = place.held()
    docs = place.folder / "docs"
    docs.rename(place.folder / "away")
    rebuilt = in_process("ledger", "rebuild", place.folder / "experiment.yaml", "--json")
    assert (rebuilt.status, rebuilt.json["documents"], rebuilt.json["chunks"]) == (0, 250, 250)
    assert rebuilt.err == (
        "ragctl: warning: the sources cannot be listed, the ledger is made without them: "
        f"sources.docs: {docs} does not exist\n"
    )
    (place.folder / "away").rename(docs)
    ended = place.ragctl("ingest", "--json")
    chunks = ended.json["chunks"]
    assert (ended.status, chunks["embedded"], chunks["written"], chunks["deleted"]) == (0, 0, 0, 0)
    assert place.held() == before
    converges(place)


def test_a_rebuild_knows_what_the_last_ingest_before_it_put(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ingest that ends just before the rebuild takes the lease is not left out."""
    assert place.ragctl("ingest").status == 0

    def late(*arguments: Any, **options: Any) -> Any:
        place.write({"late.md": "The last ferry.\n"})
        assert place.ragctl("ingest").status == 0
        return lease.hold(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("ragctl.rebuild.hold", late)
        ended = in_process("ledger", "rebuild", place.folder / "experiment.yaml", "--json")
    assert (ended.status, ended.json["documents"], ended.json["chunks"]) == (0, 251, 251)
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["chunks"]["written"], ended.json["chunks"]["deleted"]) == (0, 0, 0)


def test_a_rebuild_undoes_half_a_save_first(place: Place) -> None:
    """What SQLite keeps of a run that was killed amid a save is that of the old file: the new one stays whole."""
    assert place.ragctl("ingest").status == 0
    kill_amid_a_save(place)
    assert Path(f"{ledger_of(place)}-journal").exists()
    assert in_process("ledger", "rebuild", place.folder / "experiment.yaml").status == 0
    assert not Path(f"{ledger_of(place)}-journal").exists()
    converges(place)


def test_a_rebuild_waits_for_nobody_who_writes_the_old_ledger(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is amid a save, although the lease is not theirs, is not robbed of the file: exit 8, all as it was."""
    assert place.ragctl("ingest").status == 0
    connect = sqlite3.connect
    with closing(connect(ledger_of(place), isolation_level=None)) as db, monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, **{"timeout": 0.0} | o))
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE documents SET done = 0")
        ended = in_process("ledger", "rebuild", place.folder / "experiment.yaml")
        assert (ended.status, ended.out) == (8, "")
        assert f"{ledger_of(place)}: the ledger cannot be read or written: database is locked" in ended.err
        db.execute("ROLLBACK")
    assert place.ragctl("ingest").out == "test: nothing to do, 250 documents in 250 chunks\n"


def test_an_earlier_holder_does_not_write_a_ledger_that_was_rebuilt(place: Place) -> None:
    """It wakes up with the old file open, sees that it lost the lease, and saves nothing there or anywhere."""
    assert place.ragctl("ingest").status == 0
    with closing(sqlite3.connect(ledger_of(place))) as db:
        fence = int(db.execute("SELECT value FROM meta WHERE name = 'fence'").fetchone()[0])
    with closing(Ledger(ledger_of(place), fence=fence)) as asleep:
        assert in_process("ledger", "rebuild", place.folder / "experiment.yaml").status == 0
        with pytest.raises(LeaseLost, match="another run took over this index while this one was paused"):
            asleep.set_meta(created="never")
    converges(place)


def kill_amid_a_save(place: Place) -> None:
    """Leave half of a save on the disk, as a process does that ends there."""
    code = f"""
import os, sqlite3
db = sqlite3.connect({str(ledger_of(place))!r}, isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE documents SET keys = 'x', done = 0")
db.execute("DELETE FROM failures")
os._exit(9)
"""
    saved = ledger_of(place).read_bytes()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert ledger_of(place).read_bytes() != saved


def test_a_run_that_was_killed_while_it_saved(place: Place) -> None:
    """Half of a save is on the disk: whoever looks, and the next run, see what was saved before."""
    place.write({"bad.pdf": "no PDF"})
    assert place.ragctl("ingest").status == 3
    before = place.held()
    kill_amid_a_save(place)
    journal = Path(f"{ledger_of(place)}-journal")
    assert journal.exists()
    assert [f["document"] for f in place.ragctl("failures", "--json").json["failures"]] == ["docs/bad.pdf"]
    planned = place.ragctl("ingest", "--dry-run", "--json").json
    assert planned["files"] == {"added": 0, "checked": 1, "unchanged": 201, "deleted": 0}
    assert planned["documents"]["unchanged"] == 250
    (place.folder / "docs" / "bad.pdf").unlink()
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["chunks"]["written"], ended.json["chunks"]["deleted"]) == (0, 0, 0)
    assert place.held() == before


def test_a_ledger_that_a_run_is_writing(place: Place) -> None:
    """Whoever looks meanwhile sees what was last saved, at once."""
    assert place.ragctl("ingest").status == 0
    with closing(sqlite3.connect(ledger_of(place), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE documents SET done = 0")
        db.execute("UPDATE files SET done = 0")
        planned = place.ragctl("ingest", "--dry-run", "--json").json
        assert (planned["files"]["checked"], planned["documents"]["unchanged"]) == (0, 250)
        db.execute("ROLLBACK")
