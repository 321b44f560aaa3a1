"""Markdown: the text as it stands, with its headings as sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import yaml

from ragctl.parsing.encoding import decode
from ragctl.records import Document, Section, short_hash

if TYPE_CHECKING:
    from ragctl.config import Parsing
    from ragctl.records import SourceFile

_FRONT_MATTER: Final = re.compile(r"---[ \t]*\n(.{0,65536}?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
# The lines that matter: fences, headings with #, and underlines of headings. Anything else is skipped at the
# speed of the regular expression engine.
_MARKS: Final = re.compile(
    r"^(?:[ \t]*(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})(?P<info>.*)"  # at any depth: fences stand in lists of lists
    r"| {0,3}(?P<hashes>\#{1,6})(?:[ \t]+(?P<title>.*))?| {0,3}(?P<underline>=+|-+)[ \t]*)$",
    re.MULTILINE,
)
# A line above an underline that makes it a heading: a paragraph's. Not blank, indented code, a quotation, a list
# item, a heading or a rule. (A table row, by GitHub's extension, is not told apart: `---|---` is no underline.)
_NO_PARAGRAPH: Final = re.compile(
    r"\s*$| {4}|\t| {0,3}(?:>|[-+*](?:\s|$)|\d{1,9}[.)](?:\s|$)|\#{1,6}(?:\s|$)|(?:[-*_][ \t]*){3,}$|`{3}|~{3})"
)
_MARKUP: Final = (
    (re.compile(r"<[^<>]*>|\{\#[^{}]*\}"), ""),  # tags such as <a name="x"></a>, and {#anchors}
    (re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)"), r"\1"),  # links and pictures
    (re.compile(r"[`*]|\\(?=[\W_])"), ""),
)


def read(file: SourceFile, data: bytes, parsing: Parsing) -> Document:  # noqa: ARG001 - one signature for all
    """The file as a Document with its sections; the title is that of the front matter or the first top heading.

    DocumentError when it is no text.
    """
    text, warnings = decode(data)
    front = _FRONT_MATTER.match(text)
    found = tuple(sections(text, front.end() if front else 0))
    title = _front_title(front[1]) if front else ""
    title = title or next((section.title for section in found if section.level == 1), "")
    return Document(
        file.id, text, short_hash(data), metadata={"title": title}, sections=found, warnings=warnings
    )


def sections(text: str, begin: int = 0) -> Iterator[Section]:
    """The sections of Markdown from `begin` on, behind the front matter."""
    headings = list(_headings(text, begin))
    ends = [*(start for _, _, start in headings[1:]), len(text)]
    for (level, title, start), end in zip(headings, ends, strict=False):  # no heading, one end
        yield Section(level, title, start, end)


def _headings(text: str, begin: int) -> Iterator[tuple[int, str, int]]:
    """Level, title and start of each heading (CommonMark 0.31: ATX and setext headings, fenced code)."""
    fence = ""
    for mark in _MARKS.finditer(text, begin):
        if fence:
            if _closes(mark, fence):
                fence = ""
        elif mark["fence"]:
            fence = mark["fence"]
        elif mark["hashes"]:
            yield len(mark["hashes"]), _plain(_without_closing_hashes(mark["title"] or "")), mark.start()
            begin = mark.end()
        elif (start := _paragraph_start(text, begin, mark.start())) is not None:
            yield 1 if "=" in mark["underline"] else 2, _plain(text[start : mark.start()]), start
            begin = mark.end()


def _closes(mark: re.Match[str], fence: str) -> bool:
    closing = mark["fence"] or ""
    return closing.startswith(fence) and not mark["info"].strip()


def _without_closing_hashes(title: str) -> str:
    stripped = title.rstrip(" \t")
    bare = stripped.rstrip("#")
    return stripped if bare and bare[-1] not in " \t" else bare


def _paragraph_start(text: str, begin: int, underline: int) -> int | None:
    """Where the paragraph that ends just above the underline starts; None where there is none."""
    start = None
    end = underline - 1  # the line feed above
    while end > begin:
        line = text.rfind("\n", begin, end) + 1 or begin
        if _NO_PARAGRAPH.match(text, line, end):
            break
        start, end = line, line - 1
    return start


def _plain(title: str) -> str:
    """A heading without its inline markup."""
    for markup, plain in _MARKUP:
        title = markup.sub(plain, title)
    return " ".join(title.split())


def _front_title(front_matter: str) -> str:
    """The `title` of front matter; composed only, so that no merge key multiplies and no tag is resolved."""
    try:
        root = yaml.compose(front_matter, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return ""
    fields = root.value if isinstance(root, yaml.MappingNode) else []
    titles = [value.value for key, value in fields if key.value == "title"]
    return titles[0] if titles and isinstance(titles[0], str) else ""
