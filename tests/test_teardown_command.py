"""teardown from the command line: planned, asked for, done once, harmless twice; and what is left is told."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ragctl import deploy_plan, deployment, teardown
from ragctl.adapters.sagemaker_control import ControlPlane
from ragctl.deployment import EXPIRES_TAG, Ref
from ragctl.lease import hold
from ragctl.state import LocalState
from tests.cli import Ended, block, experiment, in_process, ragctl, write_docs
from tests.deployments import EMBEDDER, ROLE, Region, region_at_hand, resolve
from tests.servers.clients import connect
from tests.servers.http import Fault
from tests.servers.s3vectors import S3VectorsServer
from tests.servers.sagemaker_runtime import EmbeddingModel
from tests.servers.sagemaker_things import Fate

PAST, FUTURE = "2026-01-01T00:00:00Z", "2126-01-01T00:00:00Z"
ENDPOINT = "endpoint/ragctl-test-embedding"

# --- on this machine -------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_docs(tmp_path, {"a.md": "The canteen serves soup."})
    path = experiment(tmp_path)
    assert in_process("ingest", path).status == 0
    return path


def actions(ended: Ended) -> dict[str, str]:
    """What became of each, by type; several of a type must have met the same."""
    found: dict[str, str] = {}
    for resource in ended.json["resources"]:
        assert found.setdefault(resource["type"], resource["action"]) == resource["action"], ended.json
    return found


def test_without_a_terminal_it_needs_yes(config: Path) -> None:
    """Cron cannot destroy by accident: exit 2, nothing removed."""
    ended = ragctl("teardown", config, "--index")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "ragctl: error: Remove index test, ledger test? There is no terminal to ask on",
        "  hint: say --yes, or look first: --dry-run",
    ]
    assert in_process("query", config, "soup").status == 0


@pytest.mark.parametrize(
    ("answer", "status", "there"), [("n", 6, True), ("y", 0, False), ("\x04", 130, True)]
)
def test_on_a_terminal_it_asks(config: Path, answer: str, status: int, there: bool) -> None:
    """Yes removes; no, and the end of the input, remove nothing and do not pass for success."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ragctl", "teardown", str(config), "--index"],
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(its)
    os.write(ours, f"{answer}\n".encode() if answer.isalpha() else answer.encode())
    _, said = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == status, said
    assert "Remove index test, ledger test? [y/N]" in said
    assert in_process("status", config, "--json").json["indexes"][0]["exists"] == there


def test_a_dry_run_shows_the_plan(config: Path) -> None:
    """And removes nothing, not even leaving a report of a run."""
    runs = sorted((config.parent / "runs").iterdir())
    ended = in_process("teardown", config, "--index", "--dry-run")
    assert (ended.status, ended.out) == (0, "index test: would delete\nledger test: would delete\n")
    assert in_process("teardown", config, "--index", "--dry-run", "--json").json == {
        "schema": "ragctl.teardown/1",
        "run": None,
        "resources": [
            {"type": "index", "name": "test", "action": "delete", "status": ""},
            {"type": "ledger", "name": "test", "action": "delete", "status": ""},
        ],
    }
    assert sorted((config.parent / "runs").iterdir()) == runs
    assert in_process("query", config, "soup").status == 0


def test_the_index_goes_and_the_documents_stay(config: Path) -> None:
    """Twice in a row is fine, and the next ingest starts afresh."""
    ended = in_process("teardown", config, "--index", "--yes", "--json")
    assert (ended.status, actions(ended)["index"]) == (0, "deleted")
    assert json.loads(Path(ended.json["run"]).read_text())["status"] == "done"
    assert (config.parent / "docs" / "a.md").exists()
    assert in_process("query", config, "soup").status == 8
    again = in_process("teardown", config, "--index", "--yes", "--json")
    assert (again.status, actions(again)["index"]) == (0, "absent")
    ended = in_process("ingest", config, "--json")
    assert ended.json["documents"]["added"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "say what to remove: --models, --index, --bucket, --state, --all, --expired or --orphans"),
        (
            ("--models", "--expired"),
            "--expired and --orphans are about the models of a whole account and region",
        ),
        (("--all", "--only", "fine"), "--only says which index to remove"),
    ],
)
def test_what_to_remove_must_be_said(config: Path, options: tuple[str, ...], words: str) -> None:
    """There is no default for destruction, and no guess at what was meant."""
    ended = in_process("teardown", config, "--yes", *options)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"ragctl: error: {words}\n")


