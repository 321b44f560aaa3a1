"""Documents that crash the parser, hang it or eat its memory: each costs itself and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.places import Place
from tests.processes import Run

# What some documents do to the parser: their first word says what.
HOSTILE = """
import ctypes, os, pathlib, signal, time
import ragctl.parsing.text as text
read = text.read
deeds = {
    b"exit": lambda: os._exit(7),
    b"abort": os.abort,
    b"segfault": lambda: ctypes.string_at(0),
    b"killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"hang": lambda: time.sleep(600),
    b"memory": lambda: [bytes(2**20) for _ in range(10_000)],
    b"nesting": lambda: deeds[b"nesting"](),
    b"bug": lambda: {}["quicksilver"],
}
def hostile(file, data, parsing):
    deeds.get(data.split()[0], bool)()
    return read(file, data, parsing)
text.read = hostile
"""
ENDINGS = {
    "exit": "crashed the parser (exit status 7)",
    "abort": "crashed the parser (signal 6)",
    "segfault": "crashed the parser (signal 11)",
    "killed": "crashed the parser (signal 9)",
    "hang": "took longer than 2 s to parse",
    "memory": "needs more than 256 MB (parsing.memory_mb)",
    "nesting": "is nested too deeply to parse",
    "bug": "brings out a bug in ragctl: KeyError at sitecustomize.py:13",
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """100 documents, among them some whose first word is a deed."""
    place = Place(tmp_path, None, {"parsing": {"timeout_s": 2, "memory_mb": 256}, "ingest": {"workers": 2}})
    place.write({f"d{i:03}.md": f"Note {i} of the tide.\n" for i in range(100)})
    place.write({f"d{11 * i:03}-{deed}.txt": f"{deed} is the word.\n" for i, deed in enumerate(ENDINGS)})
    place.write({"rows.jsonl": "".join(f'{{"id": "{i}", "text": "Row {i}."}}\n' for i in range(100))})
    place.configure()
    return place


def start(place: Place, *arguments: object, everywhere: str) -> Run:
    return Run(place.folder, *arguments, place.folder / "experiment.yaml", "--json", everywhere=everywhere)


def test_each_costs_exactly_itself(place: Place) -> None:
    """Exit 3, each listed with its stage and cause, all others in; once it is over, --only-failed brings them in."""
    with start(place, "ingest", everywhere=HOSTILE) as run:
        ended = run.end()
    assert ended.status == 3, ended.err
    expected = [
        {"document": f"docs/d{11 * i:03}-{deed}.txt", "stage": "parse", "error": ENDINGS[deed]}
        for i, deed in enumerate(ENDINGS)
    ]
    assert ended.json["failures"] == expected
    counts = {"seen": 208, "added": 200, "failed": 8}
    assert ended.json["documents"] | counts == ended.json["documents"]
    assert "quicksilver" not in ended.out + ended.err
    assert ended.err.endswith(
        "ragctl: error: 8 failed; the index is consistent and keeps the old versions of what failed\n"
        "  hint: ragctl failures CONFIG lists them; ragctl ingest CONFIG --only-failed tries them again\n"
    )
    held = place.held()
    listed = place.ragctl("failures", "--json").json["failures"]
    assert [(f["document"], f["stage"], f["error"], f["attempts"]) for f in listed] == [
        (f["document"], f["stage"], f["error"], 1) for f in expected
    ]

    mended = place.ragctl("ingest", "--only-failed", "--json")
    assert (mended.status, mended.json["documents"]["added"], mended.json["chunks"]["written"]) == (0, 8, 8)
    assert held.items() <= place.held().items()
    assert place.held() == place.undisturbed()


def test_a_document_that_was_in_keeps_its_place(place: Place) -> None:
    """Its new version crashes the parser: what was in the index of it stays."""
    assert place.ragctl("ingest").status == 0
    before = place.held()
    place.write({"d000-exit.txt": "exit is the word, written anew.\n", "d050.md": "Note 50, written anew.\n"})
    with start(place, "ingest", everywhere=HOSTILE) as run:
        ended = run.end()
    assert (ended.status, [f["document"] for f in ended.json["failures"]]) == (3, ["docs/d000-exit.txt"])
    after = place.held()
    changed = {metadata["document"] for key, (metadata, _) in before.items() if key not in after}
    assert changed == {"docs/d050.md"}
    assert len(after) == len(before)


STUMBLING = """
import os, pathlib
import ragctl.worker
begin = ragctl.worker.Workshop.__init__
def stumble(self, *arguments, **options):
    for number in range({times}):
        try:
            pathlib.Path({marks!r}, str(number)).mkdir()
        except FileExistsError:
            continue
        os._exit(3)
    begin(self, *arguments, **options)
ragctl.worker.Workshop.__init__ = stumble
"""


def test_a_worker_that_dies_before_it_begins_blames_no_document(place: Place, tmp_path: Path) -> None:
    """Another one takes its files."""
    (tmp_path / "marks").mkdir()
    with start(place, "ingest", everywhere=STUMBLING.format(times=2, marks=str(tmp_path / "marks"))) as run:
        ended = run.end()
    assert (ended.status, ended.json["documents"]["added"]) == (0, 208), ended.err
    assert place.held() == place.undisturbed()


def test_workers_that_never_begin_end_the_run(place: Place, tmp_path: Path) -> None:
    """Exit 8 and why, instead of 208 documents that are said to crash the parser."""
    (tmp_path / "marks").mkdir()
    with start(place, "ingest", everywhere=STUMBLING.format(times=100, marks=str(tmp_path / "marks"))) as run:
        ended = run.end()
    assert (ended.status, ended.out) == (8, "")
    assert "ragctl: error: the parser processes end before they begin (exit status 3)\n" in ended.err
    report = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_bytes())
    assert (report["status"], report["exit"]) == ("failed", 8)
    assert place.ragctl("failures", "--json").json["failures"] == []
    assert place.ragctl("ingest").status == 0
    assert place.held() == place.undisturbed()
