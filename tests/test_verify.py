"""verify: what is off between source, ledger and index is named, and repaired to the last key."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragctl.adapters import open_store
from ragctl.adapters.base import VectorStore
from ragctl.loading import load
from ragctl.records import VectorRecord
from ragctl.sparse import dense
from ragctl.state import open_state
from ragctl.verify import Drift, repair, verify
from ragctl.worker import Item, Task, Workshop
from tests.cli import Ended, experiment, in_process, ragctl, write_docs

TEXTS = {f"d{i}.md": f"# Title {i}\n\nDocument number {i} is about subject {i * 7}.\n" for i in range(10)}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_docs(tmp_path, TEXTS)
    path = experiment(tmp_path, ingest={"workers": 1})
    assert ragctl("ingest", path).status == 0
    return path


@contextmanager
def opened(config: Path) -> Iterator[VectorStore]:
    store = open_store(load(config))
    try:
        yield store
    finally:
        store.close()


def contents(config: Path) -> dict[str, dict[str, Any]]:
    with opened(config) as store:
        return {record.key: dict(record.metadata) for record in store.scan()}


def record(config: Path, document: str) -> VectorRecord:
    with opened(config) as store:
        keys = [r.key for r in store.scan() if r.metadata["document"] == document]
        return store.get(keys, vectors=True)[keys[0]]


def off(ended: Ended) -> set[str]:
    kinds = ("missing", "orphaned", "stale", "wrong_metadata", "wrong_vector", "failed", "index")
    return {kind for kind in kinds if ended.json[kind]}


def test_what_agrees_is_said_to_agree(config: Path) -> None:
    """Exit 0, and how much was looked at."""
    ended = ragctl("verify", config, "--full", "--json")
    assert (ended.status, ended.json["clean"], ended.json["looked_at"]) == (0, True, 10)
    assert ended.json["embedded"] == 10
    plain = ragctl("verify", config).out
    assert "source, ledger and index agree" in plain
    assert "10 documents looked into, 10 vectors compared with the embedder's" in plain


def break_missing(config: Path) -> None:
    with opened(config) as store:
        store.delete([record(config, "docs/d3.md").key])


def break_orphaned(config: Path) -> None:
    with opened(config) as store:
        store.put([replace(record(config, "docs/d3.md"), key="0-0")])


def break_metadata(config: Path) -> None:
    found = record(config, "docs/d3.md")
    with opened(config) as store:
        store.put([replace(found, metadata={**found.metadata, "title": "Another"})])


def break_text(config: Path) -> None:
    found = record(config, "docs/d3.md")
    with opened(config) as store:
        store.put([replace(found, metadata={**found.metadata, "text": "Another text."})])


def break_vector(config: Path) -> None:
    found = record(config, "docs/d3.md")
    with opened(config) as store:
        store.put([replace(found, vector=np.roll(dense(found.vector), 7))])


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (break_missing, "missing"),
        (break_orphaned, "orphaned"),
        (break_metadata, "wrong_metadata"),
        (break_text, "wrong_metadata"),
        (break_vector, "wrong_vector"),
    ],
)
def test_damage_is_named_and_repaired(config: Path, damage: Any, kind: str) -> None:
    """Exit 3 with the kind of drift; `--repair` brings back exactly what was there."""
    before = contents(config)
    vector = record(config, "docs/d3.md").vector
    damage(config)
    ended = ragctl("verify", config, "--full", "--json")
    assert (ended.status, off(ended)) == (3, {kind})
    repaired = ragctl("verify", config, "--full", "--repair", "--json")
    assert (repaired.status, repaired.json["clean"]) == (0, True)
    assert contents(config) == before
    assert np.array_equal(dense(record(config, "docs/d3.md").vector), dense(vector))


def test_a_full_look_compares_every_vector_that_costs_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of them would miss the one that is wrong."""
    monkeypatch.setattr("ragctl.verify.EMBEDDED", 1)
    break_vector(config)
    ended = in_process("verify", config, "--full", "--json")
    assert (ended.status, off(ended), ended.json["embedded"]) == (3, {"wrong_vector"}, 10)
    assert in_process("verify", config, "--sample", "3", "--json").json["embedded"] == 1


