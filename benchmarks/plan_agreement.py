"""What `ragctl plan --full` says of a first ingest into S3 Vectors, beside what the ingest then does and pays.

    python -m benchmarks.plan_agreement CORPUS

CORPUS is a folder of documents. The service is the test server, the embedder hashes. Documents and chunks must be
the same, the cost of puts and of storage within 5 %; the exit status is 1 where they are not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3

from benchmarks.side_by_side import table
from ragctl.cost import Prices
from ragctl.limits import metadata_size
from tests.cli import experiment, ragctl
from tests.servers.s3vectors import S3VectorsServer

DIMENSION = 1_024
REGION = "us-east-1"  # of which prices are known
TOLERANCE = 0.05
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": REGION,
}


def stored_bytes(url: str) -> int:
    """Logical bytes of all that the server holds: vectors, keys and metadata, by what it lists."""
    client = boto3.client(
        "s3vectors",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="benchmark",
        aws_secret_access_key="benchmark",
    )
    pages = client.get_paginator("list_vectors").paginate(
        vectorBucketName="benchmark", indexName="plan", returnMetadata=True
    )
    return sum(
        4 * DIMENSION + len(vector["key"]) + metadata_size(vector["metadata"])
        for page in pages
        for vector in page["vectors"]
    )


def planned_and_done(corpus: Path, folder: Path) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The figures of the plan, and those of the ingest after it."""
    config = experiment(
        folder,
        sources=[{"kind": "local", "name": "docs", "path": str(corpus)}],
        embedding={"kind": "hashing", "dimension": DIMENSION},
        store={"kind": "s3vectors", "bucket": "benchmark", "index": "plan"},
    )
    with S3VectorsServer() as server:
        env = {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3VECTORS": server.url}
        plan = ragctl("plan", config, "--full", "--json", env=env).json
        done = ragctl("ingest", config, "--json", env=env).json
        stored = stored_bytes(server.url)
    prices = Prices().s3vectors(REGION)
    assert prices is not None
    return _of_plan(plan), {**_of_ingest(done), "storage, $ a month": prices.storage(stored)}


def _of_plan(plan: Any) -> dict[str, float]:
    (index,) = plan["indexes"].values()
    cost = {line["item"]: line["usd"] for line in plan["cost"]}
    return {
        **{f"documents {name}": index["documents"][name] for name in ("added", "failed", "empty")},
        "chunks": index["chunks"]["written"],
        "puts, $": cost["puts"],
        "storage, $ a month": cost["storage"],
    }


def _of_ingest(done: Any) -> dict[str, float]:
    return {
        **{f"documents {name}": done["documents"][name] for name in ("added", "failed", "empty")},
        "chunks": done["chunks"]["written"],
        "puts, $": done["cost"]["puts_usd"],
    }


def agree(name: str, planned: float, done: float) -> bool:
    """Counts exactly, money within the tolerance."""
    return abs(planned - done) <= TOLERANCE * done if "$" in name else planned == done


def main() -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        planned, done = planned_and_done(options.corpus.resolve(), Path(made))
    table(
        "A plan that counts in full, and the ingest after it",
        ["", "planned", "done", "agrees"],
        [
            [
                name,
                f"{planned[name]:,.6g}",
                f"{value:,.6g}",
                "yes" if agree(name, planned[name], value) else "NO",
            ]
            for name, value in done.items()
        ],
    )
    sys.exit(not all(agree(name, planned[name], value) for name, value in done.items()))


if __name__ == "__main__":
    main()
