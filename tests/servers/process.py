"""A test server as a process of its own: for benchmarks, and for tests that kill one side or the other."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import urlopen

from tests.servers.http import REPORT_PATH, LoopbackServer

REPOSITORY = Path(__file__).parents[2]


def run_until_told(server: LoopbackServer) -> None:
    """Serve until SIGTERM, SIGINT or the death of the parent; the URL is the first line on stdout."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parent = os.getppid()
    with server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        while not stop.wait(0.2) and os.getppid() == parent:
            pass


class ServerProcess:
    """`python -m MODULE ARGS` as a child; the with statement gives its URL and ends it."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start nothing yet; `module` is such as "tests.servers.s3vectors"."""
        self._command: Sequence[str] = (sys.executable, "-m", module, *arguments)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"{' '.join(self._command)} ended with {self.process.wait()} before serving")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def report(self) -> dict[str, Any]:
        """Return the server's `LoopbackServer.report`."""
        with urlopen(self.url + REPORT_PATH) as reply:
            report: dict[str, Any] = json.load(reply)
        return report
