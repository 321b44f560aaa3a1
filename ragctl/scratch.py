"""Folders for what is needed only while a command runs. What a killed one left there is removed by the next."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ragctl.errors import StateError

PREFIX: Final = "ragctl-scratch-"
_LOCK: Final = "lock"
UNLOCKED_S: Final = 86_400.0  # after so long a folder that has no lock is not being made any more


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder below the system's for temporary files, of this user alone, gone at the end. StateError where none
    can be made.

    The system unlocks it when its process ends in whatever way: that tells a folder in use from one that was left.
    """
    _remove_left()
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        raise StateError(
            f"no folder for temporary files can be made: {error.strerror or error}",
            hint="free space, or set TMPDIR",
        ) from error
    new = folder / f"new-{_LOCK}"
    try:
        with new.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            new.rename(folder / _LOCK)  # so that nobody ever finds it unlocked before its end
            inside = folder / "files"
            inside.mkdir()
            yield inside
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left() -> None:
    try:
        place = Path(tempfile.gettempdir())
    except OSError:  # told by whoever makes one
        return
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, another user's, or just removed by another process
            _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    try:
        lock = (folder / _LOCK).open()
    except FileNotFoundError:  # it is just being made, or whoever made it was killed before it was locked
        if time.time() - folder.stat().st_mtime > UNLOCKED_S:
            shutil.rmtree(folder, ignore_errors=True)
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
