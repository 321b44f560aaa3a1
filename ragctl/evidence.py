"""Which hits hold which quotes: evidence is quoted text, so it holds for whatever chunks an experiment makes.

A chunk holds a quote when it is of the quote's document, starts at most one page away from the quote's page (where
both are known: a chunk may begin on the page before, and the rest of a quote that a page break cuts begins on the
page after), and the two can be laid over one another so that every word of the overlap agrees and

- the overlap is at least half of the quote and three words (all of a quote that is shorter): the whole quote, or
  what a chunk boundary left of it; or
- the whole chunk lies inside the quote, with at least five words.

An overlap always runs to an end of the chunk or of the quote, so "the revenue was" in the middle of some other
sentence is no part of "the revenue was 5 million". The chunk's first and last word may be the rest of a word that
the boundary cut; such a rest is half a word.

Words are compared after NFKC and casefolding, without soft hyphens and invisible characters; a hyphen inside a word,
also at a line's end, joins it. A number keeps its inner points and commas. In scripts without spaces each character
is a word. Everything else (white space, quotation marks, dashes, currency signs) does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    from ragctl.datasets import Evidence
    from ragctl.records import Hit

ENOUGH = 3  # words that must agree, of a quote that has as many
INSIDE = 5  # words from which a chunk that lies wholly inside a quote counts; a heading of one word must not

_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011]\s*(?=[^\W\d_])")
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Thai to Han
_WORD = re.compile(rf"\d+(?:[.,]\d+)*|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words and numbers of a text in the form in which they are compared."""
    folded = _INVISIBLE.sub("", normalize("NFKC", text).casefold())
    return _WORD.findall(_HYPHEN.sub("", folded))


def held(evidence: Sequence[Evidence], hits: Sequence[Hit]) -> list[frozenset[int]]:
    """For each hit, the positions in `evidence` of the quotes that it holds."""
    quotes = [words(item.quote) for item in evidence]
    found = []
    for hit in hits:
        near = [i for i, item in enumerate(evidence) if _same_place(item, hit)]
        chunk = words(hit.text) if near else []
        found.append(frozenset(i for i in near if holds(chunk, quotes[i])))
    return found


def _same_place(evidence: Evidence, hit: Hit) -> bool:
    of_document = hit.document == evidence.document or hit.document.startswith(f"{evidence.document}#")
    if not of_document or evidence.page is None or hit.page is None:
        return of_document
    return abs(hit.page - evidence.page) <= 1


def holds(chunk: Sequence[str], quote: Sequence[str]) -> bool:
    """Whether a chunk holds a quote, or enough of it, by the rule above; both as `words` gives them."""
    least = min(ENOUGH, len(quote))
    for shift in range(1 - len(chunk), len(quote)):  # chunk[i] lies on quote[i + shift]
        whole, rests = _agreeing(chunk, quote, shift)
        inside = shift >= 0 and shift + len(chunk) <= len(quote)
        if (whole >= least and 2 * whole + rests >= len(quote)) or (inside and whole >= INSIDE):
            return whole > 0
    return False


def _agreeing(chunk: Sequence[str], quote: Sequence[str], shift: int) -> tuple[int, int]:
    """How many words of the overlap agree, whole ones and rests; none when any word in it differs."""
    first, last = max(0, -shift), min(len(chunk), len(quote) - shift)
    whole = rests = 0
    for i in range(first, last):
        mine, theirs = chunk[i], quote[i + shift]
        if mine == theirs:
            whole += 1
        elif (i == 0 and theirs.endswith(mine)) or (i == len(chunk) - 1 and theirs.startswith(mine)):
            rests += 1
        else:
            return 0, 0
    return whole, rests
