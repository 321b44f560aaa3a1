"""A corpus into a local index: ragctl beside LangChain + LanceDB and LlamaIndex + LanceDB, with the same embedder.

    python -m benchmarks.local_ingest CORPUS [--environments FOLDER] [--repeat 3]

CORPUS is a folder of text and Markdown files. Everybody cuts into chunks of up to 1,000 characters, embeds with
ragctl's `hashing` (2,048 dimensions) and writes to LanceDB. ragctl's seconds are those of the whole command, from the
start of the process to its exit, its text index and ledger among them; the peers' leave their imports out, and they
make no text index. The best of the repetitions counts, for each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.side_by_side import Run, environment, peer, ragctl, table, workplace

CHUNK, DIMENSION = 1_000, 2_048


def ours(folder: Path, corpus: Path) -> tuple[int, float]:
    """Chunks and seconds of `ragctl ingest`."""
    done = ragctl(
        folder,
        {
            "name": "local-ingest",
            "sources": [{"name": "corpus", "kind": "local", "path": str(corpus)}],
            "chunking": {"size": CHUNK},
            "embedding": {"kind": "hashing", "dimension": DIMENSION},
        },
    )
    (report,) = (folder / "runs").glob("*/run.json")
    document = json.loads(report.read_text())
    return int(_find(document, "written")), done.seconds


def _find(document: object, name: str) -> int:
    """The first member of that name, at whatever depth."""
    if isinstance(document, dict):
        if name in document:
            return int(document[name])
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            if (found := _find(part, name)) >= 0:
                return found
    return -1


def langchain(python: str, folder: Path, corpus: Path, work: str) -> tuple[int, float]:
    """`lancedb`: `index()` as it comes, with its record of what is in; `lancedb-bulk`: `add_documents`, all at once."""
    return _peer(
        peer(
            python,
            "langchain_index.py",
            folder,
            *(work, corpus, "--embedder", str(DIMENSION), "--chunk", str(CHUNK)),
        )
    )


def llama_index(python: str, folder: Path, corpus: Path) -> tuple[int, float]:
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


def _peer(done: Run) -> tuple[int, float]:
    return done.said["written"], done.said["seconds"]


def best(work: Callable[[Path], tuple[int, float]], repeat: int) -> tuple[int, float]:
    """The repetition with the highest rate, each in an empty folder."""
    found = []
    for _ in range(repeat):
        folder = Path(tempfile.mkdtemp())
        try:
            found.append(work(folder))
        finally:
            shutil.rmtree(folder)
    return max(found, key=lambda one: one[0] / one[1])


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
            "ragctl ingest": best(lambda folder: ours(folder, corpus), options.repeat),
            "LangChain index(), LanceDB": best(
                lambda folder: langchain(chain, folder, corpus, "lancedb"), options.repeat
            ),
            "LangChain add_documents, LanceDB": best(
                lambda folder: langchain(chain, folder, corpus, "lancedb-bulk"), options.repeat
            ),
            "LlamaIndex, LanceDB": best(lambda folder: llama_index(index, folder, corpus), options.repeat),
        }
    rates = {name: chunks / seconds for name, (chunks, seconds) in rows.items()}
    table(
        f"Local ingest of {size / 1e6:.0f} MB with hashing on {os.cpu_count()} cores",
        ["", "chunks", "seconds", "chunks/s", "ragctl is"],
        [
            [
                name,
                f"{chunks:,}",
                f"{seconds:.1f}",
                f"{rates[name]:,.0f}",
                f"{rates['ragctl ingest'] / rates[name]:.1f}x",
            ]
            for name, (chunks, seconds) in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
