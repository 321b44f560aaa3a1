"""Answers without a model: the statements of the hits that support the question best, each with its marker.

A question is its informative words, each weighted by how rare it is among the statements that were found. A
statement is scored by the weight of the words that it holds, those of its surroundings (the lines above it, its
neighbours, its document's name) counting less. The corpus is said not to answer when not even a statement with
its surroundings holds `min_support` of the question's weight.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import snowballstemmer

from ragctl.prompts import NO_ANSWER, harmless
from ragctl.records import RESERVED, Generation, Hit, Prompt
from ragctl.sentences import Statement, statements

if TYPE_CHECKING:
    from ragctl.config import Experiment

VERSION = 1  # goes up when the same passages may give another answer

_LANGUAGES = {
    "en": "english",
    "fr": "french",
    "es": "spanish",
    "pt": "portuguese",
    "it": "italian",
    "de": "german",
    "nl": "dutch",
}
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|\d+")
_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")
_NUMBER = re.compile(r"\d")
_ENDED = re.compile(r"""[.!…:;]['")\]”’]*$""")


def words_of(text: str) -> list[str]:
    """The words and numbers of a text, folded; 1,870 and 1870 are the same number."""
    folded = _POSSESSIVE.sub("", unicodedata.normalize("NFKC", text).casefold())
    return [word.replace(",", "") for word in _WORD.findall(folded)]


# Words that frame a question instead of saying what it is about.
_FRAME = frozenset(
    words_of(
        """
        a about after all also am an and any are as at be been before being between both but by can could
        did do does during each either else for from get give given had has have he her him his how i if in
        into is it its itself just know like long many may me might more most much must my name of on one
        only or other our out over please say says said shall she should so some such tell than that the
        their them then there these they this those through to too under up us use used was we were what
        when where whether which while who whom whose why will with would you your according
        """
    )
)
_ASKS_NUMBER = re.compile(
    r"\bhow (?:many|much|long|old|often|far|large|big|high|tall|fast|deep|wide|heavy)\b|\bwhen\b|\bpercent|\bwhat "
    r"(?:year|share|date|day|percentage|number|price|age|proportion|fraction|amount)\b|\bwhich (?:year|date|day|month)\b",
    re.IGNORECASE,
)
_ASKS_NAME = re.compile(r"\bwho(?:se|m)?\b", re.IGNORECASE)
_SPELLED = frozenset(
    words_of(
        """
        one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand
        million billion half third quarter dozen twice
        """
    )
)

# What a word of the question counts that a statement does not hold itself.
BELOW_QUESTION = 0.9  # it stands in a question that the statement stands below, as in a FAQ
BELOW = 0.6  # in the heading or the table's header above
BESIDE = 0.35  # in a neighbouring statement, or in the document's name and metadata
EXPECTED = 0.25  # what a statement gains by holding the kind of thing that is asked for: a number, a name
FRAGMENT = 0.7  # what a statement keeps that the edge of a chunk has cut
RANK = 0.15  # what a statement of the first hit gains; of the second half of it, and so on
NEXT = 0.75  # a further statement has at least this share of the best one's score
SIMILAR = 0.6  # statements that share more of their words say the same


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A statement of a hit. `credit`: what each word counts for it, 1 where the statement holds it, else less."""

    hit: int  # from 0
    order: int  # of the statement in the hit
    statement: Statement
    words: frozenset[str]
    credit: Mapping[str, float]


class ExtractiveGenerator:
    """Quotes up to `sentences` statements; abstains below `min_support`, a share of the question's weight (0 to 1).

    Deterministic: the same question and hits give the same answer. `language` is an ISO 639-1 code; where there is
    no stemmer for it, or it is None, words are compared as they stand.
    """

    def __init__(self, *, sentences: int = 3, min_support: float = 0.5, language: str | None = "en") -> None:
        self._sentences = sentences
        self._min_support = min_support
        self._language = _LANGUAGES.get(language or "")
        self.identity = (
            f"extractive/{VERSION} sentences={sentences} min_support={min_support} language={language}"
        )

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        settings: Any = experiment.generation
        return cls(
            sentences=settings.sentences, min_support=settings.min_support, language=experiment.store.language
        )

    def generate(self, prompt: Prompt, on_text: Callable[[str], None] | None = None) -> Generation:
        """The answer, whole: nothing here is worth streaming."""
        chosen = self._choose(prompt.question, prompt.hits)
        generation = Generation(_answer(chosen)) if chosen else Generation(NO_ANSWER, abstained=True)
        if on_text:
            on_text(generation.text)
        return generation

    def _choose(self, question: str, hits: Sequence[Hit]) -> list[_Candidate]:
        candidates = self._candidates(hits)
        asked = self._informative(question)
        weights = _weights(asked, candidates)
        total = sum(weights.values())
        if not candidates or not total:
            return []
        support = max(_weight(weights, candidate.credit) for candidate in candidates) / total
        if support < self._min_support:
            return []
        scores = [self._score(question, candidate, weights) for candidate in candidates]
        ranked = sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0])
        return _pick(ranked, self._sentences)

    def _candidates(self, hits: Sequence[Hit]) -> list[_Candidate]:
        return [candidate for number, hit in enumerate(hits) for candidate in self._of_hit(number, hit)]

    def _of_hit(self, number: int, hit: Hit) -> Iterator[_Candidate]:
        found = statements(harmless(hit.text))
        origin = self._words(_origin(hit))
        bags = [self._words(statement.text) for statement in found]
        for order, (statement, words) in enumerate(zip(found, bags, strict=True)):
            lines = self._words(f"{statement.heading} {statement.header or ''}")
            beside = origin.union(*bags[max(0, order - 1) : order + 2])
            credit = dict.fromkeys(beside, BESIDE)
            credit |= dict.fromkeys(lines, BELOW_QUESTION if statement.heading.endswith("?") else BELOW)
            yield _Candidate(number, order, statement, words, credit | dict.fromkeys(words, 1.0))

    def _informative(self, question: str) -> frozenset[str]:
        words = [word for word in words_of(question) if word not in _FRAME]
        return frozenset(stem(word, self._language) for word in words or words_of(question))

    def _words(self, text: str) -> frozenset[str]:
        return frozenset(stem(word, self._language) for word in words_of(text))

    def _score(self, question: str, candidate: _Candidate, weights: Mapping[str, float]) -> float:
        """Share of the question's weight that a statement is credited with, adjusted for what makes an answer."""
        credit = sum(weight * candidate.credit.get(word, 0.0) for word, weight in weights.items())
        share = credit / sum(weights.values())
        if share and _holds_expected(question, candidate.statement.text):
            share += EXPECTED
        whole = 1.0 if _is_whole(candidate.statement) else FRAGMENT
        return share * whole * (1 + RANK / (1 + candidate.hit))


@cache
def _stemmer(language: str) -> Any:
    return snowballstemmer.stemmer(language)


@lru_cache(maxsize=65_536)
def stem(word: str, language: str | None) -> str:
    """The stem of a word; numbers, and words of a language without a stemmer, are their own."""
    return str(_stemmer(language).stemWord(word)) if language and not _NUMBER.search(word) else word


def _origin(hit: Hit) -> str:
    """What is known of the hit's document as words: its id, title, year ..."""
    own = [str(value) for key, value in sorted(hit.metadata.items()) if key not in RESERVED]
    return " ".join([hit.document, *own])


def _weights(asked: frozenset[str], candidates: Sequence[_Candidate]) -> dict[str, float]:
    """Inverse document frequency (BM25's, never negative) with statements as documents."""
    frequency = Counter(word for candidate in candidates for word in asked & candidate.words)
    n = len(candidates)
    return {
        word: math.log(1 + (n - frequency[word] + 0.5) / (frequency[word] + 0.5)) for word in sorted(asked)
    }


def _weight(weights: Mapping[str, float], words: Collection[str]) -> float:
    return sum(weight for word, weight in weights.items() if word in words)


def _holds_expected(question: str, text: str) -> bool:
    """Whether the text holds what the question asks for and does not itself give: a number, or a name."""
    known = set(words_of(question))
    if _ASKS_NUMBER.search(question):
        return any((_NUMBER.search(w) or w in _SPELLED) and w not in known for w in words_of(text))
    if _ASKS_NAME.search(question):
        words = re.findall(r"[^\W\d_][\w'’-]*", text)
        return any(a.istitle() and b.istitle() and a.casefold() not in known for a, b in pairwise(words))
    return False


def _is_whole(statement: Statement) -> bool:
    """A row, or text that begins and ends like a sentence."""
    text = statement.text
    return statement.header is not None or (not text[0].islower() and _ENDED.search(text) is not None)


def _pick(ranked: Sequence[tuple[float, _Candidate]], count: int) -> list[_Candidate]:
    """The best, then others nearly as good that say something else; the best hit first, each in its text's order."""
    best = ranked[0][0]
    chosen: list[_Candidate] = []
    for score, candidate in ranked:
        if len(chosen) == count or score < NEXT * best:
            break
        if not any(_similar(candidate.words, other.words) for other in chosen):
            chosen.append(candidate)
    first = chosen[0].hit
    return sorted(chosen, key=lambda candidate: (candidate.hit != first, candidate.hit, candidate.order))


def _similar(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) > SIMILAR * min(len(one), len(other))


def _answer(chosen: Sequence[_Candidate]) -> str:
    """The statements with their markers: prose in one paragraph, rows on lines below their table's header."""
    parts: list[str] = []
    shown: set[tuple[int, str]] = set()
    for candidate in chosen:
        marker, statement = f"[{candidate.hit + 1}]", candidate.statement
        header = statement.header
        if header and header != statement.text and (candidate.hit, header) not in shown:
            parts.append(f"{header} {marker}")
            shown.add((candidate.hit, header))
        parts.append(f"{statement.text} {marker}")
    is_table = any(candidate.statement.header is not None for candidate in chosen)
    return ("\n" if is_table else " ").join(parts)
