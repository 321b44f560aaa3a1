"""status: what exists, what it costs, who works on it, how the last runs ended; and what could not be looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ragctl import deploy, deployment, teardown
from ragctl.adapters import aws
from ragctl.adapters.sagemaker_control import ControlPlane
from ragctl.deployment import EXPIRES_TAG, Ref
from ragctl.lease import hold
from ragctl.state import LocalState
from tests.cli import Ended, experiment, in_process, ragctl, write_docs
from tests.deployments import EMBEDDER, ROLE, Region, environment, region_in
from tests.servers.s3vectors import S3VectorsServer
from tests.servers.sagemaker_things import Fate

PAST = "2026-01-01T00:00:00Z"


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Region]:
    """A region with nothing in it, and no waiting."""
    for module in (deploy, teardown):
        monkeypatch.setattr(module, "POLL_S", 0.01)
    with region_in(tmp_path / "state") as region:
        for name, value in environment(region.control.url, region.runtime.url).items():
            monkeypatch.setenv(name, value)
        yield region
        aws.forget()


def deployed(folder: Path, region: Region) -> Path:
    """The config of an experiment whose embedding model is up."""
    region.deploy(region.experiment())
    write_docs(folder, {"a.md": "Some words."})
    return experiment(folder, embedding=EMBEDDER, deployment={"role_arn": ROLE})


# --- an experiment on this machine -----------------------------------------------------------------------


def test_an_experiment_that_has_nothing_yet(tmp_path: Path) -> None:
    """No account is asked, nothing is made, and what is not there is said not to be."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path)
    status = ragctl("status", config, "--json")
    assert status.status == 0, status.err
    assert status.json["endpoints"] == status.json["runs"] == []
    (index,) = status.json["indexes"]
    assert (index["name"], index["exists"], index["chunks"], index["holder"]) == ("test", False, 0, None)
    assert not (tmp_path / "store").exists()
    assert ragctl("status", config).out == "index test: does not exist\n"


def test_an_index_its_failures_and_its_runs(tmp_path: Path) -> None:
    """Chunks by the ledger, failures that wait, and the runs of this experiment alone, the newest first."""
    write_docs(tmp_path, {"a.md": "Some words.", "b.pdf": "no PDF at all"})
    config = experiment(tmp_path)
    assert ragctl("ingest", config).status == 3
    assert ragctl("ingest", config, "--set", "name=other", "--set", "store.index=other").status == 3
    assert ragctl("ingest", config).status == 3
    status = ragctl("status", config, "--json").json
    (index,) = status["indexes"]
    assert (index["mode"], index["dimension"], index["documents"], index["failures"]) == ("local", 256, 1, 1)
    assert [(run["command"], run["status"]) for run in status["runs"]] == [("ingest", "done")] * 2
    assert status["runs"][0]["started"] > status["runs"][1]["started"]
    shown = ragctl("status", config).out
    assert "1 documents in 1 chunks, 1 failures waiting (ragctl failures CONFIG)" in shown


def test_who_holds_the_lease(tmp_path: Path) -> None:
    """The command, process and machine of the run that works on the index just now."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path)
    with hold(LocalState(tmp_path / "state"), "test/lease.json", "ingest"):
        (index,) = ragctl("status", config, "--json").json["indexes"]
    assert index["holder"].startswith("ingest (process ")
    (index,) = ragctl("status", config, "--json").json["indexes"]
    assert index["holder"] is None


def test_the_verdict_of_an_evaluation(tmp_path: Path) -> None:
    """A gate's verdict stands beside the run; a record that is damaged hides no other."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path)
    records: dict[str, dict[str, Any]] = {
        "20260101T000000Z-eval-aaaaaa": {"status": "done", "gate": {"verdict": "fail"}, "seconds": 2.0},
        "20260102T000000Z-ingest-bbbbbb": {"status": "running"},
    }
    for name, record in records.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        head = {"id": name, "command": name.split("-")[1], "started": name[:16], "config": {"name": "test"}}
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({**head, **record}))
    (tmp_path / "runs" / "20260103T000000Z-eval-cccccc").mkdir()
    (tmp_path / "runs" / "20260103T000000Z-eval-cccccc" / "run.json").write_text("{")
    runs = ragctl("status", config, "--json").json["runs"]
    assert [(run["status"], run["verdict"]) for run in runs] == [("running", None), ("done", "fail")]
    assert "eval: done in 2 s, gate fail" in ragctl("status", config).out


# --- endpoints -------------------------------------------------------------------------------------------