def test_the_state_goes_once_its_index_is_gone(config: Path) -> None:
    """While the index is there its ledger and lease stay; afterwards nothing is left, and twice is fine."""
    kept = in_process("teardown", config, "--state", "--yes")
    assert (kept.status, kept.out.splitlines()) == (
        0,
        [f"state file test/{name}: kept (its index is there)" for name in ("lease.json", "ledger.sqlite")],
    )
    in_process("teardown", config, "--index", "--yes")
    gone = in_process("teardown", config, "--state", "--yes", "--json")
    assert (gone.status, actions(gone)) == (0, {"state file": "deleted"})
    assert LocalState(config.parent / "state").names("") == []
    again = in_process("teardown", config, "--state", "--yes")
    assert (again.status, again.out) == (0, "there is nothing to remove\n")


def test_while_an_ingest_is_at_work(config: Path) -> None:
    """Exit 7, and not even what nobody works with is removed."""
    with hold(LocalState(config.parent / "state"), "test/lease.json", "ingest"):
        ended = in_process("teardown", config, "--all", "--yes")
    assert (ended.status, ended.out) == (7, "")
    assert ended.err.startswith("ragctl: error: another run is at work: ingest (process ")
    assert in_process("query", config, "soup").status == 0


# --- in an account ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """An experiment with everything on AWS that may have to go, and the servers that it is on."""

    region: Region
    vectors: S3VectorsServer
    config: Path

    def run(self, command: str, *arguments: object) -> Ended:
        return in_process(command, self.config, *arguments)

    def teardown(self, *arguments: object) -> Ended:
        return self.run("teardown", *arguments)

    @property
    def models(self) -> list[str]:
        return self.region.control.existing()

    @property
    def buckets(self) -> list[str]:
        with connect("s3vectors", self.vectors.url) as client:
            return [bucket["vectorBucketName"] for bucket in client.list_vector_buckets()["vectorBuckets"]]

    @property
    def indexes(self) -> list[str]:
        with connect("s3vectors", self.vectors.url) as client:
            return [
                index["indexName"]
                for bucket in self.buckets
                for index in client.list_indexes(vectorBucketName=bucket)["indexes"]
            ]

    @property
    def files(self) -> list[str]:
        """What is left in the state location, beside prices, which are for every experiment."""
        return [name for name in LocalState(self.region.state).names("") if name != "prices.json"]

    def other_deployment(self, name: str, *, expires: str | None = None, status: str = "InService") -> None:
        """The model of another experiment, whose state is kept elsewhere."""
        endpoint = f"ragctl-{name}-embedding"
        self.region.runtime.endpoints[endpoint] = EmbeddingModel("tei", 384)
        self.region.deploy(self.region.experiment(name=name, state=str(self.config.parent / name)))
        for path in self.models:
            thing = self.region.control.thing(path)
            if thing.tags.get("ragctl:stack") == name and expires is not None:
                thing.tags[EXPIRES_TAG] = expires
        self.region.control.thing(f"endpoint/{endpoint}").status = status

    def owners(self) -> list[str | None]:
        """Whose each of the endpoints is that exist; None: not made by ragctl."""
        return [
            self.region.control.thing(path).tags.get("ragctl:stack")
            for path in self.models
            if path.startswith("endpoint/")
        ]


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    real = deploy_plan.tools
    monkeypatch.setattr(deploy_plan, "tools", lambda experiment: replace(real(experiment), resolve=resolve))
    write_docs(tmp_path, {"a.md": "The canteen serves soup."})
    config = experiment(
        tmp_path,
        embedding=EMBEDDER,
        store={"kind": "s3vectors", "bucket": "papers", "index": "test"},
        cache={"path": "cache"},
        deployment={"role_arn": ROLE, "expires_after": "8h"},
        ingest={"workers": 1},
    )
    with region_at_hand(tmp_path / "state", monkeypatch) as region, S3VectorsServer() as vectors:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3VECTORS", vectors.url)
        yield Account(region, vectors, config)
    assert (vectors.unexpected, vectors.broken) == ([], [])


