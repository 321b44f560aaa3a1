"""What writing and reading vectors on S3 Vectors costs the process that does it: ragctl beside plain boto3.

    python -m benchmarks.s3vectors_put [--vectors 20000] [--dimension 384] [--threads 4]

The service is the test server, in a process of its own, with 80 ms of latency. Each row is one way of doing the same
work; "core" is the share of one core that this process used, and what it would be at 2,500 vectors/s.
The last row goes through the limiter; the other two write as fast as they can.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import boto3
import numpy as np
from botocore.config import Config

from ragctl.adapters.base import IndexSpec
from ragctl.adapters.s3vectors import S3VectorsStore
from ragctl.adapters.s3vectors_records import install, put_body
from ragctl.backends import S3VectorsStore as Settings
from ragctl.records import NON_FILTERABLE, VectorRecord
from tests.servers.process import ServerProcess

BUCKET, INDEX = "benchmark", "vectors"
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    data = records(options.vectors, options.dimension)
    batches = cut(data, 500)
    with ServerProcess("tests.servers.s3vectors", "--latency", '{"PutVectors": 0.08}') as server:
        client = boto3.client(
            "s3vectors",
            endpoint_url=server.url,
            region_name="eu-west-1",
            aws_access_key_id="benchmark",
            aws_secret_access_key="benchmark",
            config=Config(retries={"total_max_attempts": 1, "mode": "standard"}),
        )
        store = S3VectorsStore(client, Settings(kind="s3vectors", bucket=BUCKET, index=INDEX))
        store.create(IndexSpec(options.dimension, "cosine", "benchmark", NON_FILTERABLE))
        names = {"vectorBucketName": BUCKET, "indexName": INDEX}
        install(client)

        def plain_put(batch: Sequence[VectorRecord]) -> None:
            vectors = [
                {"key": r.key, "data": {"float32": r.vector.tolist()}, "metadata": r.metadata} for r in batch
            ]
            client.put_vectors(**names, vectors=vectors)

        def unpaced_put(batch: Sequence[VectorRecord]) -> None:
            client.put_vectors(**names, vectors=put_body(BUCKET, INDEX, batch))

        def paced_put(batch: Sequence[VectorRecord]) -> None:
            for record in batch:
                store.check(record)
            assert sum(map(store.encoded_size, batch)) <= store.limits.put_bytes
            store.put(batch)

        def read(batch: Sequence[VectorRecord]) -> None:
            store.get([record.key for record in batch], vectors=True)

        def plain_read(batch: Sequence[VectorRecord]) -> None:
            keys = [record.key for record in batch]
            client.get_vectors(**names, keys=keys, returnData=True, returnMetadata=True)

        print(f"{options.vectors:,} vectors of {options.dimension} dimensions, {options.threads} threads")
        print(f"{'':<34}{'vectors/s':>12}{'CPU us/vector':>14}{'core':>10}{'core at 2,500/s':>18}")
        few = batches[: max(1, len(batches) // 4)]
        measure("put, boto3", plain_put, few, options.threads)
        measure("put, ragctl without limiter", unpaced_put, batches, options.threads)
        measure("check, size and put, ragctl", paced_put, batches, options.threads)
        keys = cut(data[: options.vectors // 4], 100)
        measure("get, boto3", plain_read, keys, options.threads)
        measure("get, ragctl", read, keys, options.threads)
        print("peak over 5 s, vectors/s:", server.report()["peak_vectors_per_second"])


if __name__ == "__main__":
    main()
