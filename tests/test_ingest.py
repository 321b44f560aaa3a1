"""ingest: twice is once, an edit costs what changed, nothing is lost and nothing is removed by accident."""

from __future__ import annotations

import errno
import json
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragctl import embedding, workers
from ragctl.adapters import open_store
from ragctl.adapters.local import LocalStore
from ragctl.embedding import EmbedQueue, Wanted
from ragctl.errors import QuotaExceeded, Refused, ServiceError
from ragctl.ingest import IngestOptions, IngestResult, Progress, ingest
from ragctl.loading import load
from ragctl.records import VectorRecord
from ragctl.room import MESSAGES_AHEAD
from ragctl.state import open_state
from ragctl.worker import BATCH_CHUNKS
from tests.cli import experiment, in_process, ragctl, write_docs
from tests.pdfs import encrypted_pdf
from tests.places import embedding_at
from tests.servers import openai_server
from tests.servers.openai_server import OpenAIServer

Ingest = Callable[..., IngestResult]

TEXTS = {f"d{i}.md": f"# Title {i}\n\nDocument number {i} is about subject {i * 7}.\n" for i in range(10)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_docs(tmp_path, TEXTS)
    experiment(tmp_path, ingest={"workers": 1})
    return tmp_path


def run(folder: Path, *overrides: str, **options: Any) -> IngestResult:
    """One ingest in this process."""
    loaded = load(folder / "experiment.yaml", overrides)
    return ingest(loaded, open_state(loaded), IngestOptions(**options), Progress())


def stored(folder: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """Everything in the index: metadata by key."""
    store = open_store(load(folder / "experiment.yaml", overrides))
    try:
        return {record.key: dict(record.metadata) for record in store.scan()}
    finally:
        store.close()


def documents(folder: Path) -> list[str]:
    return sorted({str(metadata["document"]) for metadata in stored(folder).values()})


def test_everything_gets_in_with_its_place(folder: Path) -> None:
    """Every chunk names its document and where in it the text stands."""
    result = run(folder)
    assert (result.counts.added, result.counts.embedded, result.chunks) == (10, 10, 10)
    (metadata,) = [m for m in stored(folder).values() if m["document"] == "docs/d3.md"]
    assert metadata["text"] == TEXTS["d3.md"][metadata["start"] : metadata["end"]]
    assert metadata["title"] == "Title 3"


def test_the_second_run_does_nothing(folder: Path) -> None:
    """Unchanged files cost a stat: nothing is embedded, nothing is written."""
    run(folder)
    before = stored(folder)
    result = run(folder)
    c = result.counts
    assert (c.seen, c.unchanged, c.embedded, c.written, c.removed, c.bytes) == (10, 10, 0, 0, 0, 0)
    assert stored(folder) == before


def test_a_touched_file_is_read_and_found_unchanged(folder: Path) -> None:
    """A new time with the old content writes nothing, and the time after that not even reads."""
    run(folder)
    os.utime(folder / "docs" / "d3.md", (1, 1))
    counts = run(folder).counts
    assert (counts.unchanged, counts.embedded, counts.written, counts.bytes > 0) == (10, 0, 0, True)
    assert run(folder).counts.bytes == 0


def test_an_edit_embeds_only_the_chunks_that_changed(tmp_path: Path) -> None:
    """Chunks that moved keep their vectors and get their new places."""
    paragraphs = [f"Paragraph {i} speaks of {'abcdefgh'[i] * 150}." for i in range(8)]
    write_docs(tmp_path, {"a.txt": "\n\n".join(paragraphs)})
    experiment(tmp_path, ingest={"workers": 1})
    assert run(tmp_path).counts.embedded == 8
    paragraphs[3] = "Another paragraph altogether."
    write_docs(tmp_path, {"a.txt": "\n\n".join(paragraphs)})
    counts = run(tmp_path).counts
    assert (counts.changed, counts.embedded, counts.reused, counts.removed) == (1, 1, 7, 1)
    text = "\n\n".join(paragraphs)
    assert all(m["text"] == text[m["start"] : m["end"]] for m in stored(tmp_path).values())
    assert len(stored(tmp_path)) == 8


def test_a_deleted_file_takes_exactly_its_chunks_along(folder: Path) -> None:
    """The others stay."""
    run(folder)
    (folder / "docs" / "d3.md").unlink()
    counts = run(folder).counts
    assert (counts.deleted, counts.removed, counts.embedded) == (1, 1, 0)
    assert documents(folder) == sorted(f"docs/{name}" for name in TEXTS if name != "d3.md")


def test_a_renamed_file_is_not_embedded_again_by_a_service(folder: Path) -> None:
    """Its text is in the index under the old name, so its vector is taken over."""
    run(folder)
    (folder / "docs" / "d3.md").rename(folder / "docs" / "renamed.md")
    counts = run(folder).counts
    assert (counts.added, counts.deleted) == (1, 1)
    assert "docs/renamed.md" in documents(folder)
    assert "docs/d3.md" not in documents(folder)


def test_a_mass_delete_is_refused(folder: Path) -> None:
    """A share that was not mounted does not empty the index."""
    run(folder)
    for name in list(TEXTS)[:3]:
        (folder / "docs" / name).unlink()
    with pytest.raises(Refused) as caught:
        run(folder)
    assert caught.value.exit_status == 6
    assert caught.value.message == (
        "3 of 10 documents are gone from the sources, more than the 20% that one run may remove; nothing was removed"
    )
    assert caught.value.hint == "check the sources; if it is meant: ragctl ingest CONFIG --max-delete 1.0"
    assert len(documents(folder)) == 10
    assert run(folder, max_delete=1.0).counts.deleted == 3
    assert len(documents(folder)) == 7


def test_a_record_file_that_lost_most_records_is_refused(tmp_path: Path) -> None:
    """Records are documents, so the guard counts them, too."""
    lines = [json.dumps({"id": i, "text": f"record {i}"}) for i in range(10)]
    write_docs(tmp_path, {"r.jsonl": "\n".join(lines)})
    experiment(tmp_path, chunking={"kind": "record"}, ingest={"workers": 1})
    assert run(tmp_path).counts.added == 10
    write_docs(tmp_path, {"r.jsonl": "\n".join(lines[:5])})
    with pytest.raises(Refused, match="5 of 10 documents are gone"):
        run(tmp_path)
    assert len(stored(tmp_path)) == 10
    assert run(tmp_path, max_delete=0.5).counts.deleted == 5
    assert len(stored(tmp_path)) == 5


def test_records_that_take_the_place_of_all_others_are_refused(tmp_path: Path) -> None:
    """What a run has just added is no reason to remove more."""
    lines = [json.dumps({"id": i, "text": f"record {i}"}) for i in range(100)]
    write_docs(tmp_path, {"r.jsonl": "\n".join(lines[:10])})
    experiment(tmp_path, chunking={"kind": "record"}, ingest={"workers": 1})
    assert run(tmp_path).counts.added == 10
    write_docs(tmp_path, {"r.jsonl": "\n".join(lines[10:])})
    with pytest.raises(Refused, match="10 of 10 documents are gone"):
        run(tmp_path)
    assert len(stored(tmp_path)) == 100
    assert run(tmp_path, max_delete=1.0).counts.deleted == 10


def test_a_record_file_changes_record_by_record(tmp_path: Path) -> None:
    """One changed, one new, one gone: the rest is left alone."""
    records = [{"id": i, "text": f"record number {i}"} for i in range(10)]
    write_docs(tmp_path, {"r.jsonl": "\n".join(map(json.dumps, records))})
    experiment(tmp_path, chunking={"kind": "record"}, ingest={"workers": 1})
    run(tmp_path)
    records[2]["text"] = "changed"
    records[5] = {"id": 99, "text": "new"}
    write_docs(tmp_path, {"r.jsonl": "\n".join(map(json.dumps, records))})
    counts = run(tmp_path).counts
    assert (counts.changed, counts.added, counts.deleted, counts.unchanged, counts.embedded) == (
        1,
        1,
        1,
        8,
        2,
    )


def test_a_bad_file_does_not_stop_the_good_ones(folder: Path) -> None:
    """An encrypted PDF among good documents: exit 3, it is listed, the rest is indexed; mended, it gets in."""
    (folder / "docs" / "locked.pdf").write_bytes(encrypted_pdf(["The secret is safe."], "open sesame"))
    ended = ragctl("ingest", folder / "experiment.yaml", "--json")
    assert ended.status == 3
    assert ended.json["documents"]["added"] == 10
    (failure,) = ended.json["failures"]
    assert (failure["document"], failure["stage"]) == ("docs/locked.pdf", "parse")
    assert "is encrypted" in failure["error"]
    assert "parsing.pdf_passwords" in failure["error"]
    assert "ragctl: error: 1 failed; the index is consistent" in ended.err
    listed = ragctl("failures", folder / "experiment.yaml", "--json").json["failures"]
    assert [(f["document"], f["attempts"]) for f in listed] == [("docs/locked.pdf", 1)]
    result = run(folder, 'parsing.pdf_passwords=["open sesame"]', only_failed=True)
    assert (result.counts.added, result.failures) == (1, [])
    assert "docs/locked.pdf" in documents(folder)


def test_each_record_that_fails_is_listed(tmp_path: Path) -> None:
    """Also those that have no id, and no longer than they fail."""
    docs = write_docs(tmp_path, {"x.jsonl": '{"id": "1", "text": "one"}\n{"text": "two"}\n{"id": "3"}\n'})
    config = experiment(tmp_path, ingest={"workers": 1})
    assert ragctl("ingest", config).status == 3
    assert ragctl("failures", config).out == (
        "docs/x.jsonl line 2 (parse, 1 times): the id field 'id' is empty\n"
        "docs/x.jsonl line 3 (parse, 1 times): no text in text\n"
    )
    (docs / "x.jsonl").write_text('{"id": "1", "text": "one"}\n{"id": "2", "text": "two"}\n{"id": "3"}\n')
    assert ragctl("ingest", config).status == 3
    assert ragctl("failures", config).out == "docs/x.jsonl line 3 (parse, 2 times): no text in text\n"


def test_names_may_be_anything_that_a_file_system_takes(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, newlines and terminal commands; what is printed of them is harmless."""
    docs = os.fsencode(write_docs(tmp_path, {"good.md": "Some text.\n"}))
    for name in (b"bad\xff.txt", b"new\nline.txt", b"esc\x1b[31m.txt", b"esc\x1b[31m.pdf"):
        Path(os.fsdecode(docs + b"/" + name)).write_bytes(b"Some text.\n")
    config = experiment(tmp_path, ingest={"workers": 1})
    ended = ragctl("ingest", config)
    assert (ended.status, ended.err.count("\x1b")) == (3, 0)
    assert "failed: docs/esc [31m.pdf (parse): cannot be read as PDF" in ended.err
    assert documents(tmp_path) == [
        "docs/bad\\xff.txt",
        "docs/esc\x1b[31m.txt",
        "docs/good.md",
        "docs/new\nline.txt",
    ]
    for command in ("failures", "verify"):
        assert "\x1b" not in ragctl(command, config).out
    assert ragctl("ingest", config, "--only-failed").status == 3


def test_a_store_that_cannot_be_written_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No document is to blame for a full disk, and none is embedded in vain; the next run carries on."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ragctl.adapters.local_rows.table", full)
        with pytest.raises(QuotaExceeded, match=r"cannot write to index test in .*: the disk is full"):
            run(folder)
    result = run(folder)
    assert (result.counts.added, result.failures) == (10, [])


def test_a_store_that_refuses_every_put_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts that fail one after the other are the store's fault, and what would be embedded for them is paid in vain."""

    def down(*_: object, **__: object) -> None:
        raise ServiceError("the store is down")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "limits", replace(LocalStore.limits, put_records=1))
        patch.setattr(LocalStore, "put", down)
        with pytest.raises(ServiceError, match="the store is down"):
            run(folder)
    assert run(folder).counts.added == 10


def test_a_changed_file_that_fails_keeps_its_old_chunks(folder: Path) -> None:
    """Half a file written by somebody else does not cost the answer of yesterday."""
    run(folder)
    (folder / "docs" / "d3.md").write_bytes(b"\x00\x01\x02" * 1_000)
    result = run(folder)
    assert [f.document for f in result.failures] == ["docs/d3.md"]
    assert "docs/d3.md" in documents(folder)


def test_another_embedder_on_the_same_index_is_refused(folder: Path) -> None:
    """Exit 6, both identities named, nothing changed."""
    run(folder)
    before = stored(folder)
    ended = ragctl("ingest", folder / "experiment.yaml", "--set", "embedding.dimension=128")
    assert ended.status == 6
    assert "index test was made with other settings" in ended.err
    assert "dimension: the index has 256, the experiment asks for 128" in ended.err
    assert "hint: name another index in store.index" in ended.err
    assert stored(folder) == before


def test_changed_chunking_does_every_document_again(folder: Path) -> None:
    """Settings that shape the chunks are part of what "unchanged" means."""
    run(folder)
    result = run(folder, "chunking.size=40")
    assert (result.counts.changed, result.counts.unchanged) == (10, 0)
    assert all(len(str(m["text"])) <= 40 for m in stored(folder).values())


def test_changed_metadata_is_written_without_embedding(folder: Path) -> None:
    """The vectors are those of yesterday."""
    run(folder)
    result = run(folder, "sources.0.metadata.team=blue")
    assert (result.counts.changed, result.counts.embedded, result.counts.reused) == (10, 0, 10)
    assert {m["team"] for m in stored(folder).values()} == {"blue"}


def test_an_emptied_index_is_noticed_and_restored(folder: Path) -> None:
    """It is never reported as unchanged."""
    run(folder)
    before = stored(folder)
    store = open_store(load(folder / "experiment.yaml"))
    store.drop()
    store.close()
    result = run(folder)
    assert (result.restored or result.counts.written == 10, result.counts.written) == (True, 10)
    assert stored(folder) == before


def test_an_index_that_lost_some_chunks_is_repaired(folder: Path) -> None:
    """The probe finds a hole, and what was in it is put back."""
    run(folder)
    before = stored(folder)
    store = open_store(load(folder / "experiment.yaml"))
    store.delete(list(before)[:4])
    store.close()
    result = run(folder)
    assert result.restored
    assert stored(folder) == before


def test_a_lost_ledger_is_rebuilt_from_the_index(folder: Path) -> None:
    """After that nothing is written twice, and what is gone from the sources is still known."""
    run(folder)
    before = stored(folder)
    for name in ("ledger.sqlite", "lease.json"):
        (folder / "state" / "test" / name).unlink()
    ended = ragctl("ledger", "rebuild", folder / "experiment.yaml", "--json")
    assert (ended.status, ended.json["documents"], ended.json["chunks"]) == (0, 10, 10)
    (folder / "docs" / "d3.md").unlink()
    result = run(folder)
    assert (result.counts.deleted, result.chunks) == (1, 9)
    assert {k: m for k, m in before.items() if m["document"] != "docs/d3.md"} == stored(folder)


def test_failures_without_a_ledger_are_not_taken_for_none(folder: Path) -> None:
    """Nobody knows what failed: it is said, with what makes the ledger anew, and an index that has one is not named."""
    config = folder / "experiment.yaml"
    run(folder)
    known = ragctl("failures", config)
    assert (known.status, known.out, known.err) == (0, "no failures\n", "")
    (folder / "state" / "test" / "ledger.sqlite").unlink()
    lost = ragctl("failures", config)
    assert (lost.status, lost.out) == (0, "no failures are known\n")
    assert "or its ledger is lost" in lost.err
    assert lost.err.rstrip().endswith("ragctl ledger rebuild CONFIG")
    assert ragctl("failures", config, "--json").json["without_ledger"] == ["test"]


def test_files_that_nothing_reads_are_told(folder: Path) -> None:
    """Nobody is to think that they are in the index: one line more, and none where there is nothing to do."""
    words = "types that ragctl does not read: 2 .pptx, 1 .zip"
    config = folder / "experiment.yaml"
    for name in ("a.pptx", "b.PPTX", "c.zip"):
        (folder / "docs" / name).touch()
    looked = in_process("ingest", config, "--dry-run")
    assert looked.out.splitlines()[1:] == [f"  {words}"]
    assert f"  {words}\n" in in_process("plan", config).out
    assert f"  {words}\n" in in_process("ingest", config).out
    idle = in_process("ingest", config)
    assert idle.out == f"test: nothing to do, 10 documents in 10 chunks; {words}\n"
    assert in_process("status", config).out.splitlines()[0].endswith(f", {words}")
    assert in_process("ingest", config, "--json").json["ignored"] == {".pptx": 2, ".zip": 1}
    for path in (folder / "docs").glob("*.[pPz]*"):
        path.unlink()
    assert in_process("ingest", config).out == "test: nothing to do, 10 documents in 10 chunks\n"
    assert "ragctl does not read" not in in_process("status", config).out + in_process("plan", config).out


def test_an_empty_corpus_is_said(tmp_path: Path) -> None:
    """No file is no error, but it is not silent either."""
    (tmp_path / "docs").mkdir()
    ended = ragctl("ingest", experiment(tmp_path))
    assert ended.status == 0
    assert "the sources list no file at all" in ended.err
    assert ended.out.startswith("test: nothing to do, 0 documents in 0 chunks")


def test_a_missing_source_is_a_configuration_error(tmp_path: Path) -> None:
    """Exit 2 before anything is touched."""
    ended = ragctl("ingest", experiment(tmp_path))
    assert ended.status == 2
    assert f"{tmp_path / 'docs'} does not exist" in ended.err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(folder: Path) -> None:
    """Neither index nor ledger nor report is made."""
    ended = ragctl("ingest", folder / "experiment.yaml", "--dry-run", "--json")
    assert (ended.status, ended.json["dry_run"], ended.json["files"]["added"]) == (0, True, 10)
    assert not (folder / "store").exists()
    assert not (folder / "state").exists()
    assert not (folder / "runs").exists()


def test_a_dry_run_counts_files_and_claims_nothing_of_documents(tmp_path: Path) -> None:
    """How many documents are in a file of records is not known before it is read."""
    write_docs(
        tmp_path, {"a.jsonl": "".join(f'{{"id": {n}, "text": "{n}"}}\n' for n in range(10)), "b.md": "b"}
    )
    config = experiment(tmp_path, ingest={"workers": 1})

    def planned() -> list[object]:
        ended = ragctl("ingest", config, "--dry-run", "--json")
        assert ended.status == 0, ended.err
        return [ended.json[name] for name in ("files", "documents", "chunks")]

    unknown = dict.fromkeys(("seen", "added", "changed", "failed", "empty"))
    unwritten = dict.fromkeys(("embedded", "reused", "cached", "written", "deleted"))
    assert planned() == [
        {"added": 2, "checked": 0, "unchanged": 0, "deleted": 0},
        {**unknown, "unchanged": 0, "deleted": 0},
        {**unwritten, "total": 0},
    ]
    assert ragctl("ingest", config, "--json").json["documents"]["added"] == 11
    write_docs(tmp_path, {"b.md": "changed", "c.md": "c"})
    assert planned() == [
        {"added": 1, "checked": 1, "unchanged": 1, "deleted": 0},
        {**unknown, "unchanged": 10, "deleted": 0},
        {**unwritten, "total": 11},
    ]
    (tmp_path / "docs" / "b.md").unlink()
    assert planned()[:2] == [
        {"added": 1, "checked": 0, "unchanged": 1, "deleted": 1},
        {**unknown, "unchanged": 10, "deleted": 1},
    ]


def test_whitespace_is_an_empty_document_and_no_chunk(tmp_path: Path) -> None:
    """It is counted, and not tried again."""
    write_docs(tmp_path, {"blank.txt": " \n\t\n"})
    experiment(tmp_path, ingest={"workers": 1})
    assert run(tmp_path).counts.empty == 1
    assert stored(tmp_path) == {}
    assert run(tmp_path).counts.bytes == 0


def test_the_run_report_holds_what_happened(folder: Path) -> None:
    """Its path is printed, and it can be read years later."""
    ended = ragctl("ingest", folder / "experiment.yaml", "--json")
    report = json.loads(Path(ended.json["run"]).read_text())
    assert (report["schema"], report["status"], report["command"]) == ("ragctl.run/1", "done", "ingest")
    assert report["documents"]["added"] == 10
    assert report["config"]["embedding"] == {"kind": "hashing", "dimension": 256}


def test_stdout_is_the_result_alone(folder: Path) -> None:
    """Progress and warnings never reach it."""
    ended = ragctl("ingest", folder / "experiment.yaml", "--json", "--log-json", "--verbose")
    assert ended.json["schema"] == "ragctl.ingest/1"
    assert ended.out.count("\n") == 1
    assert all(json.loads(line)["event"].startswith("ragctl") for line in ended.err.splitlines())


def test_the_second_of_two_runs_at_once_is_turned_away(folder: Path) -> None:
    """Exit 7, while the first one works on."""
    from ragctl.lease import hold
    from ragctl.state import lease_name

    state = open_state(load(folder / "experiment.yaml"))
    with hold(state, lease_name("test"), "ingest"):
        ended = ragctl("ingest", folder / "experiment.yaml")
    assert ended.status == 7
    assert "another run holds the lease on this index" in ended.err
    assert ragctl("ingest", folder / "experiment.yaml").status == 0


def test_one_poison_document_does_not_stop_the_pruning(folder: Path) -> None:
    """A file that never gets in is one of all documents, not one of one: what is gone is still removed."""
    (folder / "docs/bad.pdf").write_bytes(b"%PDF-1.7 rubbish")
    settings = "ingest.fail_threshold=0.5"
    assert run(folder, settings).counts.failed == 1
    (folder / "docs/d3.md").unlink()
    result = run(folder, settings)
    assert (result.counts.failed, result.counts.deleted, result.gave_up) == (1, 1, False)
    assert "docs/d3.md" not in documents(folder)


def test_a_run_in_which_most_fails_is_given_up(folder: Path) -> None:
    """The share is one of all documents, those that are left alone among them. What workers have in hand, 32 files
    each, may still come.
    """
    run(folder)
    for i in range(400):
        (folder / f"docs/bad{i}.pdf").write_bytes(b"%PDF-1.7 rubbish")
    result = run(folder, "ingest.fail_threshold=0.5")
    assert result.gave_up
    assert 200 < result.counts.failed < 400


def test_a_file_of_records_counts_as_all_of_them(tmp_path: Path) -> None:
    """One file that fails beside thousands of records is a small share, also before the records have come."""
    lines = [json.dumps({"id": i, "text": f"record {i}"}) for i in range(3_000)]
    write_docs(tmp_path, {"a.pdf": "rubbish", "b.jsonl": "\n".join(lines)})
    experiment(tmp_path, chunking={"kind": "record"}, ingest={"workers": 1, "fail_threshold": 0.1})
    result = run(tmp_path)
    assert (result.counts.failed, result.counts.added, result.gave_up) == (1, 3_000, False)


def test_records_that_mostly_fail_are_given_up(tmp_path: Path) -> None:
    """At the end at the latest, when their number is known: nothing is removed on such a day."""
    bad, good = ["rubbish"] * 6, [json.dumps({"id": i, "text": f"record {i}"}) for i in range(4)]
    write_docs(tmp_path, {"a.jsonl": "\n".join(bad + good)})
    experiment(tmp_path, chunking={"kind": "record"}, ingest={"workers": 1, "fail_threshold": 0.5})
    result = run(tmp_path)
    assert (result.counts.failed, result.gave_up) == (6, True)
    assert run(tmp_path, "ingest.fail_threshold=0.6").gave_up is False


RECORDS = {
    "kind": "local",
    "name": "docs",
    "path": "docs",
    "records": [{"files": "*.jsonl", "metadata": ["note"]}],
}


def write_records(folder: Path, *numbers: int, poison: int | None = None) -> None:
    """A record file, one record of which no store takes."""
    rows = [
        {"id": str(n), "text": f"Record {n}.", "note": "x" * 5_000 if n == poison else "short"}
        for n in numbers
    ]
    (folder / "docs/r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_poison_record_does_not_keep_others_from_being_deleted(tmp_path: Path) -> None:
    """A record that is gone from its file goes, though another one of the file cannot get in."""
    write_docs(tmp_path, TEXTS)
    experiment(tmp_path, sources=[RECORDS], ingest={"workers": 1})
    write_records(tmp_path, *range(7), poison=5)
    assert run(tmp_path).counts.failed == 1
    write_records(tmp_path, 0, 1, 3, 4, 5, 6, poison=5)
    result = run(tmp_path)
    assert (result.counts.failed, result.counts.deleted) == (1, 1)
    assert "docs/r.jsonl#2" not in documents(tmp_path)
    assert "docs/r.jsonl#3" in documents(tmp_path)


def test_records_that_are_gone_go_though_another_one_cannot_be_read(tmp_path: Path) -> None:
    """What has an id is known to be in the file, whatever else is wrong with it; its old version stays."""
    write_docs(tmp_path, TEXTS)
    experiment(tmp_path, sources=[RECORDS], ingest={"workers": 1})
    write_records(tmp_path, *range(5))
    run(tmp_path)
    rows = [{"id": "1", "text": "Record 1."}, {"id": "2"}, {"id": "3", "text": "Record 3."}]
    doubled = [*rows, {"id": "3", "text": "Record 3 again."}]
    (tmp_path / "docs/r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in doubled))
    counts = run(tmp_path).counts
    assert (counts.failed, counts.deleted) == (2, 2)
    assert [name for name in documents(tmp_path) if "#" in name] == [f"docs/r.jsonl#{n}" for n in (1, 2, 3)]


def test_records_stay_where_one_does_not_say_which_it_is(tmp_path: Path) -> None:
    """It may be any of those that seem to be gone."""
    write_docs(tmp_path, TEXTS)
    experiment(tmp_path, sources=[RECORDS], ingest={"workers": 1})
    write_records(tmp_path, 0, 1)
    run(tmp_path)
    (tmp_path / "docs/r.jsonl").write_text('{"id": "0", "text": "Record 0."}\n{"id": \n')
    counts = run(tmp_path).counts
    assert (counts.failed, counts.deleted) == (1, 0)
    assert "docs/r.jsonl#1" in documents(tmp_path)


def test_a_run_that_dies_before_its_indexes_are_made_leaves_them_to_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is in the store and in the ledger by then, so the next run has nothing else to do."""

    def killed(self: LocalStore) -> None:
        raise ServiceError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "finish", killed)
        with pytest.raises(ServiceError, match="killed"):
            run(folder)
    finished: list[LocalStore] = []

    def finish(self: LocalStore) -> None:
        finished.append(self)

    monkeypatch.setattr(LocalStore, "finish", finish)
    assert run(folder).counts.unchanged == 10
    assert len(finished) == 1
    run(folder)
    assert len(finished) == 1


def test_a_worker_that_dies_after_its_last_file_takes_nothing_along(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its files have arrived; it only did not say so."""
    receive = workers.Workers._receive

    def killed(self: workers.Workers, worker: Any) -> tuple[str, Any]:
        message = receive(self, worker)
        if message[0] == "finished":
            worker.process.kill()
            raise EOFError
        return message

    monkeypatch.setattr(workers.Workers, "_receive", killed)
    for added, unchanged in ((10, 0), (0, 10)):
        counts = run(folder).counts
        assert (counts.added, counts.unchanged, counts.failed) == (added, unchanged, 0)
        for path in (folder / "docs").iterdir():
            os.utime(path, (1, 1))


def test_puts_wait_in_the_run_and_not_in_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more are handed over than are made at once, and the next: what a run that stops has to wait for."""
    write_docs(tmp_path, {f"d{n}.md": f"Text {n}." for n in range(60)})
    experiment(tmp_path, ingest={"workers": 1, "put_concurrency": 2})
    monkeypatch.setattr(LocalStore, "limits", replace(LocalStore.limits, put_records=2))
    put, begun = LocalStore.put, [0]
    handed_over: list[int] = []  # and not yet made, at each
    submit = ThreadPoolExecutor.submit

    def counted(self: ThreadPoolExecutor, *arguments: Any) -> Any:
        handed_over.append(len(handed_over) + 1 - begun[0])
        return submit(self, *arguments)

    def slow(self: LocalStore, records: Any, **named: Any) -> None:
        time.sleep(0.01)
        put(self, records, **named)
        begun[0] += 1

    monkeypatch.setattr(ThreadPoolExecutor, "submit", counted)
    monkeypatch.setattr(LocalStore, "put", slow)
    assert run(tmp_path).counts.written == 60
    assert len(handed_over) == 30
    assert max(handed_over) <= 4  # two under way, the next, and one that has ended unseen


def test_what_many_documents_have_in_the_store_is_looked_up_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each look the embedded store goes over all its keys, and a service is paid and waited for."""
    texts = {f"d{n}.md": f"Beginning of {n}.\n\nMiddle of {n}.\n" for n in range(60)}
    docs = write_docs(tmp_path, texts)
    experiment(tmp_path, chunking={"size": 20, "overlap": 0}, ingest={"workers": 1})
    chunks = run(tmp_path).chunks
    for name, text in texts.items():
        (docs / name).write_text(text + "\nThe end.\n")
    looks: list[int] = []
    get = LocalStore.get

    def noted(store: LocalStore, keys: Sequence[str], *, vectors: bool = False) -> dict[str, VectorRecord]:
        looks.append(len(keys))
        return get(store, keys, vectors=vectors)

    monkeypatch.setattr(LocalStore, "get", noted)
    counts = run(tmp_path).counts
    assert (counts.changed, counts.reused) == (60, chunks)
    assert sum(looks[1:]) == chunks  # after those that every run looks up
    assert len(looks) <= 1 + 10


def test_workers_are_not_far_ahead_of_an_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that wait take memory, and to take them in keeps the run from the calls that are under way."""
    lines = [f'{{"id": "{number}", "text": "Record {number}."}}\n' for number in range(8_000)]
    write_docs(tmp_path, {"r.jsonl": "".join(lines)})
    waiting: list[int] = []
    add = EmbedQueue.add

    def noted(queue: EmbedQueue, wanted: Wanted) -> None:
        add(queue, wanted)
        waiting.append(queue.waiting)

    monkeypatch.setattr(EmbedQueue, "add", noted)
    with OpenAIServer(latency={"Embeddings": 0.05}) as server:
        experiment(
            tmp_path,
            sources=[RECORDS],
            ingest={"workers": 1, "embed_concurrency": 4},
            embedding=embedding_at(server.url),
        )
        assert run(tmp_path).counts.added == 8_000
    enough = embedding.ROUNDS_AHEAD * 4 * 32
    assert max(waiting) <= enough + (MESSAGES_AHEAD + 1) * BATCH_CHUNKS


def test_vectors_that_the_store_refuses_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was out of order for a while does not spoil the cache for good."""
    write_docs(tmp_path, TEXTS)
    with OpenAIServer() as server:
        experiment(
            tmp_path, embedding=embedding_at(server.url), cache={"path": "cache"}, ingest={"workers": 1}
        )
        with monkeypatch.context() as patch:
            patch.setattr(openai_server, "embed", lambda _, dimension: np.zeros(dimension))
            assert run(tmp_path).counts.failed == 10
        counts = run(tmp_path).counts
    assert (counts.added, counts.failed, counts.cached) == (10, 0, 0)


def test_what_the_store_would_refuse_is_not_embedded(tmp_path: Path) -> None:
    """It fails each time, and costs nothing."""
    write_docs(tmp_path, {"plain.md": "A plain text.\n"})
    with OpenAIServer() as server:
        experiment(tmp_path, sources=[RECORDS], ingest={"workers": 1}, embedding=embedding_at(server.url))
        write_records(tmp_path, 5, poison=5)
        result = run(tmp_path)
        texts = [text for request in server.requests for text in request["input"]]
    assert [(f.document, f.stage) for f in result.failures] == [("docs/r.jsonl#5", "put")]
    assert "filterable metadata take" in result.failures[0].error
    assert "A plain text." in texts
    assert not any("Record 5" in text for text in texts)


def test_calls_keep_to_the_tokens_that_the_server_takes(tmp_path: Path) -> None:
    """Words are counted where the experiment names no tokenizer."""
    write_docs(tmp_path, {f"d{n}.md": f"Word{n} " * 30 for n in range(10)})
    with OpenAIServer() as server:
        experiment(
            tmp_path,
            embedding={**embedding_at(server.url), "max_batch_tokens": 100},
            ingest={"workers": 1, "embed_concurrency": 1},
        )
        result = run(tmp_path)
        calls = [request["input"] for request in server.requests]
    words = [sum(len(text.split()) for text in texts) for texts in calls if len(texts) > 1]
    assert words == [90, 90, 90]
    assert (result.counts.embedded, result.counts.failed) == (10, 0)


def test_sources_that_were_truncated_do_not_empty_the_index(folder: Path) -> None:
    """Files that are still there but have no text any more count as gone: refused, and the old text answers."""
    run(folder)
    whole = stored(folder)
    for path in (folder / "docs").iterdir():
        path.write_text("")
    with pytest.raises(Refused) as caught:
        run(folder)
    assert caught.value.message == (
        "10 of 10 documents are gone from the sources or have no text any more, more than the 20% that one run may "
        "remove; nothing was removed"
    )
    assert stored(folder) == whole
    with pytest.raises(Refused):  # and so again, though the files are the same as last time
        run(folder)
    assert run(folder, max_delete=1.0).counts.empty == 10
    assert stored(folder) == {}
    assert run(folder).counts.unchanged == 10


def test_one_document_may_lose_its_text(folder: Path) -> None:
    """Its chunks go, and the next run has nothing to do."""
    run(folder)
    (folder / "docs/d3.md").write_text("\n")
    assert run(folder).counts.empty == 1
    assert "docs/d3.md" not in documents(folder)
    result = run(folder)
    assert (result.counts.unchanged, result.counts.empty) == (10, 0)


def test_two_files_of_one_id_are_both_named(tmp_path: Path) -> None:
    """A name that is no UTF-8, and one that says its byte in letters: nobody finds them by the id alone."""
    write_docs(tmp_path, {r"caf\xe9.txt": "A file.\n"})
    (tmp_path / "docs" / os.fsdecode(b"caf\xe9.txt")).write_text("Another file.\n")
    experiment(tmp_path)
    with pytest.raises(Refused) as caught:
        run(tmp_path)
    docs = tmp_path / "docs"
    assert caught.value.message == (
        rf"sources.docs: two files come under one document id, docs/caf\xe9.txt: $'{docs}/caf\xe9.txt' "
        rf"and {docs}/caf\xe9.txt"
    )
    assert caught.value.hint == (
        "rename one: they differ only in how accents are encoded, in bytes that are no UTF-8, or in ./ within a zip"
    )


def test_two_members_of_one_path_are_both_named(tmp_path: Path) -> None:
    """What would be unpacked to one place comes under one id."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as target:
        for name in ("a.txt", "./a.txt"):
            target.writestr(name, "Some words.\n")
    experiment(tmp_path, sources=[{"kind": "local", "name": "docs", "path": "set.zip"}])
    with pytest.raises(Refused) as caught:
        run(tmp_path)
    archive = tmp_path / "set.zip"
    assert caught.value.message == (
        f"sources.docs: two files come under one document id, docs/a.txt: {archive}!./a.txt and {archive}!a.txt"
    )


def test_a_file_that_is_named_like_a_record_is_refused(tmp_path: Path) -> None:
    """Two documents under one id would be one."""
    write_docs(tmp_path, {"r.jsonl#x.txt": "A file.\n", "other#1.txt": "Another file.\n"})
    experiment(tmp_path, sources=[RECORDS])
    assert run(tmp_path).counts.added == 2
    write_records(tmp_path, 1)
    with pytest.raises(Refused) as caught:
        run(tmp_path)
    assert caught.value.message == (
        "docs/r.jsonl#x.txt and a record of docs/r.jsonl could come under one document id"
    )
    assert documents(tmp_path) == ["docs/other#1.txt", "docs/r.jsonl#x.txt"]


def test_a_checksum_run_says_how_long_it_read(folder: Path) -> None:
    """Also where all that it read is as it was."""
    run(folder)
    result = run(folder, checksum=True)
    assert result.counts.unchanged == 10
    assert result.stages["read"] > 0
