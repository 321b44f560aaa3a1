"""Experiments for tests, as small as they can be."""

from typing import Any

from ragctl.config import Experiment


def experiment(**sections: Any) -> Experiment:
    """An experiment with one source that nobody reads, and these sections on top."""
    source = {"kind": "local", "name": "docs", "path": "."}
    return Experiment.model_validate({"name": "test", "sources": [source], **sections})
