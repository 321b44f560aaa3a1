"""Models that need no weights: vectors and answers that depend on the input, the same on every machine.

An embedding is a signed, hashed bag of stemmed words, so that texts about the same are near. An answer quotes the
sentence of the passages that shares most words with the question, and cites its passage.
"""

import html
import math
import re
from collections import Counter
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tests.servers.bm25 import tokens

NO_ANSWER = "The corpus does not answer this question."

_INSTRUCTION = re.compile(r"\AInstruct: .*\nQuery: ")
_PASSAGE = re.compile(r'<passage number="(\d+)"[^>]*>\n(.*?)\n</passage>', re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_COMMON = frozenset(
    tokens("a an and are as at be by for from how in is it of on or that the to was what when", "en")
)


def count_tokens(text: str) -> int:
    """Words and numbers of a text: what the models here take for tokens."""
    return len(tokens(text, None))


def embed(text: str, dimension: int) -> NDArray[np.float32]:
    """A vector of unit length, shape (dimension,); texts without words share one.

    As with the models that take an instruction before a query, the instruction is not what the query is about.
    """
    numbers = [0.0] * dimension
    for word, count in Counter(tokens(_INSTRUCTION.sub("", text), "en")).items():
        place, sign = _place(word)
        numbers[place % dimension] += sign * (1 + math.log(count))
    if not any(numbers):
        numbers[0] = 1
    vector: NDArray[np.float64] = np.array(numbers)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@lru_cache(maxsize=200_000)
def _place(word: str) -> tuple[int, int]:
    number = int.from_bytes(blake2b(word.encode(), digest_size=8).digest())
    return number >> 1, 1 if number & 1 else -1


def overlap(question: str, text: str) -> float:
    """Share of the question's words, common ones aside, that the text holds: 0 to 1."""
    wanted = set(tokens(question, "en")) - _COMMON
    return len(wanted & set(tokens(text, "en"))) / len(wanted) if wanted else 0.0


def answer(prompt: str) -> str:
    """The reply to a message that holds numbered passages and then a question."""
    passages = _PASSAGE.findall(prompt)
    question = prompt.rpartition("</passage>")[2] if passages else prompt
    candidates = [
        (overlap(question, sentence), -int(number), sentence)
        for number, text in passages
        for sentence in _SENTENCE.split(html.unescape(text))
    ]
    score, number, sentence = max(candidates, default=(0.0, 0, ""))
    return f"{sentence.strip()} [{-number}]" if score else NO_ANSWER
