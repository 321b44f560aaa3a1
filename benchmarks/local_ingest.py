"""A corpus into a local index: ragctl beside LangChain + LanceDB and LlamaIndex + LanceDB, with the same embedder.

    python -m benchmarks.local_ingest CORPUS [--environments FOLDER] [--repeat 3]

CORPUS is a folder of text and Markdown files. Everybody cuts into chunks of up to 1,000 characters, embeds with
ragctl's `hashing` (2,048 dimensions) and writes to LanceDB. Seconds are those of the whole process, from its start to
its exit; "at work" are those that a peer reports of itself, without its imports. None of the peers makes a text index,
and LangChain's bulk load keeps no record of what is in, so ragctl is measured without a text index as well.
The best of the repetitions counts, for each.
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


def best(work: Callable[[Path], Row], repeat: int) -> Row:
    """The repetition with the highest rate, each in an empty folder."""
    found = []
    for _ in range(repeat):
        folder = Path(tempfile.mkdtemp())
        try:
            found.append(work(folder))
        finally:
            shutil.rmtree(folder)
    return max(found, key=lambda row: row.rate)


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
        rows = {
            "ragctl ingest": best(lambda folder: ours(folder, corpus, text_search=True), options.repeat),
            "ragctl ingest, no text index": best(
                lambda folder: ours(folder, corpus, text_search=False), options.repeat
            ),
            "LangChain index(), LanceDB": best(
                lambda folder: langchain(chain, folder, corpus, "lancedb"), options.repeat
            ),
            "LangChain add_documents, LanceDB": best(
                lambda folder: langchain(chain, folder, corpus, "lancedb-bulk"), options.repeat
            ),
            "LlamaIndex, LanceDB": best(lambda folder: llama_index(index, folder, corpus), options.repeat),
        }
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
