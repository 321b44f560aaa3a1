"""Every command that changes something leaves a record of how it went, however it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ragctl.commands import events
from ragctl.errors import RagctlError, StateError

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.report import Run, Status

log = logging.getLogger("ragctl.recording")


@contextmanager
def recording(command: str, experiment: Experiment) -> Iterator[Run]:
    """A run that is finished as "failed" or "interrupted" when an error ends it; else the block finishes it.

    Raises StateError, before the block begins, where there is no place for the record.
    """
    run = _begun(command, experiment)
    with _ending(run):
        yield run


@contextmanager
def recording_if_possible(command: str, experiment: Experiment) -> Iterator[Attempt]:
    """As `recording`, for what must be done whether it can be recorded or not; `Attempt.fault` is for its end."""
    attempt = Attempt()
    try:
        attempt.run = _begun(command, experiment)
    except StateError as error:
        attempt.note(error)
    with _ending(attempt):
        yield attempt


@dataclass(slots=True)
class Attempt:
    """The record of a run, as far as it can be written."""

    run: Run | None = None
    fault: StateError | None = None  # why it is not, or not whole

    @property
    def path(self) -> str | None:
        """Where the record is; None: there is none."""
        return None if self.run is None else str(self.run.path)

    def finish(self, status: Status, payload: Mapping[str, object]) -> None:
        """As `Run.finish`, but what cannot be written is noted."""
        if self.run is None:
            return
        try:
            self.run.finish(status, payload)
        except StateError as error:
            self.note(error)

    def note(self, error: StateError) -> None:
        """Keep the fault for the end, and warn of it now."""
        self.fault = error
        log.warning("%s; going on without a report", error.message)


class _Record(Protocol):
    def finish(self, status: Status, payload: Mapping[str, object]) -> None: ...


def _begun(command: str, experiment: Experiment) -> Run:
    from ragctl.loading import masked
    from ragctl.report import Run

    run = Run.begin(command, masked(experiment), experiment.runs)
    events.ending.setdefault("reports", []).append(str(run.path))
    return run


@contextmanager
def _ending(record: _Record) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _finish(record, "interrupted", {})
        raise
    except RagctlError as error:
        _finish(record, "failed", {"error": error.message, "exit": error.exit_status})
        raise
    except Exception as error:
        _finish(record, "failed", {"error": f"bug: {type(error).__name__}", "exit": 1})
        raise


def _finish(record: _Record, status: Status, payload: Mapping[str, object]) -> None:
    """Record how it went wrong; that this cannot be written must not hide what did."""
    try:
        record.finish(status, payload)
    except StateError as error:
        log.warning("%s", error.message)
