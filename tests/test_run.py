"""run: everything in one go, and no model left up, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from ragctl import deploy, deployment, teardown
from ragctl.adapters import aws
from ragctl.lease import hold
from ragctl.manifest import Ledger
from ragctl.state import LocalState, ledger_name
from tests.cli import Ended, block, experiment, ragctl, write_docs
from tests.deployments import EMBEDDER, ROLE, Region, environment, region_in
from tests.servers.http import Fault
from tests.servers.sagemaker_things import Fate

GOLDEN = {
    "id": "soup",
    "question": "What soup does the canteen serve?",
    "answer": "lentil soup",
    "evidence": [{"document": "docs/menu.md", "quote": "the canteen serves lentil soup"}],
}


def an_experiment(folder: Path, **sections: object) -> Path:
    """An experiment with documents and a question."""
    write_docs(folder, {"menu.md": "On Tuesdays the canteen serves lentil soup.", "b.md": "Nothing else."})
    (folder / "golden.jsonl").write_text(json.dumps(GOLDEN) + "\n")
    return experiment(
        folder,
        **{
            "evaluation": {"dataset": {"kind": "golden", "path": "golden.jsonl"}},
            "ingest": {"workers": 1},
            **sections,
        },
    )


@dataclass(frozen=True)
class Place:
    """An experiment whose embedding model is to be deployed, and the region it is deployed into."""

    config: Path
    region: Region

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = environment(self.region.control.url, self.region.runtime.url)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.canned", "run", str(self.config), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )

    def run(self, *arguments: str) -> Ended:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return Ended(process.returncode, out, err)

    def interrupt(self, process: subprocess.Popen[str], number: int, ready: Callable[[], bool]) -> Ended:
        """Send a signal once the run is where it is to be met."""
        turn = threading.Event()
        while not ready():
            assert process.poll() is None, process.communicate()
            turn.wait(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        return Ended(process.returncode, out, err)

    @property
    def left(self) -> list[str]:
        return self.region.control.existing()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for module in (deploy, teardown):
        monkeypatch.setattr(module, "POLL_S", 0.01)
    config = an_experiment(tmp_path, embedding=EMBEDDER, deployment={"role_arn": ROLE})
    with region_in(tmp_path / "state") as region:
        for name, value in environment(region.control.url, region.runtime.url).items():
            monkeypatch.setenv(name, value)
        yield Place(config, region)
        aws.forget()
    assert region.control.wrong_order == []


# --- the way of a good run -------------------------------------------------------------------------------


def test_from_nothing_to_a_verdict_and_no_model_left(place: Place) -> None:
    """Deployed, filled, evaluated, removed: one document says all of it, and the index stays."""
    done = place.run("--json")
    assert done.status == 0, done.err
    stages = done.json["stages"]
    assert list(stages) == ["deploy-models", "create-index", "ingest", "eval", "teardown"]
    assert done.json["schema"] == "ragctl.run-command/1"
    assert [resource["action"] for resource in stages["create-index"]["resources"]] == ["created"]
    assert stages["ingest"]["test"]["documents"]["added"] == 2
    assert stages["eval"]["test"]["metrics"]["nDCG@10"]["scored"] == 1
    assert {resource["action"] for resource in stages["teardown"]["resources"]} == {"deleted"}
    assert place.left == []
    assert deployment.read(LocalState(place.region.state), "test") == (None, None)
    (index,) = ragctl("status", place.config, "--json").json["indexes"]
    assert (index["exists"], index["documents"]) == (True, 2)


def test_on_this_machine_alone(tmp_path: Path) -> None:
    """The embedded default: index, ingest and eval, without an account."""
    done = ragctl("run", an_experiment(tmp_path))
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("index test: created")
    assert lines[1].startswith("test: 2 added documents")
    assert any(line.startswith("nDCG@10") for line in lines)


def test_a_dry_run_changes_nothing(place: Place) -> None:
    """What would be deployed, ingested and asked."""
    done = place.run("--dry-run", "--json")
    assert done.status == 0, done.err
    stages = done.json["stages"]
    assert stages["deploy-models"]["resources"][0]["action"] == "would create"
    assert stages["eval"] == {"questions": 1}
    assert place.left == []
    assert not (place.config.parent / "store").exists()


# --- the models go, whatever happens ---------------------------------------------------------------------


def test_a_gate_that_is_not_met(place: Place) -> None:
    """Exit 4, as eval has it, and the models are gone."""
    done = place.run("--json", "--set", 'evaluation.gate={"exact_match": ">= 0.99"}')
    assert done.status in (4, 5), done.err
    assert "teardown" in done.json["stages"]
    assert place.left == []


def test_documents_that_fail_are_told_at_the_end(place: Place) -> None:
    """Exit 3 after an evaluation of what did get in."""
    (place.config.parent / "docs" / "broken.pdf").write_text("no PDF at all")
    done = place.run("--json")
    assert done.status == 3, done.err
    assert list(done.json["stages"])[-2:] == ["eval", "teardown"]
    assert place.left == []


def test_an_ingest_that_ends_badly(place: Place) -> None:
    """An endpoint that refuses every call: exit 8, nothing is evaluated, the models are gone."""
    refusal = Fault(
        "error", "InvokeEndpoint", 403, "AccessDeniedException", "not authorized", skip=1, times=None
    )
    place.region.runtime.faults.add(refusal)  # the first call is the probe of deploy-models
    done = place.run("--json")
    assert done.status == 8, done.err
    assert list(done.json["stages"]) == ["deploy-models", "create-index", "teardown"]
    assert place.left == []


def test_an_endpoint_that_fails(place: Place) -> None:
    """The reason is told, and nothing is left of it."""
    place.region.control.fates["test"] = Fate("Failed", reason="no capacity")
    done = place.run("--json")
    assert done.status == 8
    assert "no capacity" in done.err
    assert place.left == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_waits_for_an_endpoint(place: Place, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM: 130, and nothing is left."""
    place.region.control.fates["test"] = Fate(after=None)
    made = threading.Event()

    def note(operation: str) -> None:
        if operation == "CreateEndpoint":
            made.set()

    place.region.control.after_call = note
    done = place.interrupt(place.start("--json"), number, made.is_set)
    assert done.status == 130, done.err
    assert place.left == []


