"""Services that fail one call in ten, in every way that services do: the index is that of a quiet day."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from ragctl.adapters import s3vectors, s3vectors_calls, sagemaker
from tests.places import Place, embedding_at
from tests.servers.http import Fault, LoopbackServer
from tests.servers.openai_server import EMBEDDINGS, OpenAIServer
from tests.servers.s3vectors import S3VectorsServer
from tests.servers.sagemaker_runtime import EmbeddingModel, SageMakerRuntime

Service = Literal["openai", "sagemaker"]
OPERATION = {"openai": EMBEDDINGS, "sagemaker": "InvokeEndpoint"}
CALL_S = 0.5  # after which a call that hangs is given up


def one_in_ten(operation: str, seed: int) -> list[Fault]:
    """Every kind once, and then each for its share of the calls, so that one in ten fails."""
    kinds: list[dict[str, Any]] = [
        {"kind": "error", "status": 429, "code": "ThrottlingException", "message": "Rate exceeded"},
        {"kind": "error", "status": 503},
        {"kind": "hang", "seconds": 2 * CALL_S},
        {"kind": "reset"},
        {"kind": "lost"},
    ]
    once = [Fault(operation=operation, skip=9 * number, **kinds[number]) for number in range(len(kinds))]
    chance = [
        Fault(operation=operation, times=None, probability=0.02, seed=10 * seed + number, **kinds[number])
        for number in range(len(kinds))
    ]
    return once + chance


@pytest.fixture(autouse=True)
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small puts, and less patience with calls that hang."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(s3vectors, "MAX_PUT_RECORDS", 4)
    monkeypatch.setitem(s3vectors_calls.ONE_ATTEMPT, "read_timeout", CALL_S)
    monkeypatch.setattr(sagemaker, "READ_TIMEOUT_S", CALL_S)


@pytest.fixture
def store() -> Iterator[S3VectorsServer]:
    with S3VectorsServer() as server:
        yield server
    assert (server.unexpected, server.broken) == ([], [])


@pytest.fixture(params=["openai", "sagemaker"])
def embedder(request: pytest.FixtureRequest) -> Iterator[tuple[Service, LoopbackServer]]:
    service: Service = request.param
    server = OpenAIServer() if service == "openai" else SageMakerRuntime({"words": EmbeddingModel("tei", 64)})
    with server:
        yield service, server
    assert (server.unexpected, server.broken) == ([], [])


def corpus(place: Place) -> None:
    """400 chunks of 175 documents; some share their texts, some are of several chunks."""
    place.write({f"d{i:03}.md": f"Note {i % 60} of the harbour.\n" for i in range(100)})
    records = [{"id": str(i), "text": f"Row {i}. " + f"The crane lifts crate {i}. " * 30} for i in range(75)]
    place.write({"rows.jsonl": "\n".join(map(json.dumps, records))})


def configure(place: Place, service: Service, url: str, index: str) -> None:
    """Over the services, in small batches."""
    assert place.server is not None
    embedding = (
        embedding_at(url, timeout_s=CALL_S, max_batch=4)
        if service == "openai"
        else {"kind": "sagemaker", "endpoint": "words", "family": "tei", "dimension": 64, "max_batch": 4}
    )
    place.configure(
        embedding=embedding,
        store={"kind": "s3vectors", "bucket": "library", "index": index},
        aws={
            "region": "eu-west-1",
            "endpoints": {"s3vectors": place.server.url, "sagemaker_runtime": url},
        },
        ingest={"workers": 1},
    )


def test_one_call_in_ten_fails_and_nothing_is_lost_or_doubled(
    tmp_path: Path, store: S3VectorsServer, embedder: tuple[Service, LoopbackServer]
) -> None:
    """Embedding and putting, 429, 503, timeouts, resets and answers that are lost: exit 0, and the same index."""
    service, models = embedder
    place = Place(tmp_path, store)
    corpus(place)
    configure(place, service, models.url, "calm")
    calm = place.ragctl("ingest", "--json")
    assert calm.status == 0, calm.err
    assert (calm.json["retries"], calm.json["throttles"]) == (0, 0)
    expected = place.held()
    assert calm.json["chunks"]["embedded"] == len({metadata["text"] for metadata, _ in expected.values()})

    configure(place, service, models.url, "storm")
    models.faults.add(*one_in_ten(OPERATION[service], seed=1))
    store.faults.add(*one_in_ten("PutVectors", seed=2))
    storm = place.ragctl("ingest", "--json")
    models.faults.clear()
    store.faults.clear()

    assert storm.status == 0, storm.err
    assert place.held() == expected
    assert storm.json["documents"] == calm.json["documents"]
    assert storm.json["chunks"] == calm.json["chunks"]
    for server in (models, store):
        assert {kind for _, kind in server.faults.injected} == {"error", "hang", "reset", "lost"}
    repeated = (storm.json["throttles"], storm.json["retries"])
    assert min(repeated) > 0
    assert sum(repeated) <= len(models.faults.injected) + len(store.faults.injected)
    again = place.ragctl("ingest", "--json")
    assert (again.status, again.json["chunks"]["written"], again.json["chunks"]["embedded"]) == (0, 0, 0)


def test_a_run_s_report_says_what_it_had_to_repeat(
    tmp_path: Path, store: S3VectorsServer, embedder: tuple[Service, LoopbackServer]
) -> None:
    """Every call that was made again is counted once, in run.json as in the result."""
    service, models = embedder
    place = Place(tmp_path, store)
    place.write({f"d{i}.md": f"Note {i}.\n" for i in range(8)})
    configure(place, service, models.url, "test")
    models.faults.add(Fault("reset", OPERATION[service]))
    store.faults.add(
        Fault("error", "PutVectors", 429, "TooManyRequestsException"), Fault("reset", "PutVectors")
    )
    ended = place.ragctl("ingest", "--json")
    assert ended.status == 0, ended.err
    assert (ended.json["throttles"], ended.json["retries"]) == (1, 2)
    report = json.loads(Path(ended.json["run"]).read_text())
    assert (report["throttles"], report["retries"]) == (1, 2)


def test_a_run_s_report_says_where_its_time_went(
    tmp_path: Path, store: S3VectorsServer, embedder: tuple[Service, LoopbackServer]
) -> None:
    """Embedding and putting take at least as long as their services do, and no longer than all calls together may."""
    service, models = embedder
    place = Place(tmp_path, store)
    place.write({f"d{i:02}.md": f"Note {i}.\n" for i in range(40)})
    configure(place, service, models.url, "test")
    models.latency[OPERATION[service]] = store.latency["PutVectors"] = 0.05
    ended = place.ragctl("ingest", "--json")
    assert ended.status == 0, ended.err
    report = json.loads(Path(ended.json["run"]).read_text())
    stages = report["stages"]
    assert stages == ended.json["stages"]
    assert set(stages) == {"read", "parse", "chunk", "embed", "put"}
    for stage, operation, server in (("embed", OPERATION[service], models), ("put", "PutVectors", store)):
        calls = len(server.calls_of(operation))
        assert calls >= 10
        assert 0.05 * 10 <= stages[stage] <= report["seconds"] * calls
    assert max(stages["read"], stages["parse"], stages["chunk"]) <= report["seconds"]  # by one worker


def test_vectors_that_the_workers_make_are_in_the_report_s_times(tmp_path: Path) -> None:
    """Where there is no service that embeds, the time is that of the workers."""
    place = Place(tmp_path)
    place.write({f"d{i:03}.md": f"Note {i}. {'The crane lifts a crate. ' * 40}\n" for i in range(200)})
    place.configure()
    stages = place.ragctl("ingest", "--json").json["stages"]
    assert min(stages.values()) > 0


def test_a_rewrite_that_the_store_refuses_fails_its_document_once(
    tmp_path: Path, store: S3VectorsServer
) -> None:
    """New metadata that is too large: exit 3, every document counted once and as it was; smaller ones get in."""
    place = Place(tmp_path, store)
    place.write({f"d{i}.md": f"Note {i}. {'The crane lifts a crate. ' * 40}\n" for i in range(5)})
    place.configure()
    assert place.ragctl("ingest").status == 0
    before = place.held()
    assert len(before) > 2 * 5
    source = {"kind": "local", "name": "docs", "path": "docs"}
    place.configure(sources=[source | {"metadata": {"remark": "r" * 2_500}}])
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["documents"]["failed"], ended.json["documents"]["seen"]) == (3, 5, 5)
    assert [(f["document"], f["stage"]) for f in ended.json["failures"]] == [
        (f"docs/d{i}.md", "put") for i in range(5)
    ]
    assert place.held() == before
    place.configure(sources=[source | {"metadata": {"remark": "short"}}])
    ended = place.ragctl("ingest", "--json")
    assert (ended.status, ended.json["chunks"]["embedded"]) == (0, 0)
    assert place.held() == {key: (m | {"remark": "short"}, vector) for key, (m, vector) in before.items()}
