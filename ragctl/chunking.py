"""Text to chunks, each an exact span of the document: nothing is lost, moved or made longer than asked.

A document is cut in three steps. Regions are what no chunk may cross: pages, or runs of sections. A region that is
too long is cut into blocks, which lie end to end. Each block but a region's first is then made to begin earlier, to
share up to `overlap` units with the one before; the blocks leave room for it. At last blank ends are trimmed.

No chunk exceeds `size` in its unit, with two exceptions: `record` does not cut at all, and a single character that
a tokenizer makes more than `size` tokens of stays whole. Tokens are counted without those that a model adds around
a text ([CLS], [SEP]): leave room for them.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from ragctl.errors import ConfigError, MissingExtra
from ragctl.records import Chunk, Document

if TYPE_CHECKING:
    from pathlib import Path

    from langchain_text_splitters import RecursiveCharacterTextSplitter

    from ragctl.config import Chunking

CHUNKER_VERSION = 1  # raise it whenever a document may be cut differently than before

Span = tuple[int, int]

_SEPARATORS = ("\n\n", "\n", " ")
_SEPARATORS_CRLF = ("\r\n\r\n", *_SEPARATORS)
_PARAGRAPH_END = re.compile(r"\n\s*\n\s*")
_HEADING = re.compile(r"[^\n]*\n?(?: {0,3}(?:=+|-+)[ \t]*(?:\n|\Z))?")  # the line, and the rule below it
# Characters; a longer run counts as several tokens, so that no token is as long as its document
_LONGEST_WORD = 32
_WORD = re.compile(rf"\w{{1,{_LONGEST_WORD}}}|[^\w\s]")


def split(document: Document, chunking: Chunking) -> list[Chunk]:
    """The document's chunks in order of their starts; none for a blank document.

    Neighbours share at most `overlap` units: whole words where there are any, whole sentences for `sentences`.
    `tokens` counts tokens whatever `unit` says. `markdown` and `html` begin a chunk at each heading that is higher
    than the one before it, keep a heading with the text below, and put small sections together where that fits.
    ConfigError where `tokenizer` names no usable tokenizer.json, MissingExtra without the package that reads it.
    """
    text = document.text
    spans: Iterable[Span] = [(0, len(text))]
    if chunking.kind != "record":
        rule = _Rule(chunking, _unit(chunking))
        spans = (span for region in _regions(document, rule) for span in _cut(text, region, rule))
    page_starts = [page.start for page in document.pages]
    return [
        Chunk(text[start:end], start, end, _page(document, page_starts, start))
        for start, end in _trimmed(text, spans)
    ]


def _trimmed(text: str, spans: Iterable[Span]) -> Iterator[Span]:
    for start, end in spans:
        piece = text[start:end]
        bare = piece.lstrip()
        if bare:
            yield end - len(bare), start + len(piece.rstrip())


def _page(document: Document, page_starts: list[int], start: int) -> int | None:
    """The page that holds the position; what lies between two pages belongs to the one before."""
    at = bisect_right(page_starts, start) - 1
    return document.pages[at].number if at >= 0 else None


# --- units -----------------------------------------------------------------------------------------------


class _Unit(Protocol):
    def count(self, text: str) -> int: ...  # units that the text has by itself
    def starts(self, text: str) -> Sequence[int]: ...  # where each begins, ascending


class _Characters:
    count = staticmethod(len)

    def starts(self, text: str) -> Sequence[int]:
        return range(len(text))


class _Words:
    """Words and punctuation marks."""

    def count(self, text: str) -> int:
        return len(_WORD.findall(text))

    def starts(self, text: str) -> Sequence[int]:
        return [match.start() for match in _WORD.finditer(text)]


class _Tokenizer:
    """Tokens of a model. A tokenizer makes one unknown token of a word without end: it counts as several."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self.starts(text))

    def starts(self, text: str) -> Sequence[int]:
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return [at for start, end in offsets for at in range(start, max(end, start + 1), _LONGEST_WORD)]


def token_counter(chunking: Chunking) -> Callable[[str], int]:
    """What counts the tokens of a text, whatever the chunker goes by; raises as `split` does."""
    return _tokens(chunking).count


def _unit(chunking: Chunking) -> _Unit:
    if chunking.unit == "characters":
        return _Characters()
    return _tokens(chunking)


def _tokens(chunking: Chunking) -> _Unit:
    return _tokenizer(chunking.tokenizer) if chunking.tokenizer else _Words()


