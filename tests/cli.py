"""Running ragctl as its users do: a process, with its exit status and both of its outputs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from ragctl.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out, f"exit {self.status}, nothing on stdout; stderr:\n{self.err}"
        return json.loads(self.out)


def ragctl(
    *arguments: object,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run `ragctl ARGUMENTS` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "ragctl", *map(str, arguments)],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def in_process(*arguments: object) -> Ended:
    """Run `ragctl ARGUMENTS` in this process, which saves the second that imports take."""
    out, err = StringIO(), StringIO()
    status = 0
    logger = logging.getLogger("ragctl")
    before = logger.handlers[:], logger.level, logger.propagate
    with (
        patch.object(sys, "argv", ["ragctl", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
        finally:
            logger.handlers[:], logger.level, logger.propagate = before
    return Ended(status, out.getvalue(), err.getvalue())


def experiment(folder: Path, **sections: object) -> Path:
    """An experiment file in `folder` over `folder/docs`, with everything that it makes below `folder`."""
    tree: dict[str, object] = {
        "name": "test",
        "sources": [{"kind": "local", "name": "docs", "path": "docs"}],
        "chunking": {"size": 200},
        "embedding": {"kind": "hashing", "dimension": 256},
        "store": {"kind": "local", "path": "store", "index": "test"},
        "state": "state",
        "runs": "runs",
    }
    tree |= sections
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def block(folder: Path) -> None:
    """Have nothing more be written below `folder`, whoever asks; the root user may write where rights say no."""
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}-before"))
    folder.write_text("in the way")


def write_docs(folder: Path, texts: Mapping[str, str]) -> Path:
    """Files below `folder/docs`."""
    for name, text in texts.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "docs"
