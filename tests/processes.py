"""ragctl as a process of its own, in a session of its own, that a test watches, signals and outlives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cli import Ended
from tests.places import PickyServer, Place, embedding_at
from tests.servers.http import Reply, Request
from tests.servers.s3vectors import S3VectorsServer

DEADLINE_S = 60.0  # for anything that a test waits for; far beyond what a busy machine takes


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that nobody can tell us of."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s in vain: {what}"
        time.sleep(0.01)


class GatedServer(PickyServer):
    """An embedding server that holds back every batch with a text that has `held` in it until `gate` is set."""

    held: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.reached = threading.Event()  # set when a batch is held back

    def _embeddings(self, request: Request) -> Reply:
        if self.held and any(self.held in text for text in request.document["input"]):
            self.reached.set()
            while not (self.gate.wait(0.05) or self.stopping.is_set()):
                pass
        return super()._embeddings(request)


# A parser that stays in a document which says so until it is ended, and leaves a file that says that it is there.
STUCK = """
import pathlib, time
import ragctl.parsing.text as text
read = text.read
def stuck(file, data, parsing):
    if data.startswith(b"stuck"):
        pathlib.Path(file.location).with_suffix(".there").touch()
        time.sleep(600)
    return read(file, data, parsing)
text.read = stuck
"""


class Run:
    """`ragctl ARGUMENTS` under way; the with statement leaves nothing of it behind.

    `prelude` is Python that runs before the command does: it shortens times and moves clocks. `everywhere` runs
    at the start of each of its processes, the workers among them.
    """

    def __init__(self, folder: Path, *arguments: object, prelude: str = "", everywhere: str = "") -> None:
        self._out, self._err = (folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        site = folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(everywhere, encoding="utf-8")
        # The program under test may come by it.
        path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        code = f"{prelude}\nfrom ragctl.cli import main\nmain()"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def err(self) -> str:
        """What it has said on stderr so far."""
        return self._err.read_text(encoding="utf-8")

    def members(self) -> list[int]:
        """Every process of its session that is not a zombie: itself, the workers and what they are forked from."""
        return [
            pid
            for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
            if _session(pid) == self.process.pid
        ]

    def says(self, words: str) -> None:
        """Wait until it has said so on stderr."""
        until(lambda: words in self.err or self.process.poll() is not None, f"{words!r} in:\n{self.err}")
        assert words in self.err, f"exit {self.process.returncode}:\n{self.err}"

    def send(self, number: signal.Signals) -> None:
        """Signal the main process alone."""
        self.process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Signal every process of it at once, as Ctrl-C in a terminal and `systemctl stop` do."""
        os.killpg(self.process.pid, number)

    def end(self) -> Ended:
        """Wait for its end."""
        status = self.process.wait(DEADLINE_S)
        return Ended(status, self._out.read_text(encoding="utf-8"), self.err)


class HeldPlace(Place):
    """An experiment over services, of which the embedding server can hold a run back in the middle of its work."""

    models: GatedServer
    vectors: S3VectorsServer

    def start(self, *arguments: object, prelude: str = "", everywhere: str = "") -> Run:
        """An ingest under way."""
        config = self.folder / "experiment.yaml"
        return Run(self.folder, "ingest", config, *arguments, prelude=prelude, everywhere=everywhere)

    def start_held(self, *arguments: object, prelude: str = "", everywhere: str = "") -> Run:
        """An ingest with a batch at the embedding server, which lets everybody else through."""
        self.models.held = "harbour"
        run = self.start(*arguments, prelude=prelude, everywhere=everywhere)
        until(lambda: self.models.reached.is_set() or run.process.poll() is not None, "a batch to be held")
        assert self.models.reached.is_set(), run.err
        self.models.held = None
        return run


@contextmanager
def held_place(folder: Path) -> Iterator[HeldPlace]:
    """60 documents, one of them of the harbour, in batches of 8."""
    with S3VectorsServer() as vectors, GatedServer() as models:
        place = HeldPlace(folder, vectors, {"embedding": embedding_at(models.url, dimension=64, max_batch=8)})
        place.models, place.vectors = models, vectors
        place.write(
            {f"d{i:03}.md": f"Note {i} of the {'harbour' if i == 30 else 'tide'}.\n" for i in range(60)}
        )
        place.configure()
        yield place
    assert (vectors.unexpected, vectors.broken) == ([], [])


def _session(pid: int) -> int | None:
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None  # it has ended since
    return None if fields[0] == "Z" else int(fields[3])  # proc(5): field 6, counted from after the name
