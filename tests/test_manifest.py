"""The ledger: what is indexed is never forgotten, what is gone is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragctl.errors import LeaseLost, StateError
from ragctl.manifest import DocumentRow, Failure, Ledger
from tests.plans import file, row, steps


def document(name: str, *keys: str) -> DocumentRow:
    return DocumentRow(f"docs/{name}", f"docs/{name}", "h", "f1", keys)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", fence=1)


# --- ledger ----------------------------------------------------------------------------------------------


def test_what_is_settled_is_read_back(ledger: Ledger) -> None:
    """Rows survive saving."""
    ledger.settle([document("a", "k1", "k2")], [row("a")], [])
    found = ledger.document("docs/a")
    assert found is not None
    assert (found.keys, found.done, found.content_hash) == (("k1", "k2"), True, "h")
    assert [(f.id, f.done) for f in ledger.files()] == [("docs/a", True)]
    assert ledger.counts() == (1, 2)


def test_keys_are_loose_from_declaration_to_settlement(ledger: Ledger) -> None:
    """Whenever a run dies, the keys that it put and no document has are known."""
    ledger.declare(["docs/a"], [], ["k1", "k2"])
    assert sorted(ledger.loose(-1)) == ["k1", "k2"]
    assert ledger.settle([document("a", "k1", "k2")], [], []) == []
    assert ledger.loose(-1) == []


def test_replaced_keys_become_loose_until_they_are_deleted(ledger: Ledger) -> None:
    """Old vectors are deleted after the new ones are saved, and never forgotten in between."""
    ledger.settle([document("a", "k1", "k2")], [], [])
    assert ledger.settle([document("a", "k2", "k3")], [], []) == ["k1"]
    assert ledger.loose(-1) == ["k1"]
    ledger.deleted(["k1"])
    assert ledger.loose(-1) == []


def test_a_forgotten_document_leaves_its_keys_loose(ledger: Ledger) -> None:
    """A vanished file's chunks are deleted even when the run dies before it gets there."""
    ledger.settle([document("a", "k1")], [row("a")], [])
    assert ledger.forget(["docs/a"], ["docs/a"]) == ["k1"]
    assert (ledger.counts(), list(ledger.files()), ledger.loose(-1)) == ((0, 0), [], ["k1"])


def test_a_document_saved_amid_its_file_has_the_file_s_row(ledger: Ledger) -> None:
    """A run that dies before the file is through leaves nothing that the next plan does not meet."""
    ledger.settle([DocumentRow("docs/r.jsonl#1", "docs/r.jsonl", "h", "f1", ("k1",))], [], [])
    assert steps(ledger, file("r.jsonl")) == [("check", "docs/r.jsonl")]
    assert steps(ledger) == [("delete", "docs/r.jsonl")]


def test_a_document_added_to_a_file_has_the_file_looked_at_again(ledger: Ledger) -> None:
    """A run that dies amid a file leaves a document of the new version; the file may be put back as it was."""
    ledger.settle([document("a", "k1")], [row("a")], [])
    ledger.settle([DocumentRow("docs/a#2", "docs/a", "h", "f1", ("k2",))], [], [])
    assert steps(ledger, file("a")) == [("check", "docs/a")]


def test_a_document_being_rewritten_is_looked_at_again(ledger: Ledger) -> None:
    """A run that dies between put and save leaves a document that is not taken for done."""
    ledger.settle([document("a", "k1")], [row("a")], [])
    ledger.declare(["docs/a"], [], ["k2"])
    found = ledger.document("docs/a")
    assert found is not None
    assert not found.done


def test_failures_count_their_attempts_and_go_with_success(ledger: Ledger) -> None:
    """A document that gets in is no longer a failure."""
    failure = Failure("docs/a", "docs/a", "parse", "is encrypted")
    ledger.settle([], [], [failure])
    ledger.settle([], [], [failure])
    assert [(f.document, f.attempts) for f in ledger.failures()] == [("docs/a", 2)]
    ledger.settle([document("a", "k1")], [row("a")], [])
    assert ledger.failures() == []


def test_what_fails_no_more_in_a_file_is_forgotten(ledger: Ledger) -> None:
    """A file that was worked through has the failures of that time and no older ones; other files keep theirs."""
    old = [Failure(name, name.partition("#")[0], "parse", "no text") for name in ("a#1", "a#2", "b#1")]
    ledger.settle([], [], old)
    ledger.settle([], [], [old[1]], {"a": {"a#2"}})
    assert [(f.document, f.attempts) for f in ledger.failures()] == [("a#2", 2), ("b#1", 1)]


def test_an_older_fence_cannot_write(tmp_path: Path) -> None:
    """A holder that was paused past its lease finds the door shut when it wakes."""
    path = tmp_path / "ledger.sqlite"
    old = Ledger(path, fence=1)
    new = Ledger(path, fence=2)
    new.settle([document("a", "k1")], [], [])
    with pytest.raises(LeaseLost) as caught:
        old.settle([document("a", "k9")], [], [])
    assert caught.value.message == "another run took over this index while this one was paused"
    found = new.document("docs/a")
    assert found is not None
    assert found.keys == ("k1",)
    with pytest.raises(LeaseLost):
        Ledger(path, fence=1)


def test_a_damaged_ledger_says_how_to_rebuild_it(tmp_path: Path) -> None:
    """Rubbish in the file is an error with the way out, not an empty ledger."""
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"rubbish " * 200)
    with pytest.raises(StateError) as caught:
        Ledger(path, fence=1)
    assert caught.value.message == f"{path}: the ledger is damaged: file is not a database"
    assert caught.value.hint == "rebuild it from the index: ragctl ledger rebuild CONFIG"


def test_a_full_disk_is_an_error_and_loses_nothing(ledger: Ledger) -> None:
    """What was saved before stays; the failing save leaves no half."""
    ledger.settle([document("a", "k1")], [], [])
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateError, match="the ledger cannot be read or written: database or disk is full"):
        ledger.settle([document(f"b{i}", "k" * 500) for i in range(500)], [], [])
    assert ledger.counts() == (1, 1)


def test_a_ledger_of_another_version_is_refused(tmp_path: Path, ledger: Ledger) -> None:
    """An older ragctl does not misread what a newer one wrote."""
    ledger.set_meta(schema="99")
    ledger.close()
    with pytest.raises(StateError, match="a ledger of version 99, this ragctl knows version 1"):
        Ledger(ledger.path)