def test_changes_of_the_source_are_named_and_taken_in(config: Path) -> None:
    """A file edited, one new, one gone since the last ingest."""
    docs = config.parent / "docs"
    (docs / "d1.md").write_text("Another text.")
    (docs / "new.md").write_text("New.")
    (docs / "d2.md").unlink()
    ended = ragctl("verify", config, "--json")
    assert (ended.status, ended.json["stale"]) == (3, ["docs/d1.md", "docs/d2.md", "docs/new.md"])
    assert ragctl("verify", config, "--repair").status == 0


def test_an_index_of_another_embedder_is_named(config: Path) -> None:
    """It is not repaired: that would be another index."""
    ended = ragctl("verify", config, "--repair", "--json", "--set", "embedding.dimension=128")
    assert ended.status == 3
    assert "dimension: the index has 256, the experiment asks for 128" in ended.json["index"]


def test_a_repair_is_not_promised_where_it_does_nothing(config: Path) -> None:
    """Another embedder needs another index, and a document that fails needs its reason looked at."""
    other = ragctl("verify", config, "--set", "embedding.dimension=128")
    assert "hint: name another index in store.index, or remove this one: ragctl teardown CONFIG" in other.err
    (config.parent / "docs" / "broken.pdf").write_bytes(b"no PDF")
    ended = ragctl("verify", config, "--repair", "--json")
    assert (ended.status, off(ended)) == (3, {"failed"})
    assert "hint: ragctl failures CONFIG says what fails, and why" in ended.err


def test_full_and_sample_exclude_one_another(config: Path) -> None:
    """A contradiction is a usage error."""
    ended = ragctl("verify", config, "--full", "--sample", "3")
    assert (ended.status, ended.out) == (2, "")
    assert "--full and --sample exclude one another" in ended.err


# --- what no repair may do -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--repair",)], ids=["a look", "a repair"])
@pytest.mark.parametrize("accident", ["lost", "empty", "elsewhere"])
def test_an_index_without_its_ledger_is_left_alone(config: Path, accident: str, options: Any) -> None:
    """Exit 6 with the words of an ingest, also where the state location is misspelt; nothing is deleted."""
    before = contents(config)
    for i in range(8):
        (config.parent / "docs" / f"d{i}.md").unlink()
    place = config.parent / ("typo" if accident == "elsewhere" else "state")
    if accident != "elsewhere":
        (place / "test" / "ledger.sqlite").unlink()
    if accident == "empty":
        assert in_process("ingest", config).status == 6  # which leaves one without a document
        assert (place / "test" / "ledger.sqlite").exists()
    ended = in_process("verify", config, *options, "--set", f"state={place}")
    assert (ended.status, ended.out) == (6, "")
    assert ended.err == (
        "ragctl: error: index test holds chunks, but there is no whole ledger of it "
        f"({place}/test/ledger.sqlite)\n"
        "  hint: if state: names the right place, make the ledger anew: ragctl ledger rebuild CONFIG\n"
    )
    assert contents(config) == before


def with_earlier_ledger(config: Path, documents: int) -> None:
    """The ledger of when there were only so many documents, put back from a backup."""
    state, docs = config.parent / "state", config.parent / "docs"
    state.rename(config.parent / "today")
    docs.rename(config.parent / "all")
    shutil.copytree(config.parent / "store", config.parent / "kept")
    shutil.rmtree(config.parent / "store" / "test.lance")
    write_docs(config.parent, {f"d{i}.md": TEXTS[f"d{i}.md"] for i in range(documents)})
    assert in_process("ingest", config).status == 0
    shutil.rmtree(docs)
    (config.parent / "all").rename(docs)
    shutil.rmtree(config.parent / "store")
    (config.parent / "kept").rename(config.parent / "store")