@pytest.mark.parametrize("signals", [1, 2])
def test_interrupted_while_it_ingests(place: Place, signals: int) -> None:
    """Once or, for the impatient, twice: 130, and the models are gone all the same."""
    hang = Fault("hang", "InvokeEndpoint", skip=1, times=None, seconds=2.0)
    place.region.runtime.faults.add(hang)
    process = place.start("--json")

    def under_way() -> bool:
        return bool(place.region.runtime.faults.injected)

    if signals == 2:
        place_ready = threading.Event()
        while not under_way():
            assert process.poll() is None, process.communicate()
            place_ready.wait(0.02)
        process.send_signal(signal.SIGINT)
    done = place.interrupt(process, signal.SIGINT, under_way)
    assert done.status == 130, done.err
    assert place.left == []


def full_disk(state: LocalState) -> None:
    """Have no more files be written in a local state location."""
    lock = state.folder / ".lock"
    lock.unlink()
    lock.mkdir()


def test_without_a_place_for_reports_nothing_is_deployed(place: Place) -> None:
    """Exit 8 before anything is paid for."""
    block(place.config.parent / "runs")
    done = place.run()
    assert done.status == 8, done.err
    assert "runs: cannot make a folder for the run" in done.err
    assert [name for name, _ in place.region.control.requests if name.startswith("Create")] == []


def test_for_an_index_of_another_experiment_nothing_is_deployed(place: Place) -> None:
    """Exit 6 before anything is paid for, not once the models are up."""
    state = LocalState(place.region.state)
    path = state.path(ledger_name("test"))
    path.parent.mkdir(parents=True)
    with closing(Ledger(path, fence=1)) as ledger:
        ledger.set_meta(experiment="other", created="2026-11-01T00:00:00+00:00")
    done = place.run()
    assert done.status == 6, done.err
    assert "index test is filled by experiment other" in done.err
    assert [name for name, _ in place.region.control.requests if name.startswith("Create")] == []


def test_a_disk_that_fills_once_the_models_are_up(place: Place) -> None:
    """No report, no lease and no record can be written any more, and prices cannot be read: the models go."""
    state = LocalState(place.region.state)

    def fill(operation: str) -> None:
        if operation == "CreateEndpoint":
            state.overwrite("prices.json", b"{")
        record, _ = deployment.read(state, "test")
        if record and record.models["embedding"].ready and (state.folder / ".lock").is_file():
            block(place.config.parent / "runs")
            full_disk(state)

    place.region.control.after_call = fill
    done = place.run("--json")
    assert done.status == 8, done.err
    assert place.left == []
    assert {resource["action"] for resource in done.json["stages"]["teardown"]["resources"]} == {"deleted"}
    for words in ("prices are unknown", "removing models without a lease", "going on without a report"):
        assert words in done.err
    assert deployment.read(state, "test") == (None, None)


def test_a_report_that_cannot_be_written_is_told_after_a_run_that_went_well(place: Place) -> None:
    """Exit 8: all is done, and its record is not what it should be."""

    def fill(operation: str) -> None:
        if operation == "DeleteEndpoint":
            block(place.config.parent / "runs")

    place.region.control.after_call = fill
    done = place.run("--json")
    assert done.status == 8, done.err
    assert list(done.json["stages"])[-2:] == ["eval", "teardown"]
    assert "run.json: cannot be written" in done.err.splitlines()[-2]
    assert place.left == []


# --- what is not this run's ------------------------------------------------------------------------------


