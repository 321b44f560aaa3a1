"""The command line: start-up, help, usage errors and the endings that main() prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from ragctl import __version__
from ragctl.cli import app
from tests.cli import Ended, experiment, ragctl, write_docs

COMMANDS = ["create-index", "ingest", "query", "eval", "teardown", "deploy-models", "failures", "verify"]
HEAVY = ["boto3", "botocore", "lancedb", "numpy", "pyarrow", "mlflow", "sagemaker", "pydantic", "yaml", "rich", "tqdm",
         "langchain_text_splitters", "pypdf", "pypdfium2", "lxml", "fastembed", "ir_measures"]  # fmt: skip


def test_importing_the_cli_loads_no_sdk() -> None:
    """`ragctl --help` stays instant."""
    code = f"import ragctl.cli, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    """The version is the package's."""
    ended = ragctl("--version")
    assert (ended.status, ended.out) == (0, f"ragctl {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(command: str) -> None:
    """Help shows a line that can be copied."""
    ended = ragctl(command, "--help")
    assert ended.status == 0
    assert f"\n    ragctl {command} " in ended.out  # on a line of its own


def test_no_help_shows_the_mark_that_keeps_its_lines() -> None:
    """Examples stand below one another: the mark is a character, not the two that it is written with."""
    assert [text for text in _helps(get_command(app)) if "\\b" in text] == []


def test_examples_name_files_that_there_are() -> None:
    """What is copied out of a help text finds its config."""
    folder = Path(__file__).parents[1]
    named = {name for text in _helps(get_command(app)) for name in re.findall(r"configs/[\w.-]+\w", text)}
    assert len(named) > 2
    assert [name for name in sorted(named) if not (folder / name).is_file()] == []


def _helps(command: object) -> Iterator[str]:
    """What each command says of itself, those of a group among them."""
    if isinstance(command, TyperGroup):
        for one in command.commands.values():
            yield from _helps(one)
    else:
        yield getattr(command, "help", "")


def test_every_command_logs_alike() -> None:
    """All that read an experiment, down to those that only look at the file."""
    common = {"--set", "--json", "--quiet", "--verbose", "--log-json"}
    lacking = {
        name: lacks
        for name, command in _commands(get_command(app))
        if (lacks := common - {option for one in command.params for option in one.opts})
    }
    assert lacking == {"ragctl config schema": common}


def _commands(command: Any, name: str = "ragctl") -> Iterator[tuple[str, Any]]:
    if isinstance(command, TyperGroup):
        for word, one in command.commands.items():
            yield from _commands(one, f"{name} {word}")
    else:
        yield name, command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "failures"])
@pytest.mark.parametrize("option", ["--set", "--json"])
def test_every_command_takes_the_common_options(command: str, option: str) -> None:
    """One way to change a setting and one way to get JSON, everywhere."""
    assert option in ragctl(command, "--help").out


def test_a_usage_error_is_exit_2(tmp_path: Path) -> None:
    """So is an unknown option; stdout stays empty."""
    ended = ragctl("ingest", experiment(tmp_path), "--no-such-option")
    assert (ended.status, ended.out) == (2, "")
    assert "No such option: --no-such-option" in ended.err


def test_a_configuration_error_is_exit_2_and_says_what_to_do(tmp_path: Path) -> None:
    """Message and hint, no traceback."""
    ended = ragctl("ingest", tmp_path / "no.yaml")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == (
        f"ragctl: error: {tmp_path / 'no.yaml'}: no such file\n"
        "  hint: give the path of an experiment file, for example configs/samples.yaml\n"
    )


