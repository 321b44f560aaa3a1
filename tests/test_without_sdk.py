"""Without the extra `jumpstart`: every command works, on this machine and on AWS, but for asking JumpStart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from ragctl.cli import app
from tests.cli import Ended
from tests.deployments import ROLE, region_at_hand
from tests.test_run import an_experiment

HIDDEN = """
import json, sys
sys.modules["sagemaker"] = None  # as if it were not installed
from tests.cli import in_process
for arguments in json.load(sys.stdin):
    ended = in_process(*arguments)
    print(json.dumps([ended.status, ended.out, ended.err]))
"""
LOCAL = ("--set", "embedding={kind: hashing}", "--set", "store.index=local")
EVERY_COMMAND: list[tuple[str, tuple[str, ...]]] = [  # in an order in which each has something to do
    ("config check", ()),
    ("config show", ()),
    ("config schema", ()),
    ("ingest", LOCAL),
    ("doctor", LOCAL),
    ("deploy-models", ()),
    ("create-index", ()),
    ("plan", ()),
    ("ingest", ()),
    ("query", ("What soup does the canteen serve?",)),
    ("eval", ()),
    ("verify", ()),
    ("ledger rebuild", ()),
    ("failures", ()),
    ("prices refresh", ()),
    ("prices show", ()),
    ("status", ()),
    ("run", ()),
    ("teardown", ("--all", "--yes")),
]


def without_sdk(*commands: tuple[str, ...]) -> list[Ended]:
    """How commands end, one after another, in a process that has no SageMaker SDK."""
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]


def commands() -> set[str]:
    """Every command of the program, those of groups with their group."""
    program = get_command(app)
    assert isinstance(program, TyperGroup)
    return {
        f"{name} {one}".strip()
        for name, command in program.commands.items()
        for one in (command.commands if isinstance(command, TyperGroup) else ("",))
    }


def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an endpoint on SageMaker that is named; in the end everything that was made is gone again."""
    assert {name for name, _ in EVERY_COMMAND} == commands()
    config = an_experiment(tmp_path, embedding={"kind": "sagemaker", "endpoint": "theirs"})
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        region.control.prices["ml.g5.xlarge"] = 1.0
        region.made_by_hand()
        lines = [
            (*name.split(), *(() if name == "config schema" else (str(config),)), *arguments)
            for name, arguments in EVERY_COMMAND
        ]
        for (name, _), ended in zip(EVERY_COMMAND, without_sdk(*lines), strict=True):
            assert ended.status == 0, (name, ended.err)
        assert len(region.control.existing()) == 3


def test_a_model_of_jumpstart_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 and the line to install it with, of deploy-models and of run; nothing was made or asked for money."""
    model = {"kind": "sagemaker", "model": "gte-qwen2"}
    config = str(an_experiment(tmp_path, embedding=model, deployment={"role_arn": ROLE}))
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        for ended in without_sdk(
            ("deploy-models", config), ("run", config), ("deploy-models", config, "--dry-run")
        ):
            assert ended.status == 2
            assert ended.err.splitlines()[-2:] == [
                "ragctl: error: deploy-models needs an optional package",
                '  hint: install it with: pip install "ragctl[jumpstart]"',
            ]
        assert region.control.existing() == []
