"""Vectors without a model: hashed words, weighted by how much they tell. Same text, same vector, everywhere.

A text becomes its stemmed words. A word that occurs tf times weighs 3 tf / (tf + 2) * sqrt(bits), where `bits`
comes from a table of how common words are in English (`word_frequency.tsv`, counted by
`benchmarks/word_frequency.py`): -log2 of the share of passages that hold it. A word that is not in the table is rare
and gets 13. As a word counts in the question and in the passage, their product carries its bits once. BLAKE2b gives
each word its place and its sign (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009), and
the vector is scaled to length 1.

Chosen on SciFact's 809 training claims; these are the 300 test claims, nDCG@10. "Hybrid" is fused with the first
100 of BM25 by RRF, k = 60; BM25 alone has 0.687. The table of words knows nothing of SciFact.

    dimension               512   1,024   2,048   4,096
    vector, no prior      0.391   0.455   0.488   0.513
    vector                0.471   0.523   0.569   0.606
    hybrid, no prior      0.547   0.573   0.595   0.609
    hybrid                0.603   0.623   0.652   0.659

Another hash function moves these by 0.008 (one standard deviation). Measured and not worth their time, at 2,048:
two places for each word (vector 0.01 to 0.02 better, hybrid the same), pairs of adjacent words, character 4-grams, a
prior from the length of a word, other powers of the bits, 1 + ln tf or the root of tf: all within 0.015.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from snowballstemmer import stemmer

from ragctl.adapters.base import EmbedRole
from ragctl.records import Embedded
from ragctl.sparse import SparseVectors

if TYPE_CHECKING:
    from ragctl.config import Experiment

AT_ONCE = 1_024  # texts
RAREST = 13  # bits of a word that is not in the table: less than one passage in 5,800 holds it
CACHED_WORDS = 1 << 16  # some 8 MB; 29 MB of documentation hold 55,000
# Characters; longer words with a digit are identifiers and the like, and seldom come again
LONGEST_NUMBER = 4

LONGEST_WORD = 40  # characters; what is longer is data or noise, so it is neither stemmed nor kept in memory

# Scripts written without spaces (kana, Han) give one word per character; elsewhere a word is a run of letters and
# digits. The underscore separates, so that `max_batch` is found by "batch".
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# The same for ASCII text, five times as fast with str.translate and str.split.
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}

# A word's code: its place, its sign (1: negative) in one bit, its class in four.
_CLASS = 4
_CODE = 1 + _CLASS + 16  # bits; a place takes 16


def words_of(text: str) -> list[str]:
    """The words of a text in order, case folded and in compatibility form (NFKC), not stemmed."""
    if text.isascii():
        return text.translate(_ASCII).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@cache
def word_bits() -> dict[str, int]:
    """Stem -> -log2 of the share of passages that hold it, rounded."""
    table = Path(__file__).with_name("word_frequency.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in table.splitlines())
    return {stem: int(bits) for stem, bits in rows}


class _Codes(dict[str, int]):
    """Word -> code, worked out once. Emptied when full, which bounds it and costs a few stems."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self._dimension = dimension
        self._english = stemmer("english")
        # It is asked for each word once, and takes three times as long to remember it
        self._english.maxCacheSize = 0
        self._stemming = Lock()  # a stemmer holds the word it works on

    def __missing__(self, word: str) -> int:
        alphabetic = word.isalpha()
        if len(word) > (LONGEST_WORD if alphabetic else LONGEST_NUMBER):
            return self._code(word)
        stem = self._stem(word) if alphabetic else word
        if len(self) >= CACHED_WORDS:
            self.clear()
        self[word] = code = self._code(stem)
        return code

    def _stem(self, word: str) -> str:
        with self._stemming:
            return str(self._english.stemWord(word))

    def _code(self, stem: str) -> int:
        digest = blake2b(stem.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        place, negative = divmod(int.from_bytes(digest, "little"), 2)
        signed_place = place % self._dimension << 1 | negative
        return signed_place << _CLASS | word_bits().get(stem, RAREST)


class HashingEmbedder:
    """Unit vectors of a text's words; questions and passages alike. No download, no state, any thread."""

    max_batch = 256
    max_bytes = 4 << 20
    max_tokens: int | None = None
    cpu_bound = True

    def __init__(self, dimension: int = 2048) -> None:
        """`dimension`: length of a vector, 2 to 32,768."""
        self.dimension = dimension
        self.identity = f"hashing/{dimension}/v1"
        self._codes = _Codes(dimension)

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        section = experiment.embedding
        assert section.kind == "hashing"
        return cls(section.dimension)

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:  # noqa: ARG002 - both roles are the same
        """Vectors (len(texts), dimension), each of length 1. Refuses nothing: an empty text has a vector too."""
        return Embedded(self.sparse(texts).dense())

    def sparse(self, texts: Sequence[str]) -> SparseVectors:
        """The same vectors without their zeros, made of a few texts at a time: each word takes some 60 bytes."""
        if len(texts) <= AT_ONCE:
            return self._sparse(texts)
        parts = [self._sparse(texts[first : first + AT_ONCE]) for first in range(0, len(texts), AT_ONCE)]
        return SparseVectors.joined(parts)

    def _sparse(self, texts: Sequence[str]) -> SparseVectors:
        at, sums = self._sums(texts)
        rows, places = np.divmod(at, self.dimension)
        squares = np.bincount(rows, sums * sums, minlength=len(texts))
        values = sums / np.sqrt(squares)[rows]
        # A text without a direction (only words that every text holds) points to the first place.
        lost = np.flatnonzero(squares == 0)
        before = np.searchsorted(rows, lost)
        return SparseVectors(
            (len(texts), self.dimension),
            np.searchsorted(np.insert(rows, before, lost), np.arange(len(texts) + 1)),
            np.insert(places, before, 0).astype(np.int32),
            np.insert(values, before, 1).astype(np.float32),
        )

    def _sums(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The weighted, signed words of each text added up by place: places, ascending, and the sums other than 0."""
        words, counts = self._counted(texts)
        rows, codes = words >> _CODE, words & (1 << _CODE) - 1
        weights = 3 * counts / (counts + 2) * np.sqrt(codes & (1 << _CLASS) - 1)
        signed = np.where(codes >> _CLASS & 1, -weights, weights)
        places = rows * self.dimension + (codes >> _CLASS + 1)
        first = np.flatnonzero(np.diff(places, prepend=-1))  # words that share a place stand side by side
        sums = np.add.reduceat(signed, first)
        some = sums != 0
        return places[first][some], sums[some]

    def _counted(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each different word of each text as `row << _CODE | code`, ascending, and how often it occurs there."""
        codes: list[int] = []
        lengths = []
        for text in texts:
            # Stores refuse a zero vector under the cosine metric, so a text of signs alone has its signs as words.
            words = words_of(text) or list(text) or [""]
            codes.extend(map(self._codes.__getitem__, words))
            lengths.append(len(words))
        rows = np.repeat(np.arange(len(texts), dtype=np.int64), lengths)
        return np.unique(rows << _CODE | np.array(codes, dtype=np.int64), return_counts=True)
