"""query: answers with citations, hits with their places, and questions that cannot be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import experiment, in_process, ragctl, write_docs

TEXTS = {
    "2022/report.md": "# Report\n\nThe harbour shipped 41 turbines in the year. Staff numbered 12.\n",
    "2023/report.md": "# Report\n\nThe harbour shipped 57 turbines in the year. Staff numbered 15.\n",
    "2023/menu.md": "# Menu\n\nOn Tuesdays the canteen serves lentil soup and rye bread.\n",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("query")
    write_docs(folder, TEXTS)
    source = {"kind": "local", "name": "docs", "path": "docs", "path_metadata": "{year}/*"}
    path = experiment(folder, sources=[source], retrieval={"top_k": 2})
    assert ragctl("ingest", path).status == 0
    return path


def test_an_answer_cites_the_document_that_says_it(config: Path) -> None:
    """Every marker stands for a hit."""
    ended = ragctl("query", config, "What soup does the canteen serve?", "--json")
    assert ended.status == 0
    assert "lentil soup" in ended.json["answer"]
    assert [c["document"] for c in ended.json["citations"]] == ["docs/2023/menu.md"]
    assert ended.json["citations"][0]["key"] in [hit["key"] for hit in ended.json["hits"]]


def test_the_answer_for_people_names_its_sources(config: Path) -> None:
    """Answer first, then where it is from; nothing on stderr."""
    ended = ragctl("query", config, "What soup does the canteen serve?")
    assert ended.out == (
        "On Tuesdays the canteen serves lentil soup and rye bread. [1]\n\n  [1] docs/2023/menu.md\n"
    )
    assert ended.err == ""


def test_json_is_one_document_for_other_programs(config: Path) -> None:
    """`ragctl query --json | python -m json.tool` works."""
    command = f"{sys.executable} -m ragctl query {config} 'What soup?' --json | {sys.executable} -m json.tool"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["schema"] == "ragctl.query/1"


def test_a_question_from_stdin(config: Path) -> None:
    """`echo question | ragctl query CONFIG -` works."""
    ended = ragctl("query", config, "-", "--json", stdin="What soup does the canteen serve?\n")
    assert ended.json["question"] == "What soup does the canteen serve?"


def test_retrieve_only_generates_nothing(config: Path) -> None:
    """The answer is null, and the generator is not called."""
    ended = ragctl("query", config, "soup", "--retrieve-only", "--json")
    assert (ended.json["answer"], ended.json["citations"]) == (None, [])
    assert ended.json["hits"][0]["document"] == "docs/2023/menu.md"
    assert "generate" not in ended.json["timings"]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_every_mode_finds_the_document(config: Path, mode: str) -> None:
    """Scores fall from hit to hit in each of them."""
    hits = ragctl("query", config, "lentil soup", "--mode", mode, "--retrieve-only", "--json").json["hits"]
    assert hits[0]["document"] == "docs/2023/menu.md"
    assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)


def test_a_filter_keeps_other_years_out(config: Path) -> None:
    """Digits in a path are numbers to filter by."""
    ended = ragctl("query", config, "How many turbines were shipped?", "--filter", '{"year": 2022}', "--json")
    assert "41 turbines" in ended.json["answer"]
    assert {hit["metadata"]["year"] for hit in ended.json["hits"]} == {2022}


def test_explain_shows_how_each_hit_came_to_its_place(config: Path) -> None:
    """Ranks of both searches and what was cut."""
    hits = ragctl("query", config, "turbines", "--retrieve-only", "--explain", "--json").json["hits"]
    assert set(hits[0]["ranks"]) == {"vector", "distance", "text", "bm25", "fused", "rerank"}
    assert hits[0]["ranks"]["vector"] is not None
    table = ragctl("query", config, "turbines", "--retrieve-only", "--explain").out
    assert "vector  distance  text    bm25   fused    rerank" in table


def test_many_questions_give_a_json_line_each(config: Path, tmp_path: Path) -> None:
    """In order; JSONL may bring a filter of its own."""
    asked = tmp_path / "questions.jsonl"
    asked.write_text('What soup?\n\n{"question": "How many turbines?", "filter": {"year": 2023}}\n')
    ended = ragctl("query", config, "--questions", asked)
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["question"] for answer in answers] == ["What soup?", "How many turbines?"]
    assert "57 turbines" in answers[1]["answer"]


def test_many_questions_are_said_to_give_a_json_line_each() -> None:
    """--json says "one JSON document", which is so for one question alone."""
    shown = " ".join(ragctl("query", "--help").out.split())
    assert "Prints one JSON document a line." in shown


def test_a_filter_holds_beside_that_of_a_question(config: Path, tmp_path: Path) -> None:
    """Neither replaces the other."""
    asked = tmp_path / "questions.jsonl"
    asked.write_text('{"question": "How many turbines?", "filter": {"year": 2023}}\n')
    for year, found in ((2023, True), (2022, False)):
        ended = ragctl(
            "query", config, "--questions", asked, "--retrieve-only", "--filter", f'{{"year": {year}}}'
        )
        assert ended.status == 0, ended.err
        assert bool(json.loads(ended.out)["hits"]) is found


def test_a_file_of_questions_is_checked_before_the_first_is_asked(config: Path, tmp_path: Path) -> None:
    """Every line at fault is named, and nothing was answered."""
    asked = tmp_path / "questions.jsonl"
    asked.write_text('What soup?\n{"question": null}\n{"text": "soup"}\n{"question": "soup"}\n{soup}\n')
    ended = ragctl("query", config, "--questions", asked)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"ragctl: error: --questions {asked}: not every line is a question\n" + "".join(
        f'  line {number}: must be JSON with a "question"\n' for number in (2, 3, 5)
    )


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"question": " "}, "the question is empty"),
        ({"question": "x" * 1_025}, "the question has 1,025 characters, 1,024 are the most"),
        ({"question": "soup", "filter": {"year": {"$gtee": 1}}}, "filter.year.$gtee: unknown operator"),
        ({"question": "soup", "filter": []}, "filter: must be a JSON object that is not empty"),
        ({"question": "soup", "filter": {}}, "filter: must be a JSON object that is not empty"),
        (
            {"question": "soup", "filtr": {"year": 1}},
            "filtr: unknown key; known: question, filter, tenant, and those of a golden set",
        ),
        ({"question": "soup", "tenant": "acme"}, "this experiment keeps no tenants apart"),
        ({"question": "soup", "tenant": ["acme"]}, "tenant: must be a text or a whole number"),
    ],
)
def test_so_is_what_a_line_asks_for(
    config: Path, tmp_path: Path, line: dict[str, object], words: str, *, first: bool
) -> None:
    """Whichever line it is."""
    asked = tmp_path / "questions.jsonl"
    lines = [json.dumps(line), "What soup?"]
    asked.write_text("\n".join(lines if first else reversed(lines)))
    ended = in_process("query", config, "--questions", asked)
    assert (ended.status, ended.out) == (2, "")
    assert f"\n  line {1 if first else 2}: {words}" in ended.err


def test_a_long_list_of_faults_is_cut(config: Path, tmp_path: Path) -> None:
    """The first ones, and how many more there are."""
    asked = tmp_path / "questions.jsonl"
    asked.write_text('{"text": "soup"}\n' * 30)
    ended = in_process("query", config, "--questions", asked)
    assert ended.err.count("  line ") == 20
    assert ended.err.endswith("\n  and 10 more\n")


@pytest.mark.parametrize("first", [True, False])
def test_a_question_that_fails_keeps_no_other_from_being_asked(
    config: Path, tmp_path: Path, *, first: bool
) -> None:
    """Whichever line it is: exit 3, and a line for each."""
    asked = tmp_path / "questions.jsonl"
    lines = ['{"question": "Which soup?", "filter": {"text": "no key to filter by"}}', "What soup?"]
    asked.write_text("\n".join(lines if first else reversed(lines)))
    ended = in_process("query", config, "--questions", asked)
    answers = {answer["question"]: answer for answer in map(json.loads, ended.out.splitlines())}
    assert (ended.status, len(answers)) == (3, 2)
    assert "text" in answers["Which soup?"]["error"]
    assert "lentil soup" in answers["What soup?"]["answer"]
    assert "ragctl: error: 1 of 2 questions failed" in ended.err


def test_questions_that_all_fail_end_as_the_first_does(tmp_path: Path) -> None:
    """Without an index no question is answered: 8, not "some failed"."""
    asked = tmp_path / "questions.txt"
    asked.write_text("What soup?\nWhich bread?\n")
    ended = in_process("query", experiment(tmp_path), "--questions", asked)
    assert ended.status == 8
    assert [json.loads(line)["error"] for line in ended.out.splitlines()] == ["there is no index test"] * 2
    assert ended.err.startswith("ragctl: error: there is no index test\n  hint: make and fill it")


def test_a_file_of_questions_may_have_a_mark_and_odd_separators(config: Path, tmp_path: Path) -> None:
    """A byte order mark is no part of the first question, and only a newline ends one."""
    asked = tmp_path / "questions.jsonl"
    asked.write_text('\ufeff{"question": "What\u2028soup?"}\r\nHow many turbines?\n', encoding="utf-8")
    ended = ragctl("query", config, "--questions", asked, "--retrieve-only")
    answers = [json.loads(line) for line in ended.out.split("\n") if line]
    assert [answer["question"] for answer in answers] == ["What\u2028soup?", "How many turbines?"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-"], "stdin is not valid UTF-8"),
        (["--questions", "-"], "stdin is not valid UTF-8"),
        ([b"caf\xe9"], "the question is not valid UTF-8"),
    ],
)
def test_bytes_that_are_no_text_are_no_question(
    config: Path, arguments: list[str | bytes], words: str
) -> None:
    """Neither typed nor piped; and nobody is told to remove the index for it."""
    command = [sys.executable, "-m", "ragctl", "query", str(config), *arguments]
    done = subprocess.run(command, input=b"caf\xe9", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"ragctl: error: {words}\n")


def test_what_the_corpus_does_not_say_is_not_answered(config: Path) -> None:
    """It says so, cites nothing, and that is no error."""
    ended = ragctl("query", config, "Who invented the zeppelin?", "--json")
    assert (ended.status, ended.json["abstained"], ended.json["citations"]) == (0, True, [])
    assert ended.json["answer"] == "The corpus does not answer this question."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["soup", "--filter", '{"year": {"$gtee": 1}}'],
            "filter.year.$gtee: unknown operator; did you mean $gte?",
        ),
        (["soup", "--filter", "{year: 1}"], "--filter is not JSON"),
        (["soup", "--filter", "[1]"], "--filter must be a JSON object"),
        (["soup", "--top-k", "0"], "top_k: must be from 1 to 10,000, not 0"),
        (["soup", "--set", "retrieval.top_k=0"], "retrieval.top_k: must be greater than or equal to 1"),
        (["   "], "the question is empty"),
        (["x" * 1_025], "the question has 1,025 characters, 1,024 are the most"),
        ([], "ask one QUESTION, or many with --questions FILE"),
        (["soup", "--filter", '{"$and":[' * 5_000], "--filter is nested too deeply"),
        (["soup", "--tenant", "a"], "this experiment keeps no tenants apart"),
        (["--questions", "no-such-file"], "--questions no-such-file: cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_exit_2(config: Path, arguments: list[str], words: str) -> None:
    """The message says what and what to do; stdout stays empty."""
    ended = ragctl("query", config, *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err


def test_without_an_index_it_says_how_to_make_one(tmp_path: Path) -> None:
    """Exit 8 and the command that helps."""
    write_docs(tmp_path, TEXTS)
    ended = ragctl("query", experiment(tmp_path), "soup")
    assert ended.status == 8
    assert ended.err == (
        "ragctl: error: there is no index test\n  hint: make and fill it: ragctl ingest CONFIG\n"
    )


def test_another_embedder_than_the_index_s_is_refused(config: Path) -> None:
    """Distances between vectors of two embedders mean nothing: exit 6."""
    ended = ragctl("query", config, "soup", "--set", "embedding.dimension=128")
    assert ended.status == 6
    assert "dimension: the index has 256, the experiment asks for 128" in ended.err


def test_control_characters_of_a_document_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """A document cannot clear the screen or rename the window."""
    write_docs(tmp_path, {"evil.md": "The soup is \x1b]0;owned\x07 \x1b[2Jlentil.\n"})
    config = experiment(tmp_path)
    ragctl("ingest", config)
    assert "\x1b" not in ragctl("query", config, "soup", "--retrieve-only").out
