"""How much memory an ingest takes as the corpus grows, and that a million chunks go in.

    python -m benchmarks.memory [--chunks 10000 100000 1000000]

Synthetic records of about 110 characters, a chunk each, 64 dimensions, into the local store. Memory is resident
memory, sampled ten times a second: of the main process (RSS), and of it and its parser processes together, where
pages that they share count once (PSS).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks.side_by_side import Run, ragctl, table, write_records

PER_FILE = 100


def ingest(chunks: int) -> Run:
    """A first ingest of so many records."""
    folder = Path(tempfile.mkdtemp())
    try:
        corpus = folder / "corpus"
        corpus.mkdir()
        for first in range(0, chunks, PER_FILE):
            write_records(corpus / f"{first:08}.jsonl", first, min(PER_FILE, chunks - first))
        return ragctl(
            folder,
            {
                "name": "memory",
                "sources": [{"name": "notes", "kind": "local", "path": "corpus"}],
                "chunking": {"kind": "record"},
                "embedding": {"kind": "hashing", "dimension": 64},
            },
        )
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    runs = {chunks: ingest(chunks) for chunks in options.chunks}
    least = min(run.tree_mb for run in runs.values())
    table(
        "Peak memory",
        ["chunks", "seconds", "chunks/s", "main process, MB", "with its workers, MB", "above the least"],
        [
            [
                f"{chunks:,}",
                f"{run.seconds:.0f}",
                f"{chunks / run.seconds:,.0f}",
                f"{run.peak_mb:.0f}",
                f"{run.tree_mb:.0f}",
                f"{run.tree_mb / least - 1:.0%}",
            ]
            for chunks, run in runs.items()
        ],
    )


if __name__ == "__main__":
    main()
