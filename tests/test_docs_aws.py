"""docs/aws.md: its experiments are valid, its commands run against the servers, its figures are the code's."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ragctl.adapters.s3vectors_calls import BULK_S
from ragctl.check import check
from ragctl.indexes import named
from ragctl.limits import MAX_FILTERABLE_BYTES, MAX_METADATA_BYTES, MAX_PUT_RECORDS, MAX_TOP_K
from ragctl.loading import load
from ragctl.pipeline import PATIENCE_S
from tests.aws import serving
from tests.cli import ragctl

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
    journey, upgrade = (block.splitlines() for block in blocks("sh"))
    with serving() as cloud:
        for line in [*journey[:1], *upgrade, *journey[1:]]:
            program, *arguments = shlex.split(line)
            assert program == "ragctl"
            ended = ragctl(*arguments, cwd=checkout, env=cloud.env)
            assert ended.status == 0, f"{line}\n{ended.err}"
        assert (cloud.contents, cloud.buckets) == ({}, [])


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
