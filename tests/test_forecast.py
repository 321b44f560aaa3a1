"""plan: what it says of an ingest is what the ingest then does, and what it cannot know it says it does not know."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from ragctl.cost import Prices
from ragctl.figures import Sampling
from ragctl.forecast import Forecast, forecast
from ragctl.ingest import IngestOptions, Progress, ingest
from ragctl.limits import metadata_size
from ragctl.loading import load
from ragctl.state import open_state
from tests.cli import Ended, experiment, ragctl, write_docs
from tests.servers.s3vectors import S3VectorsServer

WORDS = [
    "chunk",
    "index",
    "vector",
    "query",
    "tenant",
    "ledger",
    "lease",
    "price",
    "token",
    "model",
    "corpus",
    "answer",
    "golden",
    "gate",
]
DIMENSION = 256
REGION = "us-east-1"  # of which prices are known


def text(seed: int, paragraphs: int) -> str:
    """Some paragraphs that differ from those of other seeds."""
    chance = random.Random(seed)
    return "\n\n".join(" ".join(chance.choices(WORDS, k=chance.randint(10, 60))) for _ in range(paragraphs))


def corpus(folder: Path) -> None:
    """Documents of all sorts: long, short, alike, empty, of records, and one that cannot be read."""
    texts = {f"guide/{i}.md": f"# Guide {i}\n\n{text(i, 1 + i % 30)}\n" for i in range(90)}
    texts |= {f"notes/{i}.txt": text(1_000 + i % 7, 3) for i in range(20)}  # the same text several times
    records = ({"id": f"r{i}", "text": text(5_000 + i, 2)} for i in range(60))
    texts["faq.jsonl"] = "".join(json.dumps(record) + "\n" for record in records)
    texts |= {"empty.md": "", "broken.pdf": "%PDF-1.7 and no more"}
    write_docs(folder, texts)


@dataclass(frozen=True)
class Place:
    """An experiment over the corpus, its vectors on the test server."""

    folder: Path
    server: S3VectorsServer

    def run(self, command: str, *arguments: object) -> Ended:
        env = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3VECTORS": self.server.url,
        }
        return ragctl(command, self.folder / "experiment.yaml", *arguments, env=env)

    def plan(self, *arguments: object) -> Any:
        planned = self.run("plan", "--json", *arguments)
        assert planned.status == 0, planned.err
        return planned.json

    def ingest(self, *arguments: object) -> Any:
        done = self.run("ingest", "--json", "--max-delete", "1.0", *arguments)
        assert done.status in (0, 3), done.err
        return done.json

    def stored_bytes(self) -> int:
        """Logical bytes of everything that the server holds, counted from what it lists."""
        client = boto3.client(
            "s3vectors",
            endpoint_url=self.server.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        pages = client.get_paginator("list_vectors").paginate(
            vectorBucketName="papers", indexName="test", returnMetadata=True
        )
        return sum(
            4 * DIMENSION + len(vector["key"]) + metadata_size(vector["metadata"])
            for page in pages
            for vector in page["vectors"]
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    corpus(tmp_path)
    experiment(tmp_path, store={"kind": "s3vectors", "bucket": "papers", "index": "test"})
    with S3VectorsServer() as server:
        yield Place(tmp_path, server)
    assert (server.unexpected, server.broken) == ([], [])


def line(plan: Any, item: str) -> Any:
    (found,) = [line for line in plan["cost"] if line["item"] == item]
    return found


def agreed(planned: Any, done: Any) -> None:
    """The plan of the one index said what the ingest did: documents and chunks exactly."""
    (index,) = planned["indexes"].values()
    documents = dict(done["documents"])
    del documents["seen"]
    assert index["documents"] == documents
    assert index["chunks"]["written"] == done["chunks"]["written"]
    assert index["chunks"]["total"] == done["chunks"]["total"]
    assert {failure["document"] for failure in index["failures"]} == {
        failure["document"] for failure in done["failures"]
    }


# --- agreement -------------------------------------------------------------------------------------------


def test_what_is_planned_is_what_is_done_and_paid(place: Place) -> None:
    """Documents and chunks exactly, puts and storage to the dollar within 5 %, and the plan itself writes nothing."""
    planned = place.plan("--full")
    assert not (place.folder / "state").exists()
    assert place.server.report()["vectors"] == {}
    done = place.ingest()
    agreed(planned, done)
    assert done["chunks"]["written"] > 1_000  # more than one put
    assert line(planned, "puts")["usd"] == pytest.approx(done["cost"]["puts_usd"], rel=0.05)
    prices = Prices().s3vectors(REGION)
    assert prices is not None
    stored = place.stored_bytes()
    assert done["cost"]["puts_usd"] == pytest.approx(prices.puts([stored]), rel=0.05)
    assert line(planned, "storage")["usd"] == pytest.approx(prices.storage(stored), rel=0.05)
    (index,) = planned["indexes"].values()
    (writes,) = place.server.writes.values()
    assert index["puts"] == len(writes.writes)


def test_a_plan_of_changes_agrees_as_well(place: Place) -> None:
    """Edited, added, removed and touched documents: only what the ingest then does is planned."""
    place.ingest()
    docs = place.folder / "docs"
    (docs / "guide/12.md").write_text(f"# Guide 12\n\nNew words first.\n\n{text(12, 13)}\n")
    (docs / "guide/13.md").write_text((docs / "guide/13.md").read_text())
    (docs / "guide/new.md").write_text(text(77_777, 5))
    (docs / "guide/14.md").unlink()
    rows = (docs / "faq.jsonl").read_text().splitlines()
    (docs / "faq.jsonl").write_text("\n".join([*rows[:30], *rows[40:]]) + "\n")
    planned = place.plan("--full")
    (index,) = planned["indexes"].values()
    assert index["documents"] == {
        "added": 1,
        "changed": 1,
        "unchanged": 159,
        "deleted": 11,
        "failed": 1,
        "empty": 0,
    }
    agreed(planned, place.ingest())
    prices = Prices().s3vectors(REGION)
    assert prices is not None
    assert line(planned, "storage")["usd"] == pytest.approx(prices.storage(place.stored_bytes()), rel=0.05)


def test_an_index_that_is_gone_is_planned_anew(place: Place) -> None:
    """A ledger that knows chunks of an index that was removed does not make the plan say that all is done."""
    place.ingest()
    client = boto3.client(
        "s3vectors",
        endpoint_url=place.server.url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.delete_index(vectorBucketName="papers", indexName="test")
    planned = place.plan("--full")
    agreed(planned, place.ingest())


def test_too_many_deletes_are_refused_by_the_plan_as_by_the_ingest(place: Place) -> None:
    """Exit 6, as the ingest would."""
    place.ingest()
    for path in (place.folder / "docs" / "guide").iterdir():
        path.unlink()
    refused = place.run("plan")
    assert refused.status == 6
    assert "90 of 171 documents are gone from the sources" in refused.err


# --- samples ---------------------------------------------------------------------------------------------


def planned_in_process(folder: Path, sampling: Sampling | None) -> Forecast:
    loaded = load(folder / "experiment.yaml")
    (found,) = forecast(loaded, open_state(loaded), sampling, Progress())
    return found


def test_a_plan_goes_through_everything_whatever_fails(tmp_path: Path) -> None:
    """It counts all documents, although the first file is bad and a share of failures is set."""
    write_docs(tmp_path, {"a.pdf": "rubbish"} | {f"n{i:03}.txt": text(i, 1) for i in range(200)})
    config = experiment(tmp_path, ingest={"workers": 1, "fail_threshold": 0.1})
    (index,) = ragctl("plan", config, "--json").json["indexes"].values()
    documents = index["documents"]
    assert (documents["added"], documents["failed"]) == (200, 1)


def test_a_sample_tells_its_error(tmp_path: Path) -> None:
    """The interval holds the true number, is narrower than a tenth of it, and what is known stays exact."""
    write_docs(tmp_path, {f"{i}.md": f"# {i}\n\n{text(i, 1 + i % 40)}\n" for i in range(400)})
    experiment(tmp_path, ingest={"workers": 1})
    true = planned_in_process(tmp_path, None).figures
    found = planned_in_process(tmp_path, Sampling(files=100)).figures
    assert true.sample is None
    assert found.sample is not None
    assert found.sample[0] <= 100 + 30
    assert found.sample[1] == 400
    assert found.documents["added"] == true.documents["added"]
    for amount, known in (
        (found.chunks["written"], true.chunks["written"].value),
        (found.chunks["total"], true.chunks["total"].value),
        (found.stored, true.stored.value),
    ):
        assert amount.low <= known <= amount.high
        assert amount.high - amount.low < 0.1 * known
    assert found.tokens.value == pytest.approx(true.tokens.value, rel=0.05)


def test_a_sample_of_changes(tmp_path: Path) -> None:
    """Files of an index that is there already: what is changed and what is not are both estimated."""
    write_docs(tmp_path, {f"{i}.md": f"# {i}\n\n{text(i, 1 + i % 40)}\n" for i in range(300)})
    experiment(tmp_path, ingest={"workers": 1})
    loaded = load(tmp_path / "experiment.yaml")
    ingest(loaded, open_state(loaded), IngestOptions(), Progress())
    for i in range(300):
        new = " And a last word." if i % 2 else ""
        (tmp_path / "docs" / f"{i}.md").write_text(f"# {i}\n\n{text(i, 1 + i % 40)}{new}\n")
    true = planned_in_process(tmp_path, None).figures
    found = planned_in_process(tmp_path, Sampling(files=120)).figures
    assert true.documents["changed"].value == 150
    for name in ("changed", "unchanged"):
        assert found.documents[name].low <= 150 <= found.documents[name].high
    total = found.chunks["total"]
    assert total.low <= true.chunks["total"].value <= total.high


# --- saved plans -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_docs(tmp_path, {f"{i}.md": f"# {i}\n\n{text(i, 2)}\n" for i in range(5)})
    experiment(tmp_path, ingest={"workers": 1})
    return tmp_path


def saved(folder: Path) -> Path:
    path = folder / "plan.json"
    assert ragctl("plan", folder / "experiment.yaml", "--save", path).status == 0
    return path


def test_an_ingest_by_its_plan(folder: Path) -> None:
    """The world is as it was planned: the ingest goes on as ever. Afterwards the plan is used up."""
    path = saved(folder)
    done = ragctl("ingest", folder / "experiment.yaml", "--plan", path, "--json")
    assert done.status == 0, done.err
    assert done.json["documents"]["added"] == 5
    again = ragctl("ingest", folder / "experiment.yaml", "--plan", path)
    assert again.status == 6
    assert "since it was made, what is in the index changed; nothing was done" in again.err


def test_a_plan_does_not_survive_other_files_or_settings(folder: Path) -> None:
    """Exit 6 that names what is different, and nothing is done; a dry run says the same."""
    path = saved(folder)
    (folder / "docs" / "0.md").write_text("Other words.")
    options = ("--plan", path, "--set", "chunking.size=100")
    for dry in ((), ("--dry-run",)):
        refused = ragctl("ingest", folder / "experiment.yaml", *options, *dry)
        assert refused.status == 6
        assert "the settings and the files of the sources changed; nothing was done" in refused.err
        assert "hint: plan again: ragctl plan CONFIG --save FILE" in refused.err


def test_a_plan_is_of_its_index(folder: Path) -> None:
    """Another index than the planned one is not touched."""
    path = saved(folder)
    refused = ragctl("ingest", folder / "experiment.yaml", "--plan", path, "--set", "store.index=other")
    assert refused.status == 6
    assert "the plan does not know index other" in refused.err


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "ragctl.plan/0"}', '{"schema": "ragctl.plan/1"}'])
def test_what_is_no_plan_is_told(folder: Path, content: str) -> None:
    """A damaged or foreign file ends with exit 2 before anything is listed."""
    path = folder / "plan.json"
    path.write_text(content)
    refused = ragctl("ingest", folder / "experiment.yaml", "--plan", path)
    assert refused.status == 2
    assert "is no plan" in refused.err


# --- costs -----------------------------------------------------------------------------------------------

AWS_STORE = ("--set", "store.kind=s3vectors", "--set", "store.bucket=papers")
NOBODY = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
}


def test_what_runs_here_is_free_and_says_so(folder: Path) -> None:
    """Embedded store and hashing: nothing costs anything, and the reason is given."""
    planned = ragctl("plan", folder / "experiment.yaml", "--json").json
    assert {line["item"]: (line["usd"], line["source"]) for line in planned["cost"]} == dict.fromkeys(
        ("embedding", "puts", "storage", "queries"), (0, "free: local")
    )
    assert planned["minutes"] == {"embedding": None, "put": None}
    shown = ragctl("plan", folder / "experiment.yaml").out
    assert "documents: 5 added" in shown
    assert "embedding  $0.00 once  [free: local]" in shown


def test_an_unknown_price_is_never_a_nought(folder: Path) -> None:
    """A model without a price and a region without prices are null, with what to do about it."""
    with S3VectorsServer() as server:
        env = {**NOBODY, "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL_S3VECTORS": server.url}
        bedrock = ("--set", "embedding.kind=bedrock", "--set", "embedding.model=amazon.titan-embed-text-v2:0")
        options = (*AWS_STORE, *bedrock, "--json")
        unknown = ragctl("plan", folder / "experiment.yaml", *options, env=env)
        assert unknown.status == 0, unknown.err
        sources = {line["item"]: (line["usd"], line["source"]) for line in unknown.json["cost"]}
        priced = ragctl(
            "plan", folder / "experiment.yaml", *options, "--set", "prices.embedding=0.02", env=env
        )
    region = "no price of S3 Vectors is known in this region"
    assert sources == {
        "embedding": (None, "no price is known for bedrock: set prices.embedding"),
        "puts": (None, region),
        "storage": (None, region),
        "queries": (None, region),
        "text search": (None, "no price of it is published"),
    }
    (index,) = priced.json["indexes"].values()
    assert line(priced.json, "embedding")["usd"] == pytest.approx(index["tokens"] * 0.02 / 1e6)


def test_prices_have_a_source_and_a_date_and_times_a_limit(place: Place) -> None:
    """Where the price is from and when it was read; minutes at 2,500 vectors a second and at the rate that is given."""
    planned = place.plan("--full", "--embed-rate", "10")
    puts = line(planned, "puts")
    assert puts["source"] == "https://aws.amazon.com/s3/pricing/"
    assert puts["read"] == "2026-10-04"
    assert line(planned, "queries")["per"] == "1,000 queries"
    (index,) = planned["indexes"].values()
    assert planned["minutes"] == {
        "embedding": pytest.approx(index["chunks"]["embedded"] / 10 / 60),
        "put": pytest.approx(index["chunks"]["written"] / 2_500 / 60),
    }


def test_before_there_is_a_model_sizes_are_unknown(folder: Path) -> None:
    """A SageMaker model that is not deployed yet: its dimension, and so the puts, are unknown unless it is set."""
    with S3VectorsServer() as server:
        env = {**NOBODY, "AWS_REGION": REGION, "AWS_ENDPOINT_URL_S3VECTORS": server.url}
        model = ("--set", "embedding.kind=sagemaker", "--set", "embedding.endpoint=nowhere")
        options = (*AWS_STORE, *model, "--json")
        unknown = ragctl("plan", folder / "experiment.yaml", *options, env=env)
        assert unknown.status == 0, unknown.err
        known = ragctl(
            "plan", folder / "experiment.yaml", *options, "--set", "embedding.dimension=64", env=env
        )
    assert line(unknown.json, "puts")["usd"] is None
    assert line(unknown.json, "embedding")["source"] == "paid by the hour of its endpoint"
    assert line(unknown.json, "endpoints")["source"].startswith("deploy-models would end with: ")
    (index,) = unknown.json["indexes"].values()
    assert index["dimension"] is None
    assert "set embedding.dimension" in index["notes"][0]
    assert line(known.json, "puts")["usd"] > 0


def test_a_budget_that_is_too_small_is_told_before(place: Place) -> None:
    """Whether budget.ingest_usd is enough stands in the plan."""
    small, large = (place.plan("--set", f"budget.ingest_usd={cap}") for cap in ("0.0000001", "5"))
    assert small["budget"] == {"ingest_usd": 1e-07, "enough": False}
    assert large["budget"] == {"ingest_usd": 5.0, "enough": True}


# --- several indexes -------------------------------------------------------------------------------------


def test_each_tenant_has_its_forecast(tmp_path: Path) -> None:
    """An index for each tenant: each with its own figures, files of no tenant among the failures, plans held apart."""
    write_docs(tmp_path, {f"{who}/{i}.md": text(i, 2) for who in ("ada", "bob") for i in range(4)})
    write_docs(tmp_path, {"stray.md": "Whose is this?"})
    source = {"kind": "local", "name": "docs", "path": "docs", "path_metadata": "{customer}/*.md"}
    config = experiment(
        tmp_path,
        sources=[source],
        tenancy={"key": "customer", "layout": "index"},
        ingest={"workers": 1},
    )
    path = tmp_path / "plan.json"
    planned = ragctl("plan", config, "--json", "--save", path)
    assert planned.status == 0, planned.err
    indexes = planned.json["indexes"]
    assert {name: index["documents"]["added"] for name, index in indexes.items()} == {
        "test.ada": 4,
        "test.bob": 4,
    }
    assert sum(index["documents"]["failed"] for index in indexes.values()) == 1
    (tmp_path / "docs" / "ada" / "new.md").write_text("New words.")
    refused = ragctl("ingest", config, "--plan", path)
    assert refused.status == 6
    assert "for index test.ada" in refused.err
    (tmp_path / "docs" / "ada" / "new.md").unlink()
    done = ragctl("ingest", config, "--plan", path, "--json")
    assert done.status == 3, done.err
    assert done.json["documents"]["added"] == 8
