"""What the benchmarks that compare share: environments of the peers, runs that are measured, corpora, and a table."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "langchain": (
        "langchain-aws",
        "langchain-classic",
        "langchain-community",
        "langchain-text-splitters",
        "lancedb",
        "sqlalchemy[asyncio]",
        "numpy",
        "snowballstemmer<4",
        "PyStemmer",
    ),
    "llama_index": (
        "llama-index-core",
        "llama-index-vector-stores-s3",
        "llama-index-vector-stores-lancedb",
        "pandas",  # which its LanceDB store imports and does not ask for
        "numpy",
        "snowballstemmer<4",
        "PyStemmer",
    ),
    "s3vectors_embed": ("s3vectors-embed-cli",),
}
WORDS = [
    "index",
    "vector",
    "record",
    "bucket",
    "query",
    "document",
    "limit",
    "page",
    "region",
    "chunk",
    "storm",
    "glass",
    "river",
    "orbit",
    "engine",
    "harbour",
    "copper",
    "signal",
    "forest",
    "window",
]


@dataclass(frozen=True)
class Run:
    """A command that ended well: its seconds, the highest memory that was seen, and the last line it printed."""

    seconds: float
    peak_mb: float  # resident memory of the process
    tree_mb: float  # and of all its children together, pages that they share counted once
    last_line: str

    @property
    def said(self) -> dict[str, Any]:
        """What a peer reports of itself."""
        document: dict[str, Any] = json.loads(self.last_line)
        return document


def environment(folder: Path, name: str) -> str:
    """The Python of a peer's own environment below `folder`, made when it is not there."""
    requirements = REQUIREMENTS[name]
    home = folder / f"{name}-{blake2b(' '.join(requirements).encode(), digest_size=4).hexdigest()}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        print(f"making an environment for {name} ...", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *requirements], check=True)
        (home / "complete").touch()
    return str(python)


def run(command: Sequence[str | Path], folder: Path, environ: Mapping[str, str] | None = None) -> Run:
    """Run a command in `folder` to its end. RuntimeError, with what it said, when it fails."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **(environ or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        memory = _Memory(process.pid)
        status = process.wait()
        seconds = time.perf_counter() - start
        memory.stop()
        output.seek(0)
        lines = output.read().strip().splitlines()
    if status != 0:
        raise RuntimeError(f"{command} ended with {status}:\n" + "\n".join(lines[-30:]))
    return Run(seconds, memory.peak / 2**20, memory.tree / 2**20, lines[-1] if lines else "")


def ragctl(folder: Path, experiment: Mapping[str, Any], *options: str) -> Run:
    """`ragctl ingest` with this experiment, as a process of its own, from its start to its exit."""
    config = folder / "experiment.yaml"
    config.write_text(yaml.safe_dump(dict(experiment)), encoding="utf-8")
    return run([sys.executable, "-m", "ragctl", "ingest", config, *options], folder, ours())


def ours() -> dict[str, str]:
    """The environment in which this checkout is imported, compiled to bytecode as installers do with the peers."""
    compileall.compile_dir(REPOSITORY / "ragctl", quiet=1)
    return {"PYTHONPATH": str(REPOSITORY)}


def peer(
    python: str, script: str, folder: Path, *options: str | Path, environ: Mapping[str, str] | None = None
) -> Run:
    """A script of `peers/` in its environment; it prints what it has measured as its last line."""
    return run([python, PEERS / script, *options], folder, {**ours(), **(environ or {})})


class _Memory:
    """Samples the resident memory of a process and of its descendants, ten times a second."""

    def __init__(self, pid: int) -> None:
        self.peak = self.tree = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, _memory(self._pid, "Rss"))
            self.tree = max(self.tree, sum(_memory(pid, "Pss") for pid in _family(self._pid)))


def _family(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in children.read_text().split() for one in _family(int(child))]
        except OSError:
            continue  # it has just ended
    return found


def _memory(pid: int, kind: str) -> int:
    """Bytes in memory: "Rss", or "Pss", which shares out what several processes have in common."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


def sentence(number: int, words: int = 16) -> str:
    """A short text that no other number gives."""
    state = number * 2_654_435_761 + 1
    said = []
    for _ in range(words):
        state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
        said.append(WORDS[(state >> 33) % len(WORDS)])
    return f"Note {number}: {' '.join(said)}."


def write_records(path: Path, first: int, count: int, words: int = 16) -> None:
    """A .jsonl file of short texts."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(first, first + count):
            file.write(json.dumps({"id": str(number), "text": sentence(number, words)}) + "\n")


@contextmanager
def workplace(given: Path | None) -> Iterator[Path]:
    """The folder for environments, kept where one is given."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their headings, the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    print(f"\n{title}")
    for row in [headings, *rows]:
        cells = [row[0].ljust(widths[0])]
        print(
            "  ".join([*cells, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        )