@pytest.fixture
def full(account: Account) -> Account:
    """Model up, index filled, prices known."""
    account.region.control.prices["ml.g5.2xlarge"] = 1.52
    for command in ("deploy-models", "ingest"):
        ended = account.run(command)
        assert ended.status == 0, ended.err
    assert in_process("prices", "refresh", account.config).status == 0
    return account


def names(account: Account) -> dict[str, str]:
    """Of the config and the model, which end in a hash."""
    return {path.partition("/")[0]: path.partition("/")[2] for path in account.models}


def test_a_dry_run_of_everything_changes_nothing(full: Account) -> None:
    """The plan in the order in which things would go, each that costs with its cost."""
    before = full.models, full.indexes, full.files, full.region.control.requests[:]
    name = names(full)
    shown = full.teardown("--all", "--dry-run")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.splitlines() == [
        "endpoint ragctl-test-embedding: would delete (InService, costs $1.52 an hour, $36.48 a day)",
        f"endpoint-config {name['endpoint-config']}: would delete",
        f"model {name['model']}: would delete",
        "deployment record deployment-test.json: would delete",
        "index test: would delete",
        "ledger test: would delete",
        "vector bucket papers: would delete",
        "state file test/lease.json: would delete",
        "state file deployment-test.lease: would delete",
        f"embedding cache {full.config.parent / 'cache'}: kept (other experiments may use it; --state removes it)",
    ]
    after = full.region.control.requests[len(before[3]) :]
    assert (full.models, full.indexes, full.files) == before[:3]
    assert {name.startswith(("Describe", "List", "Get")) for name, _ in after} == {True}


def test_everything_goes_and_nothing_is_left(full: Account) -> None:
    """Models first, the bucket after its indexes; the second time there is nothing left, and that is fine."""
    assert (len(full.models), full.indexes, full.buckets) == (3, ["test"], ["papers"])
    done = full.teardown("--all", "--yes", "--json")
    assert done.status == 0, done.err
    assert [resource["type"] for resource in done.json["resources"]] == [
        *("endpoint", "endpoint-config", "model", "deployment record"),
        *("index", "ledger", "vector bucket", "state file", "state file", "embedding cache"),
    ]
    assert {r["action"] for r in done.json["resources"] if r["type"] != "embedding cache"} == {"deleted"}
    assert (full.models, full.indexes, full.buckets, full.files) == ([], [], [], [])
    again = full.teardown("--all", "--yes")
    assert again.status == 0
    assert again.out.splitlines()[:3] == [
        "index test: absent",
        "ledger test: absent",
        "vector bucket papers: absent",
    ]


def test_the_embedding_cache_goes_only_when_it_is_asked_for(full: Account) -> None:
    """Other experiments may use it, and its texts are paid for again; what else is in its folder stays."""
    folder = full.config.parent / "cache"
    (folder / "notes.txt").write_text("mine")
    assert len(list(folder.iterdir())) > 1
    kept = full.teardown("--all", "--yes")
    assert f"embedding cache {folder}: kept (other experiments may use it; --state removes it)\n" in kept.out
    assert len(list(folder.iterdir())) > 1
    shown = full.teardown("--state", "--dry-run")
    assert shown.out == f"embedding cache {folder}: would delete (its texts are paid for again)\n"
    gone = full.teardown("--state", "--yes")
    assert gone.out.startswith(f"embedding cache {folder}: deleted\n")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert full.teardown("--state", "--yes").out == f"embedding cache {folder}: absent\n"


def test_the_models_alone(full: Account) -> None:
    """Index, ledger and everything else stay; twice is fine."""
    name = names(full)
    done = full.teardown("--models", "--yes")
    assert done.status == 0, done.err
    assert done.out.splitlines()[:4] == [
        "endpoint ragctl-test-embedding: deleted",
        f"endpoint-config {name['endpoint-config']}: deleted",
        f"model {name['model']}: deleted",
        "deployment record deployment-test.json: deleted",
    ]
    assert (full.models, full.indexes) == ([], ["test"])
    assert full.files == ["deployment-test.lease", "test/lease.json", "test/ledger.sqlite"]
    again = full.teardown("--models", "--yes")
    assert (again.status, again.out) == (0, "there is nothing to remove\n")


