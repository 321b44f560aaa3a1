"""The nine drills in which other tools fail, each on both stores, and what belongs to them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragctl.adapters import s3vectors
from ragctl.loading import load
from ragctl.state import open_state
from ragctl.verify import verify
from tests.places import STORES, PickyServer, Place, StoreKind, embedding_at
from tests.servers.s3vectors import S3VectorsServer

POISON = "quicksilver"
GOOD = {f"good{i}.md": f"The granary holds sack number {i} of barley.\n" for i in range(2)}
BAD = {f"bad{i}.md": f"Barrel number {i} is full of {POISON}.\n" for i in range(2)}


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An experiment on each store, with nothing in it."""
    store: StoreKind = request.param
    if store == "local":
        yield Place(tmp_path)
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with S3VectorsServer() as server:
        yield Place(tmp_path, server)
    assert (server.unexpected, server.broken) == ([], [])


@pytest.fixture
def picky() -> Iterator[PickyServer]:
    """An embedding server that can be told to refuse the poison."""
    with PickyServer() as server:
        yield server


@pytest.mark.parametrize("status", [413, 422, 500])
def test_drill_1_half_of_the_files_fail_to_embed(place: Place, picky: PickyServer, status: int) -> None:
    """Exit 3, the bad half is listed, the good half is in; once the cause is gone, --only-failed mends it."""
    place.write(GOOD | BAD)
    place.configure(embedding=embedding_at(picky.url))
    picky.marker, picky.status = POISON, status
    ended = place.ragctl("ingest", "--json")
    assert ended.status == 3
    assert ended.json["documents"] | {"seen": 4, "added": 2, "failed": 2} == ended.json["documents"]
    assert [(f["document"], f["stage"]) for f in ended.json["failures"]] == [
        ("docs/bad0.md", "embed"),
        ("docs/bad1.md", "embed"),
    ]
    assert POISON not in ended.out + ended.err
    assert place.documents() == ["docs/good0.md", "docs/good1.md"]
    listed = place.ragctl("failures", "--json").json["failures"]
    assert [(f["document"], f["attempts"]) for f in listed] == [("docs/bad0.md", 1), ("docs/bad1.md", 1)]
    picky.marker = None
    mended = place.ragctl("ingest", "--only-failed", "--json")
    assert (mended.status, mended.json["documents"]["added"]) == (0, 2)
    assert len(place.documents()) == 4
    assert place.ragctl("failures", "--json").json["failures"] == []


def test_drill_2_the_same_command_twice_gives_the_same_vectors(place: Place, picky: PickyServer) -> None:
    """Nothing is asked of the embedder, nothing is written, nothing is double."""
    place.write(GOOD)
    place.configure(embedding=embedding_at(picky.url))
    assert place.ragctl("ingest").status == 0
    before, asked = place.held(), len(picky.requests)
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["chunks"]["embedded"], ended.json["chunks"]["written"]) == (0, 0, 0)
    assert place.held() == before
    texts = [request["input"] for request in picky.requests[asked:]]
    assert texts in ([], [["dimension"]])  # the length of its vectors, where the config does not say


def test_drill_3_another_embedder_is_refused(place: Place) -> None:
    """Exit 6: vectors of two models never meet in one index, and no document is called unchanged."""
    place.write(GOOD)
    place.configure()
    assert place.ragctl("ingest").status == 0
    before = place.held()
    place.configure(embedding={"kind": "hashing", "dimension": 512})
    ended = place.ragctl("ingest")
    assert (ended.status, ended.out) == (6, "")
    assert "made with other settings" in ended.err
    assert place.held() == before


@pytest.mark.parametrize("how", ["dropped", "emptied"])
def test_drill_4_an_emptied_store_is_restored(place: Place, how: str) -> None:
    """The next ordinary run notices that the index is gone, or that nothing is in it."""
    place.write(GOOD)
    place.configure()
    assert place.ragctl("ingest").status == 0
    before = place.held()
    with place.store() as store:
        if how == "dropped":
            assert store.drop()
        else:
            store.delete(list(before))
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["restored"]) == (0, True)
    assert place.held() == before


def test_drill_5_a_source_that_lists_10_of_1000_is_refused(place: Place) -> None:
    """Exit 6, and all documents are still there."""
    place.write({f"d{i:03}.md": f"Note {i}.\n" for i in range(1_000)})
    place.configure()
    assert place.ragctl("ingest").status == 0
    for path in sorted((place.folder / "docs").iterdir())[10:]:
        path.unlink()
    ended = place.ragctl("ingest")
    assert ended.status == 6
    assert "990 of 1000 documents are gone from the sources" in ended.err
    assert len(place.held()) == 1_000


