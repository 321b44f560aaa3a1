"""The record of a run: `run.json` for machines and for later, and the HTML page of an evaluation for people."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml

from ragctl import __version__
from ragctl.errors import MissingExtra, StateError
from ragctl.metrics import LATENCY_METRICS
from ragctl.process import Process
from ragctl.state import write_whole

if TYPE_CHECKING:
    from rich.table import Table

    from ragctl.estimates import Estimate
    from ragctl.evaluate import Evaluated, Row

SCHEMA = "ragctl.run/1"
Status = Literal["running", "done", "failed", "interrupted"]

# Packages whose version may explain a difference between two runs.
PACKAGES = (
    "boto3",
    "fastembed",
    "ir-measures",
    "lancedb",
    "langchain-text-splitters",
    "lxml",
    "mlflow-skinny",
    "numpy",
    "pydantic",
    "pypdf",
    "pypdfium2",
    "sagemaker-core",
    "snowballstemmer",
    "tokenizers",
)
WORST = 20  # questions shown in full


# --- run.json --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of a command that leaves a record: `<runs>/<UTC time>-<command>-<short id>/run.json`.

    The file says "running" from the start, so a run that was killed is not taken for one that never was, and by which
    process, so that it is not taken for one that still runs.
    """

    id: str
    folder: Path
    _head: Mapping[str, object]
    _clock: float = field(default_factory=perf_counter)

    @classmethod
    def begin(cls, command: str, config: Mapping[str, object], runs: Path) -> Self:
        """Make the folder and write the record. `config` is the resolved experiment with its secrets masked.

        Raises StateError when the folder cannot be written.
        """
        started = datetime.now(UTC)
        identity = f"{started:%Y%m%dT%H%M%SZ}-{command}-{token_hex(3)}"
        head = {
            "schema": SCHEMA,
            "id": identity,
            "command": command,
            "started": _timestamp(started),
            "process": asdict(Process.ourselves()),
            "versions": versions(),
            "config": dict(config),
        }
        run = cls(identity, runs / identity, head)
        try:
            run.folder.mkdir(parents=True)
        except OSError as error:
            raise StateError(
                f"{runs}: cannot make a folder for the run: {error.strerror}", hint=_RUNS_HINT
            ) from error
        run._write("running", {})
        return run

    @property
    def path(self) -> Path:
        return self.folder / "run.json"

    def finish(self, status: Status, payload: Mapping[str, object]) -> None:
        """Write the whole record with its end; `payload` holds counts, timings, failures and what else there is.

        Raises StateError when it cannot be written, and ValueError when `payload` would hide a key of the record.
        """
        self._write(
            status,
            {"ended": _timestamp(datetime.now(UTC)), "seconds": round(perf_counter() - self._clock, 3)},
            payload,
        )

    def _write(self, status: Status, *parts: Mapping[str, object]) -> None:
        record: dict[str, object] = {**self._head, "status": status}
        for part in parts:
            if hidden := record.keys() & part.keys():
                raise ValueError(f"the run record has these keys already: {', '.join(sorted(hidden))}")
            record |= part
        _save(self.path, json.dumps(record, indent=1, ensure_ascii=False, default=_plain) + "\n")


_RUNS_HINT = "name a folder that can be written under `runs:` in the experiment"


def _save(path: Path, text: str) -> None:
    try:
        # A lone surrogate, as in a file name that is not UTF-8, must not cost the whole record.
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror}", hint=_RUNS_HINT) from error


def _timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a run record holds plain values, not {type(value).__name__}")


@cache
def versions() -> dict[str, object]:
    """ragctl, Python, platform, the packages that matter, and the git commit of the working directory, if any."""
    return {
        "ragctl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": _git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, object] | None:
    """The commit, and whether tracked files differ from it; None outside a repository or without git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# --- the evaluation for people ---------------------------------------------------------------------------


def require_jinja() -> None:
    """Raise MissingExtra unless the page can be made; before anything is asked or paid for."""
    if find_spec("jinja2") is None:
        raise MissingExtra("the report page", "eval")


def write_page(evaluated: Evaluated, run: Run, config: Mapping[str, object]) -> Path:
    """Write `report.html` beside run.json: one file that needs nothing else. Returns its path.

    Raises StateError when the file cannot be written.
    """
    path = run.folder / "report.html"
    _save(path, page(evaluated, run.id, config))
    return path


def page(evaluated: Evaluated, run: str, config: Mapping[str, object]) -> str:
    """The page as HTML. Whatever comes from documents, questions and answers is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "interval": interval}
    source = files("ragctl").joinpath("templates", "report.html").read_text(encoding="utf-8")
    metrics = evaluated.metrics
    return environment.from_string(source).render(
        run=run,
        name=config.get("name", ""),
        versions=versions(),
        evaluated=evaluated,
        scores={name: metrics[name] for name in metrics if name not in LATENCY_METRICS},
        latencies={name: metrics[name] for name in metrics if name in LATENCY_METRICS},
        worst=worst(evaluated),
        config=yaml.safe_dump(
            json.loads(json.dumps(config, default=_plain)), sort_keys=False, allow_unicode=True
        ),
    )


def worst(evaluated: Evaluated) -> list[Row]:
    """The failed questions, then those with the lowest mean score, up to WORST and none that scored 1 throughout."""

    def quality(row: Row) -> float:
        scores = [score for score in row.scores.values() if score is not None]
        return sum(scores) / len(scores) if scores else 1.0

    failed = [row for row in evaluated.rows if row.failure]
    rest = sorted((row for row in evaluated.rows if not row.failure and quality(row) < 1), key=quality)
    return (failed + rest)[:WORST]


def render_table(evaluated: Evaluated) -> Table:
    """The metrics for a terminal: value, 95 % interval, how many questions, and what the gate says."""
    from rich.table import Table
    from rich.text import Text

    outcomes = {outcome.rule.metric: outcome for outcome in evaluated.gate.outcomes}
    table = Table("metric", "value", "95 % interval", "scored", "unscored", "gate", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    for name in _shown(evaluated, outcomes):
        estimate, outcome = evaluated.metrics.get(name), outcomes.get(name)
        says = (
            Text(f"{outcome.rule} {outcome.verdict}", style=_STYLES[outcome.verdict]) if outcome else Text()
        )
        if estimate is None:
            table.add_row(name, "-", "", "0", "0", says)
        else:
            counts = (str(estimate.scored), str(estimate.unscored))
            table.add_row(name, number(estimate.value), interval(estimate), *counts, says)
    return table


def _shown(evaluated: Evaluated, gated: Collection[str]) -> list[str]:
    """All metrics but the latencies of single stages, which are in the report; those too where the gate asks."""
    hidden = {name for name in LATENCY_METRICS if name.count("_") > 1}
    return [
        name for name in dict.fromkeys((*evaluated.metrics, *gated)) if name not in hidden or name in gated
    ]


_STYLES = {"pass": "green", "fail": "bold red", "cannot-tell": "yellow"}


def number(value: float | None) -> str:
    """Three decimals for scores and seconds alike; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f"{number(estimate.low)} to {number(estimate.high)}"
