"""What the embedded store costs: writing, indexing, and each kind of search, with and without a filter.

    python -m benchmarks.local_store [--records 100000] [--dimension 384] [--words 120]

Vectors are random and texts are words as rare as in a language, which no search can take a shortcut through.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from ragctl.adapters.base import IndexSpec, SearchRequest
from ragctl.adapters.local import LocalStore
from ragctl.filters import normalise
from ragctl.records import SearchMode, VectorRecord, short_hash

SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ji", "ko", "lu", "me", "ni", "po", "ra", "su", "te", "vo")
WORDS = np.array(["".join(parts) for parts in product(SYLLABLES, repeat=3)])
RARITY = (1 / np.arange(1, len(WORDS) + 1)) / (1 / np.arange(1, len(WORDS) + 1)).sum()  # Zipf's law
FILTER = normalise({"year": {"$gte": 2010}, "customer": "c17"})
MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")
QUERIES = 15


def batches(arguments: argparse.Namespace, size: int) -> Iterator[list[VectorRecord]]:
    """Records as ingest makes them, in batches that one put takes."""
    rng = np.random.default_rng(0)
    for first in range(0, arguments.records, size):
        count = min(size, arguments.records - first)
        vectors = rng.standard_normal((count, arguments.dimension), dtype=np.float32)
        words = rng.choice(WORDS, size=(count, arguments.words), p=RARITY)
        yield [
            VectorRecord(
                short_hash(str(number)),
                vector,
                {
                    "text": " ".join(text),
                    "document": f"docs/{number // 20}.pdf",
                    "start": number % 20 * 900,
                    "end": number % 20 * 900 + 899,
                    "year": 2000 + number % 25,
                    "customer": f"c{number % 100}",
                },
            )
            for number, vector, text in zip(range(first, first + count), vectors, words, strict=True)
        ]


def report(what: str, seconds: float, cpu: float, note: str = "") -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{what:<24}{seconds * 1_000:>12,.1f} ms{cpu * 1_000:>12,.1f} ms CPU{peak:>8,} MiB peak  {note}")


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of wall and CPU time."""
    wall, cpu = [], []
    for _ in range(QUERIES):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return statistics.median(wall), statistics.median(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--words", type=int, default=120)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder) / "db", "benchmark")
        store.create(IndexSpec(arguments.dimension, "cosine", "random"))
        fill(store, arguments)
        ask(store, arguments.dimension)


def fill(store: LocalStore, arguments: argparse.Namespace) -> None:
    seconds = cpu = 0.0
    bytes_each = 5 * arguments.dimension + 12 * arguments.words + 500
    for batch in batches(arguments, min(store.limits.put_records, store.limits.put_bytes // bytes_each)):
        start, used = time.perf_counter(), time.process_time()
        store.put(batch)
        seconds += time.perf_counter() - start
        cpu += time.process_time() - used
    report("put", seconds, cpu, f"{arguments.records / seconds:,.0f} records/s")
    for what in ("finish", "finish again"):
        start, used = time.perf_counter(), time.process_time()
        store.finish()
        report(what, time.perf_counter() - start, time.process_time() - used)


def ask(store: LocalStore, dimension: int) -> None:
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(dimension).astype(np.float32)
    text = " ".join(rng.choice(WORDS, size=6, p=RARITY))
    for mode, condition in product(MODES, (None, FILTER)):
        request = SearchRequest(
            mode, 10, None if mode == "text" else vector, None if mode == "vector" else text, condition
        )
        hits = len(store.search(request))
        wall, cpu = measure(partial(store.search, request))
        report(f"{mode}{', filtered' if condition else ''}", wall, cpu, f"{hits} hits")


if __name__ == "__main__":
    main()
