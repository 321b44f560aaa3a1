"""What the logs say, at any level: never a secret, a question or a text of a document, also when things fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import Ended, experiment, ragctl, write_docs
from tests.pdfs import encrypted_pdf
from tests.servers.openai_server import Behaviour, OpenAIServer

KEY, PASSWORD = "sk-marker-key", "marker-password"
CHUNK, LONG, CELL = "marker-chunk", "marker-long", "marker-cell"
QUESTION, GOLDEN = "marker-question", "marker-golden"
SECRETS = (KEY, PASSWORD, CHUNK, LONG, CELL, QUESTION, GOLDEN)
LEVELS = [(), ("--verbose",), ("--log-json",), ("--verbose", "--log-json")]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """An embedder that refuses texts of more than 60 words, quoting them, and a writer: where they are."""
    with (
        OpenAIServer(Behaviour(max_tokens=60, api_key=KEY)) as embedder,
        OpenAIServer(Behaviour(max_tokens=5_000, api_key=KEY)) as writer,
    ):
        yield f"{embedder.url}/v1", f"{writer.url}/v1"


@pytest.fixture
def folder(servers: tuple[str, str], tmp_path: Path) -> Path:
    """Documents that are good, too long for the model, locked and damaged; models that need a key."""
    write_docs(
        tmp_path,
        {
            "good.md": f"# Good\n\nThe {CHUNK} stands here.",
            "long.txt": " ".join([LONG] * 200),
            "broken.jsonl": f'{{"id": 1, "text": "{CELL}", "x": \n{{"id": 2, "text": "{CELL}"}}\n',
        },
    )
    (tmp_path / "docs" / "locked.pdf").write_bytes(encrypted_pdf([CHUNK], PASSWORD))
    (tmp_path / "docs" / "other.pdf").write_bytes(encrypted_pdf([CHUNK], "another password"))
    golden = {
        "id": "q1",
        "question": f"Where is the {GOLDEN}?",
        "answer": CHUNK,
        "evidence": [{"document": "docs/good.md", "quote": CHUNK}],
    }
    too_long = {**golden, "id": "q2", "question": " ".join([GOLDEN] * 40)}
    (tmp_path / "golden.jsonl").write_text(
        f"{json.dumps(golden)}\n{json.dumps(too_long)}\n", encoding="utf-8"
    )
    embedder, writer = servers
    experiment(
        tmp_path,
        parsing={"pdf_passwords": ["${MARKER_PASSWORD}"]},
        chunking={"kind": "characters", "size": 4_000},
        embedding={"kind": "openai", "base_url": embedder, "model": "words", "api_key": "${MARKER_KEY}"},
        generation={"kind": "openai", "base_url": writer, "model": "quoter", "api_key": "${MARKER_KEY}"},
        evaluation={"dataset": {"kind": "golden", "path": "golden.jsonl"}, "metrics": ["Success@1"]},
        ingest={"workers": 1},
    )
    return tmp_path


def run(folder: Path, command: str, *arguments: str, key: str = KEY) -> Ended:
    environment = {"MARKER_KEY": key, "MARKER_PASSWORD": PASSWORD}
    return ragctl(command, folder / "experiment.yaml", *arguments, env=environment)


def assert_silent(ended: Ended) -> None:
    said = [secret for secret in SECRETS if secret in ended.err]
    assert said == [], ended.err


@pytest.mark.parametrize("level", LEVELS, ids=" ".join)
def test_no_level_tells_what_is_in_documents_and_questions(folder: Path, level: tuple[str, ...]) -> None:
    """Ingest with every kind of failure, query and eval: the logs name documents and reasons, and quote nothing."""
    ended = run(folder, "ingest", *level)
    assert ended.status == 3
    for document in ("docs/long.txt", "docs/other.pdf", "docs/broken.jsonl"):
        assert document in ended.err
    assert_silent(ended)
    ended = run(folder, "query", f"Where is the {QUESTION}?", *level)
    assert (ended.status, CHUNK in ended.out) == (0, True)
    assert_silent(ended)
    ended = run(folder, "query", " ".join([QUESTION] * 40), *level)
    assert ended.status != 0
    assert_silent(ended)
    ended = run(folder, "eval", *level)
    assert ended.status == 3
    assert_silent(ended)


def test_a_refused_key_is_not_told(folder: Path) -> None:
    """Neither the key that was sent nor the one that would be right."""
    ended = run(folder, "ingest", "--verbose", key="sk-marker-wrong")
    assert ended.status == 8
    assert "sk-marker" not in ended.err + ended.out


def test_records_of_runs_hold_no_secret(folder: Path) -> None:
    """run.json keeps the experiment, its secrets masked, and no text of a document that failed."""
    run(folder, "ingest")
    (record,) = (folder / "runs").glob("*/run.json")
    text = record.read_text(encoding="utf-8")
    assert [secret for secret in SECRETS if secret in text] == []
    assert "docs/long.txt" in text


def test_json_lines_are_json(folder: Path) -> None:
    """Every line that --log-json writes before the error has a time, a level, an event and a message."""
    ended = run(folder, "ingest", "--log-json", "--json")
    lines = [line for line in ended.err.splitlines() if line.startswith("{")]
    assert lines
    for line in lines:
        assert {"time", "level", "event", "message"} <= json.loads(line).keys()
