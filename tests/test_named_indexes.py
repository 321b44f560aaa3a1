"""Several indexes in one experiment, one per chunking strategy: each on its own, or all with one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragctl.errors import ConfigError
from ragctl.indexes import named
from ragctl.loading import load
from tests.cli import experiment, ragctl, write_docs
from tests.experiments import experiment as in_memory

INDEXES = {
    "fine": {"chunking": {"size": 60}},
    "coarse": {"chunking": {"kind": "page", "size": 2_000}},
}
TEXT = "# Menu\n\n" + "".join(f"On day {day} the canteen serves soup number {day}.\n\n" for day in range(9))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_docs(tmp_path, {"menu.md": TEXT})
    golden = {
        "id": "soup",
        "question": "What does the canteen serve on day 7?",
        "answer": "soup number 7",
        "evidence": [{"document": "docs/menu.md", "quote": "On day 7 the canteen serves soup number 7."}],
    }
    (tmp_path / "golden.jsonl").write_text(json.dumps(golden))
    dataset = {"kind": "golden", "path": "golden.jsonl"}
    return experiment(tmp_path, indexes=INDEXES, evaluation={"dataset": dataset})


def test_one_command_for_all_of_them(config: Path) -> None:
    """Each is made, filled, checked, scored and removed, and JSON tells them apart by name."""
    made = ragctl("create-index", config, "--json").json["resources"]
    assert [(r["name"], r["action"]) for r in made] == [("test-fine", "created"), ("test-coarse", "created")]
    ingested = ragctl("ingest", config, "--json").json
    assert ingested["schema"] == "ragctl.ingest/1"
    chunks = {name: result["chunks"]["total"] for name, result in ingested["indexes"].items()}
    assert chunks["test-fine"] > chunks["test-coarse"] == 1
    runs = {result["run"] for result in ingested["indexes"].values()}
    assert len(runs) == 2
    assert all(Path(run).exists() for run in runs)
    verified = ragctl("verify", config, "--json")
    assert (verified.status, list(verified.json["indexes"])) == (0, ["test-fine", "test-coarse"])
    scored = ragctl("eval", config, "--json")
    assert (scored.status, list(scored.json["indexes"])) == (0, ["test-fine", "test-coarse"])
    gone = ragctl("teardown", config, "--index", "--yes", "--json")
    assert {r["name"] for r in gone.json["resources"] if r["action"] == "deleted"} == {
        "test-fine",
        "test-coarse",
    }


def test_one_of_them_alone(config: Path) -> None:
    """With its name everything is as with an experiment that has one index."""
    ended = ragctl("ingest", config, "--index", "coarse", "--json")
    assert (ended.status, ended.json["index"], ended.json["chunks"]["total"]) == (0, "test-coarse", 1)
    asked = ragctl("query", config, "What is served on day 7?", "--index", "coarse", "--json")
    assert "soup number 7" in asked.json["answer"]
    assert ragctl("query", config, "soup", "--index", "fine").status == 8
    assert ragctl("eval", config, "--index", "coarse", "--json").json["metrics"]["nDCG@10"]["scored"] == 1
    ragctl("ingest", config, "--index", "fine")
    gone = ragctl("teardown", config, "--index", "--only", "fine", "--yes", "--json").json["resources"]
    assert {r["name"] for r in gone} == {"test-fine"}
    assert ragctl("verify", config, "--index", "coarse").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "this experiment has several indexes: fine, coarse\n  hint: say which: --index fine"),
        (("--index", "medium"), "there is no index medium in this experiment\n  hint: known: fine, coarse"),
    ],
)
def test_a_question_goes_to_one_index(config: Path, arguments: tuple[str, ...], words: str) -> None:
    """Which one, nobody guesses: exit 2."""
    ended = ragctl("query", config, "soup", *arguments)
    assert (ended.status, ended.err) == (2, f"ragctl: error: {words}\n")


def test_a_gate_holds_for_each_of_them(config: Path) -> None:
    """One index that does not meet it is enough for exit 4; both tables are printed."""
    ragctl("ingest", config)
    ended = ragctl("eval", config, "--set", 'evaluation.gate={R@1: "< 0.5"}')
    assert ended.status == 4
    assert "index test-fine" in ended.out
    assert "index test-coarse" in ended.out


def test_an_experiment_without_names_has_one_index() -> None:
    """It is its own; a name is an error."""
    one = in_memory()
    assert named(one) == [one]
    with pytest.raises(ConfigError, match="this experiment has one index, without a name"):
        named(one, "fine")


def test_a_name_that_does_not_fit_is_a_fault_of_the_file(tmp_path: Path) -> None:
    """Before anything is made: the store takes 63 characters in all."""
    path = experiment(
        tmp_path,
        store={"kind": "local", "path": "store", "index": "x" * 55},
        indexes={"by-paragraph": {"chunking": {"size": 9}}},
    )
    with pytest.raises(ConfigError, match="a name may have 7 characters behind"):
        load(path)


def test_the_tokenizer_of_an_index_is_meant_from_the_file(tmp_path: Path) -> None:
    """As every path, in the file and with --set from here."""
    chunking = {"kind": "tokens", "unit": "tokens", "size": 9, "tokenizer": "tokenizer.json"}
    path = experiment(tmp_path, indexes={"fine": {"chunking": chunking}})
    assert load(path).indexes["fine"].chunking.tokenizer == tmp_path / "tokenizer.json"
    other = load(path, ["indexes.fine.chunking.tokenizer=here.json"])
    assert other.indexes["fine"].chunking.tokenizer == Path.cwd() / "here.json"