@cache
def _tokenizer(path: Path) -> _Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise MissingExtra("chunking.tokenizer", "tokens") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception for whatever is wrong with a file
        raise ConfigError(
            f"chunking.tokenizer: {path} cannot be read: {error}",
            hint="name the tokenizer.json of the embedding model",
        ) from error
    tokenizer.no_truncation()  # the file may say how a model's input is cut and filled; we count all of it
    tokenizer.no_padding()
    return _Tokenizer(tokenizer)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How to cut, and what `size` and `overlap` count."""

    chunking: Chunking
    unit: _Unit

    @property
    def size(self) -> int:
        return self.chunking.size

    @property
    def overlap(self) -> int:
        return self.chunking.overlap


# --- regions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Region:
    """What no chunk crosses. Its headings, text[start:body], stay with the text below them."""

    start: int
    body: int
    end: int
    level: int = 0  # of its last heading


def _regions(document: Document, rule: _Rule) -> Iterator[_Region]:
    """The regions, end to end over the whole text."""
    if rule.chunking.kind in ("markdown", "html"):
        yield from _together(document.text, _sections(document, rule), rule)
        return
    starts = [page.start for page in document.pages] if rule.chunking.kind == "page" else []
    for start, end in pairwise(sorted({0, *starts, len(document.text)})):
        yield _Region(start, start, end)


def _sections(document: Document, rule: _Rule) -> Iterator[_Region]:
    """What stands before the first heading, and the section of each heading."""
    text, sections = document.text, document.sections
    if not sections and rule.chunking.kind == "markdown":
        from ragctl.parsing.markdown import sections as parse

        sections = tuple(parse(text))
    levels = {section.start: section.level for section in sections}
    for start, end in pairwise(sorted({0, *levels, len(text)})):
        heading = _HEADING.match(text, start, end) if start in levels else None
        yield _Region(start, heading.end() if heading else start, end, levels.get(start, 0))


def _together(text: str, sections: Iterator[_Region], rule: _Rule) -> Iterator[_Region]:
    """Sections, joined to the one before where that is not deeper and the two fit, or where it is a bare heading."""
    region, units, bare = None, 0, False
    for section in sections:
        more = rule.unit.count(text[section.start : section.end])
        blank = not text[section.body : section.end].strip()
        if region and section.level >= region.level and (bare or units + more <= rule.size):
            body = section.body if bare else region.body
            region = _Region(region.start, body, section.end, section.level)
            units, bare = units + more, bare and blank
            continue
        if region:
            yield region
        region, units, bare = section, more, blank and section.level > 0
    if region:
        yield region


# --- spans of a region -----------------------------------------------------------------------------------


def _cut(text: str, region: _Region, rule: _Rule) -> Iterator[Span]:
    """The region's chunks before trimming, with their overlap."""
    if rule.unit.count(text[region.start : region.end]) <= rule.size:
        yield region.start, region.end
        return
    room = rule.size - rule.overlap
    heading = rule.unit.count(text[region.start : region.body])
    body, room = (region.body, room - heading) if heading <= room // 2 else (region.start, room)
    end = body
    floor, block = -1, (body, body)  # where the chunk before starts; its own part, without what it shares
    for piece in _blocks(text[body : region.end], room, rule):
        start, end = region.start if end == body else end, end + len(piece)
        if text[start:end].isspace():
            continue
        shared = _shared_from(text, floor, block, end, rule) if floor >= 0 and rule.overlap else None
        yield shared or start, end
        floor = shared or _first(text, start, end)
        block = start, end


def _first(text: str, start: int, end: int) -> int:
    """The first character that is not blank."""
    return end - len(text[start:end].lstrip())


def _shared_from(text: str, floor: int, block: Span, end: int, rule: _Rule) -> int | None:
    """Where a chunk that ends at `end` begins so as to share the end of the block before; None: nowhere.

    Always behind `floor`, and never before the block, so that starts ascend and no three chunks share a place.
    """
    count = rule.unit.count
    for at in _shareable(text, block, rule):
        if at <= floor or text[at].isspace():
            continue
        if count(text[at:end]) <= rule.size and count(text[at : block[1]].rstrip()) <= rule.overlap:
            return at
    return None


def _shareable(text: str, block: Span, rule: _Rule) -> Iterator[int]:
    """From where the block's end may be shared, the earliest first: sentences, words, or parts of a long word."""
    start, stop = block
    piece = text[start:stop]
    if rule.chunking.kind == "sentences":
        return (start + at for at in _sentence_starts(piece))
    units = rule.unit.starts(piece)[-rule.overlap :]
    window = piece[units[0] :] if units else ""
    if len(window) < len(piece.lstrip()) and len(window.split(maxsplit=1)) == 1:
        return (start + at for at in units if not _continues(text, start + at))
    return (start + at for at in units if text[start + at - 1].isspace() or start + at == 0)


# --- blocks ----------------------------------------------------------------------------------------------


