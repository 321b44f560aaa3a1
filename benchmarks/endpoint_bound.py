"""How close to what its services allow an ingest comes: ragctl beside LangChain, LlamaIndex and s3vectors-embed.

    python -m benchmarks.endpoint_bound [--environments FOLDER] [--chunks 50000] [--peer-chunks 5000]

The services are the test servers, each a process on this machine: an embedding server that takes 120 ms for a batch
of up to 32 texts, and S3 Vectors, which takes 80 ms for a put and refuses more than 2,500 vectors/s.
ragctl's seconds are those of the whole command, from the start of the process to its exit; "writing" are those from
the first put that S3 Vectors accepted to the last. Of the peers as well the whole process counts, so that like is
compared with like, and what they report of their work alone, without imports, stands beside it. The ideal is what
threads that do nothing but send the same texts get from the embedding server, or the ceiling where that is lower: the
server works on each batch after its 120 ms. It is measured before and after ragctl, for the pace of a machine changes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3

from benchmarks.side_by_side import (
    Run,
    environment,
    peer,
    ragctl,
    sentence,
    table,
    workplace,
    write_records,
)
from tests.servers.process import ServerProcess

BUCKET, DIMENSION, REGION = "benchmark", 256, "eu-west-1"
IDEAL_S = 5.0  # for which the embedding server is asked for nothing else, each time
CEILING = 2_500  # vectors per second that S3 Vectors takes
EMBED_S, PUT_S, BATCH, PUT = 0.12, 0.08, 32, 500
# Among which LangChain's best is looked for; it hands them to S3 Vectors as they are.
BATCHES = (192, 480, 500)
CLI_CHUNKS = 600  # s3vectors-embed is given fewer: it takes one call for each


@dataclass(frozen=True)
class Row:
    """Seconds of a whole process, or of ragctl's writing alone; `at_work`: what a peer says of its own work."""

    name: str
    chunks: int
    seconds: float
    at_work: float | None = None

    @property
    def rate(self) -> float:
        return self.chunks / self.seconds

    @property
    def rate_at_work(self) -> float:
        return self.chunks / (self.at_work or self.seconds)


@dataclass(frozen=True)
class Place:
    """Where everything is: the servers, the peers' Pythons, and a folder to work in."""

    embed: ServerProcess
    bedrock: ServerProcess
    vectors: ServerProcess
    folder: Path
    python: Callable[[str], str]

    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3VECTORS": self.vectors.url,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": self.bedrock.url,
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_DEFAULT_REGION": REGION,
        }


@dataclass(frozen=True)
class Ours:
    """ragctl: the whole command, its writing alone, vectors per second in the quickest five, and the ideal."""

    whole: Row
    writing: Row
    peak: float
    ideal: float


def ours(place: Place, chunks: int, concurrency: int) -> Ours:
    """Run ragctl, between two looks at what the embedding server can do."""
    before = ideal(place.embed.url, concurrency)
    folder = place.folder / f"ragctl-{concurrency}"
    folder.mkdir()
    write_records(folder / "notes.jsonl", 0, chunks)
    index = f"ragctl-{concurrency}"
    os.environ.update(place.environ())
    done = ragctl(
        folder,
        {
            "name": "endpoint-bound",
            "sources": [{"name": "notes", "kind": "local", "path": ".", "include": ["*.jsonl"]}],
            "chunking": {"kind": "record"},
            "embedding": {"kind": "openai", "base_url": f"{place.embed.url}/v1", "model": "words"},
            "store": {"kind": "s3vectors", "bucket": BUCKET, "index": index},
            "ingest": {"embed_concurrency": concurrency},
            "generation": {"kind": "extractive"},
        },
    )
    arn, report = _arrived(place, index, chunks)
    writing = Row(f"ragctl, {concurrency} calls: writing alone", chunks - PUT, report["writing_seconds"][arn])
    whole = Row(f"ragctl, {concurrency} calls at once", chunks, done.seconds)
    after = ideal(place.embed.url, concurrency)
    best = min(CEILING, (before + after) / 2)
    return Ours(whole, writing, report["peak_vectors_per_second"][arn], best)


def langchain(place: Place, chunks: int, batch: int, name: str) -> Row:
    """LangChain `index()` with AmazonS3Vectors."""
    options: list[str | Path] = ["s3vectors", _notes(place, chunks), "--embedder", place.embed.url]
    options += ["--batch", str(batch), "--name", f"langchain-{batch}"]
    done = peer(
        place.python("langchain"), "langchain_index.py", place.folder, *options, environ=place.environ()
    )
    return _row(place, name, f"langchain-{batch}", chunks, done)


def llama_index(place: Place, chunks: int) -> Row:
    """LlamaIndex's pipeline with its S3 store."""
    options: list[str | Path] = ["s3vectors", _notes(place, chunks), "--embedder", place.embed.url]
    options += ["--dimension", str(DIMENSION), "--batch", str(BATCH)]
    done = peer(
        place.python("llama_index"),
        "llama_index_pipeline.py",
        place.folder,
        *options,
        environ=place.environ(),
    )
    return _row(place, "LlamaIndex pipeline, S3VectorStore", "llama-index", chunks, done)


