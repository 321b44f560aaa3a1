"""Paths matched by patterns: globs, and `{name}` placeholders that turn parts of a path into metadata.

A path is relative, with forward slashes. In a glob `*`, `?` and `[a-z]` stay within one segment, `**` alone in
a segment stands for any number of folders, and a glob that ends in `/` or `/**` means everything below.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from ragctl.errors import ConfigError
from ragctl.records import RESERVED

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
# Names that wildcards pass over unless told otherwise: dot files, and the owner files of open Office documents.
HIDDEN_MARKS = (".", "~$")
_VISIBLE = r"(?!\.|~\$)"
_WILDCARD = re.compile(r"\*+|\?|\[!?\]?[^\]/]*\]")
_EXACT_DIGITS = 15  # a longer number does not survive a store that keeps 64-bit floats


def nfc(path: str) -> str:
    """The path as it is written in document ids and patterns: one spelling of each accented letter."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


@cache
def compile_glob(glob: str, *, hidden: bool = False) -> re.Pattern[str]:
    """The glob as a regular expression for `fullmatch`; wildcards match hidden names only where `hidden`.

    Raises ConfigError for a glob that could never match: empty, absolute, with `..`, or with a range such as [z-a].
    """
    return _compiled(_translate(glob, _wildcards, hidden=hidden), glob, "glob")


def _compiled(expression: str, written: str, kind: str) -> re.Pattern[str]:
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{written!r} is not a valid {kind}: {error}") from error


def compile_globs(globs: Iterable[str], *, hidden: bool = False, below: bool = False) -> re.Pattern[str]:
    """One expression for paths that match any of the globs; `below`: or that lie below such a path."""
    tail = "(?:/.*)?" if below else ""
    any_of = "|".join(f"(?:{compile_glob(glob, hidden=hidden).pattern})" for glob in globs)
    return re.compile(f"(?:{any_of}){tail}" if any_of else r"(?!)", re.DOTALL)


def reaches_hidden(glob: str) -> bool:
    """Whether the glob spells out a hidden name, as `.github/**/*.md` does."""
    return any(segment.startswith(HIDDEN_MARKS) for segment in _segments(glob))


def names_a_type(glob: str) -> bool:
    """Whether the glob says which files are meant (`*.log`, `LICENSE`), not just in which folder (`docs/**`)."""
    return _segments(glob)[-1].strip("*") != ""


@dataclass(frozen=True)
class PathPattern:
    """A pattern such as `{customer}/{year}/*.pdf`, ready to be matched."""

    names: tuple[str, ...]
    expression: re.Pattern[str]
    as_text: str | None = None  # the placeholder whose digits stay digits: 042 and 42 are two tenants

    def metadata(self, path: str) -> dict[str, str | int] | None:
        """What the path says, digits as numbers; None where the pattern does not fit."""
        found = self.expression.fullmatch(path)
        if found is None:
            return None
        parts = zip(self.names, found.groups(), strict=True)
        return {name: text if name == self.as_text else _value(text) for name, text in parts}


def compile_path_pattern(pattern: str, *, as_text: str | None = None) -> PathPattern:
    """A pattern in which `{name}` stands for a segment or a part of one, else a glob.

    What `as_text` stands for is never turned into a number.

    Raises ConfigError for a name that is no metadata key, is used twice, or belongs to ragctl.
    """
    names = PLACEHOLDER.findall(pattern)
    for name in names:
        if not KEY.fullmatch(name):
            raise ConfigError(
                f"{pattern!r}: {{{name}}} is not a metadata key: a letter, then letters, digits, _ -"
            )
        if name in RESERVED:
            raise ConfigError(f"{pattern!r}: ragctl writes {name!r} itself, use another name")
    if len(set(names)) < len(names):
        raise ConfigError(f"{pattern!r}: a placeholder is used twice")
    if set(PLACEHOLDER.sub("", pattern)) & set("{}"):
        raise ConfigError(f"{pattern!r}: a brace has no partner")
    expression = _compiled(_translate(pattern, _placeholders, hidden=True), pattern, "path pattern")
    return PathPattern(tuple(names), expression, as_text)


def _segments(glob: str) -> list[str]:
    """The glob cut at its slashes, a final `/` read as `/**` and `**/**` as `**`."""
    segments = nfc(glob).removeprefix("./").split("/")
    if segments[-1] == "":
        segments[-1] = "**"
    return [
        one for one, before in zip(segments, [None, *segments], strict=False) if one != "**" or before != "**"
    ]


def _translate(glob: str, translate: Callable[[str], str], *, hidden: bool) -> str:
    segments = _segments(glob)
    if not glob or segments[0] == "" or ".." in segments:
        raise ConfigError(f"{glob!r} matches nothing: a glob is relative to the source's path, without '..'")
    guard = "" if hidden else _VISIBLE
    parts = []
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        if segment == "**":
            parts.append(f"(?:{guard}[^/]+/)*" + (f"{guard}[^/]+" if last else ""))
        else:
            shown = guard if segment[:1] in ("*", "?", "[") else ""
            parts.append(shown + translate(segment) + ("" if last else "/"))
    return "".join(parts)


def _wildcards(segment: str) -> str:
    """A segment's wildcards as a regular expression; an unclosed bracket is a bracket."""
    parts, at = [], 0
    for found in _WILDCARD.finditer(segment):
        parts += [re.escape(segment[at : found.start()]), _wildcard(found.group())]
        at = found.end()
    return "".join([*parts, re.escape(segment[at:])])


def _wildcard(mark: str) -> str:
    if mark[0] == "*":
        return "[^/]*"
    if mark == "?":
        return "[^/]"
    negated, members = mark[1] == "!", mark[1:-1].removeprefix("!")
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", members)
    return f"(?!/)[{'^' if negated else ''}{escaped}]"


def _placeholders(segment: str) -> str:
    pieces = PLACEHOLDER.split(segment)  # text, name, text, name ... text
    return "([^/]+?)".join(_wildcards(piece) for piece in pieces[::2])


def _value(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _EXACT_DIGITS else text
