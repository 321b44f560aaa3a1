"""Ingesting again where nothing has changed: ragctl beside LangChain `index()`, both over a local LanceDB store.

    python -m benchmarks.noop [--environments FOLDER] [--documents 100000]

The documents are as many small files. Seconds are those of the whole process, from its start to its exit; "at work"
are those that LangChain reports of itself, without its imports.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.side_by_side import Run, environment, peer, ragctl, sentence, table, workplace

PER_FOLDER = 1_000
REPEAT = 3
AS_IT_COMES, SUITED = 100, 10_000  # documents to a batch of `index()`


def write_files(folder: Path, count: int) -> None:
    """So many files of one short text."""
    for number in range(count):
        place = folder / f"{number // PER_FOLDER:04}"
        if number % PER_FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"{number}.txt").write_text(sentence(number), encoding="utf-8")


def ours(folder: Path, corpus: Path) -> tuple[float, float]:
    """Seconds of the first ingest and of the best that changed nothing."""
    experiment = {
        "name": "noop",
        "sources": [{"name": "files", "kind": "local", "path": str(corpus)}],
        "embedding": {"kind": "hashing", "dimension": 64},
    }
    first = ragctl(folder, experiment).seconds
    return first, min(ragctl(folder, experiment).seconds for _ in range(REPEAT))


def langchain(python: str, folder: Path, corpus: Path, count: int) -> dict[str, tuple[float, float, float]]:
    """The same of `index()`, as it comes and with batches that suit it, and its seconds at work; the first time is
    that of the latter.
    """
    options: list[str | Path] = ["lancedb", corpus, "--embedder", "64"]

    def index(batch: int, expected: int) -> Run:
        done = peer(python, "langchain_index.py", folder, *options, "--batch", str(batch))
        if done.said["written"] != expected:
            raise RuntimeError(f"LangChain wrote {done.said['written']} documents, not {expected}")
        return done

    first = index(SUITED, count).seconds
    as_it_comes, suited = index(AS_IT_COMES, 0), index(SUITED, 0)
    return {
        "LangChain index(), LanceDB": (first, as_it_comes.seconds, as_it_comes.said["seconds"]),
        f"the same, batches of {SUITED:,}": (first, suited.seconds, suited.said["seconds"]),
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--environments", type=Path, help="keeps the peers' environments between runs")
    parser.add_argument("--documents", type=int, default=100_000)
    options = parser.parse_args()
    with workplace(options.environments) as home, tempfile.TemporaryDirectory() as made:
        folder, corpus = Path(made), Path(made) / "corpus"
        write_files(corpus, options.documents)
        first, again = ours(folder, corpus)
        others = langchain(environment(home, "langchain"), folder, corpus, options.documents)
    table(
        f"Nothing has changed in {options.documents:,} documents",
        ["", "first time, s", "again, s", "at work", "documents/s", "ragctl is", "by work"],
        [
            [
                "ragctl ingest",
                f"{first:.1f}",
                f"{again:.2f}",
                "",
                f"{options.documents / again:,.0f}",
                "",
                "",
            ],
            *(
                [
                    name,
                    f"{before:.1f}",
                    f"{seconds:.2f}",
                    f"{at_work:.2f}",
                    f"{options.documents / seconds:,.0f}",
                    f"{seconds / again:.1f}x",
                    f"{at_work / again:.1f}x",
                ]
                for name, (before, seconds, at_work) in others.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
