"""A whole `ragctl ingest` into S3 Vectors while the service throttles: nothing lost, and never above the limit.

    python -m benchmarks.s3vectors_ingest [--vectors 50000] [--faults 200]

Every record of a made-up corpus is one chunk. The service is the test server; half of the faults are 429, half 503.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli import Ended, experiment, ragctl
from tests.servers.http import Fault
from tests.servers.s3vectors import S3VectorsServer

PER_FILE = 1_000  # records
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "eu-west-1",
}


@dataclass(frozen=True)
class Outcome:
    """How an ingest ended, and what the server saw of it."""

    ended: Ended
    stored: int  # vectors in the index
    faults: int  # injected
    puts: int  # calls, those that met a fault included
    peak: float  # vectors/s, the highest mean over 5 s
    seconds: float


def write_corpus(folder: Path, records: int) -> None:
    """JSON lines below `folder`, each another text."""
    folder.mkdir(parents=True)
    for first in range(0, records, PER_FILE):
        lines = (
            json.dumps({"id": str(number), "text": f"Buoy {number} sent reading {number * 7919 % 10_007}."})
            for number in range(first, min(first + PER_FILE, records))
        )
        (folder / f"{first:06}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def faults(count: int) -> list[Fault]:
    """So many faults of PutVectors, which come in nine calls of ten until they are spent."""
    rest: dict[str, Any] = {"kind": "error", "operation": "PutVectors", "probability": 0.7}
    return [
        Fault(status=429, code="TooManyRequestsException", times=count - count // 2, seed=1, **rest),
        Fault(status=503, code="ServiceUnavailableException", times=count // 2, seed=2, **rest),
    ]


def ingest(folder: Path, *, vectors: int, count: int) -> Outcome:
    """Run the command over `vectors` records while the server throttles `count` calls."""
    write_corpus(folder / "docs", vectors)
    config = experiment(
        folder,
        embedding={"kind": "hashing", "dimension": 64},
        chunking={"kind": "record"},
        store={"kind": "s3vectors", "bucket": "benchmark", "index": "readings"},
    )
    with S3VectorsServer() as server:
        server.faults.add(*faults(count))
        start = time.perf_counter()
        ended = ragctl(
            "ingest", config, "--json", env={**ENVIRONMENT, "AWS_ENDPOINT_URL_S3VECTORS": server.url}
        )
        seconds = time.perf_counter() - start
        report = server.report()
        assert (server.unexpected, server.broken) == ([], [])
    return Outcome(
        ended,
        stored=sum(report["vectors"].values()),
        faults=report["faults"],
        puts=report["calls"]["PutVectors"],
        peak=max(report["peak_vectors_per_second"].values()),
        seconds=seconds,
    )


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--faults", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        outcome = ingest(Path(name) / "ingest", vectors=options.vectors, count=options.faults)
    print(outcome.ended.err, end="")
    print(f"exit status      {outcome.ended.status}")
    print(f"vectors stored   {outcome.stored:,} of {options.vectors:,}")
    print(f"faults injected  {outcome.faults:,} in {outcome.puts:,} calls of PutVectors")
    print(f"highest rate     {outcome.peak:,.0f} vectors/s over 5 s")
    print(f"time             {outcome.seconds:.1f} s")


if __name__ == "__main__":
    main()
