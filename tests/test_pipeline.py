"""What the pipeline says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ragctl.pipeline import Pipeline


@pytest.mark.parametrize(
    ("parsing", "waiting", "calling", "full", "putting", "stage"),
    [
        (True, 0, 0, False, 0, "parse"),  # nothing has come yet
        (True, 0, 1, False, 0, "parse"),  # the embedder has room
        (True, 0, 4, False, 0, "embed"),  # all its calls are under way
        (True, 9, 1, False, 0, "embed"),
        (True, 0, 1, True, 1, "put"),  # there is a batch that waits for another
        (False, 0, 1, False, 0, "embed"),  # the last texts are out
        (False, 0, 0, False, 1, "put"),  # the last records
    ],
)
def test_the_bottleneck_is_the_stage_that_the_others_wait_for(
    parsing: bool, waiting: int, calling: int, full: bool, putting: int, stage: str
) -> None:
    """A call that takes long is not told as a put, of which there is none."""
    pipeline: Any = SimpleNamespace(
        _parsing=parsing,
        _calls=putting,
        _records=SimpleNamespace(has_full=full),
        _embeds=SimpleNamespace(under_way=calling, limit=4, waiting=waiting),
    )
    assert Pipeline.bottleneck(pipeline) == stage
