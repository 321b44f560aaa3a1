"""An index that is not what its ledger says: replaced, restored or partly emptied, it is never called up to date."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragctl import matching
from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.manifest import Ledger
from tests.places import STORES, Place, StoreKind
from tests.servers.s3vectors import S3VectorsServer

TEXTS = {
    f"d{i:02}.md": f"Barn {i} holds {i * 7} sacks of barley.\n\nIts keeper is number {i * 3}.\n"
    for i in range(20)
}
OLD, NEW = "Barn 3 holds 21 sacks", "Barn 3 holds 1,000 sacks"


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Twenty documents of two chunks each on either store, ingested."""
    kind: StoreKind = request.param
    chunking = {"chunking": {"size": 40, "overlap": 0}}
    if kind == "local":
        yield _filled(Place(tmp_path, sections=chunking))
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with S3VectorsServer() as server:
        yield _filled(Place(tmp_path, server, sections=chunking))
    assert (server.unexpected, server.broken) == ([], [])


def _filled(place: Place) -> Place:
    place.write(TEXTS)
    place.configure()
    assert place.ragctl("ingest").status == 0
    return place


def copied(place: Place) -> dict[str, list[object]]:
    """All records of the index."""
    with place.store() as store:
        keys = list(store.keys())
        return {"records": list(store.get(keys, vectors=True).values())}


def put_back(place: Place, copy: dict[str, list[object]]) -> None:
    """Have the index hold these records and no others."""
    with place.store() as store:
        store.delete(list(store.keys()))
        store.put(copy["records"])  # type: ignore[arg-type]


def change(place: Place) -> None:
    """One document is edited, one is removed and one is new."""
    (place.folder / "docs/d03.md").write_text(TEXTS["d03.md"].replace(OLD, NEW))
    (place.folder / "docs/d07.md").unlink()
    place.write({"d90.md": "A barn that was built since then.\n"})
    assert place.ragctl("ingest").status == 0


def test_an_older_copy_of_the_index_is_brought_up_to_date(place: Place) -> None:
    """What the copy lacks is put again, what it has too much of is removed, though its age shows nowhere."""
    copy = copied(place)
    change(place)
    put_back(place, copy)
    ended = place.ragctl("ingest", "--json")
    assert ended.status == 0
    assert ended.json["restored"] is True
    assert place.held() == place.undisturbed()
    assert place.ragctl("verify", "--full").status == 0
    assert "nothing to do" in place.ragctl("ingest").out


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_an_older_copy_that_holds_as_many_chunks_is_noticed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though one document of many differs, whose key the run does not happen to look up."""
    monkeypatch.setattr(matching, "PROBED_KEYS", 1)
    store = place.folder / "store"
    shutil.copytree(store, place.folder / "copy")
    (place.folder / "docs/d03.md").write_text(TEXTS["d03.md"].replace(OLD, NEW))
    assert place.ragctl("ingest").status == 0
    whole = place.held()
    shutil.rmtree(store)
    (place.folder / "copy").rename(store)
    assert place.ragctl("ingest").status == 0
    assert place.held() == whole
    assert "nothing to do" in place.ragctl("ingest").out


def test_chunks_that_are_lost_here_and_there_are_put_again(place: Place) -> None:
    """Not each document's first chunk, and not of every document."""
    whole = place.held()
    with place.store() as store:
        store.delete(
            [key for key, (metadata, _) in whole.items() if str(metadata["text"]).startswith("Its keeper")]
        )
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["restored"]) == (0, True)
    assert place.held() == whole


def killed_at(place: Place, monkeypatch: pytest.MonkeyPatch, call: str) -> list[tuple[object, ...]]:
    """A run that dies while a call of the store is on its way: it has left, and has not arrived. Gives what it sent."""
    sent: list[tuple[object, ...]] = []

    def die(_: object, *arguments: object, **__: object) -> None:
        sent.append(arguments)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(S3VectorsStore, call, die)
        assert place.ragctl("ingest").status == 1
    return sent


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """By when no call of that run can come any more."""
    now = time.time
    monkeypatch.setattr("ragctl.matching.time.time", lambda: now() + matching.LATE_S + 1)