def s3vectors_embed(place: Place, chunks: int) -> Row:
    """`s3vectors-embed put` over a folder of text files."""
    folder = place.folder / "texts"
    folder.mkdir()
    for number in range(chunks):
        (folder / f"{number}.txt").write_text(sentence(number), encoding="utf-8")
    client = boto3.client("s3vectors", endpoint_url=place.vectors.url, region_name=REGION)
    client.create_index(
        vectorBucketName=BUCKET,
        indexName="cli",
        dataType="float32",
        dimension=DIMENSION,
        distanceMetric="cosine",
    )
    options: list[str | Path] = ["put", "--vector-bucket-name", BUCKET, "--index-name", "cli"]
    options += ["--model-id", "amazon.titan-embed-text-v2:0", "--text", f"{folder}/*.txt", "--region", REGION]
    done = peer(
        place.python("s3vectors_embed"), "s3vectors_embed.py", place.folder, *options, environ=place.environ()
    )
    return _row(place, "s3vectors-embed put", "cli", chunks, done)


def _notes(place: Place, chunks: int) -> Path:
    path = place.folder / "peers.jsonl"
    if not path.exists():
        write_records(path, 0, chunks)
    return path


def _row(place: Place, name: str, index: str, chunks: int, done: Run) -> Row:
    _arrived(place, index, chunks)
    return Row(name, chunks, done.seconds, done.said["seconds"])


def _arrived(place: Place, index: str, chunks: int) -> tuple[str, dict[str, Any]]:
    """The ARN of an index and what the server reports; RuntimeError unless all vectors are there."""
    report = place.vectors.report()
    arn = next(arn for arn in report["vectors"] if arn.endswith(f"/{index}"))
    if report["vectors"][arn] != chunks:
        raise RuntimeError(f"{index}: {report['vectors'][arn]} vectors of {chunks} arrived")
    return arn, report


def ideal(url: str, concurrency: int) -> float:
    """Chunks per second that so many embedding calls at once give."""
    texts = [sentence(number) for number in range(BATCH)]
    body = json.dumps({"model": "words", "input": texts, "encoding_format": "base64"})
    address = urlsplit(url)
    end = time.monotonic() + IDEAL_S

    def call(_: int) -> int:
        connection, done = HTTPConnection(address.hostname or "", address.port), 0
        while time.monotonic() < end:
            connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the embedding server answers {answer.status}")
            done += BATCH
        return done

    start = time.monotonic()
    with ThreadPoolExecutor(concurrency) as threads:
        done = sum(threads.map(call, range(concurrency)))
    return done / (time.monotonic() - start)


def measure(place: Place, options: argparse.Namespace) -> None:
    """Run everything and print the table."""
    boto3.client(
        "s3vectors",
        endpoint_url=place.vectors.url,
        region_name=REGION,
        aws_access_key_id="benchmark",
        aws_secret_access_key="benchmark",
    ).create_vector_bucket(vectorBucketName=BUCKET)
    runs = [ours(place, options.chunks, concurrency) for concurrency in options.concurrency]
    peers: list[Row] = []
    if not options.no_peers:
        chunks = options.peer_chunks
        as_it_comes = langchain(place, chunks, 100, "LangChain index(), AmazonS3Vectors")
        tried = [langchain(place, chunks, batch, f"the same, batches of {batch}") for batch in BATCHES]
        best = max(tried, key=lambda row: row.rate)
        peers = [as_it_comes, best, llama_index(place, chunks), s3vectors_embed(place, CLI_CHUNKS)]
    quickest = (
        max((row.rate for row in peers), default=0.0),
        max((row.rate_at_work for row in peers), default=0.0),
    )
    lines = [_line(row, run.ideal, quickest, run.peak) for run in runs for row in (run.whole, run.writing)]
    lines += [_line(row, None, quickest, None) for row in peers]
    table(
        f"Endpoint-bound: {EMBED_S * 1000:.0f} ms per {BATCH} texts, {PUT_S * 1000:.0f} ms per put, {CEILING:,} vectors/s",
        [
            *("", "chunks", "seconds", "at work", "chunks/s", "ideal", "share"),
            *("x best peer", "by work", "peak over 5 s"),
        ],
        lines,
    )


def _line(row: Row, best: float | None, quickest: tuple[float, float], peak: float | None) -> list[str]:
    whole, at_work = quickest
    return [
        row.name,
        f"{row.chunks:,}",
        f"{row.seconds:.1f}",
        f"{row.at_work:.1f}" if row.at_work else "",
        f"{row.rate:,.0f}",
        f"{best:,.0f}" if best else "",
        f"{row.rate / best:.1%}" if best else "",
        f"{row.rate / whole:.1f}" if whole else "",
        f"{row.rate_at_work / at_work:.1f}" if at_work else "",
        f"{peak:,.0f}" if peak else "",
    ]


def main() -> None:
    """Start the servers, measure, stop them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--environments", type=Path, help="keeps the peers' environments between runs")
    parser.add_argument("--chunks", type=int, default=50_000)
    parser.add_argument("--peer-chunks", type=int, default=5_000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16], help="embedding calls at once")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    latency: Any = json.dumps({"Embeddings": EMBED_S})
    with (
        workplace(options.environments) as home,
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(
            "tests.servers.openai_server", "--dimension", str(DIMENSION), "--latency", latency
        ) as embed,
        ServerProcess("tests.servers.bedrock", "--latency-ms", str(EMBED_S * 1000)) as bedrock,
        ServerProcess(
            "tests.servers.s3vectors", "--enforce-rate", "--latency", json.dumps({"PutVectors": PUT_S})
        ) as vectors,
    ):
        place = Place(embed, bedrock, vectors, Path(folder), lambda name: environment(home, name))
        measure(place, options)


if __name__ == "__main__":
    main()
