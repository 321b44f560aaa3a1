"""docs/aws.md: its experiments are valid, its commands run against the servers, its figures are the code's."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ragctl.adapters.s3vectors_calls import BULK_S
from ragctl.blueprint import Resolved, Role
from ragctl.check import check
from ragctl.deploy import deploy
from ragctl.indexes import named
from ragctl.limits import MAX_FILTERABLE_BYTES, MAX_METADATA_BYTES, MAX_PUT_RECORDS, MAX_TOP_K
from ragctl.loading import load
from ragctl.putting import PATIENCE_S
from tests.aws import serving
from tests.cli import ragctl
from tests.deployments import KNOWN, ROLE, environment, region_at_hand, tools
from tests.servers.sagemaker_runtime import EmbeddingModel

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("configs", "samples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("example", blocks("yaml"), ids=lambda text: text.split("name: ")[1].split()[0])
def test_the_experiments_are_valid(checkout: Path, example: str) -> None:
    """As files beside those that they extend."""
    path = checkout / "configs" / "example.yaml"
    path.write_text(example, encoding="utf-8")
    check(load(path), path)


def test_the_indexes_are_called_as_the_page_says(checkout: Path) -> None:
    """The name of the store's index in front."""
    (example,) = (block for block in blocks("yaml") if "indexes:" in block)
    path = checkout / "configs" / "example.yaml"
    path.write_text(example, encoding="utf-8")
    names = [one.store.index for one in named(load(path))]
    assert all(f"`{name}`" in PAGE for name in names)


def test_the_commands_run(checkout: Path) -> None:
    """In the order of the page; the upgrade is harmless where there is nothing to upgrade."""
    journey, upgrade, _ = (block.splitlines() for block in blocks("sh"))
    with serving() as cloud:
        for line in [*journey[:1], *upgrade, *journey[1:]]:
            program, *arguments = shlex.split(line)
            assert program == "ragctl"
            ended = ragctl(*arguments, cwd=checkout, env=cloud.env)
            assert ended.status == 0, f"{line}\n{ended.err}"
        assert (cloud.contents, cloud.buckets) == ({}, [])


def test_the_ways_down_leave_nothing(checkout: Path) -> None:
    """In the order of the page: the plan changes nothing, and in the end nothing of the experiment exists."""
    *_, down = (block.splitlines() for block in blocks("sh"))
    config = checkout / "configs" / "s3vectors-jumpstart.yaml"
    with (
        serving() as cloud,
        pytest.MonkeyPatch.context() as patch,
        region_at_hand(checkout / ".ragctl" / "jumpstart", patch) as region,
    ):
        env = {**cloud.env, **environment(region.control.url, region.runtime.url)}
        region.runtime.endpoints["ragctl-samples-jumpstart-embedding"] = EmbeddingModel("tei", 3584)
        experiment = load(config, [f"deployment.role_arn={ROLE}", "aws.region=eu-west-1"])
        deploy(experiment, replace(tools(experiment), resolve=resolve_as_another))
        made = ragctl("create-index", config, env=env)
        assert made.status == 0, made.err
        there = region.control.existing(), cloud.buckets
        assert (len(there[0]), len(there[1])) == (6, 1)
        for line in down:
            program, *arguments = shlex.split(line)
            ended = ragctl(*arguments, cwd=checkout, env=env)
            assert (program, ended.status) == ("ragctl", 0), f"{line}\n{ended.err}"
            if "--dry-run" in arguments:
                assert (region.control.existing(), cloud.buckets) == there
        assert (region.control.existing(), cloud.buckets) == ([], [])
        assert [path.name for path in region.state.rglob("*") if path.is_file()] == [".lock"]


def resolve_as_another(role: Role, model_id: str, version: str) -> Resolved:
    """One of the canned models, under the name that the config has for its own."""
    known = KNOWN["gte-qwen2" if role == "embedding" else "deepseek-r1"]
    return replace(known, model_id=model_id)


def test_the_table_of_teardown_names_its_options() -> None:
    """Every option that says what to remove, and no other."""
    said = re.findall(r"^\| `(--[a-z]+)` \| ", PAGE, re.MULTILINE)
    (listed,) = re.findall(r"say what to remove: (.*)\"", (ROOT / "ragctl" / "removal.py").read_text("utf-8"))
    assert sorted(said) == sorted(re.findall(r"--[a-z]+", listed))


def test_the_limits_are_those_of_the_code() -> None:
    """A figure that changes there has to change here."""
    for figure in (
        f"{MAX_PUT_RECORDS} records and 20 MiB",
        f"{MAX_METADATA_BYTES:,} bytes of metadata",
        f"{MAX_FILTERABLE_BYTES:,} of them filterable",
        f"{MAX_TOP_K:,} a query",
        f"after {BULK_S / 60:.0f} minutes without any success",
        f"for {PATIENCE_S:.0f} seconds at most",
    ):
        assert figure in PAGE


def test_links_lead_somewhere() -> None:
    """Every relative link names a file of the project."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
