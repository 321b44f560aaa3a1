"""Files of this machine."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ragctl.errors import ConfigError, DocumentError
from ragctl.globs import nfc
from ragctl.sources.listing import Listing, Rules, incomplete, reason, too_large

if TYPE_CHECKING:
    from ragctl.records import SourceFile

_Inode = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine, or one file of it. `max_bytes` bounds what `read` returns."""

    root: Path
    rules: Rules
    max_bytes: int
    follow_links: bool = False

    @property
    def name(self) -> str:
        return self.rules.name

    def list(self, ignored: Counter[str] | None = None) -> Iterator[SourceFile]:
        """Every file that the globs ask for, with one stat for each. See `Source.list`."""
        listing = Listing(self.rules)
        try:
            status = self.root.stat()
        except FileNotFoundError as error:
            raise ConfigError(f"sources.{self.name}: {self.root} does not exist") from error
        except OSError as error:
            raise incomplete(self.name, self.root, error) from error
        if not stat.S_ISDIR(status.st_mode):
            yield _local_file(listing, _spelt(self.root.name), str(self.root), status)
            return
        try:
            yield from self._walk(listing)
        except OSError as error:
            raise incomplete(self.name, error.filename or self.root, error) from error
        listing.report(ignored)

    def read(self, file: SourceFile) -> bytes:
        """The file's bytes. See `Source.read`."""
        try:
            data = self._contents(file.location)
        except FileNotFoundError as error:
            raise DocumentError(f"{file.id} has vanished since it was listed") from error
        except OSError as error:
            raise DocumentError(f"{file.id} cannot be read: {reason(error)}") from error
        if len(data) > self.max_bytes:
            raise too_large(file, self.max_bytes)
        return data

    def _contents(self, location: str) -> bytes:
        """All bytes of a file, or one more than is allowed. Python takes as much memory as it is asked for, and gives
        back what is not needed: asked for no more than is there, it reads small files in a third of the time.
        """
        with Path(location).open("rb") as stream:
            size = min(os.fstat(stream.fileno()).st_size, self.max_bytes)
            data = stream.read(size + 1)
            if len(data) > size:  # it has grown, or does not know its size
                data += stream.read(self.max_bytes + 1 - len(data))
        return data

    def _walk(self, listing: Listing) -> Iterator[SourceFile]:
        top = self._with(frozenset(), self.root) or frozenset()
        folders = [("", str(self.root), top)]
        while folders:
            prefix, folder, above = folders.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = prefix + _spelt(entry.name)
                    if entry.is_symlink() and not self._follows(entry, path, listing):
                        continue
                    if entry.is_dir():
                        if self.rules.enters(path) and (inside := self._with(above, entry.path)) is not None:
                            folders.append((f"{path}/", entry.path, inside))
                    elif entry.is_file() and listing.wants(path):
                        yield _local_file(listing, path, entry.path, entry.stat())

    def _follows(self, link: os.DirEntry[str], path: str, listing: Listing) -> bool:
        """Whether a symbolic link is to be followed; OSError when it should be and leads nowhere."""
        if not self.follow_links:
            listing.links += 1
            return False
        if self.rules.enters(path):
            link.stat()
        return True

    def _with(self, above: frozenset[_Inode], folder: str | Path) -> frozenset[_Inode] | None:
        """The folders above and this one; None where this is one of them, so that a loop of links ends."""
        if not self.follow_links:
            return above
        status = Path(folder).stat()
        own = (status.st_dev, status.st_ino)
        return None if own in above else above | {own}


def _local_file(listing: Listing, path: str, location: str, status: os.stat_result) -> SourceFile:
    return listing.file(path, location=location, size=status.st_size, stamp=str(status.st_mtime_ns))


def _spelt(path: str) -> str:
    """A path from the file system as text that can be saved: NFC, and bytes that are no UTF-8 as hexadecimal."""
    if path.isascii():
        return path
    return nfc(os.fsencode(path).decode("utf-8", "backslashreplace"))