def test_drill_6_a_text_of_3000_bytes_gets_in(place: Place) -> None:
    """It stands in the metadata, which may filter by 2,048 bytes only: the text is not filterable."""
    words = "archive " * 374 + "zenith.."
    assert len(words.encode()) == 3_000
    place.write({"long.txt": words})
    place.configure(chunking={"size": 4_000})
    ended = place.ragctl("ingest")
    assert ended.status == 0, ended.err
    ((metadata, _),) = place.held().values()
    assert metadata["text"] == words
    with place.store() as store:
        info = store.describe()
    assert info is not None
    assert "text" in info.non_filterable
    found = place.ragctl("query", "zenith archive", "--retrieve-only", "--json")
    assert [hit["text"] for hit in found.json["hits"]] == [words]


def test_drill_7_a_large_document_is_deleted_exactly(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,600 chunks, more than three times what one call may delete, among many list pages: it ends, and the rest stays."""
    lines = "\n\n".join(f"Line {i} of the long one, {i * 7919} in all." for i in range(1_600))
    place.write({"long.txt": lines, **{f"d{i:02}.md": f"Neighbour {i}.\n" for i in range(60)}})
    place.configure(chunking={"size": 45}, ingest={"workers": 1, "max_delete": 0.02})
    assert place.ragctl("ingest").status == 0
    before = place.held()
    assert len(before) == 1_660
    (place.folder / "docs" / "long.txt").unlink()
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["documents"]["deleted"]) == (0, 1)
    assert ended.json["chunks"]["deleted"] == 1_600
    assert place.held() == {k: v for k, v in before.items() if v[0]["document"] != "docs/long.txt"}
    monkeypatch.setattr(s3vectors, "LIST_PAGE", 7)
    loaded = load(place.folder / "experiment.yaml")
    drift = verify(loaded, open_state(loaded), sample=None)
    assert (drift.is_clean, drift.chunks) == (True, 60)


@pytest.mark.parametrize("status", [413, 500])
def test_drill_8_a_change_that_cannot_be_embedded_keeps_the_old_copy(
    place: Place, picky: PickyServer, status: int
) -> None:
    """The old text answers until the new one is in."""
    place.write({"harbour.md": "The harbour master is called Ada.\n", **GOOD})
    place.configure(embedding=embedding_at(picky.url))
    assert place.ragctl("ingest").status == 0
    before = place.held()
    picky.marker, picky.status = POISON, status
    place.write({"harbour.md": f"The harbour master is called Grace, and sells {POISON}.\n"})
    for _ in range(2):  # it is tried again, and still nothing is lost
        assert place.ragctl("ingest").status == 3
        assert place.held() == before
    found = place.ragctl("query", "Who is the harbour master?", "--retrieve-only", "--json")
    assert found.json["hits"][0]["text"].strip() == "The harbour master is called Ada."
    picky.marker = None
    assert place.ragctl("ingest").status == 0
    found = place.ragctl("query", "Who is the harbour master?", "--retrieve-only", "--json")
    texts = [hit["text"] for hit in found.json["hits"]]
    assert "Grace" in texts[0]
    assert not any("Ada" in text for text in texts)


GOLDEN: list[dict[str, Any]] = [
    {
        "id": "soup",
        "question": "What soup does the canteen serve?",
        "answer": "lentil soup",
        "evidence": [{"document": "docs/menu.md", "quote": "the canteen serves lentil soup"}],
    },
    {
        "id": "turbines",
        "question": "How many turbines did the harbour ship?",
        "answer": "57",
        "evidence": [{"document": "docs/report.md", "quote": "shipped 57 turbines"}],
    },
    {
        "id": "poison",
        "question": f"What does the canteen do without {POISON}?",
        "answer": "lentil soup",
        "evidence": [{"document": "docs/menu.md", "quote": "the canteen serves lentil soup"}],
    },
]


@pytest.mark.parametrize(
    ("gate", "fails", "status"),
    [
        ({}, False, 0),
        ({"nDCG@10": ">= 0.9"}, False, 0),
        ({"nDCG@10": ">= 0.9"}, True, 3),
        ({"nDCG@10": "< 0.5"}, False, 4),
        ({"nDCG@10": "< 0.5"}, True, 4),
        ({"abstention_recall": ">= 0.9", "nDCG@10": "< 0.5"}, False, 4),
    ],
)
def test_drill_9_exit_codes_of_the_gate(
    place: Place, picky: PickyServer, gate: dict[str, str], fails: bool, status: int
) -> None:
    """0 met, 3 met though a question failed, 4 not met whatever else happened."""
    ask(place, picky, gate, fails=fails, min_scored=0.5, status=status)


def test_drill_9_exit_code_of_a_gate_that_cannot_tell(place: Place, picky: PickyServer) -> None:
    """5 when too few questions were scored, though those that were would pass."""
    ask(place, picky, {"nDCG@10": ">= 0.9"}, fails=True, min_scored=0.95, status=5)


def ask(
    place: Place, picky: PickyServer, gate: dict[str, str], *, fails: bool, min_scored: float, status: int
) -> None:
    place.write(
        {
            "menu.md": "On Tuesdays the canteen serves lentil soup and rye bread.\n",
            "report.md": "The harbour shipped 57 turbines in the year.\n",
        }
    )
    (place.folder / "golden.jsonl").write_text("\n".join(map(json.dumps, GOLDEN)))
    evaluation = {
        "dataset": {"kind": "golden", "path": "golden.jsonl"},
        "gate": gate,
        "min_scored": min_scored,
    }
    place.configure(embedding=embedding_at(picky.url), evaluation=evaluation)
    assert place.ragctl("ingest").status == 0
    picky.marker = POISON if fails else None
    ended = place.ragctl("eval", "--json")
    assert ended.status == status, ended.err
    verdicts = {0: "pass" if gate else "none", 3: "pass", 4: "fail", 5: "cannot-tell"}
    assert ended.json["gate"]["verdict"] == verdicts[status]


# --- what belongs to them --------------------------------------------------------------------------------


def test_a_run_gives_up_when_more_fails_than_is_allowed(place: Place) -> None:
    """Exit 3 early: nothing is removed on such a day, what got in is saved, and the rest is done by the next run."""
    bad = {f"a{i:02}.pdf": "this is no PDF" for i in range(40)}
    good = {f"z{i:03}.md": f"Note {i}.\n" for i in range(200)}
    place.write({"old.md": "An old note.\n"})
    place.configure(ingest={"workers": 1, "fail_threshold": 0.05, "max_delete": 1.0})
    assert place.ragctl("ingest").status == 0
    (place.folder / "docs" / "old.md").unlink()
    place.write(bad | good)
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["gave_up"]) == (3, True)
    assert 12 < len(ended.json["failures"]) <= 40
    assert ended.json["documents"]["added"] < 200
    assert "a larger share than ingest.fail_threshold allows" in ended.err
    assert "docs/old.md" in place.documents()
    place.configure(ingest={"workers": 1, "max_delete": 1.0})
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["gave_up"], len(ended.json["failures"])) == (3, False, 40)
    assert place.documents() == sorted(f"docs/{name}" for name in good)


def test_two_files_under_one_id_are_refused(tmp_path: Path) -> None:
    """Exit 6: one of them would silently take the place of the other."""
    place = Place(tmp_path)
    place.configure()
    name = "caf\u00e9.md"
    place.write({unicodedata.normalize(form, name): f"As {form}.\n" for form in ("NFC", "NFD")})
    assert len(list((tmp_path / "docs").iterdir())) == 2
    ended = place.ragctl("ingest")
    assert ended.status == 6
    assert "sources.docs: two files have the name caf\u00e9.md, differing only in Unicode form" in ended.err


def test_two_sources_never_share_an_id(tmp_path: Path) -> None:
    """Files of one name from two sources are two documents; two sources of one name are a configuration error."""
    place = Place(tmp_path)
    for folder in ("docs", "more"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.md").write_text(f"From {folder}.\n")
    sources = [{"kind": "local", "name": name, "path": name} for name in ("docs", "more")]
    place.configure(sources=sources)
    assert place.ragctl("ingest").status == 0
    assert place.documents() == ["docs/a.md", "more/a.md"]
    place.configure(sources=[{**source, "name": "docs"} for source in sources])
    ended = place.ragctl("ingest")
    assert ended.status == 2
    assert "name used twice: docs" in ended.err


def test_an_index_that_is_asked_by_vector_alone(place: Place) -> None:
    """`text_search: false` makes no text index on either store; a search by words says what is missing."""
    place.write(GOOD)
    store = place._defaults().get("store", {"kind": "local", "path": "store", "index": "test"})
    place.configure(store=store | {"text_search": False})
    assert place.ragctl("ingest").status == 0
    ended = place.ragctl("query", "a sack of barley", "--mode", "vector", "--retrieve-only", "--json")
    assert {hit["document"] for hit in ended.json["hits"]} == {"docs/good0.md", "docs/good1.md"}
    ended = place.ragctl("query", "a sack of barley", "--mode", "hybrid", "--retrieve-only")
    assert ended.status == 2
    assert "set retrieval.mode to vector" in ended.err
    place.configure(store=store)
    ended = place.ragctl("ingest")
    assert ended.status == 6
    assert "text search: the index has no, the experiment asks for yes" in ended.err
