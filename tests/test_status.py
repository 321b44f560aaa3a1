"""status: what exists, what it costs, who works on it, how the last runs ended; and what could not be looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time

import pytest

from ragctl import cost, deploy, deployment, teardown
from ragctl.adapters import aws
from ragctl.adapters.local import LocalStore
from ragctl.adapters.sagemaker_control import ControlPlane
from ragctl.deployment import CREATED_TAG, EXPIRES_TAG, Ref
from ragctl.errors import PermissionDenied
from ragctl.lease import hold
from ragctl.state import LocalState
from tests.cli import Ended, experiment, in_process, ragctl, write_docs
from tests.deployments import EMBEDDER, ROLE, Region, environment, region_in
from tests.servers.s3vectors import S3VectorsServer
from tests.servers.sagemaker_things import Fate

PAST = "2026-01-01T00:00:00Z"
DEAR = json.dumps(  # a price that is no number
    {
        "schema": "ragctl.prices/1",
        "regions": {"eu-west-1": {"read": "2026-01-01", "instances": {"ml.g5.2xlarge": "dear"}}},
    }
)


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


@pytest.mark.parametrize("left", ["nothing", "an empty one"])
def test_a_lost_ledger_is_told(tmp_path: Path, left: str) -> None:
    """Not "0 documents" of an index that is full: what is lost, and what makes it anew, which then is enough."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path)
    assert in_process("ingest", config).status == 0
    (tmp_path / "state" / "test" / "ledger.sqlite").unlink()
    if left == "an empty one":
        assert in_process("ingest", config).status == 6
    (index,) = in_process("status", config, "--json").json["indexes"]
    assert (index["exists"], index["ledger_lost"]) == (True, True)
    shown = in_process("status", config).out.splitlines()[0]
    assert shown == (
        "index test: local, 256 dimensions, holds chunks but its ledger is lost: ragctl ledger rebuild CONFIG"
    )
    assert in_process("ledger", "rebuild", config).status == 0
    (index,) = in_process("status", config, "--json").json["indexes"]
    assert (index["documents"], index["ledger_lost"]) == (1, False)


def test_an_index_that_was_never_filled_has_lost_no_ledger(tmp_path: Path) -> None:
    """It is there and empty, as create-index makes it."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path)
    assert in_process("create-index", config).status == 0
    (index,) = in_process("status", config, "--json").json["indexes"]
    assert (index["exists"], index["ledger_lost"]) == (True, False)
    assert "0 documents in 0 chunks" in in_process("status", config).out


def test_an_index_is_shown_though_its_keys_may_not_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the ledger is lost is then not known, which a word says."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path)
    assert in_process("create-index", config).status == 0

    def denied(_: LocalStore) -> Iterator[str]:
        raise PermissionDenied("s3vectors:ListVectors is denied")

    monkeypatch.setattr(LocalStore, "keys", denied)
    status = in_process("status", config, "--json")
    assert status.status == 0
    assert status.json["indexes"][0]["ledger_lost"] is None
    assert "is lost is not known: s3vectors:ListVectors is denied" in status.err


def test_who_holds_the_lease(tmp_path: Path) -> None:
    """The command, process and machine of the run that works on the index just now."""
    write_docs(tmp_path, {"a.md": "Some words."})
    config = experiment(tmp_path)
    with hold(LocalState(tmp_path / "state"), "test/lease.json", "ingest"):
        (index,) = ragctl("status", config, "--json").json["indexes"]
    assert index["holder"].startswith("ingest (process ")
    (index,) = ragctl("status", config, "--json").json["indexes"]
    assert index["holder"] is None


def record_run(folder: Path, name: str, **parts: object) -> Path:
    """A run of the experiment "test" in `folder/runs`; its command and start are those that the name tells."""
    started, command, _ = name.split("-")
    path = folder / "runs" / name / "run.json"
    path.parent.mkdir(parents=True)
    head = {"id": name, "command": command, "started": started, "config": {"name": "test"}}
    path.write_text(json.dumps({**head, **parts}))
    return path


def test_the_verdict_of_an_evaluation(tmp_path: Path) -> None:
    """A gate's verdict stands beside the run."""
    config = experiment(tmp_path)
    gate = {"verdict": "fail"}
    record_run(tmp_path, "20260101T000000Z-eval-aaaaaa", status="done", gate=gate, seconds=2.0)
    record_run(tmp_path, "20260102T000000Z-ingest-bbbbbb", status="interrupted")
    runs = in_process("status", config, "--json").json["runs"]
    assert [(run["status"], run["verdict"]) for run in runs] == [("interrupted", None), ("done", "fail")]
    assert "eval: done in 2 s, gate fail" in in_process("status", config).out


