"""Indexes and buckets of S3 Vectors from the command line: old ones are upgraded in place, nobody else's go away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.aws import Cloud, serving
from tests.cli import Ended, experiment, ragctl, write_docs
from tests.servers.clients import connect

STORE = {"kind": "s3vectors", "bucket": "library", "index": "test"}
Run = Callable[..., Ended]


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    """An account that is older than ENHANCED indexes."""
    with serving(default_mode="CLASSIC") as cloud:
        yield cloud


@pytest.fixture
def run(cloud: Cloud, tmp_path: Path) -> Run:
    write_docs(tmp_path, {"menu.md": "On Tuesdays the canteen serves lentil soup.\n"})
    config = experiment(tmp_path, store=STORE)

    def run(command: str, *arguments: object) -> Ended:
        return ragctl(command, config, *arguments, env=cloud.env)

    return run


def outcome(ended: Ended) -> list[tuple[str, str]]:
    assert ended.status == 0, ended.err
    return [(resource["type"], resource["action"]) for resource in ended.json["resources"]]


def test_an_old_bucket_is_upgraded_when_told_to(run: Run) -> None:
    """Without --upgrade it is refused with that very command; a dry run changes nothing."""
    refused = run("create-index")
    assert refused.status == 6
    assert "turn it to ENHANCED, at no charge: ragctl create-index CONFIG --upgrade" in refused.err
    assert outcome(run("create-index", "--upgrade", "--dry-run", "--json")) == [("index", "would create")]
    assert run("create-index").status == 6
    made = run("create-index", "--upgrade", "--json")
    assert outcome(made) == [("index", "created")]
    assert made.json["resources"][0]["status"] == "vector bucket library: new indexes are ENHANCED"
    assert outcome(run("create-index", "--upgrade", "--json")) == [("index", "kept")]
    assert run("ingest").status == 0
    assert run("query", "lentil soup", "--mode", "hybrid", "--retrieve-only").status == 0


def test_an_old_index_is_upgraded_with_what_is_in_it(run: Run, cloud: Cloud) -> None:
    """Words are searched afterwards in what was put before, and nothing is put again."""
    classic = ("--set", "store.text_search=false")
    assert run("ingest", *classic).status == 0
    asked = run("query", "soup", "--mode", "text", *classic)
    assert asked.status == 2
    assert "is in CLASSIC mode, so it cannot answer searches of mode text" in asked.err
    refused = run("create-index")
    assert refused.status == 6
    assert "text search: the index has no, the experiment asks for yes" in refused.err
    assert outcome(run("create-index", "--upgrade", "--dry-run", "--json")) == [("index", "would upgrade")]
    assert outcome(run("create-index", "--upgrade", "--json")) == [("index", "upgraded")]
    ended = run("ingest", "--json")
    assert (ended.status, ended.json["chunks"]["written"]) == (0, 0)
    hits = run("query", "lentil soup", "--mode", "text", "--retrieve-only", "--json").json["hits"]
    assert [hit["document"] for hit in hits] == ["docs/menu.md"]
    assert len(cloud.vectors.calls_of("PutVectors")) == 1


def test_what_no_upgrade_changes_is_refused_before_anything_is_changed(run: Run, cloud: Cloud) -> None:
    """Exit 6, the difference named, no call that changes anything."""
    assert run("ingest", "--set", "store.text_search=false").status == 0
    ended = run("create-index", "--upgrade", "--set", "store.metric=euclidean")
    assert ended.status == 6
    assert "metric: the index has cosine, the experiment asks for euclidean" in ended.err
    assert cloud.vectors.calls_of("UpdateIndexMode") == []
    assert cloud.vectors.calls_of("PutVectorBucketDefaultIndexMode") == []


def test_a_bucket_goes_when_it_is_ours_and_empty(run: Run, cloud: Cloud) -> None:
    """While another index stands in it, it stays, and asking for it by name is exit 6; --all leaves it and says so."""
    named = ("--set", "store.text_search=false", "--set")
    for index in ("one", "two", "three"):
        assert run("create-index", *named, f"store.index={index}").status == 0
    ended = run("teardown", "--index", "--bucket", "--yes", "--json", *named, "store.index=one")
    assert ended.status == 6
    assert "vector bucket library holds indexes: three, two" in ended.err
    assert [r["action"] for r in ended.json["resources"]] == ["deleted", "absent", "kept"]
    left = run("teardown", "--all", "--yes", "--json", *named, "store.index=two")
    assert ("vector bucket", "kept") in outcome(left)
    assert cloud.buckets == ["library"]
    gone = run("teardown", "--all", "--yes", "--json", *named, "store.index=three")
    assert ("vector bucket", "deleted") in outcome(gone)
    assert cloud.buckets == []
    assert outcome(run("teardown", "--bucket", "--yes", "--json")) == [("vector bucket", "absent")]


def test_a_bucket_of_somebody_else_stays(run: Run, cloud: Cloud) -> None:
    """It has not our tag: exit 6, whatever is in it."""
    with connect("s3vectors", cloud.vectors.url) as client:
        client.create_vector_bucket(vectorBucketName="library")
    ended = run("teardown", "--bucket", "--yes")
    assert ended.status == 6
    assert "vector bucket library was not made by ragctl" in ended.err
    assert cloud.buckets == ["library"]


@pytest.mark.parametrize("arguments", [("create-index", "--upgrade"), ("teardown", "--bucket", "--yes")])
def test_a_local_store_has_neither_modes_nor_buckets(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit 2."""
    write_docs(tmp_path, {"a.md": "Soup.\n"})
    command, *options = arguments
    ended = ragctl(command, experiment(tmp_path), *options)
    assert ended.status == 2
    assert "store.kind is local: only s3vectors has vector buckets and index modes" in ended.err
