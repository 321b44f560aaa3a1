"""Fingerprints of the settings that shape what stands in an index: when one changes, its stage is done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ragctl.errors import ConfigError
from ragctl.records import short_hash

if TYPE_CHECKING:
    from ragctl.config import Experiment, Source


def of_sources(experiment: Experiment) -> dict[str, str]:
    """By source: parser and its version, chunker, record and metadata rules. The embedder belongs to the index."""
    return {source.name: _of_source(experiment, source) for source in experiment.sources}


def _of_source(experiment: Experiment, source: Source) -> str:
    from ragctl.chunking import CHUNKER_VERSION
    from ragctl.parsing import PARSER_VERSION

    shape = {
        "parser": PARSER_VERSION,
        "parsing": experiment.parsing.model_dump(mode="json", include={"title", "page_count"}),
        "chunker": CHUNKER_VERSION,
        "chunking": experiment.chunking.model_dump(mode="json", exclude={"tokenizer"}),
        "tokenizer": _of_file(experiment.chunking.tokenizer),
        "source": source.model_dump(mode="json", include={"metadata", "path_metadata", "records"}),
    }
    if experiment.tenancy is not None:  # shapes metadata, and which documents may get in
        shape["tenancy"] = experiment.tenancy.model_dump(mode="json", include={"key", "required"})
    return short_hash(json.dumps(shape, sort_keys=True))


def _of_file(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return short_hash(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"chunking.tokenizer: {path} cannot be read: {error.strerror}") from error
