"""Folders for temporary files: gone at the end of a command, and those of killed ones with the next."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ragctl.errors import StateError
from ragctl.scratch import PREFIX, scratch_folder

HOLD = """
from ragctl.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "ledger.sqlite").write_text("rows")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """One that works in a scratch folder until it is told to end."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_folder_is_gone_at_the_end(place: Path) -> None:
    """After an error, too."""

    def work() -> None:
        with scratch_folder() as folder:
            assert list(folder.iterdir()) == []
            (folder / "ledger.sqlite").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert list(place.iterdir()) == []


def test_a_folder_in_use_is_left_alone() -> None:
    """Two commands at the same time."""
    with another_process() as (process, folder), scratch_folder() as ours:
        with scratch_folder():
            assert ours.exists()
        assert (folder / "ledger.sqlite").read_text() == "rows"
        process.communicate("\n")
        assert process.returncode == 0
        assert not folder.exists()


def test_what_a_killed_command_left_is_removed_by_the_next(place: Path) -> None:
    """Whatever it was killed with, at any time."""
    with another_process() as (process, folder):
        process.kill()
        process.wait()
        assert folder.exists()
        with scratch_folder() as ours:
            assert not folder.exists()
            assert [one.name for one in place.iterdir()] == [ours.parent.name]


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, with what to do."""

    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(
        StateError, match="no folder for temporary files can be made: No space left on device"
    ):
        scratch_folder().__enter__()


def test_what_was_killed_before_it_had_a_lock_is_removed_after_a_day(place: Path) -> None:
    """Nobody takes so long to make one."""
    left, new = place / f"{PREFIX}left", place / f"{PREFIX}new"
    for folder, hours in ((left, 25), (new, 23)):
        folder.mkdir()
        (folder / "new-lock").touch()
        at = time.time() - hours * 3_600
        os.utime(folder, (at, at))
    with scratch_folder():
        assert not left.exists()
        assert new.exists()


def test_what_is_not_ours_stays(place: Path) -> None:
    """A folder of somebody else, and one that is just being made and has no lock yet."""
    (place / "tmpabc").mkdir()
    (place / f"{PREFIX}new").mkdir()
    with scratch_folder():
        pass
    assert sorted(one.name for one in place.iterdir()) == [f"{PREFIX}new", "tmpabc"]