def test_models_need_yes_without_a_terminal(full: Account) -> None:
    """Exit 2, and the endpoint serves on."""
    refused = full.teardown("--models")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("ragctl: error: Remove endpoint ragctl-test-embedding, endpoint-config ")
    assert len(full.models) == 3


def test_the_bucket_stays_with_the_indexes_of_others(full: Account) -> None:
    """--all leaves it and is done; asked for by its name it is exit 6. Our index is gone both times."""
    with connect("s3vectors", full.vectors.url) as client:
        client.create_index(
            vectorBucketName="papers",
            indexName="theirs",
            dataType="float32",
            dimension=8,
            distanceMetric="cosine",
        )
    done = full.teardown("--all", "--yes")
    assert done.status == 0, done.err
    assert "vector bucket papers: kept (vector bucket papers holds indexes: theirs)\n" in done.out
    assert (full.models, full.indexes, full.buckets) == ([], ["theirs"], ["papers"])
    refused = full.teardown("--bucket", "--yes")
    assert refused.status == 6
    assert "ragctl: error: vector bucket papers holds indexes: theirs\n" in refused.err
    assert full.indexes == ["theirs"]


# --- of everybody ----------------------------------------------------------------------------------------


def test_the_cron_job_removes_what_is_past_its_time(account: Account) -> None:
    """Of every experiment in the account and region, with a config that has no model of its own."""
    account.region.made_by_hand()
    account.other_deployment("past", expires=PAST)
    account.other_deployment("later", expires=FUTURE)
    account.other_deployment("forever")
    cron = ("--expired", "--yes", "--set", "embedding={kind: hashing}", "--set", "name=cron")
    shown = account.teardown(*cron, "--dry-run")
    assert shown.out.splitlines()[0] == (
        "endpoint ragctl-past-embedding: would delete "
        f"(InService, experiment past, expired {PAST}, costs an unknown price (ml.g5.2xlarge))"
    )
    assert len(account.models) == 12
    done = account.teardown(*cron, "--json")
    assert done.status == 0, done.err
    assert actions(done) == {"endpoint": "deleted", "endpoint-config": "deleted", "model": "deleted"}
    assert {resource["name"][:11] for resource in done.json["resources"]} == {"ragctl-past"}
    assert account.owners() == ["forever", "later", None]
    assert len(account.models) == 9
    again = account.teardown(*cron)
    assert (again.status, again.out) == (0, "there is nothing to remove\n")


def test_an_expired_model_of_ones_own_leaves_the_record_too(full: Account) -> None:
    """The next query says what is missing instead of calling an endpoint that is gone."""
    for path in full.models:
        full.region.control.thing(path).tags[EXPIRES_TAG] = PAST
    assert full.teardown("--expired", "--yes").status == 0
    assert full.models == []
    assert deployment.read(LocalState(full.region.state), "test") == (None, None)


def test_orphans_are_what_nobody_uses(account: Account) -> None:
    """Models without an endpoint and endpoints that failed; not what is used, young, or somebody else's."""
    account.region.made_by_hand(status="Failed")
    account.other_deployment("alive")
    account.other_deployment("broken", status="Failed")
    for path in account.models:
        account.region.control.thing(path).tags["ragctl:created"] = PAST
    plane = ControlPlane.from_config(account.region.experiment())
    request = account.region.control.thing("model/theirs").request
    body = {key: value for key, value in request.items() if key != "ModelName"}
    now = deployment.timestamp(datetime.now(UTC))
    for name, made in (("lone", PAST), ("young", now)):
        plane.create(Ref("model", name), body, {"ragctl:stack": "gone", "ragctl:created": made})
    done = account.teardown("--orphans", "--yes", "--json")
    assert done.status == 0, done.err
    assert sorted(r["name"].rpartition("-")[0] or r["name"] for r in done.json["resources"]) == [
        *("lone", "ragctl-broken", "ragctl-broken-embedding", "ragctl-broken-embedding"),
    ]
    assert account.owners() == ["alive", None]
    assert "model/young" in account.models
    assert len(account.models) == 7
    again = account.teardown("--orphans", "--expired", "--yes")
    assert (again.status, again.out) == (0, "there is nothing to remove\n")


