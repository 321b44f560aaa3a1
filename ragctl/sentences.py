"""Text to statements: the sentences, list items and table rows that can be quoted on their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_HEADING = re.compile(r"#{1,6}\s")
_ITEM = re.compile(r"(?:[-*+•]|\(?\d{1,3}[.)])\s+")
_RULE = re.compile(r"[\s|:=+_*-]+")  # the line below a table's header, a line across the page
_NUMBER = re.compile(r"[(+-]?[$€£]?\d[\d.,]*[%)]*|[-–—]|n/a", re.IGNORECASE)
_END = re.compile(r"""[.!?…。！？]['")\]”’」』）]*""")
_BREAK = re.compile(
    r"""(?<=[.!?…])(['")\]”’]*)\s+(?=['"(\[“‘]*[A-Z0-9À-ÖØ-ÞΑ-ΩА-Я\u3040-\u9fff])"""
    r"""|(?<=[。！？])(?![。！？」』”’）])\s*(?=\S)|(?<=[。！？][」』”’）])\s*(?=\S)"""  # written without spaces
)
_ABBREVIATION = re.compile(
    r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Inc|Ltd|Co|Corp|No|Nos|Fig|Eq|Sec|Art|Vol|vs|cf|ca|approx|e\.g|i\.e"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.$"
)
_YEAR = re.compile(r"(?:19|20)\d\d")
_FIELD_END = re.compile(r",(?!\s|\d{3}\b)|;(?!\s)")  # in a line of CSV, not in prose and not in 1,870
_PAGE_NUMBER = re.compile(r"(?:.{0,80}\b)?page \d+(?: of \d+)?|\d{1,4}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence, list item or table row, white space normalised, and the lines that it stands below."""

    text: str
    heading: str = ""  # the nearest heading or question above
    # None: not a table row; otherwise the table's header line, "" where there is none
    header: str | None = None


def statements(text: str) -> list[Statement]:
    """The statements of a text in order. Headings and questions are context of what follows, not statements; a short
    last line has nothing to be the heading of, so it is one.

    Each text, heading and header is found in the text word by word when runs of white space count as one space.
    """
    found: list[Statement] = []
    heading, header = "", None
    blocks = list(_blocks(text))
    for number, (kind, block) in enumerate(blocks, 1):
        is_heading = kind == "heading" and (number < len(blocks) or _announces(block))
        if kind == "row":
            if header is None:
                header = block if _is_header(block) else heading
            found.append(Statement(block, heading, header))
            continue
        header = None
        for sentence in [block] if is_heading else sentences(block):
            if is_heading or is_question(sentence):
                heading = sentence
            else:
                found.append(Statement(sentence, heading))
    return found


def is_question(sentence: str) -> bool:
    """Whether it ends like one."""
    return sentence.endswith(("?", "？"))


def sentences(paragraph: str) -> Iterator[str]:
    """The sentences of one paragraph; abbreviations and initials do not end one."""
    text = " ".join(paragraph.split())
    start = 0
    for end, following in breaks(text):
        yield text[start:end]
        start = following
    if text[start:]:
        yield text[start:]


def breaks(text: str) -> Iterator[tuple[int, int]]:
    """Where a sentence of the paragraph ends and the next one starts; only white space lies between."""
    start = 0
    for match in _BREAK.finditer(text):
        end = match.start() if match[1] is None else match.end(1)
        tail = text[max(start, end - 12) : end]  # longer than any abbreviation or number of an item
        if not _ABBREVIATION.search(tail) and not _ITEM.fullmatch(f"{tail} "):
            yield end, match.end()
            start = match.end()


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of the blocks: wrapped lines joined to "prose", and each "heading" and "row" by itself."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    width = max(map(len, lines), default=0)
    paragraph: list[str] = []
    for line, following in pairwise([*lines, ""]):
        is_row = _is_row(line, width)
        if paragraph and (is_row or not line or _begins_anew(line)):
            yield _paragraph(paragraph)
            paragraph = []
        if is_row:
            yield "row", line
        elif line and not _is_furniture(line):
            paragraph.append(line)
            if _HEADING.match(line) or _ends_paragraph(line, following, width):
                yield _paragraph(paragraph)
                paragraph = []
    if paragraph:
        yield _paragraph(paragraph)


def _paragraph(lines: list[str]) -> tuple[str, str]:
    """A paragraph; a single short line that does not end like a sentence is a heading."""
    text = " ".join(lines)
    is_short = len(lines) == 1 and len(text) < 100 and not _END.search(text[-3:]) and not _ITEM.match(text)
    return "heading" if is_short or _HEADING.match(text) else "prose", text


def _announces(line: str) -> bool:
    """Whether something was to follow the line, where the chunk ends."""
    return bool(_HEADING.match(line)) or line.endswith((":", "："))


def _begins_anew(line: str) -> bool:
    return bool(_ITEM.match(line) or _HEADING.match(line) or _is_furniture(line))


def _is_furniture(line: str) -> bool:
    """A rule or a page number."""
    return bool(_RULE.fullmatch(line) or _PAGE_NUMBER.fullmatch(line))


def _is_row(line: str, width: int) -> bool:
    """A line of Markdown table or CSV, or one that ends in figures the way rows of tables come out of a PDF."""
    if line.startswith("|") or len(_FIELD_END.findall(line)) >= 2:
        return not _RULE.fullmatch(line)
    words = line.split()
    if len(words) < 2 or not _NUMBER.fullmatch(words[-1]) or _END.search(line[-3:]) or _is_furniture(line):
        return False
    is_short = len(line) < 0.6 * width and not _YEAR.fullmatch(words[-1])
    return is_short or bool(_NUMBER.fullmatch(words[-2]))


def _is_header(row: str) -> bool:
    """Whether the first row of a table names its columns: of figures it has years at most."""
    words = row.replace("|", " ").split()
    return all(_YEAR.fullmatch(word) for word in words if _NUMBER.fullmatch(word))


def _ends_paragraph(line: str, following: str, width: int) -> bool:
    """A line that stops well before the margin, before one that begins anew, was not wrapped."""
    return len(line) < 0.6 * width and not line.endswith((",", ";", ":", "-")) and not following[:1].islower()
