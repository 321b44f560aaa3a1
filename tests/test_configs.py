"""Every file under configs/ is valid, and the schema beside them is the program's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragctl.check import check
from ragctl.loading import load, schema

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_is_valid_and_names_the_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors complete it, and `ragctl config check` accepts it."""
    assert path.read_text(encoding="utf-8").startswith(
        "# yaml-language-server: $schema=experiment.schema.json\n"
    )
    check(load(path), path)


def test_the_schema_is_that_of_the_program() -> None:
    """`ragctl config schema > configs/experiment.schema.json` after every change of a setting."""
    assert json.loads((CONFIGS / "experiment.schema.json").read_text(encoding="utf-8")) == schema()
