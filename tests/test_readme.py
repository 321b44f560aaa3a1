"""The README's commands run as they stand, and print what it says they print."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBERS_THAT_VARY = (
    (re.compile(r"\d+\.\d+ s\b"), "N s"),
    (re.compile(r"\d{8}T\d{6}Z-(\w+)-[0-9a-f]{6}"), r"RUN-\1"),
    (re.compile(r"(latency_\w+ +│?)[^\n]*"), r"\1"),
)


def console_blocks() -> list[tuple[str, str]]:
    """(command, output) of every `$` line in the README's console blocks."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            while command.endswith("\\"):
                more, _, output = output.partition("\n")
                command = command[:-1] + more.strip()
            found.append((command, output))
    return found


def normal(text: str) -> str:
    for pattern, replacement in NUMBERS_THAT_VARY:
        text = pattern.sub(replacement, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "samples"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def test_the_commands_print_what_the_readme_says(checkout: Path) -> None:
    """In the order of the page, in a fresh checkout: each ends with status 0 and the output shown."""
    blocks = console_blocks()
    assert len(blocks) >= 5
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    for command, output in blocks:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert normal(done.stdout) == normal(output), command


def test_the_yaml_on_the_page_is_a_valid_experiment(checkout: Path) -> None:
    """Whoever copies it gets an index."""
    from ragctl.check import check
    from ragctl.loading import load

    (example,) = [
        block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "sources:" in block
    ]
    assert yaml.safe_load(example)["name"]
    assert "excerpt of configs/samples.yaml" in example  # whose scores are shown below it
    path = checkout / "experiment.yaml"
    path.write_text(example, encoding="utf-8")
    check(load(path), path)


def test_links_lead_somewhere() -> None:
    """Every relative link names a file of the project."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