def ingest_that_raises(folder: Path, error: str) -> subprocess.CompletedProcess[str]:
    """`ragctl ingest` in a process of its own, in which an exception comes up where none is expected."""
    code = (
        "import errno, sys, ragctl.commands.ingest as ingest, ragctl.cli as cli\n"
        f"def broken(*_):\n    secret = 'hunter2'\n    raise {error}\n"
        "ingest.load_each = broken\n"
        f"sys.argv = ['ragctl', 'ingest', {str(experiment(folder))!r}]\n"
        "cli.main()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_bug_shows_its_traceback_and_exits_1(tmp_path: Path) -> None:
    """What we need to see is there; local values are not."""
    done = ingest_that_raises(tmp_path, "RuntimeError('broken')")
    assert done.returncode == 1
    assert "RuntimeError: broken" in done.stderr
    assert "this is a bug in ragctl" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_full_disk_is_no_bug(tmp_path: Path) -> None:
    """Wherever it is met: 8, and what to do."""
    done = ingest_that_raises(tmp_path, "OSError(errno.ENOSPC, 'No space left on device')")
    assert done.returncode == 8
    assert done.stderr == (
        "ragctl: error: the disk is full: the temporary folder, or where state and reports lie\n"
        "  hint: free space; TMPDIR names another folder for temporary files\n"
    )


def test_a_reader_that_goes_away_is_no_bug(tmp_path: Path) -> None:
    """`ragctl ... | head` shows no traceback, and does not end with the status of a bug."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ragctl", "config", "schema"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def full(*arguments: object, out: bool = False, err: bool = False) -> Ended:
    """Run ragctl with stdout or stderr on a disk that is full."""
    with Path("/dev/full").open("w", encoding="utf-8") as disk:
        done = subprocess.run(
            [sys.executable, "-m", "ragctl", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=disk if out else subprocess.PIPE,
            stderr=disk if err else subprocess.PIPE,
            text=True,
            check=False,
        )
    return Ended(done.returncode, done.stdout or "", done.stderr or "")


NO_SPACE = "ragctl: error: stdout cannot be written: No space left on device\n"


@pytest.fixture
def with_a_failure(tmp_path: Path) -> Path:
    """An experiment over a document that is good and one that is not."""
    write_docs(tmp_path, {"good.md": "Good.", "bad.jsonl": "{"})
    return experiment(tmp_path, ingest={"workers": 1})


@pytest.mark.parametrize("option", [(), ("--json",)], ids=["text", "json"])
def test_a_result_that_cannot_be_written_is_exit_8(with_a_failure: Path, option: tuple[str, ...]) -> None:
    """Plain words and no traceback; what was done is done."""
    ended = full("ingest", with_a_failure, *option, out=True)
    assert (ended.status, ended.err) == (8, NO_SPACE)
    assert ragctl("ingest", with_a_failure, "--json").json["documents"]["unchanged"] == 1


@pytest.mark.parametrize("arguments", [("config", "schema"), ("--help",), ("ingest", "--help")], ids=" ".join)
def test_so_is_a_text_that_cannot_be_written(arguments: tuple[str, ...]) -> None:
    """Long or short, from a command or from the help."""
    ended = full(*arguments, out=True)
    assert (ended.status, ended.err) == (8, NO_SPACE)


@pytest.mark.parametrize("option", [(), ("--verbose",), ("--log-json",)], ids=" ".join)
def test_a_log_that_cannot_be_written_changes_no_status(
    with_a_failure: Path, option: tuple[str, ...]
) -> None:
    """A crontab appends to a file, and the disk is full: 3 stays 3, and the result is there."""
    ended = full("ingest", with_a_failure, *option, err=True)
    assert ended.status == 3
    assert ended.out.startswith("test: 1 added, 1 failed documents in ")
    assert full("ingest", with_a_failure, *option, "--no-such-option", err=True).status == 2
    (with_a_failure.parent / "docs" / "bad.jsonl").unlink()
    assert full("ingest", with_a_failure, *option, "--max-delete", "1", err=True).status == 0


def test_neither_can_be_written(with_a_failure: Path) -> None:
    """The status is all that is left to tell."""
    assert full("ingest", with_a_failure, out=True, err=True).status == 8


@pytest.mark.parametrize(("closed", "status"), [("2>&-", 3), (">&-", 8), (">&- 2>&-", 8), ("<&- >&-", 8)])
def test_a_closed_stream_is_nobody_listening(with_a_failure: Path, closed: str, status: int) -> None:
    """No file that the run opens comes in its place; the result is lost, a log is not missed."""
    command = f"exec {sys.executable} -m ragctl ingest {with_a_failure} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == status
    if closed == "2>&-":
        assert done.stdout.startswith("test: 1 added, 1 failed documents in ")
    elif "2>" not in closed:
        assert done.stderr == "ragctl: error: stdout cannot be written: Bad file descriptor\n"
    assert ragctl("ingest", with_a_failure, "--json").json["documents"]["unchanged"] == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_answer_in_letters_that_the_terminal_does_not_have(tmp_path: Path, encoding: str) -> None:
    """Text shows escapes for them, JSON is JSON, and so is each line of many."""
    write_docs(tmp_path, {"a.md": "Äpfel kosten 3 € — immer."})
    config = experiment(tmp_path, ingest={"workers": 1})
    assert ragctl("ingest", config).status == 0
    (tmp_path / "q.txt").write_text("Äpfel kosten\n", encoding="utf-8")
    says = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}

    def said(*options: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ragctl", "query", config, *map(str, options)],
            capture_output=True,
            env={**os.environ, **says},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode("latin-1" if encoding == "latin-1" else "utf-8")

    shown = "Äpfel kosten 3 \\u20ac \\u2014 immer." if encoding == "latin-1" else "Äpfel kosten 3 € — immer."
    assert said("Äpfel kosten").startswith(shown)
    for options in (("Äpfel kosten", "--json"), ("--questions", tmp_path / "q.txt")):
        assert json.loads(said(*options))["hits"][0]["text"] == "Äpfel kosten 3 € — immer."


def test_a_full_disk_is_one_whatever_the_letters(
    with_a_failure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream that stands in for an ASCII one is guarded as well."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = full("ingest", with_a_failure, out=True)
    assert (ended.status, ended.err) == (8, NO_SPACE)


@pytest.mark.parametrize("ending", ["KeyboardInterrupt", "typer.Abort"])
def test_an_interrupt_is_exit_130(tmp_path: Path, ending: str) -> None:
    """Whether it comes while a command works or at a question, which Typer tells apart."""
    code = (
        "import sys, typer, ragctl.commands.ingest as ingest, ragctl.cli as cli\n"
        f"def interrupted(*_):\n    raise {ending}\n"
        "ingest.load_each = interrupted\n"
        f"sys.argv = ['ragctl', 'ingest', {str(experiment(tmp_path))!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "ragctl: interrupted\n")


def test_an_experiment_is_the_same_from_every_folder(tmp_path: Path) -> None:
    """Where it names no places: what one folder's ingest put into the index, another folder's query finds."""
    write_docs(tmp_path, {"a.md": "The harbour master is Ines."})
    config = tmp_path / "e.yaml"
    config.write_text("name: e\nsources: [{kind: local, name: docs, path: docs}]\n", encoding="utf-8")
    other = tmp_path / "other"
    other.mkdir()
    assert ragctl("ingest", "e.yaml", cwd=tmp_path).out.startswith("e-index: 1 added documents in ")
    assert ragctl("ingest", "../e.yaml", cwd=other).out == "e-index: nothing to do, 1 documents in 1 chunks\n"
    found = ragctl("query", config, "Who is the harbour master?", "--retrieve-only", "--json", cwd=other)
    assert [hit["document"] for hit in found.json["hits"]] == ["docs/a.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ragctl", "docs", "e.yaml", "other", "runs"]
    assert list(other.iterdir()) == []
