"""A real MLflow server on the loopback interface, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

STARTS_WITHIN = 120  # seconds; some eight on an idle machine


class MlflowServer:
    """`mlflow server` with its database and artefacts in `folder`; the with statement gives its URL and ends it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Start nothing yet; `arguments` are further options of `mlflow server`."""
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._log = folder / "server.log"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
            *("--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]),
            *(arguments or ("--artifacts-destination", str(folder / "artifacts"))),
        ]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        self._environment = {**os.environ, **quiet, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, cwd=self._log.parent
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._stop()
                raise RuntimeError(f"mlflow server did not start:\n{self._log.read_text()}")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health") as reply:
                return bool(reply.status == 200)
        except (URLError, ConnectionError):
            return False

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    """A port that nobody has at this moment; mlflow cannot be told to find one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