@pytest.mark.parametrize("place", ["s3vectors"], indirect=True)
def test_a_delete_that_comes_after_its_run_was_killed_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document is as it was before when the next run works; then the call arrives, and a later run notices."""
    monkeypatch.setattr(Ledger, "sample_keys", lambda *_: [])  # which may find it by chance
    whole = place.held()
    path = place.folder / "docs/d03.md"
    path.write_text(TEXTS["d03.md"].replace(OLD, NEW))
    ((keys,),) = killed_at(place, monkeypatch, "delete")
    assert isinstance(keys, list)
    path.write_text(TEXTS["d03.md"])
    assert place.ragctl("ingest").status == 0
    assert place.held() == whole
    with place.store() as store:
        store.delete(keys)
    assert place.held() != whole
    assert "nothing to do" in place.ragctl("ingest").out  # too early to tell
    later(monkeypatch)
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["restored"]) == (0, True)
    assert (
        "calls of a run that was killed came late: 0 chunks are removed, 1 files are put again" in ended.err
    )
    assert place.held() == whole
    assert "nothing to do" in place.ragctl("ingest").out


@pytest.mark.parametrize("place", ["s3vectors"], indirect=True)
def test_a_put_that_comes_after_its_run_was_killed_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document is gone from the source when the next run works; then the call arrives."""
    whole = place.held()
    place.write({"d90.md": "A barn that was built since then.\n"})
    ((records,),) = killed_at(place, monkeypatch, "put")
    (place.folder / "docs/d90.md").unlink()
    assert place.ragctl("ingest").status == 0
    with place.store() as store:
        store.put(records)  # type: ignore[arg-type]
    assert place.held() != whole
    later(monkeypatch)
    ended = place.ragctl("ingest")
    assert ended.status == 0
    assert (
        "calls of a run that was killed came late: 1 chunks are removed, 0 files are put again" in ended.err
    )
    assert place.held() == whole
    assert "nothing to do" in place.ragctl("ingest").out


def test_a_ledger_that_is_older_than_its_index_embeds_nothing_again(place: Place) -> None:
    """What the index has and the ledger does not know is claimed by the documents that it is of, each key once."""
    state = next(place.folder.rglob("ledger.sqlite"))
    old = state.read_bytes()
    change(place)
    whole = place.held()
    state.write_bytes(old)
    ended = place.ragctl("ingest", "--json")
    assert ended.status == 0, ended.err
    assert place.held() == whole
    assert place.ragctl("verify", "--full").status == 0


def test_what_the_ledger_does_not_know_is_not_put_beside_itself(place: Place) -> None:
    """A document that is new to an old ledger, and in the index already: nothing of it is there twice."""
    state = next(place.folder.rglob("ledger.sqlite"))
    old = state.read_bytes()
    place.write({"d90.md": "A barn that was built since then.\n"})
    assert place.ragctl("ingest").status == 0
    whole = place.held()
    state.write_bytes(old)
    assert place.ragctl("ingest").status == 0
    with place.store() as store:
        assert sorted(store.keys()) == sorted(whole)


@pytest.mark.parametrize("place", ["local"], indirect=True)  # S3 Vectors does not tell how many it holds
def test_an_index_that_is_mostly_unknown_is_left_alone(place: Place) -> None:
    """A ledger of something else, or a very old one: exit 6, and how to go on either way."""
    copy = copied(place)
    for path in (place.folder / "docs").glob("d1*.md"):
        path.unlink()
    assert place.ragctl("ingest", "--max-delete", "1").status == 0
    put_back(place, copy)
    ended = place.ragctl("ingest")
    assert ended.status == 6
    assert "20 of the 40 chunks in index" in ended.err
    assert "are unknown to its ledger" in ended.err
    assert (
        "ragctl ledger rebuild CONFIG; if they are to go: ragctl ingest CONFIG --max-delete 1.0" in ended.err
    )
    assert len(place.held()) == 40
    assert place.ragctl("ingest", "--max-delete", "1").status == 0
    assert place.held() == place.undisturbed()


@pytest.mark.parametrize("command", [["ingest", "--dry-run", "--json"], ["plan", "--json"]])
def test_a_plan_says_what_the_ingest_would_do(place: Place, command: list[str]) -> None:
    """An emptied index is not told as one that is left alone."""
    with place.store() as store:
        store.delete(list(store.keys()))
    ended = place.ragctl(*command)
    assert ended.status == 0, ended.err
    files = ended.json["files"] if command[0] == "ingest" else ended.json["indexes"]["test"]["files"]
    assert (files.get("checked", files.get("check")), files.get("unchanged", files.get("keep"))) == (20, 0)


@pytest.mark.parametrize("command", [["ingest"], ["ingest", "--dry-run"], ["plan"]])
def test_an_index_without_its_ledger_is_refused_by_all(place: Place, command: list[str]) -> None:
    """Exit 6 before anything is done or planned."""
    shutil.rmtree(next(place.folder.rglob("ledger.sqlite")).parent)
    before = place.held()
    ended = place.ragctl(*command)
    assert ended.status == 6
    assert "holds chunks, but there is no whole ledger of it" in ended.err
    assert place.held() == before
