"""eval as a command: table, JSON, report and the exit status that a CI job reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import Ended, experiment, ragctl, write_docs

GOLDEN: list[dict[str, Any]] = [
    {
        "id": "soup",
        "question": "What soup does the canteen serve?",
        "answer": "lentil soup",
        "evidence": [{"document": "docs/menu.md", "quote": "the canteen serves lentil soup"}],
        "tags": ["food"],
    },
    {
        "id": "turbines",
        "question": "How many turbines did the harbour ship?",
        "answer": "57",
        "evidence": [{"document": "docs/report.md", "quote": "shipped 57 turbines"}],
    },
    {"id": "zeppelin", "question": "Who invented the zeppelin?", "answer": None, "evidence": []},
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_docs(
        tmp_path,
        {
            "menu.md": "# Menu\n\nOn Tuesdays the canteen serves lentil soup and rye bread.\n",
            "report.md": "# Report\n\nThe harbour shipped 57 turbines in the year.\n",
        },
    )
    (tmp_path / "golden.jsonl").write_text("\n".join(map(json.dumps, GOLDEN)))
    path = experiment(tmp_path, evaluation={"dataset": {"kind": "golden", "path": "golden.jsonl"}})
    assert ragctl("ingest", path).status == 0
    return path


def evaluated(config: Path, gate: str | None = None, *more: str) -> Ended:
    gates = ["--set", f"evaluation.gate={gate}"] if gate else []
    return ragctl("eval", config, "--json", *gates, *more)


def test_every_question_counts(config: Path) -> None:
    """Scored and unscored stand beside every mean."""
    ended = evaluated(config)
    assert ended.status == 0
    metrics = ended.json["metrics"]
    assert metrics["nDCG@10"] | {"low": None, "high": None} == {
        "value": 1.0,
        "low": None,
        "high": None,
        "scored": 2,
        "unscored": 0,
    }
    assert metrics["abstention_recall"]["value"] == 1.0
    assert ended.json["gate"]["verdict"] == "none"


@pytest.mark.parametrize(
    ("gate", "status", "verdict", "words"),
    [
        ('{nDCG@10: ">= 0.9"}', 0, "pass", ""),
        ('{nDCG@10: "< 0.5"}', 4, "fail", "ragctl: error: the gate is not met"),
        ('{nDCG@10: ">= 0.9", Success@5: "< 0.5"}', 4, "fail", "ragctl: error: the gate is not met"),
        (
            '{abstention_recall: ">= 0.9 at 95%"}',
            5,
            "cannot-tell",
            "ragctl: error: the gate cannot be decided",
        ),
    ],
)
def test_the_exit_status_is_the_gate_s(
    config: Path, gate: str, status: int, verdict: str, words: str
) -> None:
    """A CI job need not read anything else."""
    ended = evaluated(config, gate)
    assert (ended.status, ended.json["gate"]["verdict"]) == (status, verdict)
    assert words in ended.err


@pytest.mark.parametrize(
    ("gate", "words"),
    [('{nDCG@ten: ">= 0.5"}', "nDCG@ten"), ('{nDCG@10: "about 1"}', "nDCG@10")],
)
def test_a_gate_that_cannot_be_read_is_exit_2(config: Path, gate: str, words: str) -> None:
    """Before any question is asked."""
    ended = evaluated(config, gate)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err


def test_the_report_is_where_it_says(config: Path) -> None:
    """run.json for machines, the page for people."""
    ended = evaluated(config)
    record = json.loads(Path(ended.json["run"]).read_text())
    assert (record["command"], record["status"]) == ("eval", "done")
    assert [row["id"] for row in record["rows"]] == ["soup", "turbines", "zeppelin"]
    assert "lentil soup" in Path(ended.json["report"]).read_text()


def test_the_table_for_people(config: Path) -> None:
    """Names are definitions, and the page is named last."""
    out = ragctl("eval", config).out
    assert "nDCG@10" in out
    assert out.splitlines()[-1].startswith("report: ")


def test_the_table_is_whole_however_narrow_its_place(config: Path) -> None:
    """Written into a pipe or a file, every column of every row is there."""
    gate = ("--set", 'evaluation.gate={nDCG@10: ">= 0.5", abstention_recall: ">= 0.1 at 95%"}')
    wide, narrow = (
        ragctl("eval", config, *gate, env={"COLUMNS": columns}).out.splitlines() for columns in ("200", "20")
    )
    assert (
        wide[0].split()
        == narrow[0].split()
        == ["metric", "value", "95", "%", "interval", "scored", "unscored", "gate"]
    )
    (rule,) = (line for line in narrow if line.startswith("abstention_recall"))
    assert rule.split()[-5:] == [">=", "0.1", "at", "95%", "pass"]
    assert len(narrow) == len(wide)


def test_a_dry_run_counts_the_questions(config: Path) -> None:
    """Nothing is asked and nothing is written."""
    before = list((config.parent / "runs").iterdir())
    ended = ragctl("eval", config, "--dry-run", "--json")
    assert (ended.status, ended.json["questions"]) == (0, 3)
    assert list((config.parent / "runs").iterdir()) == before


def test_an_experiment_without_questions_is_exit_2(tmp_path: Path) -> None:
    """It says which section is missing."""
    write_docs(tmp_path, {"a.md": "A."})
    ended = ragctl("eval", experiment(tmp_path))
    assert ended.status == 2
    assert "has no evaluation section" in ended.err


def test_without_a_ledger_no_document_is_called_absent(config: Path) -> None:
    """The index answers all the same; that nobody knows what is in it is said, with what makes the ledger anew."""
    (config.parent / "state" / "test" / "ledger.sqlite").unlink()
    ended = evaluated(config)
    assert (ended.status, ended.json["metrics"]["nDCG@10"]["value"]) == (0, 1.0)
    assert "not indexed" not in ended.err
    assert "or its ledger is lost" in ended.err
    assert "ragctl ledger rebuild CONFIG" in ended.err
