"""Members of a zip archive as files, for corpora that come as one (BEIR does)."""

from __future__ import annotations

import logging
import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ragctl.errors import ConfigError, DocumentError
from ragctl.globs import nfc
from ragctl.sources.listing import Listing, Rules, incomplete, too_large

if TYPE_CHECKING:
    from ragctl.records import SourceFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ZipArchive:
    """The members of a zip file as files; nothing is unpacked onto a disk."""

    path: Path
    rules: Rules
    max_bytes: int

    @property
    def name(self) -> str:
        return self.rules.name

    def list(self, ignored: Counter[str] | None = None) -> Iterator[SourceFile]:
        """Every member that the globs ask for. See `Source.list`."""
        listing = Listing(self.rules)
        try:
            archive, mtime = _open_archive(self.path)
        except FileNotFoundError as error:
            raise ConfigError(f"sources.{self.name}: {self.path} does not exist") from error
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            # What zipfile says to a name that is no UTF-8 (a ValueError) and to a version that it does not know.
            raise incomplete(self.name, self.path, error) from error
        members = {member.filename: member for member in archive.infolist()}  # of one name the last counts
        outside = 0
        for member in members.values():
            path = _path(member.filename)
            if path is None:
                outside += 1
            elif not member.is_dir() and listing.wants(path):
                yield listing.file(
                    path,
                    location=f"{self.path}!{member.filename}",
                    size=member.file_size,
                    stamp=f"{mtime}-{member.CRC:08x}",
                )
        if outside:
            words = "sources.%s: %s: members outside of the archive are left out: %d"
            logger.warning(words, self.name, self.path, outside)
        listing.report(ignored)

    def read(self, file: SourceFile) -> bytes:
        """The member's bytes, unpacked up to the limit whatever size it claims. See `Source.read`."""
        member = file.location.removeprefix(f"{self.path}!")
        try:
            archive, _ = _open_archive(self.path)
            with archive.open(member) as stream:
                data = stream.read(self.max_bytes + 1)
        except (KeyError, FileNotFoundError) as error:
            raise DocumentError(f"{file.id} has vanished since it was listed") from error
        # How zipfile says it, NotImplementedError for the compression among them
        except RuntimeError as error:
            raise DocumentError(
                f"{file.id} is encrypted, or packed in a way that zipfile does not know"
            ) from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise DocumentError(f"{file.id} cannot be unpacked: the archive is damaged there") from error
        if len(data) > self.max_bytes:
            raise too_large(file, self.max_bytes)
        return data


def _path(name: str) -> str | None:
    """Where a member lies: `./a`, `/a` and `a` are one place, as for whoever unpacks them. None: outside."""
    segments = [segment for segment in nfc(name).split("/") if segment not in ("", ".")]
    return None if ".." in segments else "/".join(segments)


def _open_archive(path: Path) -> tuple[zipfile.ZipFile, int]:
    """The archive and its mtime in ns, opened once for all its members in each process and each time it changes."""
    mtime = path.stat().st_mtime_ns
    return _opened(path, mtime, os.getpid()), mtime


@lru_cache(maxsize=8)
def _opened(path: Path, mtime: int, process: int) -> zipfile.ZipFile:  # noqa: ARG001 - the key of the cache
    # A forked process must not share the file position of its parent: hence the process in the key.
    return zipfile.ZipFile(path)
