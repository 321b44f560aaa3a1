"""What the logs say, at any level: never a secret, a question or a text of a document, also when things fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragctl import __version__
from ragctl.commands import progress
from ragctl.lease import hold
from ragctl.loading import load
from ragctl.state import lease_name, open_state
from tests.cli import Ended, experiment, in_process, ragctl, write_docs
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


# --- the events of --log-json ----------------------------------------------------------------------------


def events(ended: Ended) -> list[dict[str, Any]]:
    """Every line of stderr, without what differs from run to run."""
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert all({"time", "level", "event", "pid", "message"} <= line.keys() for line in lines)
    return [{key: line[key] for key in line if key not in ("time", "pid", "seconds")} for line in lines]


def counts(**those: int) -> dict[str, int]:
    names = "seen added changed unchanged deleted failed empty embedded reused written removed tokens throttles retries"
    return {**dict.fromkeys([*names.split(), "cached", "bytes"], 0), **those}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An experiment over one good document."""
    write_docs(tmp_path, {"good.md": "Good."})
    return experiment(tmp_path, ingest={"workers": 1})


def test_a_run_without_failures_says_what_it_did(plain: Path) -> None:
    """The line of docs/cron.md leaves a log of a run that went well, although it is quiet."""
    ended = ragctl("ingest", plain, "--quiet", "--log-json", "--json")
    assert ended.status == 0
    assert events(ended) == [
        {"level": "info", "event": "ragctl.start", "message": "ragctl ingest", "command": "ingest",
         "version": __version__},
        {"level": "info", "event": "ragctl.experiment", "message": "experiment test", "name": "test",
         "config": str(plain)},
        {"level": "info", "event": "ragctl.end", "message": f"exit status 0 after {_seconds(ended)} s", "exit": 0,
         "reports": [ended.json["run"]],
         "indexes": {"test": counts(seen=1, added=1, embedded=1, written=1, bytes=5)}},
    ]  # fmt: skip


def _seconds(ended: Ended) -> str:
    return f"{json.loads(ended.err.splitlines()[-1])['seconds']:.1f}"


def test_failures_and_the_error_are_events(plain: Path) -> None:
    """Each with what it is about; nothing is said a second time as plain text, whatever is printed on stdout."""
    (plain.parent / "docs" / "bad.pdf").write_bytes(b"%PDF-")
    for options in ((), ("--json",), ("--verbose", "--quiet")):
        ended = ragctl("ingest", plain, "--log-json", *options)
        assert ended.status == 3
        failure, error, end = events(ended)[-3:]
        reason = "cannot be read as PDF: it is damaged"
        assert failure == {
            "level": "info", "event": "ragctl.failure", "message": f"docs/bad.pdf failed at parse: {reason}",
            "document": "docs/bad.pdf", "stage": "parse", "error": reason,
        }  # fmt: skip
        assert error == {
            "level": "error", "event": "ragctl.error", "exit": 3,
            "message": "1 failed; the index is consistent and keeps the old versions of what failed",
            "hint": "ragctl failures CONFIG lists them; ragctl ingest CONFIG --only-failed tries them again",
        }  # fmt: skip
        assert (end["exit"], end["indexes"]["test"]["failed"]) == (3, 1)


def test_a_file_of_no_tenant_is_a_failure_as_well(plain: Path) -> None:
    """It never reached a stage."""
    tenancy = "tenancy={key: customer, layout: index}"
    ended = ragctl(
        "ingest", plain, "--log-json", "--set", tenancy, "--set", "sources.0.path_metadata={customer}/*"
    )
    assert ended.status == 3, ended.err
    (failure,) = [event for event in events(ended) if event["event"] == "ragctl.failure"]
    assert (failure["document"], failure["stage"]) == ("docs/good.md", "metadata")


