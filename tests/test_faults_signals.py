"""A run that is told to stop: what is in flight is finished and saved, soon, and nothing of it stays behind."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ragctl.ingest
from tests.cli import Ended, experiment, in_process, write_docs
from tests.processes import STUCK, HeldPlace, Run, held_place, until

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
SIGNALS = pytest.mark.parametrize("number", NUMBERS, ids=["SIGTERM", "SIGINT", "SIGHUP"])


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, which that of a test is not."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldPlace]:
    """A document more, in which a worker may get stuck."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with held_place(tmp_path) as place:
        source = {"kind": "local", "name": "docs", "path": "docs", "exclude": ["*.there"]}
        place.sections |= {"sources": [source], "ingest": {"workers": 2, "embed_concurrency": 4}}
        place.write({"stuck.txt": "stuck, but for a while\n"})
        place.configure()
        yield place


def start_stuck(place: HeldPlace, *arguments: object, prelude: str = "") -> Run:
    """A run with a batch at the embedding server, and a worker in the middle of a document."""
    run = place.start_held(*arguments, prelude=prelude, everywhere=STUCK)
    until((place.folder / "docs" / "stuck.there").exists, "a worker in the middle of a document")
    return run


def assert_converges(place: HeldPlace) -> None:
    """One further run brings the index to what an undisturbed run makes of the documents."""
    ended = place.ragctl("ingest")
    assert ended.status == 0, ended.err
    assert len(place.held()) == 61
    assert place.held() == place.undisturbed()


@SIGNALS
@pytest.mark.parametrize("whole_group", [False, True], ids=["the main process", "the whole group"])
def test_what_is_in_flight_is_finished_and_saved(
    place: HeldPlace, number: signal.Signals, whole_group: bool
) -> None:
    """Exit 130, and no document is blamed for what was done to the run, whoever of it gets the signal."""
    with start_stuck(place, "--json") as run:
        assert len(run.members()) >= 3  # the run, what workers are forked from, and one that is stuck
        (run.send_to_all if whole_group else run.send)(number)
        run.says(f"ragctl: {number.name}: finishing what is in flight; again to stop at once\n")
        place.models.gate.set()
        ended = run.end()
        until(lambda: not run.members(), "all of it to end")
    assert ended.status == 130
    assert ended.err.count("\n") == 1
    counts = ended.json["documents"]
    assert (counts["failed"], ended.json["failures"]) == (0, [])
    assert "docs/d030.md" in place.documents()  # it was in flight
    assert counts["added"] == len(place.documents())
    report = json.loads(Path(ended.json["run"]).read_bytes())
    assert (report["status"], report["documents"]) == ("interrupted", counts)
    again = place.ragctl("ingest", "--json").json
    assert again["documents"]["added"] == 61 - counts["added"]  # what was in is not done again
    assert_converges(place)


def test_a_second_signal_stops_at_once(place: HeldPlace) -> None:
    """Exit 130 while a call is still under way; the next run has lost and doubled nothing."""
    with start_stuck(place) as run:
        run.send_to_all(signal.SIGTERM)
        run.says("finishing what is in flight")
        run.send_to_all(signal.SIGTERM)
        assert run.end().status == 130
        assert not place.models.gate.is_set()
        until(lambda: not run.members(), "all of it to end")
    assert_converges(place)


def test_a_call_that_hangs_does_not_keep_a_run_from_ending(place: HeldPlace) -> None:
    """It is left to itself when the time to stop is over, 30 s where a test does not shorten it."""
    short = "import ragctl.commands.ingest as command\nassert command.STOP_WITHIN_S == 30\ncommand.STOP_WITHIN_S = 1.0\n"
    with start_stuck(place, prelude=short) as run:
        run.send(signal.SIGTERM)
        run.says("finishing what is in flight")
        assert run.end().status == 130
        assert not place.models.gate.is_set()
        until(lambda: not run.members(), "all of it to end")
    assert_converges(place)


def test_a_run_ends_in_order_though_a_call_hangs(place: HeldPlace) -> None:
    """After 25 s, where a test does not shorten it, the rest is saved and told, and the lease is given back."""
    short = "import ragctl.pipeline as pipeline\nassert pipeline.STOP_S == 25\npipeline.STOP_S = 0.5\n"
    with start_stuck(place, "--json", prelude=short) as run:
        run.send(signal.SIGTERM)
        ended = run.end()
        assert not place.models.gate.is_set()
    assert ended.status == 130
    report = json.loads(Path(ended.json["run"]).read_bytes())
    assert (report["status"], report["documents"]) == ("interrupted", ended.json["documents"])
    lease = json.loads(next(place.folder.rglob("lease.json")).read_bytes())
    assert lease["expires"] == 0
    assert_converges(place)