def test_most_of_an_index_is_not_deleted_as_orphaned(config: Path) -> None:
    """A ledger of an earlier day knows two documents of ten: exit 6 with both ways out, nothing changed."""
    before = contents(config)
    with_earlier_ledger(config, 2)
    assert len(in_process("verify", config, "--json").json["orphaned"]) == 8
    ended = in_process("verify", config, "--repair")
    assert (ended.status, ended.out) == (6, "")
    assert ended.err == (
        "ragctl: error: 8 of 10 documents of the index, each record of none counted as one, are not in the ledger, "
        "more than the 20% that one run may remove; nothing was removed\n"
        "  hint: if state: names the right place, make the ledger anew: ragctl ledger rebuild CONFIG; "
        "if they are to go: ragctl verify CONFIG --repair --set ingest.max_delete=1.0\n"
    )
    assert contents(config) == before
    assert in_process("verify", config, "--json").json["documents"] == 2
    assert in_process("verify", config, "--repair", "--set", "ingest.max_delete=1.0").status == 0
    assert contents(config) == before


@pytest.mark.parametrize(
    "named",
    [{}, {"document": "docs/d3.md"}, {"document": "elsewhere"}],
    ids=["none", "one of ours", "another"],
)
def test_records_of_somebody_else_are_not_taken_for_one_document(config: Path, named: dict[str, str]) -> None:
    """Each that ragctl did not write counts, whatever it says that it is of: exit 6 with all of them left."""
    foreign = [
        VectorRecord(f"theirs-{i}", np.ones(256, np.float32), {"text": "x", **named}) for i in range(30)
    ]
    with opened(config) as store:
        store.put(foreign)
    ended = in_process("verify", config, "--repair")
    assert (ended.status, ended.out) == (6, "")
    assert "error: 30 of 40 documents of the index, each record of none counted as one, are not" in ended.err
    assert {record.key for record in foreign} <= set(contents(config))
    assert in_process("verify", config, "--repair", "--set", "ingest.max_delete=1.0").status == 0
    assert len(contents(config)) == 10


def test_a_ledger_of_an_earlier_day_is_made_anew_as_the_hint_says(config: Path) -> None:
    """After which all agrees."""
    before = contents(config)
    with_earlier_ledger(config, 2)
    assert in_process("ledger", "rebuild", config).status == 0
    assert in_process("ingest", config, "--json").json["chunks"]["deleted"] == 0
    assert in_process("verify", config, "--full").status == 0
    assert contents(config) == before


def test_what_is_left_of_a_killed_run_does_not_count_as_documents(config: Path) -> None:
    """The ledger knows these keys to be nobody's: they go without a guard, as the next ingest would have them go."""
    found = record(config, "docs/d3.md")
    strays = [
        replace(found, key=f"{i}-0", metadata={**found.metadata, "document": f"new{i}"}) for i in range(9)
    ]
    loaded = load(config)
    with opened(config) as store:
        store.put(strays)
    with sqlite3.connect(config.parent / "state" / "test" / "ledger.sqlite") as db:
        db.executemany("INSERT INTO loose VALUES (?)", [(stray.key,) for stray in strays])
    repair(loaded, open_state(loaded), verify(loaded, open_state(loaded), sample=None))
    assert len(contents(config)) == 10


def test_what_was_put_right_meanwhile_is_not_deleted(config: Path) -> None:
    """A vector that was wrong when it was looked at, and is right under the lease."""
    loaded = load(config)
    right = record(config, "docs/d3.md")
    break_vector(config)
    drift = verify(loaded, open_state(loaded), sample=None)
    assert drift.wrong_vector == [right.key]
    with opened(config) as store:
        store.put([right])
    repair(loaded, open_state(loaded), drift)
    assert np.array_equal(dense(record(config, "docs/d3.md").vector), dense(right.vector))


# --- content that changed behind its stamp ---------------------------------------------------------------


