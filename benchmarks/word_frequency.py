"""Counts how common English words are, for the prior of the hashing embedder.

    python benchmarks/word_frequency.py FOLDER FOLDER FOLDER ... > ragctl/adapters/word_frequency.tsv

Each folder is one kind of text. The files below it are cut into passages of 200 words, and a stem's share is the
share of passages that hold it. What is written is the median share over the folders, as whole bits: 3 stands for
one passage in eight. With the median, a word counts as common when most kinds of text use it; one trade's own
words, however frequent there, stay out of the table and get the embedder's rarest class.

The table in the package was counted from ten folders of a Debian 12 machine: /usr/share/doc, man pages (section 1),
/usr/share/info, the Vim manual, the Perl manual, /usr/share/common-licenses, the docstrings of Python's standard
library, those of SciPy, SymPy, NetworkX and mpmath, three user guides of AWS, and the Python enhancement proposals.
It holds counts only. Nothing of an evaluation set went into it.
"""

from __future__ import annotations

import ast
import gzip
import math
import re
import statistics
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from snowballstemmer import stemmer

PASSAGE = 200  # words, about one chunk of 1,000 characters
RAREST = 12.5  # bits; what is rarer is left out
SUFFIXES = {"", ".gz", ".html", ".md", ".pm", ".pod", ".py", ".rst", ".txt"}
WORD = re.compile(r"[a-z]+")
TAG = re.compile(r"<[^<>]{1,300}>")


def docstrings(source: str) -> str:
    """What the docstrings of a Python file say; nothing for a file of another Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    return "\n".join(text for text in found if text)


def read(path: Path) -> str:
    """A file's text, without its tags; nothing for a damaged archive."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return ""
    text = data.decode("utf-8", "replace")
    return docstrings(text) if path.suffix == ".py" else TAG.sub(" ", text)


def passages(folder: Path) -> Iterator[list[str]]:
    """The words of the folder's files, `PASSAGE` at a time; a file's shorter rest is left out."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink():
            words = WORD.findall(read(path).lower())
            for start in range(0, len(words) - PASSAGE + 1, PASSAGE):
                yield words[start : start + PASSAGE]


def shares(folder: Path) -> dict[str, float]:
    """Stem -> share of the folder's passages that hold it."""
    holding: Counter[str] = Counter()
    count = 0
    english, stems = stemmer("english"), dict[str, str]()
    for words in passages(folder):
        for word in set(words) - stems.keys():
            stems[word] = english.stemWord(word)
        holding.update({stems[word] for word in words})
        count += 1
    print(f"{folder}: {count:,} passages, {len(holding):,} stems", file=sys.stderr)
    return {stem: n / count for stem, n in holding.items()}


def bits(stem: str, kinds: list[dict[str, float]]) -> float:
    """How much it tells that a passage holds the stem: -log2 of the median share."""
    share = statistics.median(kind.get(stem, 0.0) for kind in kinds)
    return -math.log2(share) if share else math.inf


def main() -> None:
    kinds = [shares(Path(folder)) for folder in sys.argv[1:]]
    classes = {stem: bits(stem, kinds) for stem in set().union(*kinds)}
    common = sorted((round(value), stem) for stem, value in classes.items() if value < RAREST)
    for value, stem in common:
        print(f"{stem}\t{value}")


if __name__ == "__main__":
    main()