def test_models_that_were_up_before_stay_up(place: Place) -> None:
    """The run uses them and leaves them, record and all."""
    region = place.region
    region.deploy(region.experiment())
    before = place.left
    done = place.run("--json")
    assert done.status == 0, done.err
    assert {r["action"] for r in done.json["stages"]["deploy-models"]["resources"]} == {"kept"}
    assert done.json["stages"]["teardown"]["resources"] == []
    assert place.left == before
    record, _ = deployment.read(LocalState(region.state), "test")
    assert record is not None
    assert record.models["embedding"].ready
    assert "were up before this run, and stay" in done.err


@pytest.mark.parametrize("wanted", [False, True], ids=["run", "deploy-models"])
def test_what_a_run_that_was_killed_has_left_goes_with_the_next(place: Place, wanted: bool) -> None:
    """Nobody asked for it to stay, unless deploy-models was asked for it since."""
    region = place.region
    hang = Fault("hang", "InvokeEndpoint", skip=1, times=None, seconds=5.0)
    region.runtime.faults.add(hang)
    killed = place.interrupt(place.start(), signal.SIGKILL, lambda: bool(region.runtime.faults.injected))
    region.runtime.faults.clear()
    assert killed.status == -signal.SIGKILL
    assert place.left != []
    if wanted:
        region.deploy(region.experiment())
    before = place.left
    done = place.run("--json")
    assert done.status == 0, done.err
    assert {r["action"] for r in done.json["stages"]["deploy-models"]["resources"]} == {"kept"}
    assert place.left == (before if wanted else [])
    assert ("left by a run that was killed" in done.err) is not wanted


def test_what_a_run_that_was_killed_has_left_beside_what_was_asked_for(place: Place) -> None:
    """deploy-models under another name does not say that the first endpoint is to stay."""
    region = place.region
    hang = Fault("hang", "InvokeEndpoint", skip=1, times=None, seconds=5.0)
    region.runtime.faults.add(hang)
    place.interrupt(place.start(), signal.SIGKILL, lambda: bool(region.runtime.faults.injected))
    region.runtime.faults.clear()
    region.deploy(region.experiment(embedding=EMBEDDER | {"endpoint": "theirs"}))
    done = place.run("--json")
    assert done.status == 0, done.err
    endpoints = [name for name in place.left if name.startswith("endpoint/")]
    assert endpoints == ["endpoint/theirs"]


def test_an_endpoint_that_failed_before_and_is_made_anew_goes_as_well(place: Place) -> None:
    """It costs from this run on, whatever was there under its name."""
    region = place.region
    region.deploy(region.experiment())
    region.control.thing("endpoint/ragctl-test-embedding").status = "Failed"
    done = place.run("--json")
    assert done.status == 0, done.err
    assert {r["action"] for r in done.json["stages"]["teardown"]["resources"]} == {"deleted"}
    assert place.left == []


def taken_over(place: Place, embedding: str) -> Ended:
    """A run that takes the endpoint "theirs" over."""
    return place.run(
        "--json", "--set", f"embedding={embedding}", "--set", "deployment.embedding.take_over=true"
    )


def test_an_endpoint_that_is_taken_over_stays_up(place: Place) -> None:
    """It is ours to remove from then on, and was there before the run."""
    place.region.made_by_hand()
    before = place.left
    done = taken_over(place, "{kind: sagemaker, endpoint: theirs, family: tei}")
    assert done.status == 0, done.err
    assert done.json["stages"]["teardown"]["resources"] == []
    assert place.left == before
    record, _ = deployment.read(LocalState(place.region.state), "test")
    assert record is not None
    assert deployment.Ref("endpoint", "theirs") in record.resources


def test_an_endpoint_of_another_experiment_that_is_taken_over_stays_up(place: Place) -> None:
    """With its config and model, which are the very ones that this experiment would have made."""
    state = str(place.region.state / "theirs")
    theirs = place.region.experiment(name="other", embedding=EMBEDDER | {"endpoint": "theirs"}, state=state)
    place.region.deploy(theirs)
    before = place.left
    done = taken_over(place, "{kind: sagemaker, model: gte-qwen2, endpoint: theirs}")
    assert done.status == 0, done.err
    assert {r["action"] for r in done.json["stages"]["deploy-models"]["resources"]} == {"kept"}
    assert place.left == before


def test_what_another_deploys_meanwhile_is_left_alone(place: Place) -> None:
    """The lease is held: exit 7, and nothing was begun that would have to be removed."""
    with hold(LocalState(place.region.state), deployment.lease_name("test"), "deploy-models"):
        done = place.run("--json")
    assert done.status == 7, done.err
    assert done.json["stages"] == {}
    assert {name for name, _ in place.region.control.requests if name.startswith("Delete")} == set()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("evaluation.dataset.path=nowhere.jsonl", "nowhere.jsonl"),
        ("sources=[{kind: local, name: docs, path: nowhere}]", "does not exist"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_paid_for(place: Place, setting: str, words: str) -> None:
    """Exit 2, and the account was not even asked."""
    done = place.run("--set", setting)
    assert done.status == 2, done.err
    assert words in done.err
    assert place.region.control.requests == []
