"""A corpus into a local index: ragctl beside LangChain + LanceDB and LlamaIndex + LanceDB, with the same embedder.

    python -m benchmarks.local_ingest CORPUS [--environments FOLDER] [--repeat 3]

CORPUS is a folder of text and Markdown files. Everybody cuts into chunks of up to 1,000 characters, embeds with
ragctl's `hashing` (2,048 dimensions) and writes to LanceDB. Seconds are those of the whole process, from its start to
its exit; "at work" are those that a peer reports of itself, without its imports. None of the peers makes a text index,
and LangChain's bulk load keeps no record of what is in, so ragctl is measured without a text index as well.
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


@dataclass(frozen=True)
class Row:
    """Chunks that went in, seconds of the whole process, and what a peer says of its own work."""

    chunks: int
    seconds: float
    at_work: float | None = None

    @property
    def rate(self) -> float:
        return self.chunks / self.seconds


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
            *(work, corpus, "--embedder", str(DIMENSION), "--chunk", str(CHUNK)),
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
            *("--chunk", str(CHUNK), "--batch", "256"),
        )
    )


def _peer(done: Run) -> Row:
    return Row(done.said["written"], done.seconds, done.said["seconds"])


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
            "ragctl ingest": lambda folder: ours(folder, corpus, text_search=True),
            "ragctl ingest, no text index": lambda folder: ours(folder, corpus, text_search=False),
            "LangChain index(), LanceDB": lambda folder: langchain(chain, folder, corpus, "lancedb"),
            "LangChain add_documents, LanceDB": lambda folder: langchain(
                chain, folder, corpus, "lancedb-bulk"
            ),
            "LlamaIndex, LanceDB": lambda folder: llama_index(index, folder, corpus),
        }
        rounds = [{name: once(work) for name, work in contestants.items()} for _ in range(options.repeat)]
    rows = {name: max((each[name] for each in rounds), key=lambda row: row.rate) for name in contestants}
    whole, plain = rows["ragctl ingest"].rate, rows["ragctl ingest, no text index"].rate
    table(
        f"Local ingest of {size / 1e6:.0f} MB with hashing on {os.cpu_count()} cores",
        ["", "chunks", "seconds", "at work", "chunks/s", "ragctl is", "without text index"],
        [
            [
                name,
                f"{row.chunks:,}",
                f"{row.seconds:.1f}",
                f"{row.at_work:.1f}" if row.at_work else "",
                f"{row.rate:,.0f}",
                f"{whole / row.rate:.1f}x",
                f"{plain / row.rate:.1f}x",
            ]
            for name, row in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
