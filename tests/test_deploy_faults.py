"""deploy.py: one fault at every call of every way to deploy, and then everything that exists is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from queue import Queue

import pytest

from ragctl import deployment
from ragctl.errors import RagctlError, StateError
from ragctl.state import LocalState
from tests.deployments import SCENARIOS, Region, Scenario, region_at_hand
from tests.servers.http import Fault

ENDPOINT = "endpoint/ragctl-test-embedding"
CALLS = {  # of the control plane in each scenario
    "plain": 10,
    "scales": 13,
    "scales-to-zero": 20,
    "replaced": 21,
    "replaced-that-scales-to-zero": 38,
}
FAULTS = {
    "refused": Fault("error", None, 400, "AccessDeniedException", "not allowed"),
    "throttled": Fault("error", None, 400, "ThrottlingException", "Rate exceeded"),
    "lost": Fault("lost"),
}


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Region]:
    """A region with nothing in it, and no waiting."""
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        yield region


def begin(region: Region, scenario: Scenario) -> list[str]:
    """Deploy what was there before; what exists then."""
    if scenario.before is not None:
        region.deploy_scenario(scenario, before=True)
    region.control.calls.clear()
    return region.control.existing()


def recorded(region: Region) -> set[str]:
    """What the record names, as the server calls it."""
    record, _ = deployment.read(LocalState(region.state), "test")
    types = {"scaling-target": "scaling"}
    return {f"{types.get(ref.type, ref.type)}/{ref.name}" for ref in record.resources} if record else set()


@pytest.mark.parametrize("name", SCENARIOS)
def test_how_many_calls_there_are_to_fail(region: Region, name: str) -> None:
    """The tests below fail every one of them; what is replaced leaves nothing of what was there before."""
    before = set(begin(region, SCENARIOS[name]))
    region.deploy_scenario(SCENARIOS[name])
    assert len(region.control.calls) == CALLS[name]
    after = set(region.control.existing())
    assert not before or len(after) == len(before)
    assert recorded(region) == after
    region.teardown(SCENARIOS[name].experiment(region.state))
    assert region.control.existing() == []


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_any_call_leaves_nothing_unknown(region: Region, name: str, kind: str) -> None:
    """Refused, throttled out, or done with the reply lost: what failed is undone, what was there before serves on.

    Whatever exists is in the record; the same command ends it, with no more than a run without a fault leaves, and
    teardown leaves nothing.
    """
    scenario = SCENARIOS[name]
    for number in range(CALLS[name]):
        before = begin(region, scenario)
        region.control.faults.add(replace(FAULTS[kind], skip=number))
        failed = not succeeds(region, scenario)
        region.control.faults.clear()
        assert len(region.control.faults.injected) == number + 1
        existing = region.control.existing()
        assert set(existing) <= recorded(region), number
        if scenario.before is None:
            assert not (failed and existing), number
        else:
            assert region.control.thing(ENDPOINT).status == "InService", number
            region.deploy_scenario(scenario)
            assert len(region.control.existing()) == len(before), number
        region.teardown(scenario.experiment(region.state))
        assert region.control.existing() == [], number


def succeeds(region: Region, scenario: Scenario) -> bool:
    """Whether it is deployed without an error."""
    try:
        region.deploy_scenario(scenario)
    except RagctlError:
        return False
    return True


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_call_leaves_nothing_that_teardown_does_not_find(region: Region, name: str) -> None:
    """The call has its effect, the process is gone before the reply; then teardown finds everything."""
    scenario = SCENARIOS[name]
    with deploying(region, name) as start:
        for number in range(CALLS[name]):
            begin(region, scenario)
            region.answer_for(scenario.experiment(region.state))
            assert killed_at(region, number, start) == -signal.SIGKILL, number
            assert set(region.control.existing()) <= recorded(region), number
            region.teardown(scenario.experiment(region.state))
            assert region.control.existing() == [], number
            assert region.teardown(scenario.experiment(region.state)) == [], number


@pytest.mark.parametrize(
    "name", [name for name, scenario in SCENARIOS.items() if scenario.before is not None]
)
def test_a_replacement_that_was_killed_is_ended_by_the_next(region: Region, name: str) -> None:
    """It serves all the while, and nothing of what was there before is left in the end."""
    scenario = SCENARIOS[name]
    with deploying(region, name) as start:
        for number in range(CALLS[name]):
            before = begin(region, scenario)
            region.answer_for(scenario.experiment(region.state))
            killed_at(region, number, start)
            assert region.control.thing(ENDPOINT).status in ("InService", "Updating"), number
            region.control.thing(ENDPOINT).look()
            region.deploy_scenario(scenario)
            assert len(region.control.existing()) == len(before), number
            assert set(region.control.existing()) == recorded(region), number
            region.teardown(scenario.experiment(region.state))
            assert region.control.existing() == [], number


@contextmanager
def deploying(region: Region, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that deploys the scenario for each line that it gets; see tests/deployments.py."""
    command = [sys.executable, "-m", "tests.deployments", str(region.state), name]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        yield process
        process.communicate(timeout=60)


def killed_at(region: Region, number: int, deploying: subprocess.Popen[str]) -> int:
    """Deploy, and kill it once the call of this number has had its effect; the exit status."""
    assert deploying.stdin is not None
    assert deploying.stdout is not None
    ids: Queue[int] = Queue()
    calls = count()

    def kill(_: str) -> None:
        if next(calls) == number:
            os.kill(ids.get(timeout=60), signal.SIGKILL)

    region.control.after_call = kill
    deploying.stdin.write("\n")
    deploying.stdin.flush()
    ids.put(int(deploying.stdout.readline()))
    status = int(deploying.stdout.readline())
    region.control.after_call = lambda _: None
    return status


def test_a_record_that_cannot_be_written_any_more(region: Region) -> None:
    """A disk that fills while the endpoint comes up: nothing serves of which no command would know."""
    lock = region.state / ".lock"

    def fill(operation: str) -> None:
        if operation == "CreateEndpoint":
            lock.unlink()
            lock.mkdir()

    region.control.after_call = fill
    with pytest.raises(StateError, match="cannot be written"):
        region.deploy_scenario(SCENARIOS["plain"])
    assert region.control.existing() == []
    lock.rmdir()
    region.teardown(SCENARIOS["plain"].experiment(region.state))
    assert recorded(region) == set()