BEGIN_A_RUN = """
import sys, pathlib
from ragctl.report import Run
Run.begin(sys.argv[1], {"name": "test", "store": {"index": "test"}}, pathlib.Path(sys.argv[2]))
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_run_that_was_killed_is_told_from_one_that_runs(tmp_path: Path) -> None:
    """Whatever the command, as long as its process can be seen from here."""
    config = experiment(tmp_path)
    begin = [sys.executable, "-c", BEGIN_A_RUN, "eval", str(tmp_path / "runs")]
    with subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        (run,) = in_process("status", config, "--json").json["runs"]
        assert run["status"] == "running"
        process.kill()
    (run,) = in_process("status", config, "--json").json["runs"]
    assert (run["status"], run["seconds"]) == ("died", None)
    assert " eval: ended without a word  " in in_process("status", config).out


ELSEWHERE = {"host": "elsewhere", "pid": 7, "started": "1", "space": "another boot"}
INGEST = "20260101T000000Z-ingest-aaaaaa"
CONFIG = {"name": "test", "store": {"index": "test"}}


@pytest.mark.parametrize(
    ("holder", "seen"),
    [
        (None, "died"),
        ({"expires": 0.0}, "died"),
        ({"expires": 1.0}, "died"),
        ({}, "running"),
        ({"pid": 8}, "unknown"),
    ],
)
def test_a_run_of_another_machine_is_known_by_its_lease(
    tmp_path: Path, holder: dict[str, object] | None, seen: str
) -> None:
    """Nobody holds it, or only in the past: the run is no more. Another may hold it while the run waits for it."""
    config = experiment(tmp_path)
    record_run(tmp_path, INGEST, status="running", config=CONFIG, process=ELSEWHERE)
    if holder is not None:
        lease = {"id": "x", "fence": 1, "command": "ingest", "expires": time() + 60, **ELSEWHERE, **holder}
        (tmp_path / "state" / "test").mkdir(parents=True)
        (tmp_path / "state" / "test" / "lease.json").write_text(json.dumps(lease))
    (run,) = in_process("status", config, "--json").json["runs"]
    assert run["status"] == seen


def test_a_run_without_a_lease_on_another_machine_is_not_known(tmp_path: Path) -> None:
    """An evaluation holds none, so nobody here can tell; neither does an old record say whose it is."""
    config = experiment(tmp_path)
    record_run(tmp_path, "20260101T000000Z-eval-aaaaaa", status="running", config=CONFIG, process=ELSEWHERE)
    record_run(tmp_path, "20260102T000000Z-ingest-bbbbbb", status="running", config=CONFIG)
    runs = in_process("status", config, "--json").json["runs"]
    assert [run["status"] for run in runs] == ["died", "unknown"]
    assert " eval: running, or ended without a word  " in in_process("status", config).out


def test_runs_of_one_second_come_by_their_start(tmp_path: Path) -> None:
    """To the millisecond, whatever their names are, and of one millisecond by their names."""
    config = experiment(tmp_path)
    second, later = "20260101T000000Z", "20260101T000001Z"
    for name, started in (
        (f"{second}-ingest-cccccc", "2026-01-01T00:00:00.100Z"),
        (f"{second}-ingest-aaaaaa", "2026-01-01T00:00:00.300Z"),
        (f"{second}-eval-bbbbbb", "2026-01-01T00:00:00.200Z"),
        (f"{second}-eval-dddddd", "2026-01-01T00:00:00.200Z"),
        (f"{later}-eval-eeeeee", "2026-01-01T00:00:01.000Z"),
    ):
        record_run(tmp_path, name, status="done", started=started)
    runs = in_process("status", config, "--json").json["runs"]
    assert [run["id"][-6] for run in runs] == ["e", "a", "d", "b", "c"]


@pytest.mark.parametrize(
    "parts",
    [
        {"config": None},
        {"status": "running", "process": {"host": "here"}},
        {"status": "running", "process": ["here", 1]},
        {"config": "test"},
        {"status": "done", "seconds": "long"},
        {"status": "done", "gate": []},
        {},
    ],
)
def test_a_damaged_run_is_passed_over_with_a_word(tmp_path: Path, parts: dict[str, object]) -> None:
    """A record that is not what a run writes hides no other run, and is named."""
    config = experiment(tmp_path)
    record_run(tmp_path, "20260101T000000Z-eval-aaaaaa", status="done")
    damaged = record_run(tmp_path, "20260102T000000Z-eval-bbbbbb", **parts)
    torn = record_run(tmp_path, "20260103T000000Z-eval-cccccc")
    torn.write_text("{")
    (tmp_path / "runs" / "notes").mkdir()
    status = in_process("status", config, "--json")
    assert status.status == 0
    assert [run["id"] for run in status.json["runs"]] == ["20260101T000000Z-eval-aaaaaa"]
    assert f"{damaged} is damaged, so this run is not shown" in status.err
    assert f"{torn} is damaged, so this run is not shown" in status.err
    assert "notes" not in status.err


# --- endpoints -------------------------------------------------------------------------------------------


def test_an_endpoint_with_its_price_age_expiry_and_use(tmp_path: Path, region: Region) -> None:
    """State, instances, price per hour and day, when it expires and when it was last called."""
    region.control.prices = {"ml.g5.2xlarge": 1.5}
    config = deployed(tmp_path, region)
    endpoint = region.control.thing("endpoint/ragctl-test-embedding")
    endpoint.tags[EXPIRES_TAG] = PAST
    used = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    region.control.scaling.invocations["ragctl-test-embedding/AllTraffic"] = {
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


def test_an_account_that_cannot_be_looked_at_is_not_called_empty(tmp_path: Path) -> None:
    """Who reads stdout alone must not take it for one without costs."""
    nowhere = {**environment("http://127.0.0.1:9", "http://127.0.0.1:9"), "AWS_MAX_ATTEMPTS": "1"}
    status = ragctl("status", cwd=tmp_path, env=nowhere)
    assert (status.status, status.out) == (8, "nothing was found, and not everything could be looked at\n")


@pytest.mark.parametrize(
    ("file", "content", "remedy"),
    [
        ("prices.json", "{", "ragctl prices refresh CONFIG"),
        ("prices.json", DEAR, "ragctl prices refresh CONFIG"),
        ("deployment-test.json", "{", "remove the file"),
        (
            "deployment-test.json",
            '{"schema": "ragctl.deployment/1", "stack": "test", "region": "r", "models": [], "resources": []}',
            "remove the file",
        ),
        ("test/tenants.json", "{", "remove the file"),
    ],
)
def test_a_damaged_file_hides_no_endpoint(
    tmp_path: Path, region: Region, file: str, content: str, remedy: str
) -> None:
    """Somebody pays for it whatever ragctl has lost: the endpoint is shown, then which file it is and what to do."""
    region.control.prices = {"ml.g5.2xlarge": 1.5}
    region.deploy(region.experiment())
    write_docs(tmp_path, {"acme/a.md": "Some words."})
    config = experiment(
        tmp_path,
        embedding=EMBEDDER,
        deployment={"role_arn": ROLE},
        sources=[{"kind": "local", "name": "docs", "path": "docs", "path_metadata": "{tenant}/**"}],
        tenancy={"key": "tenant", "layout": "index"},
    )
    (tmp_path / "state" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "state" / file).write_text(content)
    status = in_process("status", config, "--json")
    assert status.status == 8
    (found,) = status.json["endpoints"]
    assert (found["name"], found["instances"]) == ("ragctl-test-embedding", "1 x ml.g5.2xlarge")
    (fault,) = status.json["faults"]
    assert file in fault
    assert remedy in fault
    assert fault in status.err
    assert in_process("status", config).out.startswith("endpoint ragctl-test-embedding: InService, ")


def test_an_endpoint_costs_what_runs_now(tmp_path: Path, region: Region) -> None:
    """Not what it was made with: scaled out it costs more, and scaled to zero nothing, by status and by teardown."""
    region.control.prices = {"ml.g5.2xlarge": 1.5}
    config = deployed(tmp_path, region)
    assert in_process("prices", "refresh", config).status == 0
    counts = region.control.thing("endpoint/ragctl-test-embedding").counts
    for current, desired, paid in ((3, 3, 3), (3, 1, 3), (1, 2, 2), (0, 0, 0)):
        counts["AllTraffic"] = (current, desired)
        (found,) = in_process("status", config, "--json").json["endpoints"]
        assert found["instances"] == f"{paid} x ml.g5.2xlarge"
        assert found["usd_per_hour"] == 1.5 * paid
        planned = in_process("teardown", config, "--models", "--dry-run").out
        assert f"(InService, costs {cost.per_hour(1.5 * paid)})" in planned


def test_every_variant_of_an_endpoint_counts(tmp_path: Path, region: Region) -> None:
    """An endpoint that was changed by hand: it costs all its variants, by whichever names, and was used if one was."""
    region.control.prices = {"ml.g5.2xlarge": 1.5, "ml.g5.xlarge": 1.0}
    config = deployed(tmp_path, region)
    assert in_process("prices", "refresh", config).status == 0
    control = region.control
    path = next(name for name in control.existing() if name.startswith("endpoint-config/"))
    (variant,) = control.thing(path).request["ProductionVariants"]
    two = [
        {**variant, "VariantName": "old"},
        {**variant, "VariantName": "new", "InstanceType": "ml.g5.xlarge"},
    ]
    control.thing(path).request["ProductionVariants"] = two
    control.thing("endpoint/ragctl-test-embedding").counts["new"] = (2, 2)
    used = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    control.scaling.invocations["ragctl-test-embedding/new"] = {used.timestamp(): 1.0}
    (found,) = in_process("status", config, "--json").json["endpoints"]
    assert found["instances"] == "1 x ml.g5.2xlarge + 2 x ml.g5.xlarge"
    assert found["usd_per_hour"] == 3.5
    assert found["last_used"] == deployment.timestamp(used)


def test_no_use_is_told_since_when_it_is_known(tmp_path: Path, region: Region) -> None:
    """Since an endpoint was made, and of an old one since the metrics that are looked at begin."""
    config = deployed(tmp_path, region)
    tags = region.control.thing("endpoint/ragctl-test-embedding").tags
    (found,) = in_process("status", config, "--json").json["endpoints"]
    assert found["use_known_since"] == found["created"] == tags[CREATED_TAG]
    assert f", not used since {tags[CREATED_TAG]}" in in_process("status", config).out
    tags[CREATED_TAG] = PAST
    (found,) = in_process("status", config, "--json").json["endpoints"]
    assert (found["created"], found["last_used"], found["use"]) == (PAST, None, "known")
    assert found["use_known_since"] > PAST


def test_a_damaged_record_is_not_taken_for_none(tmp_path: Path, region: Region) -> None:
    """An experiment that wants no models any more may still have some: without its record the account is asked."""
    deployed(tmp_path, region)
    config = experiment(tmp_path)
    (tmp_path / "state" / "deployment-test.json").write_text("{")
    (found,) = in_process("status", config, "--json").json["endpoints"]
    assert found["name"] == "ragctl-test-embedding"


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


def test_the_account_costs_what_the_prices_at_hand_say(
    tmp_path: Path, region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default state location may have prices; where it has none, it is said how to come by them."""
    region.control.prices = {"ml.g5.2xlarge": 1.5}
    monkeypatch.chdir(tmp_path)
    with S3VectorsServer() as vectors:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3VECTORS", vectors.url)
        config = deployed(tmp_path, region)
        unpriced = in_process("status")
        assert "InService, 1 x ml.g5.2xlarge, price unknown" in unpriced.out
        assert "ragctl status CONFIG shows what its models cost" in unpriced.err
        assert in_process("prices", "refresh", config, "--set", "state=.ragctl/state").status == 0
        priced = in_process("status")
    assert priced.status == 0, priced.err
    assert "InService, 1 x ml.g5.2xlarge, $1.50 an hour" in priced.out
    assert priced.err == ""
    assert "ragctl prices refresh CONFIG" in in_process("status", config).err


def test_settings_need_a_config() -> None:
    """--set without a CONFIG is a mistake that is told."""
    refused = ragctl("status", "--set", "name=x")
    assert refused.status == 2
