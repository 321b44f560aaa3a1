"""The experiments for AWS under configs/, from nothing to nothing: every command a process, every call over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.aws import SECRET, Cloud, serving
from tests.cli import Ended, ragctl

ROOT = Path(__file__).parent.parent
CONFIGS = ("s3vectors-jumpstart", "s3vectors-bedrock")
# What deploy-models would have written into its record.
DEPLOYED = (
    "embedding.endpoint=embedder",
    "embedding.family=tei",
    "generation.endpoint=writer",
    "generation.family=chat",
)
QUESTION = "How much may a night in a hotel cost at most?"
WHERE = '{"domain": "policies", "year": 2021}'


@dataclass(frozen=True)
class Journey:
    """One experiment in a fresh checkout."""

    config: Path
    cloud: Cloud
    settings: tuple[str, ...]

    def run(self, command: str, *arguments: object) -> Ended:
        """Run a command; whatever it says on stderr, it tells no secret and nothing of question or documents."""
        settings = [word for setting in self.settings for word in ("--set", setting)]
        ended = ragctl(command, self.config, *arguments, *settings, env=self.cloud.env)
        assert not [words for words in (SECRET, "hotel", "$165") if words in ended.err]
        return ended


@pytest.fixture(params=CONFIGS)
def journey(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journey]:
    for name in ("configs", "samples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    settings = DEPLOYED if request.param == "s3vectors-jumpstart" else ()
    with serving() as cloud:
        yield Journey(tmp_path / "configs" / f"{request.param}.yaml", cloud, settings)


def test_an_experiment_on_aws_from_nothing_to_nothing(journey: Journey) -> None:
    """create-index, ingest, query with a filter, eval, teardown: each does its work and leaves what it says."""
    name = journey.config.stem.replace("s3vectors", "samples")
    made = journey.run("create-index", "--json")
    assert made.status == 0, made.err
    assert [(r["name"], r["action"]) for r in made.json["resources"]] == [(name, "created")]

    done = journey.run("ingest", "--json")
    assert done.status == 0, done.err
    assert done.json["documents"]["failed"] == 0
    assert journey.cloud.contents == {name: done.json["chunks"]["total"]}
    again = journey.run("ingest", "--json")
    assert (again.status, again.json["chunks"]["written"]) == (0, 0)
    assert journey.run("verify", "--json").json["clean"]

    ask_with_a_filter(journey)

    scored = journey.run("eval", "--json")
    assert scored.status == 0, scored.err
    assert scored.json["gate"]["verdict"] == "pass"
    assert scored.json["metrics"]["nDCG@10"]["unscored"] == 0

    gone = journey.run("teardown", "--index", "--bucket", "--yes", "--json")
    assert gone.status == 0, gone.err
    assert [(r["type"], r["action"]) for r in gone.json["resources"]] == [
        ("index", "deleted"),
        ("ledger", "deleted"),
        ("vector bucket", "deleted"),
    ]
    assert (journey.cloud.contents, journey.cloud.buckets) == ({}, [])


def ask_with_a_filter(journey: Journey) -> None:
    """The answer is the filtered year's, its citations are hits, and what the model thought is no part of it."""
    asked = journey.run("query", QUESTION, "--filter", WHERE, "--json")
    assert asked.status == 0, asked.err
    answer = asked.json
    assert "$165" in answer["answer"]
    assert {(hit["metadata"]["domain"], hit["metadata"]["year"]) for hit in answer["hits"]} == {
        ("policies", 2021)
    }
    hits = {hit["key"]: hit["document"] for hit in answer["hits"]}
    assert answer["citations"]
    assert all(hits[cited["key"]] == cited["document"] for cited in answer["citations"])
    assert "prüfe" in answer["reasoning"]
    assert "prüfe" not in answer["answer"]
    assert "think>" not in answer["answer"]

    streamed = journey.run("query", QUESTION, "--filter", WHERE)
    assert streamed.status == 0, streamed.err
    assert "$165" in streamed.out
    assert "prüfe" not in streamed.out

    explained = journey.run("query", QUESTION, "--filter", WHERE, "--explain", "--json")
    ranks = [hit["ranks"] for hit in explained.json["hits"]]
    assert all(rank["distance"] is not None and rank["fused"] is not None for rank in ranks)
    assert any(rank["bm25"] is not None for rank in ranks)
    reranked = journey.config.stem == "s3vectors-bedrock"
    assert all((rank["rerank"] is not None) == reranked for rank in ranks)