def _blocks(text: str, size: int, rule: _Rule) -> Iterator[str]:
    """Pieces of at most `size` units that make up the text when joined."""
    kind, unit = rule.chunking.kind, rule.unit
    if kind == "tokens":
        return _hard(text, size, unit)
    if kind == "characters":
        return _separated(text, (rule.chunking.separator,), size, unit)
    if kind == "sentences":
        return _packed(text, size, unit)
    return _recursive(text, size, unit)


def _recursive(text: str, size: int, unit: _Unit) -> Iterator[str]:
    return _separated(text, _SEPARATORS_CRLF if "\r\n\r\n" in text else _SEPARATORS, size, unit)


def _separated(text: str, separators: tuple[str, ...], size: int, unit: _Unit) -> Iterator[str]:
    """Cut at the first separator that occurs, too long pieces at the next one, and at last wherever it must be."""
    splitter = _splitter_class()(
        separators=list(separators),
        chunk_size=size,
        chunk_overlap=0,
        length_function=unit.count,
        strip_whitespace=False,
    )
    for piece in splitter.split_text(text):
        if unit.count(piece) <= size:
            yield piece
        else:
            yield from _hard(piece, size, unit)


@cache
def _splitter_class() -> type[RecursiveCharacterTextSplitter]:
    """The library's splitter, imported with the first text that is too long: that takes 0.2 s."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    class Splitter(RecursiveCharacterTextSplitter):
        def _merge_splits(self, splits: Iterable[str], separator: str) -> list[str]:  # noqa: ARG002 - theirs
            """As the library does without overlap, but in linear time: it drops pieces from a list's front."""
            count, size = self._length_function, self._chunk_size
            merged: list[str] = []
            pieces: list[str] = []
            total = 0
            for piece in splits:
                length = count(piece)
                total += length
                if total > size and pieces:
                    merged.append("".join(pieces))
                    pieces, total = [], length
                pieces.append(piece)
            return [*merged, "".join(pieces)] if pieces else merged

    return Splitter


def _packed(text: str, size: int, unit: _Unit) -> Iterator[str]:
    """As many whole sentences as fit; one that is too long is cut as `recursive` does."""
    begin, total = 0, 0
    for start, end in pairwise([*_sentence_starts(text), len(text)]):
        length = unit.count(text[start:end])
        if total + length > size and start > begin:
            yield from _fitting(text[begin:start], size, unit)
            begin, total = start, 0
        total += length
    yield from _fitting(text[begin:], size, unit)


def _fitting(text: str, size: int, unit: _Unit) -> Iterator[str]:
    if unit.count(text) <= size:
        yield text
    else:
        yield from _recursive(text, size, unit)


def _sentence_starts(text: str) -> list[int]:
    """Where each sentence begins; the first at 0, whatever stands there."""
    from ragctl.sentences import breaks

    ends = [match.end() for match in _PARAGRAPH_END.finditer(text)]
    starts = [0]
    for start, end in pairwise([0, *ends, len(text)]):
        starts += [start, *(start + following for _, following in breaks(text[start:end]))]
    return sorted({start for start in starts if start < len(text)})


def _hard(text: str, size: int, unit: _Unit) -> Iterator[str]:
    """Cut after every `size` units, if need be within a word."""
    starts = unit.starts(text)
    begin = at = 0
    while at + size < len(starts):
        at = _cut_before(text, starts, at, at + size)
        if starts[at] > begin:
            yield from _halved(text[begin : starts[at]], size, unit)
            begin = starts[at]
    yield from _halved(text[begin:], size, unit)


def _cut_before(text: str, starts: Sequence[int], low: int, high: int) -> int:
    """The unit to cut before: `high`, or one a little before it where that keeps a character and its marks whole."""
    near = range(high, max(low, high - 8), -1)
    return next((i for i in near if starts[i] > starts[low] and not _continues(text, starts[i])), high)


def _halved(text: str, size: int, unit: _Unit) -> Iterator[str]:
    """The text, in halves where a tokenizer makes more tokens of it alone than it made of it in its place."""
    if len(text) > 1 and unit.count(text) > size:
        middle = len(text) // 2
        yield from _halved(text[:middle], size, unit)
        yield from _halved(text[middle:], size, unit)
    else:
        yield text


def _continues(text: str, at: int) -> bool:
    """Whether the character belongs to the one before: a combining mark, a joiner or what it joins, a skin tone."""
    char = text[at]
    return (
        unicodedata.category(char).startswith("M")
        or "\u200d" in text[max(0, at - 1) : at + 1]
        or "\U0001f3fb" <= char <= "\U0001f3ff"
        or "\udc00" <= char <= "\udfff"  # the second half of a surrogate pair that was not decoded
    )