def rewrite(path: Path, text: str) -> None:
    """Other content of the same size and time."""
    stamp = path.stat()
    assert len(text.encode()) == stamp.st_size
    path.write_text(text)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_content_that_changed_behind_its_stamp_is_taken_in(config: Path) -> None:
    """Only who opens the file sees it; a repair has the next ingest open it, and then all agrees."""
    rewrite(config.parent / "docs" / "d1.md", TEXTS["d1.md"].replace("number", "NUMBER"))
    assert in_process("ingest", config).out == "test: nothing to do, 10 documents in 10 chunks\n"
    ended = in_process("verify", config, "--full", "--json")
    assert (ended.status, off(ended), ended.json["stale"]) == (3, {"stale"}, ["docs/d1.md"])
    ended = in_process("verify", config, "--full", "--repair", "--json")
    assert (ended.status, ended.json["clean"]) == (0, True)
    (text,) = (m["text"] for m in contents(config).values() if m["document"] == "docs/d1.md")
    assert "Document NUMBER 1 is about" in text


def test_records_that_came_and_went_behind_the_stamp_are_told(config: Path) -> None:
    """One has another id now: the old one and the new are named, and put right."""
    rows = config.parent / "docs" / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "Crane A."}\n{"id": "b", "text": "Crane B."}\n')
    assert in_process("ingest", config).status == 0
    rewrite(rows, rows.read_text().replace('"id": "b"', '"id": "c"'))
    ended = in_process("verify", config, "--full", "--json")
    assert (ended.status, off(ended)) == (3, {"stale"})
    assert ended.json["stale"] == ["docs/rows.jsonl#b", "docs/rows.jsonl#c"]
    assert in_process("verify", config, "--full", "--repair").status == 0
    documents = {m["document"] for m in contents(config).values()}
    assert {"docs/rows.jsonl#a", "docs/rows.jsonl#c"} <= documents
    assert "docs/rows.jsonl#b" not in documents


def test_content_that_cannot_be_read_any_more_is_told(config: Path) -> None:
    """It is stale to a look, and a failure once an ingest has tried it: the old copy still answers."""
    rows = config.parent / "docs" / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "Crane A."}\n{"id": "b", "text": "Crane B."}\n')
    assert in_process("ingest", config).status == 0
    before = contents(config)
    rewrite(rows, rows.read_text().replace('{"id": "b"', '{"id":: "b'))
    ended = in_process("verify", config, "--full", "--json")
    assert (ended.status, off(ended)) == (3, {"stale"})
    ended = in_process("verify", config, "--full", "--repair", "--json")
    assert (ended.status, off(ended)) == (3, {"failed"})
    assert contents(config) == before


# --- files of which something failed ---------------------------------------------------------------------


@pytest.fixture
def faulty(config: Path) -> Path:
    """Two records in a file with a line that is none, ingested as far as it goes; the experiment."""
    rows = '{"id": "a", "text": "Crane A."}\n{"id":: "b"}\n{"id": "c", "text": "Crane C."}\n'
    (config.parent / "docs" / "rows.jsonl").write_text(rows)
    assert in_process("ingest", config).status == 3
    return config


def test_a_faulty_record_keeps_no_other_of_its_file_from_being_compared(faulty: Path) -> None:
    """Only the line is off, and known to be; damage to its neighbours is named, and put right."""
    ended = in_process("verify", faulty, "--full", "--json")
    assert (ended.status, off(ended), ended.json["looked_at"]) == (3, {"failed"}, 12)
    before = contents(faulty)
    found = record(faulty, "docs/rows.jsonl#c")
    with opened(faulty) as store:
        store.put([replace(found, metadata={**found.metadata, "text": "Another text."})])
    ended = in_process("verify", faulty, "--full", "--json")
    assert (off(ended), ended.json["wrong_metadata"]) == ({"failed", "wrong_metadata"}, [found.key])
    ended = in_process("verify", faulty, "--full", "--repair", "--json")
    assert (ended.status, off(ended), ended.json["failed"]) == (3, {"failed"}, ["docs/rows.jsonl line 2"])
    assert contents(faulty) == before


