"""BM25 over one text field, simple enough to be checked by hand."""

import math
import re
from collections import Counter
from functools import lru_cache

import snowballstemmer

K1, B = 1.2, 0.75

_ALGORITHMS = {
    "en": "english",
    "fr": "french",
    "es": "spanish",
    "pt": "portuguese",
    "it": "italian",
    "de": "german",
    "nl": "dutch",
}
# A word, or one character of a script that writes no spaces.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


@lru_cache(maxsize=200_000)
def _stem(word: str, language: str) -> str:
    return str(_stemmer(language).stemWord(word))


@lru_cache
def _stemmer(language: str) -> snowballstemmer.stemmer:
    return snowballstemmer.stemmer(_ALGORITHMS[language])


def tokens(text: str, language: str | None) -> list[str]:
    """Return the lower-case words of a text, stemmed where the language has a stemmer."""
    words = _TOKEN.findall(text.lower())
    if language not in _ALGORITHMS:
        return words
    return [_stem(word, language) for word in words]


class TextIndex:
    """The words of one field of every vector that has it."""

    def __init__(self, language: str | None) -> None:
        self._language = language
        self._texts: dict[str, str] = {}
        self._lengths: dict[str, int] = {}
        self._postings: dict[str, dict[str, int]] = {}

    def put(self, key: str, text: str) -> None:
        """Add a text, replacing the one the key had."""
        self.remove(key)
        counts = Counter(tokens(text, self._language))
        if counts:
            self._texts[key], self._lengths[key] = text, counts.total()
        for term, count in counts.items():
            self._postings.setdefault(term, {})[key] = count

    def remove(self, key: str) -> None:
        """Forget a key; one that is not there is fine."""
        if key not in self._texts:
            return
        for term in set(tokens(self._texts.pop(key), self._language)):
            del self._postings[term][key]
        del self._lengths[key]

    def scores(self, query: str) -> dict[str, float]:
        """Return the BM25 score of every key that has a word of the query (Robertson's formula, idf as in Lucene)."""
        scores: dict[str, float] = {}
        average = sum(self._lengths.values()) / len(self._lengths) if self._lengths else 0.0
        for term in tokens(query, self._language):
            found = self._postings.get(term, {})
            idf = math.log(1 + (len(self._lengths) - len(found) + 0.5) / (len(found) + 0.5))
            for key, count in found.items():
                norm = K1 * (1 - B + B * self._lengths[key] / average)
                scores[key] = scores.get(key, 0.0) + idf * count * (K1 + 1) / (count + norm)
        return scores