def test_an_endpoint_with_its_price_age_expiry_and_use(tmp_path: Path, region: Region) -> None:
    """State, instances, price per hour and day, when it expires and when it was last called."""
    region.control.prices = {"ml.g5.2xlarge": 1.5}
    config = deployed(tmp_path, region)
    endpoint = region.control.thing("endpoint/ragctl-test-embedding")
    endpoint.tags[EXPIRES_TAG] = PAST
    used = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    region.control.scaling.invocations["ragctl-test-embedding"] = {
        (used - timedelta(hours=5)).timestamp(): 7.0,
        used.timestamp(): 1.0,
        (used + timedelta(hours=1)).timestamp(): 0.0,
    }
    unpriced = ragctl("status", config, "--json")
    assert unpriced.json["endpoints"][0]["usd_per_hour"] is None
    looked = ragctl("prices", "refresh", config, "--dry-run", "--json")
    assert (looked.status, looked.json["instances"], looked.json["dry_run"]) == (0, 1, True)
    assert ragctl("status", config, "--json").json["endpoints"][0]["usd_per_hour"] is None
    assert ragctl("prices", "refresh", config).status == 0
    status = ragctl("status", config, "--json")
    (found,) = status.json["endpoints"]
    assert (found["name"], found["state"], found["instances"]) == (
        "ragctl-test-embedding",
        "InService",
        "1 x ml.g5.2xlarge",
    )
    assert (found["usd_per_hour"], found["usd_per_day"]) == (1.5, 36.0)
    assert (found["expires"], found["expired"]) == (PAST, True)
    assert found["last_used"] == deployment.timestamp(used)
    assert 0 <= found["age_hours"] < 1
    shown = ragctl("status", config).out
    assert "InService, 1 x ml.g5.2xlarge, $1.50 an hour, $36.00 a day" in shown
    assert f"EXPIRED {PAST}" in shown


@pytest.mark.parametrize(
    ("fate", "state", "shown"),
    [
        (Fate(after=None), "Creating", "Creating, 1 x ml.g5.2xlarge, price unknown, "),
        (Fate("InService", after=0), "InService", "InService, 1 x ml.g5.2xlarge, price unknown, "),
        (
            Fate("Failed", after=0, reason="no capacity"),
            "Failed",
            "Failed (no capacity), 1 x ml.g5.2xlarge, price unknown, ",
        ),
        (Fate(delete_after=None), "Deleting", "Deleting, 1 x ml.g5.2xlarge, price unknown, "),
    ],
)
def test_every_state_of_an_endpoint_is_shown(
    tmp_path: Path, region: Region, fate: Fate, state: str, shown: str
) -> None:
    """As long as it is there, ready or not, and why it failed: whatever its state, somebody pays for it or waits."""
    config = deployed(tmp_path, region)
    thing = region.control.thing("endpoint/ragctl-test-embedding")
    thing.status, thing.looks, thing.fate = ("Deleting" if state == "Deleting" else "Creating"), 0, fate
    (found,) = in_process("status", config, "--json").json["endpoints"]
    assert (found["state"], found["reason"]) == (state, "no capacity" if state == "Failed" else None)
    assert f"endpoint ragctl-test-embedding: {shown}" in in_process("status", config).out


def test_what_cannot_be_looked_at_hides_nothing_else(tmp_path: Path) -> None:
    """An account that does not answer: the runs are shown all the same, and the exit status is 8."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path, embedding=EMBEDDER)
    nowhere = {**environment("http://127.0.0.1:9", "http://127.0.0.1:9"), "AWS_MAX_ATTEMPTS": "1"}
    status = ragctl("status", config, "--json", env=nowhere)
    assert status.status == 8
    assert len(status.json["faults"]) == 1
    assert status.json["indexes"][0]["name"] == "test"
    assert "not everything could be looked at" in status.err


# --- the account -----------------------------------------------------------------------------------------


def account(region: Region, vectors: S3VectorsServer, *arguments: str) -> Ended:
    env = environment(region.control.url, region.runtime.url)
    return ragctl("status", *arguments, env={**env, "AWS_ENDPOINT_URL_S3VECTORS": vectors.url})


def test_the_whole_account_with_its_orphans(tmp_path: Path, region: Region) -> None:
    """Endpoints of every experiment, parts that no endpoint uses, buckets and indexes that ragctl made; no others."""
    deployed(tmp_path, region)
    control = region.control
    plane = ControlPlane.from_config(region.experiment())
    request = control.thing(next(name for name in control.existing() if name.startswith("model/"))).request
    body = {key: value for key, value in request.items() if key != "ModelName"}
    plane.create(Ref("model", "left-over"), body, {"ragctl:stack": "gone", "ragctl:created": PAST})
    plane.create(Ref("model", "somebody-elses"), body, {})
    with S3VectorsServer() as vectors:
        env = {**environment(control.url, region.runtime.url), "AWS_ENDPOINT_URL_S3VECTORS": vectors.url}
        folder = tmp_path / "on-aws"
        write_docs(folder, {"a.md": "Some words."})
        config = experiment(folder, store={"kind": "s3vectors", "bucket": "papers", "index": "test"})
        assert ragctl("create-index", config, env=env).status == 0
        status = account(region, vectors, "--json")
        shown = account(region, vectors).out
    assert status.status == 0, status.err
    (endpoint,) = status.json["endpoints"]
    assert (endpoint["name"], endpoint["stack"], endpoint["orphan"]) == (
        "ragctl-test-embedding",
        "test",
        False,
    )
    orphans = [(other["name"], other["stack"]) for other in status.json["others"] if other["orphan"]]
    assert orphans == [("left-over", "gone")]
    assert "somebody-elses" not in status.out
    assert status.json["buckets"] == [{"name": "papers", "ours": True, "indexes": ["test"]}]
    assert "model left-over: orphan" in shown
    assert "vector bucket papers: test" in shown


def test_settings_need_a_config() -> None:
    """--set without a CONFIG is a mistake that is told."""
    refused = ragctl("status", "--set", "name=x")
    assert refused.status == 2
