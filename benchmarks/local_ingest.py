"""A corpus into a local index: ragctl beside LangChain + LanceDB and LlamaIndex + LanceDB, with the same embedder.

    python -m benchmarks.local_ingest CORPUS [--environments FOLDER] [--repeat 3]

CORPUS is a folder of text and Markdown files. Everybody cuts into chunks of up to 1,000 characters, embeds with
ragctl's `hashing` (2,048 dimensions) and writes to LanceDB. Seconds are those of the whole process, from its start to
its exit; "at work" are those that a peer reports of itself, without its imports. ragctl makes a text index, for hybrid
search; the peers make theirs before the first search by words. So like is compared with like: ragctl with the peers and
their text index, which each makes at the end as its store would, and ragctl without one with the peers as they come.
LangChain's bulk load keeps no record of what is in.
All are measured in turn, several times, because a machine may be slower in one minute than in another; the best of each
counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side_by_side import Run, environment, peer, ragctl, table, workplace

CHUNK, DIMENSION = 1_000, 2_048
WITH, WITHOUT = "ragctl ingest", "ragctl ingest, no text index"


@dataclass(frozen=True)
class Row:
    """Chunks that went in, seconds of the whole process without a text index, those of one, and what a peer says of
    its own work.
    """

    chunks: int
    seconds: float
    text_index: float = 0.0
    at_work: float | None = None

    @property
    def rate(self) -> float:
        return self.chunks / self.seconds

    @property
    def searchable(self) -> float:
        """Chunks per second until they can be searched by words too."""
        return self.chunks / (self.seconds + self.text_index)


def ours(folder: Path, corpus: Path, *, text_search: bool) -> Row:
    """`ragctl ingest`, with or without a text index."""
    done = ragctl(
        folder,
        {
            "name": "local-ingest",
            "sources": [{"name": "corpus", "kind": "local", "path": str(corpus)}],
            "chunking": {"size": CHUNK},
            "embedding": {"kind": "hashing", "dimension": DIMENSION},
            "store": {"kind": "local", "text_search": text_search},
        },
    )
    (report,) = (folder / "runs").glob("*/run.json")
    document = json.loads(report.read_text())
    return Row(document["chunks"]["written"], done.seconds)


def langchain(python: str, folder: Path, corpus: Path, work: str) -> Row:
    """`lancedb`: `index()` as it comes, with its record of what is in; `lancedb-bulk`: `add_documents`, all at once."""
    return _peer(
        peer(
            python,
            "langchain_index.py",
            folder,
            *(work, corpus, "--embedder", str(DIMENSION), "--chunk", str(CHUNK), "--text-index"),
        )
    )


def llama_index(python: str, folder: Path, corpus: Path) -> Row:
    """The ingestion pipeline, embedding in large batches."""
    return _peer(
        peer(
            python,
            "llama_index_pipeline.py",
            folder,
            *("lancedb", corpus, "--embedder", str(DIMENSION), "--dimension", str(DIMENSION)),
            *("--chunk", str(CHUNK), "--batch", "256", "--text-index"),
        )
    )


def _peer(done: Run) -> Row:
    said = done.said
    return Row(said["written"], done.seconds - said["text_index"], said["text_index"], said["seconds"])


def once(work: Callable[[Path], Row]) -> Row:
    """One measurement, in an empty folder."""
    folder = Path(tempfile.mkdtemp())
    try:
        return work(folder)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--environments", type=Path, help="keeps the peers' environments between runs")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    corpus = options.corpus.resolve()
    size = sum(file.stat().st_size for file in corpus.rglob("*") if file.is_file())
    with workplace(options.environments) as home:
        chain, index = environment(home, "langchain"), environment(home, "llama_index")
        contestants: dict[str, Callable[[Path], Row]] = {
            WITH: lambda folder: ours(folder, corpus, text_search=True),
            WITHOUT: lambda folder: ours(folder, corpus, text_search=False),
            "LangChain index(), LanceDB": lambda folder: langchain(chain, folder, corpus, "lancedb"),
            "LangChain add_documents, LanceDB": lambda folder: langchain(
                chain, folder, corpus, "lancedb-bulk"
            ),
            "LlamaIndex, LanceDB": lambda folder: llama_index(index, folder, corpus),
        }
        rounds = [{name: once(work) for name, work in contestants.items()} for _ in range(options.repeat)]
    rows = {name: max((each[name] for each in rounds), key=lambda row: row.rate) for name in contestants}
    whole, plain = rows[WITH].rate, rows[WITHOUT].rate
    table(
        f"Local ingest of {size / 1e6:.0f} MB with hashing on {os.cpu_count()} cores",
        [
            *("", "chunks", "seconds", "at work", "chunks/s", "ragctl is"),
            *("with text index, s", "chunks/s", "ragctl is", "ragctl with, row without"),
        ],
        [
            [
                name,
                f"{row.chunks:,}",
                f"{row.seconds:.1f}" if name != WITH else "",
                f"{row.at_work:.1f}" if row.at_work else "",
                f"{row.rate:,.0f}" if name != WITH else "",
                f"{plain / row.rate:.1f}x" if row.at_work else "",
                f"{row.seconds + row.text_index:.1f}" if name != WITHOUT else "",
                f"{row.searchable:,.0f}" if name != WITHOUT else "",
                f"{whole / row.searchable:.1f}x" if row.at_work else "",
                f"{whole / row.rate:.1f}x" if row.at_work else "",
            ]
            for name, row in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
