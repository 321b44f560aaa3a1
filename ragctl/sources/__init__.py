"""What documents exist, where, and which metadata they carry: local folders, zip archives, S3 prefixes.

A listing is whole or it is an error. Nothing in it is read; a file's `stamp` says whether its bytes may have
changed since the last time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from ragctl.config import S3Source
from ragctl.sources.archive import ZipArchive
from ragctl.sources.listing import Rules
from ragctl.sources.local import LocalFolder

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.config import Source as AnySection
    from ragctl.records import SourceFile


class Source(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str: ...

    def list(self, ignored: Counter[str] | None = None) -> Iterator[SourceFile]:
        """Every file, in no promised order. `ignored` takes the number of those that nothing here reads, by ending.

        Raises ConfigError when there is no such place, Refused when the listing would be incomplete, and
        ServiceError when a service fails; what was yielded before an error must not be taken for everything.
        """

    def read(self, file: SourceFile) -> bytes:
        """The bytes of a listed file; DocumentError when it has vanished, is unreadable or too large."""


def open_source(section: AnySection, experiment: Experiment) -> Source:
    """The source that a section describes. Raises ConfigError for a bad glob or pattern; nothing is listed."""
    rules = Rules.of(section, tenant_key=experiment.tenancy.key if experiment.tenancy else None)
    max_bytes = int(experiment.parsing.max_file_mb * 1024 * 1024)
    if isinstance(section, S3Source):
        from ragctl.adapters.aws import client
        from ragctl.sources.s3 import S3Prefix

        return S3Prefix(section.bucket, section.prefix, rules, max_bytes, client("s3", experiment))
    if section.path.suffix.lower() == ".zip" and not section.path.is_dir():
        return ZipArchive(section.path, rules, max_bytes)
    return LocalFolder(section.path, rules, max_bytes, follow_links=section.follow_links)
