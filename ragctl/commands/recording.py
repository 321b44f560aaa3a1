"""Every command that changes something leaves a record of how it went, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ragctl.commands import events
from ragctl.errors import RagctlError

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.report import Run


@contextmanager
def recording(command: str, experiment: Experiment) -> Iterator[Run]:
    """A run that is finished as "failed" or "interrupted" when an error ends it; else the block finishes it."""
    from ragctl.loading import masked
    from ragctl.report import Run

    run = Run.begin(command, masked(experiment), experiment.runs)
    events.ending.setdefault("reports", []).append(str(run.path))
    try:
        yield run
    except KeyboardInterrupt:
        run.finish("interrupted", {})
        raise
    except RagctlError as error:
        run.finish("failed", {"error": error.message, "exit": error.exit_status})
        raise
    except Exception as error:
        run.finish("failed", {"error": f"bug: {type(error).__name__}", "exit": 1})
        raise
