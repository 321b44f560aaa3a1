"""What writing and reading vectors on S3 Vectors costs the process that does it: ragctl beside plain boto3.

    python -m benchmarks.s3vectors_put [--vectors 20000] [--dimension 384] [--threads 4]

The service is the test server, in a process of its own, with 80 ms of latency. Each row is one way of doing the same
work; "core" is the share of one core that this process used, and what it would be at 2,500 vectors/s.
One row goes through the limiter; the others write as fast as they can.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import numpy as np
from botocore.config import Config

from ragctl.adapters.base import IndexSpec
from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.adapters.s3vectors_records import put_body
from ragctl.backends import S3VectorsStore as Settings
from ragctl.records import NON_FILTERABLE, VectorRecord
from ragctl.sparse import dense
from tests.servers.process import ServerProcess

BUCKET, INDEX, PACED = "benchmark", "vectors", "paced"
TEXT = "Vectors are written in batches, each as full as the service takes it. " * 14  # about 1 KB


def records(count: int, dimension: int) -> list[VectorRecord]:
    """Records as ingest makes them: a normalised float32 vector, a text and a few keys to filter by."""
    rows = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [
        VectorRecord(
            f"{number:040x}", row, {"document": f"docs/{number}.md", "page": number % 90, "text": TEXT}
        )
        for number, row in enumerate(rows)
    ]


def cut(data: Sequence[VectorRecord], size: int) -> list[Sequence[VectorRecord]]:
    """Cut records into batches."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def measure(
    name: str,
    work: Callable[[Sequence[VectorRecord]], object],
    batches: Sequence[Sequence[VectorRecord]],
    threads: int,
) -> None:
    """Run the work over batches and print one row."""
    count = sum(map(len, batches))
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, batches))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    share, at_limit = cpu / wall, 2_500 * cpu / count
    print(f"{name:<34}{count / wall:>12,.0f}{1e6 * cpu / count:>14,.0f}{share:>10.2f}{at_limit:>18.2f}")


class Plain:
    """The same work in plain boto3."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._names = {"vectorBucketName": BUCKET, "indexName": INDEX}

    def put(self, batch: Sequence[VectorRecord]) -> None:
        vectors = [
            {"key": one.key, "data": {"float32": dense(one.vector).tolist()}, "metadata": one.metadata}
            for one in batch
        ]
        self._client.put_vectors(**self._names, vectors=vectors)

    def put_encoded(self, batch: Sequence[VectorRecord]) -> None:
        """With the body written by ragctl, and nothing else of it."""
        self._client.put_vectors(**self._names, vectors=put_body(BUCKET, INDEX, batch))

    def get(self, batch: Sequence[VectorRecord]) -> None:
        keys = [one.key for one in batch]
        self._client.get_vectors(**self._names, keys=keys, returnData=True, returnMetadata=True)


def store_put(store: S3VectorsStore) -> Callable[[Sequence[VectorRecord]], None]:
    """What ingest does with a batch."""

    def put(batch: Sequence[VectorRecord]) -> None:
        for one in batch:
            store.check(one)
        assert sum(map(store.encoded_size, batch)) <= store.limits.put_bytes
        store.put(batch)

    return put


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    data = records(options.vectors, options.dimension)
    puts, gets = cut(data, 500), cut(data[: options.vectors // 4], 100)
    with ServerProcess("tests.servers.s3vectors", "--latency", '{"PutVectors": 0.08}') as server:
        client = boto3.client(
            "s3vectors",
            endpoint_url=server.url,
            region_name="eu-west-1",
            aws_access_key_id="benchmark",
            aws_secret_access_key="benchmark",
            config=Config(retries={"total_max_attempts": 1, "mode": "standard"}),
        )
        stores = {
            index: S3VectorsStore(client, Settings(kind="s3vectors", bucket=BUCKET, index=index))
            for index in (INDEX, PACED)
        }
        for store in stores.values():
            store.create(IndexSpec(options.dimension, "cosine", "benchmark", NON_FILTERABLE))
        plain = Plain(client)
        print(f"{options.vectors:,} vectors of {options.dimension} dimensions, {options.threads} threads")
        print(f"{'':<34}{'vectors/s':>12}{'CPU us/vector':>14}{'core':>10}{'core at 2,500/s':>18}")
        measure("put, boto3", plain.put, puts[: len(puts) // 4 + 1], options.threads)
        measure("put, ragctl's body, no limiter", plain.put_encoded, puts, options.threads)
        measure("check, size and put, ragctl", store_put(stores[PACED]), puts, options.threads)
        measure("get, boto3", plain.get, gets, options.threads)
        peaks = server.report()["peak_vectors_per_second"]
        print("ragctl's highest rate over 5 s, vectors/s:", *(peaks[arn] for arn in peaks if PACED in arn))


if __name__ == "__main__":
    main()
