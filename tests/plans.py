"""Files of a source, rows of a ledger, and what is to do about them."""

from __future__ import annotations

from contextlib import closing

from ragctl.manifest import FileRow, Ledger
from ragctl.planning import Listing
from ragctl.records import SourceFile

SETTINGS = {"docs": "f1"}


def file(name: str, *, size: int = 1, stamp: str = "s", source: str = "docs") -> SourceFile:
    return SourceFile(f"{source}/{name}", f"/x/{name}", size, stamp, source)


def row(name: str, *, size: int = 1, stamp: str = "s", fingerprint: str = "f1", done: bool = True) -> FileRow:
    return FileRow(f"docs/{name}", size, stamp, "h", fingerprint, 1, done)


def steps(ledger: Ledger, *files: SourceFile, checksum: bool = False) -> list[tuple[str, str]]:
    """What is to do, as (action, id), in order of id."""
    with closing(Listing()) as listing:
        listing.add(files)
        found = [(step.action, step.id) for step in listing.steps(ledger, SETTINGS, checksum=checksum)]
    return sorted(found, key=lambda step: step[1])