def strip(account: Account, name: str) -> None:
    """Take the tags off the endpoint of that experiment, and make all else of it old and past its time."""
    for path in account.models:
        account.region.control.thing(path).tags |= {"ragctl:created": PAST, EXPIRES_TAG: PAST}
    account.region.control.thing(f"endpoint/ragctl-{name}-embedding").tags.clear()


@pytest.mark.parametrize("scope", ["--expired", "--orphans"])
def test_what_an_untagged_endpoint_uses_stays(account: Account, scope: str) -> None:
    """Its config and model carry our tags, and it could not be updated without them."""
    account.other_deployment("alive")
    strip(account, "alive")
    ended = account.teardown(scope, "--yes")
    assert (ended.status, ended.out) == (0, "there is nothing to remove\n")
    assert len(account.models) == 3
    account.region.control.thing("endpoint/ragctl-alive-embedding").status = "Deleting"
    assert account.teardown(scope, "--yes").status == 0
    assert account.models == []


def test_what_an_update_under_way_uses_stays(account: Account) -> None:
    """The new config is used from the moment that it is asked for."""
    account.other_deployment("alive")
    for path in account.models:
        account.region.control.thing(path).tags["ragctl:created"] = PAST
    plane = ControlPlane.from_config(account.region.experiment())
    config = next(path for path in account.models if path.startswith("endpoint-config/"))
    request = account.region.control.thing(config).request
    body = {key: value for key, value in request.items() if key != "EndpointConfigName"}
    plane.create(Ref("endpoint-config", "next"), body, {"ragctl:stack": "alive", "ragctl:created": PAST})
    plane.update_endpoint("ragctl-alive-embedding", "next")
    account.region.control.thing("endpoint/ragctl-alive-embedding").fate = Fate(after=None)
    ended = account.teardown("--orphans", "--yes")
    assert (ended.status, ended.out) == (0, "there is nothing to remove\n")
    assert "endpoint-config/next" in account.models


def test_others_that_may_not_be_looked_at_keep_no_endpoint_up(account: Account) -> None:
    """What costs goes; configs and models, which cost nothing and may be used, stay until they can be told."""
    account.region.made_by_hand()
    account.other_deployment("past", expires=PAST)
    denied = Fault("error", "ListEndpoints", 400, "AccessDeniedException", "no", times=None)
    account.region.control.faults.add(denied)
    ended = account.teardown("--expired", "--yes", "--json")
    assert (ended.status, actions(ended)) == (0, {"endpoint": "deleted"})
    assert "endpoint configs and models stay, for who else uses them cannot be looked at" in ended.err
    account.region.control.faults.clear()
    assert account.teardown("--expired", "--yes").status == 0
    assert account.owners() == [None]
    assert len(account.models) == 3


def test_an_account_that_may_not_be_searched(account: Account) -> None:
    """A cron job must not say that all is well when it could not look: exit 8 with the permission to ask for."""
    account.other_deployment("past", expires=PAST)
    denied = Fault("error", "GetResources", 400, "AccessDeniedException", "no", times=None)
    account.region.control.faults.add(denied)
    ended = account.teardown("--expired", "--yes")
    assert (ended.status, ended.out) == (8, "")
    assert "allow tag:GetResources" in ended.err
    assert len(account.models) == 3


def test_models_that_neither_config_nor_record_names_any_more(account: Account) -> None:
    """The account is looked at when they are asked for, and when a section says how they were deployed."""
    hashing = ("--set", "embedding={kind: hashing}")
    for scope, sections in (("--models", ("--set", "deployment={}")), ("--all", ())):
        assert account.run("deploy-models").status == 0
        (account.region.state / "deployment-test.json").unlink()
        ended = account.teardown(scope, "--yes", "--json", *hashing, *sections)
        assert (ended.status, account.models) == (0, []), ended.err
        assert actions(ended)["endpoint"] == "deleted"


