"""How a run shows that it is alive: a bar on a terminal, else a line at most every 10 seconds."""

from __future__ import annotations

import sys
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING

from ragctl.commands import events

if TYPE_CHECKING:
    from ragctl.commands.options import Output
    from ragctl.ingest import Progress

LINE_EVERY_S = 10.0


class IngestDisplay:
    """Shows an ingest; `tick` is called about twice a second and costs nothing when there is nothing to show."""

    def __init__(self, progress: Progress, output: Output, *, done: str = "written") -> None:
        """`done` says what has become of the chunks that are shown."""
        self._progress = progress
        self._done = done
        self._bar = None
        self._shown = monotonic()
        if output.has_bar:
            from tqdm import tqdm

            self._bar = tqdm(unit=" chunks", file=sys.stderr, dynamic_ncols=True, leave=False)

    def tick(self) -> None:
        if self._bar is not None:
            self._bar.n = self._progress.counts.written
            self._bar.set_description(self._text(), refresh=True)
        elif monotonic() - self._shown >= LINE_EVERY_S:
            self._shown = monotonic()
            text = f"{self._text()}, {self._progress.counts.written:,} chunks {self._done}"
            counts = asdict(self._progress.counts)
            events.tell("progress", text, waiting_for=self._bottleneck(), counts=counts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _text(self) -> str:
        counts, stage = self._progress.counts, self._bottleneck()
        waits = f", waiting for: {stage}" if stage is not None else ""
        return f"{counts.seen:,} documents{f', {counts.failed:,} failed' if counts.failed else ''}{waits}"

    def _bottleneck(self) -> str | None:
        pipeline = self._progress.pipeline
        return pipeline.bottleneck() if pipeline is not None else None
