"""The embedding cache: a text that was embedded once is not paid for again, by nobody who shares the place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from ragctl.cache import FolderCache, PackedCache, VectorCache
from ragctl.errors import StateError
from ragctl.state import LocalState
from tests.cli import experiment, ragctl, write_docs
from tests.servers.openai_server import OpenAIServer

TEXTS = {f"d{i}.md": f"Document number {i} is about subject {i * 7}.\n" for i in range(10)}


@pytest.fixture(params=["folder", "packs"])
def caches(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[VectorCache, VectorCache]:
    """Two caches on one place, as two machines have them."""
    if request.param == "folder":
        return FolderCache(tmp_path / "c.sqlite"), FolderCache(tmp_path / "c.sqlite")
    state = LocalState(tmp_path / "packs")
    return PackedCache(state, "e/"), PackedCache(state, "e/")


def vector(*numbers: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(numbers, np.float32)


def test_vectors_come_back_bit_by_bit(caches: tuple[VectorCache, VectorCache]) -> None:
    """What another run put in is found, what nobody put in is left out."""
    first, second = caches
    first.put({"a": vector(0.1, 1e-30), "b": vector(2, 3)})
    first.close()
    found = second.get(["b", "a", "c"])
    assert sorted(found) == ["a", "b"]
    assert found["a"].tobytes() == vector(0.1, 1e-30).tobytes()
    second.close()


def test_putting_twice_is_harmless(caches: tuple[VectorCache, VectorCache]) -> None:
    """Two machines that embed the same text do not disturb one another: what is found is what one of them put."""
    first, second = caches
    first.put({"a": vector(1, 2)})
    second.put({"a": vector(3, 4), "b": vector(5, 6)})
    first.close()
    found = second.get(["a", "b"])
    assert found["a"].tolist() in ([1, 2], [3, 4])
    assert found["b"].tolist() == [5, 6]
    second.close()


def test_asking_makes_no_cache(tmp_path: Path) -> None:
    """A plan asks, and changes nothing."""
    assert FolderCache(tmp_path / "caches" / "c.sqlite").get(["a"]) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_a_clear_error(tmp_path: Path) -> None:
    """It names the file, so that it can be deleted."""
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"rubbish " * 200)
    with pytest.raises(
        StateError, match=f"{path}: the embedding cache cannot be used: file is not a database"
    ):
        FolderCache(path).get(["a"])


@pytest.fixture
def embedder() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="cache")
    yield "s3://cache/vectors"
    server.stop()


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_another_experiment_embeds_nothing_again(
    tmp_path: Path, embedder: OpenAIServer, place: str, request: pytest.FixtureRequest
) -> None:
    """The hit rate is in the report, and the service is not called."""
    where = str(tmp_path / "cache") if place == "folder" else request.getfixturevalue("bucket")
    model = {"kind": "openai", "base_url": f"{embedder.url}/v1", "model": "words"}
    write_docs(tmp_path, TEXTS)
    config = experiment(tmp_path, embedding=model, cache={"path": where}, ingest={"workers": 1})
    first = ragctl("ingest", config, "--json")
    assert (first.status, first.json["chunks"]["embedded"], first.json["chunks"]["cached"]) == (0, 10, 0)
    calls = len(embedder.calls)
    second = ragctl("ingest", config, "--json", "--set", "store.index=other")
    assert (second.status, second.json["chunks"]["embedded"], second.json["chunks"]["cached"]) == (0, 0, 10)
    assert len(embedder.calls) - calls <= 1  # one to learn the dimension