def test_what_is_not_looked_for_is_told(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing names a model: where there is an account it is said how to look, and nothing is claimed."""
    bare = ("--dry-run", "--set", "embedding={kind: hashing}", "--set", "deployment={}")
    shown = account.teardown("--all", *bare, "--set", "aws.region=eu-west-1")
    assert shown.out.splitlines()[0] == (
        "models test: skipped (nothing names any; to look all the same: --models, or --orphans in the whole account)"
    )
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    shown = account.teardown("--models", *bare)
    assert (shown.status, shown.out) == (
        0,
        "models test: skipped (nothing names any, and no AWS region is known; to look: --set aws.region=REGION)\n",
    )


# --- on a disk that is full or damaged -------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["--models", "--expired", "--all"])
def test_without_a_place_for_its_report_it_removes_all_the_same(full: Account, scope: str) -> None:
    """What costs by the hour goes; the report that is missing is told twice, and exit 8 at the end."""
    for path in full.models:
        full.region.control.thing(path).tags[EXPIRES_TAG] = PAST
    block(full.config.parent / "runs")
    ended = full.teardown(scope, "--yes", "--json")
    assert (ended.status, full.models) == (8, [])
    assert actions(ended)["endpoint"] == "deleted"
    assert ended.json["run"] is None
    told = "runs: cannot make a folder for the run"
    assert told in ended.err.splitlines()[0]
    assert ended.err.splitlines()[0].endswith("going on without a report")
    assert ended.err.splitlines()[-2].startswith("ragctl: error: ")
    assert told in ended.err.splitlines()[-2]
    assert full.teardown(scope, "--yes").status == 0  # nothing is to be removed, so nothing to be reported


def test_prices_that_are_damaged(full: Account) -> None:
    """Unknown, with a warning: also where only one of them is none."""
    regions = {"eu-west-1": {"read": "2026-01-01", "instances": {"ml.g5.2xlarge": "many"}}}
    LocalState(full.region.state).overwrite(
        "prices.json", json.dumps({"schema": "ragctl.prices/1", "regions": regions}).encode()
    )
    ended = full.teardown("--models", "--yes")
    assert (ended.status, full.models) == (0, [])
    assert "prices are unknown" in ended.err


def test_a_state_location_that_cannot_be_written(full: Account) -> None:
    """No lease can be taken, and nobody can take one: the models go, and the record, which needs no place."""
    lock = full.region.state / ".lock"
    lock.unlink()
    lock.mkdir()
    ended = full.teardown("--models", "--yes")
    assert (ended.status, full.models) == (0, [])
    assert "removing models without a lease" in ended.err
    assert "deployment-test.json" not in full.files


def test_a_record_that_cannot_be_brought_up_to_date(full: Account) -> None:
    """Exit 8: what is gone is told as gone, and the record as left."""
    denied = Fault("error", "DeleteModel", 400, "AccessDeniedException", "not allowed", times=None)
    full.region.control.faults.add(denied)
    lock = full.region.state / ".lock"
    lock.unlink()
    lock.mkdir()
    ended = full.teardown("--models", "--yes", "--json")
    assert ended.status == 8
    assert actions(ended) == {
        "endpoint": "deleted",
        "endpoint-config": "deleted",
        "model": "left",
        "deployment record": "left",
    }


# --- what stays ------------------------------------------------------------------------------------------


def left(ended: Ended) -> list[str]:
    return [resource["name"] for resource in ended.json["resources"] if resource["action"] == "left"]


def record_of(ended: Ended) -> Any:
    return json.loads(Path(ended.json["run"]).read_text())


def test_a_delete_that_never_ends(full: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 8 with what still exists and costs; the rest goes all the same, and a later teardown ends it."""
    monkeypatch.setattr(teardown, "GONE_TIMEOUT_S", 0.1)
    full.region.control.thing(ENDPOINT).fate = Fate(delete_after=None)
    name = names(full)
    ended = full.teardown("--all", "--yes", "--json")
    assert ended.status == 8
    assert ended.err.splitlines()[-5:] == [
        "ragctl: error: some resources still exist:",
        "  endpoint ragctl-test-embedding: still Deleting, costs $1.52 an hour, $36.48 a day",
        f"  endpoint-config {name['endpoint-config']}: waits for what uses it",
        f"  model {name['model']}: waits for what uses it",
        "  hint: run this command again",
    ]
    assert left(ended) == ["ragctl-test-embedding", name["endpoint-config"], name["model"]]
    assert record_of(ended)["status"] == "failed"
    assert (len(full.models), full.indexes, full.buckets) == (3, [], [])
    assert "deployment-test.json" in full.files
    full.region.control.thing(ENDPOINT).fate = Fate()
    assert full.teardown("--all", "--yes").status == 0
    assert (full.models, full.files) == ([], [])


def test_an_endpoint_that_is_creating_and_may_not_be_deleted(
    full: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told as such, with what to wait for."""
    monkeypatch.setattr(teardown, "GONE_TIMEOUT_S", 0.1)
    thing = full.region.control.thing(ENDPOINT)
    thing.status, thing.fate = "Creating", Fate(after=None, deletable=False)
    ended = full.teardown("--models", "--yes")
    assert ended.status == 8
    assert "  endpoint ragctl-test-embedding: " in ended.err
    assert "costs $1.52 an hour, $36.48 a day" in ended.err
    assert (
        "  hint: an endpoint that is Creating can be deleted once it has failed or is in service (up to an hour): "
        "run this command again" in ended.err
    )
    thing.status = "Failed"
    assert full.teardown("--models", "--yes").status == 0
    assert full.models == []


@pytest.mark.parametrize("operation", ["DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"])
def test_a_delete_that_is_not_allowed(full: Account, operation: str) -> None:
    """Exit 8, the permission named; once it is granted the same command ends with 0 and nothing is left."""
    denied = Fault("error", operation, 400, "AccessDeniedException", "not allowed", times=None)
    full.region.control.faults.add(denied)
    ended = full.teardown("--models", "--yes", "--json")
    assert ended.status == 8
    kind = {"DeleteEndpoint": "endpoint", "DeleteEndpointConfig": "endpoint-config", "DeleteModel": "model"}[
        operation
    ]
    assert f"sagemaker:{operation} on {kind} {names(full)[kind]}: access denied: not allowed" in ended.err
    assert len(full.models) == {"DeleteEndpoint": 3, "DeleteEndpointConfig": 2, "DeleteModel": 1}[operation]
    full.region.control.faults.clear()
    assert full.teardown("--models", "--yes").status == 0
    assert full.models == []


def test_an_index_that_may_not_be_deleted(full: Account) -> None:
    """Exit 8; its ledger stays with it, the bucket as well, and the models are gone: they cost most."""
    full.vectors.denied = {"DeleteIndex"}
    ended = full.teardown("--all", "--yes", "--json")
    assert ended.status == 8
    assert left(ended) == ["test"]
    assert "  index test: " in ended.err
    assert "costs an unknown price" in ended.err
    assert (full.models, full.indexes, full.buckets) == ([], ["test"], ["papers"])
    assert "test/ledger.sqlite" in full.files
    full.vectors.denied = set()
    assert full.teardown("--all", "--yes").status == 0
    assert (full.indexes, full.buckets, full.files) == ([], [], [])


def test_a_store_that_cannot_be_looked_at_keeps_no_model_up(full: Account) -> None:
    """Exit 8: what is unknown is told, and left as it is; once it can be looked at, the same command ends it."""
    full.vectors.denied = {"GetIndex"}
    shown = full.teardown("--all", "--dry-run", "--json")
    assert (shown.status, actions(shown)["endpoint"], actions(shown)["index"]) == (8, "delete", "unknown")
    ended = full.teardown("--all", "--yes", "--json")
    assert ended.status == 8
    found = {resource["type"]: resource for resource in ended.json["resources"]}
    assert {kind: found[kind]["action"] for kind in ("endpoint", "index", "state file")} == {
        "endpoint": "deleted",
        "index": "unknown",
        "state file": "left",
    }
    assert "s3vectors:GetIndex" in found["index"]["status"]
    assert "ragctl: error: some resources may still exist:\n  index test: " in ended.err
    assert record_of(ended)["status"] == "failed"
    assert (full.models, full.indexes) == ([], ["test"])
    assert "test/ledger.sqlite" in full.files
    full.vectors.denied = set()
    assert full.teardown("--all", "--yes").status == 0
    assert (full.indexes, full.buckets, full.files) == ([], [], [])


def test_where_nothing_can_be_looked_at_the_reason_is_the_error(full: Account) -> None:
    """With what is to be done about it."""
    full.vectors.denied = {"GetIndex"}
    ended = full.teardown("--index", "--yes")
    assert (ended.status, ended.out) == (8, "")
    assert "s3vectors:GetIndex" in ended.err
    assert "some resources" not in ended.err


def test_a_list_of_tenants_that_is_damaged_keeps_no_model_up(full: Account) -> None:
    """Nobody knows which indexes there are, so they, their bucket and what is told of them stay."""
    LocalState(full.region.state).overwrite("test/tenants.json", b"{")
    source = '[{"kind": "local", "name": "docs", "path": "docs", "metadata": {"customer": "acme"}}]'
    tenancy = 'tenancy={"key": "customer", "layout": "index"}'
    tenants = ("--set", f"sources={source}", "--set", tenancy)
    ended = full.teardown("--all", "--yes", "--json", *tenants)
    assert ended.status == 8, ended.err
    found = {resource["type"]: resource["action"] for resource in ended.json["resources"]}
    assert found["endpoint"] == "deleted"
    assert {found[kind] for kind in ("index", "vector bucket", "state")} == {"unknown"}
    assert "test/tenants.json: is damaged" in ended.err
    assert (full.models, full.indexes) == ([], ["test"])


def test_an_account_without_models_to_look_at_keeps_no_index(full: Account) -> None:
    """The other way round: a deployment record that is damaged."""
    LocalState(full.region.state).overwrite("deployment-test.json", b"{")
    ended = full.teardown("--all", "--yes", "--json")
    assert ended.status == 8, ended.err
    found = {resource["type"]: resource["action"] for resource in ended.json["resources"]}
    assert (found["models"], found["index"]) == ("unknown", "deleted")
    assert (len(full.models), full.indexes) == (3, [])
    assert "deployment-test.json" in full.files


def test_what_an_index_costs_where_that_is_known(full: Account) -> None:
    """By gigabyte and month, as the bill has it."""
    aws = ("--set", "aws.region=us-east-1", "--set", "store.bucket=books")
    assert full.run("create-index", *aws).status == 0
    full.vectors.denied = {"DeleteIndex"}
    ended = full.teardown("--index", "--yes", *aws)
    assert ended.status == 8
    assert ended.err.splitlines()[-2].endswith("costs $0.06 a GB and month")


def test_the_index_of_another_experiment_is_kept(tmp_path: Path) -> None:
    """Two experiments that name one index share it; only the one that filled it takes it away."""
    write_docs(tmp_path, {"a.md": "Apples are red.\n"})
    config = experiment(tmp_path)
    assert ragctl("ingest", config).status == 0
    for scope in ("--index", "--all"):
        ended = ragctl("teardown", config, scope, "--yes", "--set", "name=other")
        assert ended.status == 0, ended.err
        assert "index test: kept (of experiment test; to remove it: --set name=test)\n" in ended.out
        assert "deleted" not in ended.out
    assert "Apples" in ragctl("query", config, "apples", "--retrieve-only").out
    assert "index test: deleted\n" in ragctl("teardown", config, "--index", "--yes").out


def test_the_tenants_of_an_experiment_with_a_longer_name_are_kept(tmp_path: Path) -> None:
    """Experiments may share a state location, and docs.v2 is no tenant of docs."""
    write_docs(tmp_path, {"a.md": "Apples are red.\n"})
    source = {"kind": "local", "name": "docs", "path": "docs", "metadata": {"customer": "acme"}}
    sections: dict[str, Any] = {"sources": [source], "tenancy": {"key": "customer", "layout": "index"}}
    config = experiment(tmp_path, **sections)
    assert ragctl("ingest", config).status == 0
    others = ("--set", "store.index=test.v2", "--set", "name=other")
    assert ragctl("ingest", config, *others).status == 0
    ended = ragctl("teardown", config, "--all", "--yes")
    assert ended.status == 0, ended.err
    assert "test.v2" not in ended.out
    assert "index test.v2.acme: deleted\n" in ragctl("teardown", config, "--all", "--yes", *others).out