def test_questions_that_fail_are_events(folder: Path) -> None:
    """By their id, never by their words."""
    assert run(folder, "ingest").status == 3
    ended = run(folder, "eval", "--log-json")
    assert ended.status == 3
    told = [event for event in events(ended) if event["event"] == "ragctl.failure"]
    assert [(event["question"], event["stage"]) for event in told] == [("q2", "query")]
    assert events(ended)[-2]["message"] == "1 of 2 questions failed"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--no-such",), 2, "No such option: --no-such"),
        (
            ("--max-delete", "2"),
            2,
            "Invalid value for '--max-delete': Input should be less than or equal to 1",
        ),
        (("--set", "chunking.size=0"), 2, "is not a valid experiment\n  chunking.size: must be greater"),
        (("--set", "embedding.dimension=128"), 6, "index test"),
    ],
    ids=["usage", "value", "configuration", "refused"],
)
def test_every_error_is_an_event_with_its_status(
    plain: Path, options: tuple[str, ...], status: int, message: str
) -> None:
    """Those of the command line too, which come before any option is read."""
    assert ragctl("ingest", plain).status == 0
    ended = ragctl("ingest", plain, "--log-json", *options)
    assert (ended.status, ended.out) == (status, "")
    error, end = events(ended)[-2:]
    assert (error["event"], error["level"], error["exit"]) == ("ragctl.error", "error", status)
    assert message in error["message"]
    assert (end["event"], end["exit"]) == ("ragctl.end", status)


def test_a_held_lease_is_an_event(plain: Path) -> None:
    """Exit 7; the record that was begun is named."""
    with hold(open_state(load(plain)), lease_name("test"), "ingest"):
        ended = ragctl("ingest", plain, "--log-json")
    error, end = events(ended)[-2:]
    assert (ended.status, error["exit"], end["exit"], len(end["reports"])) == (7, 7, 7, 1)
    assert error["message"].startswith("another run holds the lease on this index")


def test_progress_is_an_event(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the counts, and the stage that the others wait for."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    ended = in_process("ingest", plain, "--log-json")
    told = [event for event in events(ended) if event["event"] == "ragctl.progress"]
    assert told
    assert {event["waiting_for"] for event in told} <= {"parse", "embed", "put"}
    assert {event["level"] for event in told} == {"notice"}
    assert all(event["counts"].keys() == counts().keys() for event in told)
    assert in_process("ingest", plain, "--quiet").err == ""


def test_what_others_print_is_an_event(plain: Path) -> None:
    """A warning of Python's, a library's log and half a line do not break the lines."""
    code = (
        "import sys, warnings, logging, ragctl.commands.ingest as ingest, ragctl.cli as cli\n"
        "def loud(*_):\n"
        "    warnings.warn('old')\n    logging.getLogger('urllib3').warning('pool is full')\n"
        "    print('half', end='', file=sys.stderr, flush=True)\n    raise RuntimeError('broken')\n"
        "ingest.load_each = loud\n"
        f"sys.argv = ['ragctl', 'ingest', {str(plain)!r}, '--log-json']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    _, warning, *source, library, half, bug, end = events(Ended(done.returncode, done.stdout, done.stderr))
    assert warning["message"].endswith("UserWarning: old")
    assert (library["message"], half["message"]) == ("pool is full", "half")
    assert {event["event"] for event in (warning, *source, library, half)} == {"ragctl.stderr"}
    assert (bug["event"], bug["exit"], bug["message"]) == (
        "ragctl.error", 1, "this is a bug in ragctl; please report it"
    )  # fmt: skip
    assert bug["traceback"].endswith("RuntimeError: broken\n")
    assert (done.returncode, end["exit"]) == (1, 1)


def test_an_interrupt_is_an_event(plain: Path) -> None:
    """130, as the process ends with."""
    code = (
        "import sys, ragctl.commands.ingest as ingest, ragctl.cli as cli\n"
        "def interrupted(*_):\n    raise KeyboardInterrupt\n"
        "ingest.load_each = interrupted\n"
        f"sys.argv = ['ragctl', 'ingest', {str(plain)!r}, '--log-json']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    _, error, end = events(Ended(done.returncode, done.stdout, done.stderr))
    assert (error["message"], error["exit"], end["exit"], done.returncode) == ("interrupted", 130, 130, 130)