def test_a_record_that_cannot_be_read_is_not_taken_for_gone(config: Path) -> None:
    """Its old version stays in the index, as the ingest left it, and is not stale for that."""
    rows = config.parent / "docs" / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "Crane A."}\n{"id": "b", "text": "Crane B."}\n')
    assert in_process("ingest", config).status == 0
    rows.write_text('{"id": "a", "text": "Crane A."}\n{"id":: "b", "text": "Crane B."}\n')
    assert in_process("ingest", config).status == 3
    assert off(in_process("verify", config, "--full", "--json")) == {"failed"}
    shown = in_process("verify", config).out  # nobody knows which record the line was
    assert "  failed, and no version is known to be in the index: 1: docs/rows.jsonl line 2\n" in shown
    assert record(config, "docs/rows.jsonl#b").metadata["text"] == "Crane B."


def test_failed_documents_whose_old_version_answers_are_told_apart(config: Path) -> None:
    """Of a document, and of a file of records; what never got in is not in the index. `failures` says it, too."""
    docs = config.parent / "docs"
    (docs / "rows.jsonl").write_text('{"id": "a", "text": "Crane A."}\n')
    assert in_process("ingest", config).status == 0
    for name in ("rows.jsonl", "d3.md", "new.pdf"):
        (docs / name).write_bytes(b"no PDF\x00\xff\xfe" * 9)
    assert in_process("ingest", config).status == 3
    ended = in_process("verify", config, "--json")
    assert ended.json["failed"] == ["docs/d3.md", "docs/new.pdf", "docs/rows.jsonl"]
    assert ended.json["failed_in_index"] == ["docs/d3.md", "docs/rows.jsonl"]
    shown = in_process("verify", config).out
    assert "  failed, and their old versions answer: 2: docs/d3.md, docs/rows.jsonl\n" in shown
    assert "  failed, and no version is known to be in the index: 1: docs/new.pdf\n" in shown
    listed = in_process("failures", config, "--json").json["failures"]
    assert [(failure["document"], failure["in_index"]) for failure in listed] == [
        ("docs/d3.md", True),
        ("docs/new.pdf", False),
        ("docs/rows.jsonl", True),
    ]
    damaged = "is not text: it looks like binary data"
    assert in_process("failures", config).out.splitlines() == [
        f"docs/d3.md (parse, 1 times; an old version is in the index): {damaged}",
        "docs/new.pdf (parse, 1 times): cannot be read as PDF: it is damaged",
        f"docs/rows.jsonl (parse, 1 times; an old version is in the index): {damaged}",
    ]


def test_a_faulty_file_that_was_edited_since_is_stale(faulty: Path) -> None:
    """As any other is: the next ingest finds something else in it."""
    rows = faulty.parent / "docs" / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "Crane A."}\n{"id": "b", "text": "Crane B."}\n')
    ended = in_process("verify", faulty, "--full", "--json")
    assert (off(ended), ended.json["stale"]) == ({"failed", "stale"}, ["docs/rows.jsonl"])
    assert in_process("verify", faulty, "--repair").status == 0


