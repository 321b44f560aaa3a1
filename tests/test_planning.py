"""The listing and the plan: every file that differs has its step, and no other has."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.errors import StateError
from ragctl.manifest import DocumentRow, FileRow, Ledger
from ragctl.planning import Listing, Plan, Planned
from ragctl.records import SourceFile
from tests.plans import SETTINGS, file, row, steps


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", fence=1)


@pytest.mark.parametrize(
    ("recorded", "wanted", "actions"),
    [
        (None, file("a"), ["add"]),
        (row("a"), None, ["delete"]),
        (row("a"), file("a"), []),
        (row("a"), file("a", size=2), ["check"]),
        (row("a"), file("a", stamp="t"), ["check"]),
        (row("a", fingerprint="f0"), file("a"), ["check"]),
        (row("a", done=False), file("a"), ["check"]),
    ],
)
def test_each_difference_has_its_step(
    ledger: Ledger, recorded: FileRow | None, wanted: SourceFile | None, actions: list[str]
) -> None:
    """A file is kept only when size, stamp and settings are the same and nothing of it is missing."""
    ledger.settle([], [recorded] if recorded else [], [])
    assert steps(ledger, *([wanted] if wanted else [])) == [(action, "docs/a") for action in actions]


def test_checksum_looks_into_every_file(ledger: Ledger) -> None:
    """An edit that keeps size and time is found on request."""
    ledger.settle([], [row("a")], [])
    assert steps(ledger, file("a"), checksum=True) == [("check", "docs/a")]


def test_a_source_without_settings_is_looked_into(ledger: Ledger) -> None:
    """Nothing is kept for want of something to compare it with."""
    ledger.settle([], [FileRow("other/a", 1, "s", "h", "f1", 1, done=True)], [])
    assert steps(ledger, file("a", source="other")) == [("check", "other/a")]


names = st.lists(st.text("aé/\U0001f600\uff5e", min_size=1, max_size=4), unique=True)


@given(names, names, st.sets(st.integers(0, 9)))
def test_a_plan_is_what_set_arithmetic_gives(
    recorded: list[str], wanted: list[str], edited: set[int]
) -> None:
    """Whatever was recorded and is listed, each id that differs gets its step, and just one."""
    changed = {name for number, name in enumerate(wanted) if number in edited}
    old, new = {f"docs/{name}" for name in recorded}, {f"docs/{name}" for name in wanted}
    expected = {
        **dict.fromkeys(old - new, "delete"),
        **dict.fromkeys(new - old, "add"),
        **dict.fromkeys(old & {f"docs/{name}" for name in changed}, "check"),
    }
    with tempfile.TemporaryDirectory() as folder, closing(Ledger(Path(folder) / "l", fence=1)) as ledger:
        ledger.settle([], [row(name) for name in recorded], [])
        files = [file(name, size=2 if name in changed else 1) for name in wanted]
        assert steps(ledger, *files) == [(expected[name], name) for name in sorted(expected)]


def test_what_is_kept_is_counted_without_being_named(ledger: Ledger) -> None:
    """The documents of files that stay are those of the ledger but for those of files that do not."""
    rows = [
        FileRow(f"docs/{name}", 1, "s", "h", "f1", count, done=True)
        for name, count in {"a": 1, "b": 10, "c": 100}.items()
    ]
    documents = [DocumentRow(f"docs/c#{n}", "docs/c", "h", "f1", (f"k{n}",)) for n in range(100)]
    ledger.settle(documents, rows, [])
    listing = Listing()
    listing.add([file("a"), file("b", size=2), file("d")])
    with closing(Plan(ledger, listing, SETTINGS)) as plan:
        assert plan.planned == Planned(
            add=1, check=1, keep=1, keep_documents=1, delete=1, delete_documents=100
        )
        assert plan.vanished_files() == ["docs/c"]
        assert [todo.task.file.id for todo in plan.todos()] == ["docs/b", "docs/d"]


def test_a_tenant_s_files_are_planned_apart(ledger: Ledger) -> None:
    """The ledger of one tenant is held against that tenant's files and no others."""
    ledger.settle([], [row("acme/a"), row("acme/b")], [])
    listing = Listing("customer")
    for name in ("acme/a", "acme/c", "zeta/d"):
        customer = name.partition("/")[0]
        listing.add([SourceFile(f"docs/{name}", name, 1, "s", "docs", {"customer": customer})])
    found = {step.id: step.action for step in listing.of("acme").steps(ledger, SETTINGS)}
    assert found == {"docs/acme/b": "delete", "docs/acme/c": "add"}


@pytest.mark.parametrize("name", ["50% off?", "a#b", "it's", "ü &x=1"])
def test_a_ledger_in_a_folder_of_any_name_is_read(tmp_path: Path, name: str) -> None:
    """What means something in an address means nothing in the name of a folder."""
    path = tmp_path / name / "ledger.sqlite"
    writer = Ledger(path, fence=1)
    writer.settle([], [row("a")], [])
    with closing(Ledger(path)) as reader:
        assert [found.id for found in reader.files()] == ["docs/a"]
        assert steps(reader) == [("delete", "docs/a")]


def test_a_ledger_that_is_damaged_is_told_as_such(ledger: Ledger) -> None:
    """Rubbish that only the comparison meets is an error with the way out."""
    ledger.settle([], [row(f"{number:04}" * 50) for number in range(500)], [])
    with ledger.path.open("r+b") as damaged:
        damaged.seek(40_960)
        damaged.write(b"rubbish " * 5_000)
    with pytest.raises(StateError) as caught:
        steps(Ledger(ledger.path), file("a"))
    assert caught.value.message == f"{ledger.path}: the ledger is damaged: database disk image is malformed"


@given(names)
def test_a_listing_gives_its_files_back_in_order(listed: list[str]) -> None:
    """Order and metadata survive the temporary database."""
    listing = Listing()
    files = [SourceFile(f"docs/{n}", n, len(n), "s", "docs", {"n": len(n), "t": [n]}) for n in listed]
    listing.add(files)
    assert list(listing) == sorted(files, key=lambda f: f.id.encode())
    listing.close()
