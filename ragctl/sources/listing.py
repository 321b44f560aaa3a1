"""Which files of a source count, under which id and with which metadata; shared by every kind of source."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ragctl.errors import ConfigError, DocumentError, Refused
from ragctl.globs import (
    HIDDEN_MARKS,
    PathPattern,
    compile_globs,
    compile_path_pattern,
    names_a_type,
    reaches_hidden,
)
from ragctl.parsing import SUFFIXES, suffix
from ragctl.records import Metadata, SourceFile

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping
    from pathlib import Path

    from ragctl.config import SourceSection

logger = logging.getLogger(__name__)

NO_ENDING: Final = "none"
OTHERS: Final = "others"
TYPES_KEPT: Final = (
    20  # of those that nothing reads, by source; the rest is counted together, for names may be anything
)
TYPES_SHOWN: Final = 5
LONGEST_TYPE: Final = 12  # characters of an ending; what is longer is a name with a dot in it


@dataclass(frozen=True)
class Rules:
    """What a section says about paths, compiled."""

    name: str
    include: re.Pattern[str]
    explicit: re.Pattern[str]  # the globs that say which type is meant: they reach types that we cannot read
    exclude: re.Pattern[str]
    hidden: bool  # some glob spells out a hidden name, so hidden folders are to be looked into
    pattern: PathPattern | None
    metadata: Metadata

    @classmethod
    def of(cls, section: SourceSection, *, tenant_key: str | None = None) -> Rules:
        where = f"sources.{section.name}"
        try:
            return cls(
                name=section.name,
                include=compile_globs(section.include),
                explicit=compile_globs(glob for glob in section.include if names_a_type(glob)),
                exclude=compile_globs(section.exclude, hidden=True, below=True),
                hidden=any(reaches_hidden(glob) for glob in section.include),
                pattern=compile_path_pattern(section.path_metadata, as_text=tenant_key)
                if section.path_metadata
                else None,
                metadata=section.metadata,
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error

    def enters(self, folder: str) -> bool:
        """Whether anything below the folder may be wanted."""
        shown = self.hidden or not folder.rpartition("/")[2].startswith(HIDDEN_MARKS)
        return shown and not self.exclude.fullmatch(folder)


@dataclass
class Listing:
    """One pass over a source; counts what it leaves out, for the log."""

    rules: Rules
    ignored: Counter[str] = field(default_factory=Counter)  # files by ending
    links: int = 0
    bare: int = 0  # files that the path pattern does not fit
    seen: set[str] = field(default_factory=set)  # ids that another spelling of their letters could repeat

    def wants(self, path: str) -> bool:
        """Whether a file at this path below the root is listed."""
        if not self.rules.include.fullmatch(path) or self.rules.exclude.fullmatch(path):
            return False
        if suffix(path) in SUFFIXES or self.rules.explicit.fullmatch(path):
            return True
        self.ignored[suffix(path) or NO_ENDING] += 1
        return False

    def file(self, path: str, *, location: str, size: int, stamp: str) -> SourceFile:
        """The file as the next stages know it; Refused when a file before it has the same id."""
        name = self.rules.name
        identity = f"{name}/{path}"
        if not path.isascii():
            if identity in self.seen:
                raise Refused(
                    f"sources.{name}: two files have the name {path}, differing only in Unicode form"
                )
            self.seen.add(identity)
        return SourceFile(identity, location, size, stamp, name, self._metadata(path))

    def _metadata(self, path: str) -> Metadata:
        if self.rules.pattern is None:
            return self.rules.metadata
        found = self.rules.pattern.metadata(path)
        if found is None:
            self.bare += 1
            return self.rules.metadata
        return {**self.rules.metadata, **found}

    def report(self, ignored: Counter[str] | None) -> None:
        """Log what was left out, and add what nothing reads to `ignored`."""
        if ignored is not None:
            ignored.update(_bounded(self.ignored))
        where = f"sources.{self.rules.name}"
        if self.ignored:
            types = ", ".join(sorted(self.ignored))
            logger.info("%s: %d files of types %s ignored", where, self.ignored.total(), types)
        if self.links:
            logger.info("%s: %d symbolic links not followed", where, self.links)
        if self.bare:
            logger.info("%s: path_metadata does not fit %d files", where, self.bare)


def _bounded(ignored: Counter[str]) -> Counter[str]:
    """The commonest endings, with all else as OTHERS."""
    plain = {e: n for e, n in ignored.items() if len(e) <= LONGEST_TYPE and e.isprintable()}
    kept = Counter(dict(_commonest(plain, TYPES_KEPT)))
    rest = ignored.total() - kept.total()
    return kept + Counter({OTHERS: rest})  # which drops a count of 0


def _commonest(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]


def not_read(ignored: Mapping[str, int]) -> str:
    """What `report` gave, for people, who may think that these files are in the index."""
    endings = {ending: count for ending, count in ignored.items() if ending != OTHERS}
    shown = _commonest(endings, TYPES_SHOWN)
    others = sum(ignored.values()) - sum(count for _, count in shown)
    parts = [f"{count:,} {'without' if ending == NO_ENDING else ending}" for ending, count in shown]
    parts += [f"{others:,} {OTHERS}"] if others else []
    return f"types that ragctl does not read: {', '.join(parts)}"


def incomplete(name: str, path: str | Path, error: Exception) -> Refused:
    return Refused(
        f"sources.{name}: {path}: {reason(error)}; the listing is incomplete; nothing was changed",
        hint="make it readable, exclude it, or try again",
    )


def too_large(file: SourceFile, max_bytes: int) -> DocumentError:
    return DocumentError(
        f"{file.id} is larger than {max_bytes / 1024 / 1024:.3g} MB",
        hint="raise parsing.max_file_mb, or exclude the file",
    )


def reason(error: Exception) -> str:
    """What an operating system's or a library's exception says, in its own words."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