def test_a_file_that_failed_as_a_whole_is_not_opened(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to compare, and what hung or ended a worker would do so to us."""
    (config.parent / "docs" / "broken.pdf").write_bytes(b"no PDF")
    assert in_process("ingest", config).status == 3
    opened_files: list[str] = []
    work = Workshop.work

    def noted(shop: Workshop, task: Task) -> Iterator[Item]:
        opened_files.append(task.file.id)
        return work(shop, task)

    monkeypatch.setattr(Workshop, "work", noted)
    assert off(in_process("verify", config, "--full", "--json")) == {"failed"}
    assert opened_files == [f"docs/{name}" for name in TEXTS]


# --- what helps ------------------------------------------------------------------------------------------


def test_where_only_failures_are_open_no_repair_is_hinted_at(config: Path) -> None:
    """It would not help: the reason does, and every ingest tries again."""
    (config.parent / "docs" / "broken.pdf").write_bytes(b"no PDF")
    assert in_process("ingest", config).status == 3
    ended = in_process("verify", config)
    assert ended.status == 3
    assert ended.err == (
        "ragctl: error: source, ledger and index do not agree\n"
        "  hint: ragctl failures CONFIG says what fails, and why; every ingest tries it again\n"
    )
    break_missing(config)
    ended = in_process("verify", config)
    assert (ended.status, "hint: ragctl verify CONFIG --repair\n" in ended.err) == (3, True)


def test_an_index_that_is_gone_is_told_and_put_back(config: Path) -> None:
    """All that the ledger knows is missing: exit 3; a repair makes the index again and fills it."""
    before = contents(config)
    shutil.rmtree(config.parent / "store")
    ended = in_process("verify", config, "--json")
    assert (ended.status, off(ended)) == (3, {"missing"})
    assert set(ended.json["missing"]) == set(before)
    ended = in_process("verify", config, "--full", "--repair", "--json")
    assert (ended.status, ended.json["clean"], ended.json["looked_at"]) == (0, True, 10)
    assert contents(config) == before


def test_an_index_that_never_was_is_not_found(config: Path) -> None:
    """Exit 8: there is nothing to compare, and nothing is made, neither index nor state."""
    ended = in_process("verify", config, "--repair", "--set", "store.index=other")
    assert (ended.status, ended.out) == (8, "")
    assert ended.err == (
        "ragctl: error: there is no index other\n  hint: make and fill it: ragctl ingest CONFIG\n"
    )
    assert not (config.parent / "state" / "other").exists()


# --- samples ---------------------------------------------------------------------------------------------


def damage_all(config: Path) -> None:
    with opened(config) as store:
        found = store.get(list(store.keys()), vectors=True).values()
        store.put([replace(each, metadata={**each.metadata, "title": "Another"}) for each in found])


def told(config: Path, drift: Drift) -> set[str]:
    """The documents of what has wrong metadata."""
    there = contents(config)
    return {str(there[key]["document"]) for key in drift.wrong_metadata}


def test_samples_of_many_runs_cover_all(config: Path) -> None:
    """Each seed looks at others, in the number that was asked for; the same seed at the same ones."""
    damage_all(config)
    loaded = load(config)
    state = open_state(loaded)
    looks = [verify(loaded, state, sample=2, seed=f"{n}") for n in range(25)]
    assert {look.looked_at for look in looks} == {2}
    assert set.union(*(told(config, look) for look in looks)) == {f"docs/{name}" for name in TEXTS}
    again = verify(loaded, state, sample=2, seed="0")
    assert again.wrong_metadata == looks[0].wrong_metadata


def test_every_run_of_the_command_takes_a_sample_of_its_own(config: Path) -> None:
    """Without anybody saying so: ten runs that look at one document of ten each do not all look at the same."""
    damage_all(config)
    looks = [in_process("verify", config, "--sample", "1", "--json").json for _ in range(10)]
    assert {look["looked_at"] for look in looks} == {1}
    assert len({look["wrong_metadata"][0] for look in looks}) > 1


def test_a_repair_of_a_sample_is_looked_at_again(config: Path) -> None:
    """The second look takes the sample of the first: exit 0 says that what was found is right now, and no more."""
    damage_all(config)
    assert in_process("verify", config, "--sample", "3", "--repair").status == 0
    assert len(in_process("verify", config, "--full", "--json").json["wrong_metadata"]) == 7


def test_any_chunk_may_be_embedded_again(tmp_path: Path) -> None:
    """Not always a document's first: of one with 40, seeds between them take every one."""
    lines = "\n\n".join(f"Line {i} of the long one, {i * 7919} in all." for i in range(40))
    write_docs(tmp_path, {"long.txt": lines})
    config = experiment(tmp_path, ingest={"workers": 1}, chunking={"size": 45})
    assert in_process("ingest", config).status == 0
    with opened(config) as store:
        found = store.get(list(store.keys()), vectors=True).values()
        store.put([replace(each, vector=np.roll(dense(each.vector), 7)) for each in found])
    loaded = load(config)
    looks = [verify(loaded, open_state(loaded), sample=1, seed=f"{n}").wrong_vector for n in range(10)]
    assert {len(look) for look in looks} == {32}
    assert len(set().union(*looks)) == 40
