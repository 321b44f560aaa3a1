"""Pages of PDF per second: ragctl's parser processes, with all their limits, beside pypdf in one process.

    python -m benchmarks.pdf FOLDER [--pages 10000]

The PDFs of the folder are worked through again and again until there are enough pages. ragctl's seconds are from the
start of the parser processes until the last page is in chunks.
"""

from __future__ import annotations

import argparse
import logging
import queue
import time
from itertools import cycle
from pathlib import Path

import pypdf

from benchmarks.side_by_side import table
from ragctl.config import Experiment
from ragctl.records import SourceFile
from ragctl.worker import Cut, Failed, Item, Task
from ragctl.workers import Workers

REPEAT = 3


def pages_of(path: Path) -> int:
    """0 where pypdf cannot read the file."""
    try:
        return len(pypdf.PdfReader(path).pages)
    except pypdf.errors.PyPdfError:
        return 0


def many(folder: Path, pages: int) -> list[Path]:
    """Files, over and over, with at least so many pages; those that pypdf cannot read left out."""
    counts = {path: pages_of(path) for path in sorted(folder.rglob("*.pdf"))}
    readable = [path for path, count in counts.items() if count]
    if not readable:
        raise SystemExit(f"{folder}: no PDF that pypdf can read")
    files: list[Path] = []
    for path in cycle(readable):
        if pages <= 0:
            return files
        files.append(path)
        pages -= counts[path]
    return files


def with_pypdf(files: list[Path]) -> tuple[int, float]:
    """Pages whose text was extracted, and the seconds."""
    start, pages = time.perf_counter(), 0
    for path in files:
        for page in pypdf.PdfReader(path).pages:
            page.extract_text()
            pages += 1
    return pages, time.perf_counter() - start


def with_ragctl(folder: Path, files: list[Path]) -> float:
    """Seconds until every file came back in chunks."""
    experiment = Experiment.model_validate(
        {"name": "pdf", "sources": [{"name": "pdf", "kind": "local", "path": str(folder)}]}
    )
    tasks = (
        Task(SourceFile(f"pdf/{number}.pdf", str(path), path.stat().st_size, "1", "pdf"))
        for number, path in enumerate(files)
    )
    delivered: queue.SimpleQueue[list[Item] | BaseException | None] = queue.SimpleQueue()
    start, documents = time.perf_counter(), 0
    workers = Workers(experiment, tasks, delivered.put, delivered.put, embeds=False)
    workers.start()
    while (items := delivered.get()) is not None:
        if isinstance(items, BaseException):
            raise items
        failed = [item for item in items if isinstance(item, Failed)]
        if failed:
            raise RuntimeError(f"{failed[0].document}: {failed[0].error}")
        documents += sum(isinstance(item, Cut) for item in items)
    seconds = time.perf_counter() - start
    workers.join()
    if documents != len(files):
        raise RuntimeError(f"{documents} documents of {len(files)}")
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pages", type=int, default=10_000)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # pypdf has much to say about fonts
    folder = options.folder.resolve()
    files = many(folder, options.pages)
    pages = sum(pages_of(path) for path in files)
    ours = min(with_ragctl(folder, files) for _ in range(REPEAT))
    done, other = with_pypdf(many(folder, options.pages // 10))
    rates = {"ragctl, isolated": pages / ours, "pypdf": done / other}
    table(
        f"PDF: {pages:,} pages, a tenth of them with pypdf",
        ["", "seconds", "pages/s", "ragctl is"],
        [
            [name, f"{seconds:.1f}", f"{rates[name]:,.0f}", f"{rates['ragctl, isolated'] / rates[name]:.1f}x"]
            for name, seconds in (("ragctl, isolated", ours), ("pypdf", other))
        ],
    )


if __name__ == "__main__":
    main()
