"""verify: what is off between source, ledger and index is named, and repaired to the last key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragctl.adapters import open_store
from ragctl.adapters.base import VectorStore
from ragctl.loading import load
from ragctl.records import VectorRecord
from tests.cli import Ended, experiment, ragctl, write_docs

TEXTS = {f"d{i}.md": f"# Title {i}\n\nDocument number {i} is about subject {i * 7}.\n" for i in range(10)}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_docs(tmp_path, TEXTS)
    path = experiment(tmp_path, ingest={"workers": 1})
    assert ragctl("ingest", path).status == 0
    return path


@contextmanager
def opened(config: Path) -> Iterator[VectorStore]:
    store = open_store(load(config))
    try:
        yield store
    finally:
        store.close()


def contents(config: Path) -> dict[str, dict[str, Any]]:
    with opened(config) as store:
        return {record.key: dict(record.metadata) for record in store.scan()}


def record(config: Path, document: str) -> VectorRecord:
    with opened(config) as store:
        keys = [r.key for r in store.scan() if r.metadata["document"] == document]
        return store.get(keys, vectors=True)[keys[0]]


def off(ended: Ended) -> set[str]:
    kinds = ("missing", "orphaned", "stale", "wrong_metadata", "wrong_vector", "failed", "index")
    return {kind for kind in kinds if ended.json[kind]}


def test_what_agrees_is_said_to_agree(config: Path) -> None:
    """Exit 0, and how much was looked at."""
    ended = ragctl("verify", config, "--full", "--json")
    assert (ended.status, ended.json["clean"], ended.json["looked_at"]) == (0, True, 10)
    assert "source, ledger and index agree" in ragctl("verify", config).out


def break_missing(config: Path) -> None:
    with opened(config) as store:
        store.delete([record(config, "docs/d3.md").key])


def break_orphaned(config: Path) -> None:
    with opened(config) as store:
        store.put([replace(record(config, "docs/d3.md"), key="0-0")])


def break_metadata(config: Path) -> None:
    found = record(config, "docs/d3.md")
    with opened(config) as store:
        store.put([replace(found, metadata={**found.metadata, "title": "Another"})])


def break_text(config: Path) -> None:
    found = record(config, "docs/d3.md")
    with opened(config) as store:
        store.put([replace(found, metadata={**found.metadata, "text": "Another text."})])


def break_vector(config: Path) -> None:
    found = record(config, "docs/d3.md")
    with opened(config) as store:
        store.put([replace(found, vector=np.roll(found.vector, 7))])


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (break_missing, "missing"),
        (break_orphaned, "orphaned"),
        (break_metadata, "wrong_metadata"),
        (break_text, "wrong_metadata"),
        (break_vector, "wrong_vector"),
    ],
)
def test_damage_is_named_and_repaired(config: Path, damage: Any, kind: str) -> None:
    """Exit 3 with the kind of drift; `--repair` brings back exactly what was there."""
    before = contents(config)
    vector = record(config, "docs/d3.md").vector
    damage(config)
    ended = ragctl("verify", config, "--full", "--json")
    assert (ended.status, off(ended)) == (3, {kind})
    repaired = ragctl("verify", config, "--full", "--repair", "--json")
    assert (repaired.status, repaired.json["clean"]) == (0, True)
    assert contents(config) == before
    assert np.array_equal(record(config, "docs/d3.md").vector, vector)


def test_changes_of_the_source_are_named_and_taken_in(config: Path) -> None:
    """A file edited, one new, one gone since the last ingest."""
    docs = config.parent / "docs"
    (docs / "d1.md").write_text("Another text.")
    (docs / "new.md").write_text("New.")
    (docs / "d2.md").unlink()
    ended = ragctl("verify", config, "--json")
    assert (ended.status, ended.json["stale"]) == (3, ["docs/d1.md", "docs/d2.md", "docs/new.md"])
    assert ragctl("verify", config, "--repair").status == 0


def test_an_index_of_another_embedder_is_named(config: Path) -> None:
    """It is not repaired: that would be another index."""
    ended = ragctl("verify", config, "--repair", "--json", "--set", "embedding.dimension=128")
    assert ended.status == 3
    assert "dimension: the index has 256, the experiment asks for 128" in ended.json["index"]


def test_a_repair_is_not_promised_where_it_does_nothing(config: Path) -> None:
    """Another embedder needs another index, and a document that fails needs its reason looked at."""
    other = ragctl("verify", config, "--set", "embedding.dimension=128")
    assert "hint: name another index in store.index, or remove this one: ragctl teardown CONFIG" in other.err
    (config.parent / "docs" / "broken.pdf").write_bytes(b"no PDF")
    ended = ragctl("verify", config, "--repair", "--json")
    assert (ended.status, off(ended)) == (3, {"failed"})
    assert "hint: ragctl failures CONFIG says what fails, and why" in ended.err


def test_full_and_sample_exclude_one_another(config: Path) -> None:
    """A contradiction is a usage error."""
    ended = ragctl("verify", config, "--full", "--sample", "3")
    assert (ended.status, ended.out) == (2, "")
    assert "--full and --sample exclude one another" in ended.err