def test_no_worker_outlives_a_run_that_is_killed(place: HeldPlace) -> None:
    """Not even one that is in the middle of a document which never ends."""
    with start_stuck(place) as run:
        run.send(signal.SIGKILL)
        assert run.end().status == -signal.SIGKILL
        until(lambda: not run.members(), "the workers to end")
    assert_converges(place)


def test_sockets_of_a_run_that_is_killed_are_removed_by_the_next(
    place: HeldPlace, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder for temporary files holds nothing of either, nor of multiprocessing's; paths of sockets stay short."""
    monkeypatch.setenv("TMPDIR", str(short_folder))
    with start_stuck(place) as run:
        (socket,) = (path for path in short_folder.rglob("*") if path.is_socket())
        assert len(str(socket.relative_to(short_folder))) < 103 - 49  # so long is the folder that macOS has
        run.send(signal.SIGKILL)
        assert run.end().status == -signal.SIGKILL
        until(lambda: not run.members(), "the workers to end")
    assert socket.exists()
    place.models.gate.set()
    with place.start() as again:
        assert again.end().status == 0
    assert list(short_folder.iterdir()) == []


def test_workers_start_where_the_folder_for_temporary_files_has_a_long_path(
    short_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too long for a socket in a scratch folder, and not for one where multiprocessing makes it."""
    long = short_folder / ("x" * (70 - len(str(short_folder)) - 1))
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    write_docs(tmp_path, {"a.md": "One."})
    with Run(tmp_path, "ingest", experiment(tmp_path, ingest={"workers": 1})) as run:
        ended = run.end()
    assert ended.status == 0, ended.err
    assert list(long.iterdir()) == []


def interrupted_at(monkeypatch: pytest.MonkeyPatch, function: str, folder: Path, *options: str) -> Ended:
    """An ingest over two documents that gets SIGTERM when it comes to `function` of ragctl.ingest."""
    original = getattr(ragctl.ingest, function)

    def signalled(*arguments: object, **named: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **named)

    write_docs(folder, {"a.md": "One.", "b.md": "Two."})
    config = experiment(folder, ingest={"workers": 1})
    with monkeypatch.context() as patched:
        patched.setattr(ragctl.ingest, function, signalled)
        return in_process("ingest", config, *options)


def test_an_interrupt_before_anything_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not said that there was nothing to do; the next run does it all."""
    ended = interrupted_at(monkeypatch, "list_sources", tmp_path)
    assert (ended.status, ended.out) == (
        130,
        "test: interrupted before anything was saved; the next run carries on\n",
    )
    again = in_process("ingest", tmp_path / "experiment.yaml", "--json").json
    assert again["documents"]["added"] == 2


def test_an_interrupt_after_something_is_saved(place: HeldPlace) -> None:
    """Counts, and that it is not all."""
    with start_stuck(place) as run:
        run.send(signal.SIGTERM)
        run.says("finishing what is in flight")
        place.models.gate.set()
        ended = run.end()
    first, _, third, report = ended.out.splitlines()
    assert ended.status == 130
    assert first.startswith(f"test: {len(place.documents())} added documents in ")
    assert third == "  interrupted; what was done is saved, and the next run carries on"
    assert report.startswith("  report: ")


@SIGNALS
def test_other_commands_let_go_of_what_they_hold(place: HeldPlace, number: signal.Signals) -> None:
    """In the middle of a repair: exit 130 with a word, at once, and the lease is given back."""
    assert place.ragctl("ingest").status == 0
    with place.store() as store:
        store.delete([key for key, (metadata, _) in place.held().items() if "harbour" in metadata["text"]])
    place.models.held = "harbour"
    with Run(place.folder, "verify", place.folder / "experiment.yaml", "--repair") as run:
        until(lambda: place.models.reached.is_set() or run.process.poll() is not None, "a call to be held")
        run.send(number)
        ended = run.end()
    assert (ended.status, ended.err.splitlines()[-1]) == (130, "ragctl: interrupted")
    lease = json.loads(next(place.folder.rglob("lease.json")).read_bytes())
    assert lease["expires"] == 0
    place.models.held = None
    assert place.ragctl("verify", "--repair").status == 0
    assert_converges(place)


@SIGNALS
def test_a_signal_while_options_are_read(tmp_path: Path, number: signal.Signals) -> None:
    """From the first moment on it is an interrupt."""
    prelude = (
        "import os, typer.core as core\n"
        f"core.TyperGroup.parse_args = lambda *_: os.kill(os.getpid(), {int(number)})"
    )
    with Run(tmp_path, "status", prelude=prelude) as run:
        ended = run.end()
    assert (ended.status, ended.out, ended.err) == (130, "", "ragctl: interrupted\n")
