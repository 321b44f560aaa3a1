"""teardown of an index: asked for, planned, done once, and harmless twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import experiment, ragctl, write_docs


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_docs(tmp_path, {"a.md": "The canteen serves soup."})
    path = experiment(tmp_path)
    assert ragctl("ingest", path).status == 0
    return path


def actions(document: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {resource["type"]: resource["action"] for resource in document["resources"]}


def test_without_a_terminal_it_needs_yes(config: Path) -> None:
    """Cron cannot destroy by accident: exit 2, nothing removed."""
    ended = ragctl("teardown", config, "--index")
    assert (ended.status, ended.out) == (2, "")
    assert "There is no terminal to ask on" in ended.err
    assert ragctl("query", config, "soup").status == 0


def test_a_dry_run_shows_the_plan(config: Path) -> None:
    """And removes nothing."""
    ended = ragctl("teardown", config, "--index", "--dry-run", "--json")
    assert (ended.status, actions(ended.json)["index"]) == (0, "delete")
    assert ragctl("query", config, "soup").status == 0


def test_the_index_goes_and_the_documents_stay(config: Path) -> None:
    """Twice in a row is fine, and the next ingest starts afresh."""
    ended = ragctl("teardown", config, "--index", "--yes", "--json")
    assert (ended.status, actions(ended.json)["index"]) == (0, "deleted")
    assert (config.parent / "docs" / "a.md").exists()
    assert ragctl("query", config, "soup").status == 8
    again = ragctl("teardown", config, "--index", "--yes", "--json")
    assert (again.status, actions(again.json)["index"]) == (0, "absent")
    ended = ragctl("ingest", config, "--json")
    assert ended.json["documents"]["added"] == 1


def test_what_to_remove_must_be_said(config: Path) -> None:
    """There is no default for destruction."""
    ended = ragctl("teardown", config, "--yes")
    assert ended.status == 2
    assert "say what to remove" in ended.err
