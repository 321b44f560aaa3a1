"""deployment.py: whose record is whose, where several experiments keep their state in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ragctl import deploy_plan, deployment
from ragctl.adapters import open_embedder
from ragctl.errors import ServiceError
from ragctl.lease import hold
from ragctl.loading import load
from ragctl.state import LocalState
from tests.cli import Ended, experiment, in_process, write_docs
from tests.deployments import EMBEDDER, ROLE, Region, region_at_hand, resolve
from tests.servers.sagemaker_runtime import EmbeddingModel

FILES = ["deployment-theirs.json", "deployment-theirs.lease"]


@dataclass(frozen=True)
class Shared:
    """Two experiments, "ours" and "theirs", with one state location."""

    region: Region
    configs: dict[str, Path]

    def run(self, command: str, name: str, *arguments: object) -> Ended:
        return in_process(command, self.configs[name], *arguments)

    def endpoint_of(self, name: str) -> object:
        return deployment.recorded(load(self.configs[name]), "embedding").get("endpoint")

    @property
    def files(self) -> list[str]:
        """The records and leases of deployments."""
        return LocalState(self.region.state).names("deployment")

    def owners(self) -> list[str]:
        """Whose everything is that exists."""
        control = self.region.control
        return [control.thing(path).tags["ragctl:stack"] for path in control.existing()]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    real = deploy_plan.tools
    monkeypatch.setattr(
        deploy_plan,
        "tools",
        lambda experiment: replace(real(experiment), resolve=resolve),
    )
    configs = {}
    for name in ("ours", "theirs"):
        write_docs(tmp_path / name, {"a.md": "The canteen serves soup."})
        configs[name] = experiment(
            tmp_path / name,
            name=name,
            embedding=EMBEDDER,
            store={"kind": "local", "path": "store", "index": name},
            state=str(tmp_path / "state"),
            deployment={"role_arn": ROLE, "expires_after": "8h"},
        )
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        region.runtime.endpoints |= {
            f"ragctl-{name}-embedding": EmbeddingModel("tei", 384) for name in configs
        }
        yield Shared(region, configs)


@pytest.fixture
def deployed(shared: Shared) -> Shared:
    """Both have their model up."""
    for name in shared.configs:
        assert shared.run("deploy-models", name).status == 0
    return shared


def test_each_experiment_has_a_record_of_its_own(deployed: Shared) -> None:
    """Both are up, each finds its own endpoint, and a second deployment of one keeps what is its own alone."""
    assert deployed.owners() == ["ours", "theirs"] * 3
    assert [deployed.endpoint_of(name) for name in deployed.configs] == [
        "ragctl-ours-embedding",
        "ragctl-theirs-embedding",
    ]
    assert open_embedder(load(deployed.configs["ours"])).dimension == 384
    for name in deployed.configs:
        again = deployed.run("deploy-models", name, "--json")
        assert {(r["action"], name in r["name"]) for r in again.json["resources"]} == {("kept", True)}
        record, _ = deployment.read(LocalState(deployed.region.state), name)
        assert record is not None
        assert {(ref.type, name in ref.name) for ref in record.resources} == {
            ("endpoint", True),
            ("endpoint-config", True),
            ("model", True),
        }


def test_status_shows_ones_own(deployed: Shared) -> None:
    """The endpoint of the other experiment is none of its business."""
    for name in deployed.configs:
        status = deployed.run("status", name, "--json").json
        assert [(e["name"], e["ours"]) for e in status["endpoints"]] == [(f"ragctl-{name}-embedding", True)]


@pytest.mark.parametrize("scope", ["--models", "--all"])
def test_teardown_takes_ones_own(deployed: Shared, scope: str) -> None:
    """Endpoint, record and lease of the other stay, and it is used and torn down as if nothing had been."""
    assert deployed.run("ingest", "theirs").status == 0
    gone = deployed.run("teardown", "ours", scope, "--yes")
    assert gone.status == 0, gone.err
    assert deployed.owners() == ["theirs"] * 3
    kept = deployed.files if scope == "--all" else [n for n in deployed.files if n != "deployment-ours.lease"]
    assert kept == FILES
    assert deployed.run("query", "theirs", "soup", "--retrieve-only").status == 0
    assert deployed.run("teardown", "theirs", "--all", "--yes").status == 0
    assert deployed.owners() == []
    assert [name for name in deployed.files if "theirs" in name] == []


def test_the_state_of_one_is_removed_beside_the_others(deployed: Shared) -> None:
    """While its models are up the files stay; then --state removes its own alone."""
    kept = deployed.run("teardown", "ours", "--state", "--yes", "--json").json["resources"]
    assert [(r["name"], r["action"]) for r in kept] == [
        ("deployment-ours.lease", "kept"),
        ("deployment-ours.json", "kept"),
    ]
    deployed.run("teardown", "ours", "--models", "--yes")
    assert deployed.run("teardown", "ours", "--state", "--yes").status == 0
    assert deployed.files == FILES
    assert deployed.endpoint_of("theirs") == "ragctl-theirs-embedding"


def test_an_index_of_any_name_takes_no_record_with_it(shared: Shared) -> None:
    """Not even one that is called like the files of deployments: those stand beside the folders of indexes."""
    for index in ("deployment", "deployment-theirs", "theirs"):
        assert shared.run("deploy-models", "theirs").status == 0
        local = ("--set", "embedding={kind: hashing, dimension: 256}", "--set", f"store.index={index}")
        assert shared.run("ingest", "ours", *local).status == 0
        assert shared.run("teardown", "ours", "--all", "--yes", *local).status == 0
        assert shared.files == FILES


def test_one_may_be_deployed_while_the_other_is_torn_down(deployed: Shared) -> None:
    """Each has a lease of its own, so a long deployment of one does not hold up the other."""
    with hold(LocalState(deployed.region.state), deployment.lease_name("theirs"), "deploy-models"):
        assert deployed.run("teardown", "ours", "--models", "--yes").status == 0
        held = deployed.run("teardown", "theirs", "--models", "--yes")
    assert held.status == 7
    assert "its lease is deployment-theirs.lease" in held.err


def test_a_damaged_record_of_one_is_no_fault_of_the_other(deployed: Shared) -> None:
    """Its own commands name it; the other's never read it."""
    (deployed.region.state / deployment.record_name("theirs")).write_text("{")
    assert deployed.endpoint_of("ours") == "ragctl-ours-embedding"
    with pytest.raises(ServiceError, match=r"deployment-theirs\.json: is damaged"):
        deployed.endpoint_of("theirs")
