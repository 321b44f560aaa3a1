"""Answers without a model: the statements of the hits that support the question best, each with its marker.

A question is its informative words, each weighted by how rare it is in English. A statement's support is the share
of that weight that it holds, words around it (the lines above, its neighbours, its document's name) counting less,
and a statement without the kind of thing that is asked for (an amount, a share, a name) counting little. Below
`min_support` the corpus is said not to answer.

The weights below were chosen on `configs/samples.yaml`, whose 60 questions avoid the words of the text on purpose, so
that these figures flatter: of the 48 that have an answer, so many are answered, and so many of them with the evidence.

    min_support              0.00   0.36   0.40   0.43   0.45   0.50
    answered                   48     38     36     33     31     26
    with the evidence          32     28     27     25     23     18
    of 12, said not to be       0      6      6      9     10     10

Coverage of words alone, wherever they stand and whatever is asked for, tells the two kinds apart no better than a
coin: the area under its curve is 0.39, with both 0.72. It takes 3 ms for 8 hits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import snowballstemmer

from ragctl.adapters.hashing import LONGEST_WORD, RAREST, word_bits
from ragctl.expectation import expectation
from ragctl.prompts import NO_ANSWER, harmless
from ragctl.records import RESERVED, Generation, Hit, Prompt
from ragctl.sentences import Statement, is_question, statements

if TYPE_CHECKING:
    from ragctl.config import Experiment

VERSION = 2  # goes up when the same passages may give another answer

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
_ENDED = re.compile(r"""[.!…:;。！]['")\]”’」』）]*$""")


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
# What a word of the question counts that a statement does not hold itself.
BELOW_QUESTION = 0.9  # it stands in a question that the statement stands below, as in a FAQ
BELOW = 0.5  # in the heading or the table's header above
BESIDE = 0.2  # in a neighbouring statement, or in the document's name and metadata
UNEXPECTED = 0.3  # what a statement keeps that does not hold the kind of thing that is asked for
FRAGMENT = 0.7  # what a statement keeps that the edge of a chunk has cut
RANK = 0.15  # what a statement of the first hit gains; of the second half of it, and so on
NEXT = 0.75  # a further statement has at least this share of the best one's score
LEAST = 0.01  # what is below says nothing, whatever min_support allows
NUMBER_BITS = 9.0  # weight of a number or year; between a common word and a rare one
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

    def __init__(self, *, sentences: int = 3, min_support: float = 0.45, language: str | None = "en") -> None:
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
        asked = {word: _weight(word) for word in self._informative(question)}
        candidates = [candidate for number, hit in enumerate(hits) for candidate in self._of_hit(number, hit)]
        is_expected = expectation(question)
        supported = [(_support(candidate, asked, is_expected), candidate) for candidate in candidates]
        if max((support for support, _ in supported), default=0.0) < max(self._min_support, LEAST):
            return []
        ranked = sorted(((_score(*pair), pair[1]) for pair in supported), key=lambda pair: -pair[0])
        return _pick(ranked, self._sentences)

    def _of_hit(self, number: int, hit: Hit) -> Iterator[_Candidate]:
        found = statements(harmless(hit.text))
        origin = self._words(_origin(hit))
        bags = [self._words(statement.text) for statement in found]
        for order, (statement, words) in enumerate(zip(found, bags, strict=True)):
            lines = self._words(f"{statement.heading} {statement.header or ''}")
            beside = origin.union(*bags[max(0, order - 1) : order + 2])
            credit = dict.fromkeys(beside, BESIDE)
            credit |= dict.fromkeys(lines, BELOW_QUESTION if is_question(statement.heading) else BELOW)
            yield _Candidate(number, order, statement, words, credit | dict.fromkeys(words, 1.0))

    def _informative(self, question: str) -> frozenset[str]:
        words = [word for word in words_of(question) if word not in _FRAME]
        return frozenset(stem(word, self._language) for word in words or words_of(question))

    def _words(self, text: str) -> frozenset[str]:
        return frozenset(stem(word, self._language) for word in words_of(text))


@cache
def _stemmer(language: str) -> Any:
    return snowballstemmer.stemmer(language)


_stemming = Lock()  # a stemmer holds the word that it works on


@lru_cache(maxsize=65_536)
def stem(word: str, language: str | None) -> str:
    """The stem of a word; numbers, and words of a language without a stemmer, are their own."""
    if not language or _NUMBER.search(word) or len(word) > LONGEST_WORD:
        return word
    with _stemming:
        return str(_stemmer(language).stemWord(word))


def _origin(hit: Hit) -> str:
    """What is known of the hit's document as words: its id, title, year ..."""
    own = [str(value) for key, value in sorted(hit.metadata.items()) if key not in RESERVED]
    return " ".join([hit.document, *own])


def _weight(word: str) -> float:
    """How much a word tells, in bits; what a table of English does not have is rare."""
    return NUMBER_BITS if _NUMBER.search(word) else word_bits().get(word, RAREST)


def _support(candidate: _Candidate, asked: Mapping[str, float], is_expected: Callable[[str], bool]) -> float:
    """Share of the question's weight that a statement is credited with: 0 to 1."""
    total = sum(asked.values())
    credit = sum(weight * candidate.credit.get(word, 0.0) for word, weight in asked.items())
    statement = candidate.statement
    expected = 1.0 if is_expected(f"{statement.header or ''} {statement.text}") else UNEXPECTED
    return expected * credit / total if total else 0.0


def _score(support: float, candidate: _Candidate) -> float:
    whole = 1.0 if _is_whole(candidate.statement) else FRAGMENT
    return support * whole * (1 + RANK / (1 + candidate.hit))


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
