"""ingest into S3 Vectors at its limits: throttled, with the largest vectors, and with a record that is too large."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.s3vectors_ingest import ingest
from tests.aws import serving
from tests.cli import experiment, ragctl
from tests.servers.sagemaker_runtime import EmbeddingModel

MIB = 2**20
STORE = {"kind": "s3vectors", "bucket": "library", "index": "test"}


def test_a_throttled_ingest_loses_nothing(tmp_path: Path) -> None:
    """One call in 250 vectors is answered 429 or 503: exit 0, all there, and never faster than the service takes it.

    `python -m benchmarks.s3vectors_ingest` does so with 50,000 vectors and 200 faults.
    """
    outcome = ingest(tmp_path / "ingest", vectors=2_500, count=10)
    assert outcome.ended.status == 0, outcome.ended.err
    assert outcome.stored == outcome.ended.json["chunks"]["written"] == 2_500
    assert outcome.faults == 10
    assert outcome.peak <= 2_500


def test_the_largest_vectors_go_in_batches_that_the_service_takes(tmp_path: Path) -> None:
    """600 vectors of 3,584 dimensions beside 3 KB of text: cut by bytes, each put below 20 MiB."""
    (tmp_path / "docs").mkdir()
    text = "Der Zähler zeigt größere Werte als üblich. " * 70
    lines = [json.dumps({"id": str(n), "text": f"{n} {text}"}) for n in range(600)]
    (tmp_path / "docs" / "readings.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = experiment(
        tmp_path,
        chunking={"kind": "record", "size": 10_000},
        embedding={"kind": "sagemaker", "endpoint": "dense", "family": "tei", "dimension": 3584},
        store=STORE,
    )
    with serving() as cloud:
        cloud.sagemaker.endpoints["dense"] = EmbeddingModel("tei", 3584, max_tokens=10_000, tamper=dense)
        ended = ragctl("ingest", config, "--json", env=cloud.env)
        assert ended.status == 0, ended.err
        assert cloud.contents == {"test": 600}
        puts = cloud.vectors.calls_of("PutVectors")
    assert max(put.body_bytes for put in puts) <= 20 * MIB
    assert len(puts) <= 3  # and not in small change either
    assert {put.status for put in puts} == {200}


def dense(vectors: list[Any]) -> list[list[float]]:
    """As many vectors without a zero in them, as real models make them."""
    rows = np.random.default_rng(len(vectors)).standard_normal((len(vectors), 3584), dtype=np.float32)
    unit: list[list[float]] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).tolist()
    return unit


def test_a_record_with_too_much_metadata_fails_alone(tmp_path: Path) -> None:
    """41 KB of it: exit 3, the document named with key and bytes, the others of its batch stored."""
    (tmp_path / "docs").mkdir()
    records = [
        {"id": str(n), "text": f"Reading {n}.", "notes": "n" * (41_984 if n == 3 else 9)} for n in range(9)
    ]
    (tmp_path / "docs" / "readings.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    source = {"kind": "local", "name": "docs", "path": "docs", "records": [{"metadata": ["notes"]}]}
    config = experiment(tmp_path, sources=[source], store={**STORE, "non_filterable": ["notes"]})
    with serving() as cloud:
        ended = ragctl("ingest", config, "--json", env=cloud.env)
        assert cloud.contents == {"test": 8}
        assert [put.status for put in cloud.vectors.calls_of("PutVectors")] == [200]
    assert ended.status == 3
    (failure,) = ended.json["failures"]
    assert failure["document"] == "docs/readings.jsonl#3"
    assert re.search(
        r"key \w+-\w+: its metadata and text take 42,\d{3} bytes, at most 40,960", failure["error"]
    )
