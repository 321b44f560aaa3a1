"""Vectors that are in the store already: looked up part by part, and put again after all that is new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragctl.adapters import open_store
from ragctl.adapters.local import LocalStore
from ragctl.errors import ServiceError
from ragctl.loading import load
from ragctl.records import VectorRecord
from ragctl.sparse import dense
from tests.cli import Ended, experiment, in_process, write_docs
from tests.servers.bedrock import BedrockServer

LINES = 400  # of the document, each a chunk
# Of 16 MB a quarter may be looked up by the four calls that are made at once, each vector of 2,048 numbers 8 KB.
PART = 128


@dataclass
class Place:
    """One large document, with what its store is asked for."""

    folder: Path
    read: list[int] = field(default_factory=list)  # vectors that each call read
    puts: list[set[str]] = field(default_factory=list)  # keys
    refused: str = "nothing"  # a text whose put fails

    def write(self, name: str = "large.txt", lines: int = LINES) -> None:
        write_docs(
            self.folder, {name: "\n\n".join(f"Line {i} of it, {i * 7919} in all." for i in range(lines))}
        )

    def ingest(self, team: str, *options: str) -> Ended:
        self.read.clear()
        self.puts.clear()
        source = {
            "kind": "local",
            "name": "docs",
            "path": str(self.folder / "docs"),
            "metadata": {"team": team},
        }
        return in_process(
            "ingest", self.config, "--json", "--set", f"sources={json.dumps([source])}", *options
        )

    @property
    def config(self) -> Path:
        return self.folder / "experiment.yaml"

    def contents(self) -> dict[str, VectorRecord]:
        """By text, with vectors."""
        store = open_store(load(self.config))
        try:
            found = store.get(list(store.keys()), vectors=True).values()
            return {str(record.metadata["text"]): record for record in found}
        finally:
            store.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    made.write()
    experiment(
        tmp_path,
        chunking={"size": 45, "overlap": 0},
        embedding={"kind": "hashing", "dimension": 2_048},
        ingest={"workers": 1, "memory_mb": 16, "put_concurrency": 4, "max_delete": 1.0},
    )
    assert made.ingest("red").json["chunks"]["total"] == LINES
    get, put = LocalStore.get, LocalStore.put

    def noted_get(
        store: LocalStore, keys: Sequence[str], *, vectors: bool = False
    ) -> dict[str, VectorRecord]:
        made.read += [len(keys)] if vectors else []
        return get(store, keys, vectors=vectors)

    def noted_put(store: LocalStore, records: Sequence[VectorRecord], *, fresh: bool = False) -> None:
        if any(made.refused in str(record.metadata["text"]) for record in records):
            raise ServiceError("the disk is full")
        made.puts.append({record.key for record in records})
        put(store, records, fresh=fresh)

    monkeypatch.setattr(LocalStore, "get", noted_get)
    monkeypatch.setattr(LocalStore, "put", noted_put)
    return made


def bedrock_environment(bedrock: BedrockServer) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": bedrock.url,
    }


def teams(found: dict[str, VectorRecord]) -> set[Any]:
    return {record.metadata["team"] for record in found.values()}


def same_vectors(found: dict[str, VectorRecord], before: dict[str, VectorRecord]) -> bool:
    return all(np.array_equal(dense(found[text].vector), dense(before[text].vector)) for text in before)


def test_other_metadata_of_a_large_document_reads_its_vectors_part_by_part(place: Place) -> None:
    """Never more at once than the memory of a run has room for; each gets the new metadata and keeps its vector."""
    before = place.contents()
    done = place.ingest("blue").json
    assert (done["chunks"]["embedded"], done["chunks"]["reused"], done["chunks"]["written"]) == (
        0,
        LINES,
        LINES,
    )
    assert (max(place.read), sum(place.read)) == (PART, LINES)
    after = place.contents()
    assert (teams(after), after.keys()) == ({"blue"}, before.keys())
    assert same_vectors(after, before)


def test_a_large_document_that_moved_brings_its_vectors_part_by_part(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another name it has other keys: vectors that a service made are read from the old ones, which then go."""
    with BedrockServer() as bedrock:
        for name, value in bedrock_environment(bedrock).items():
            monkeypatch.setenv(name, value)
        model = {"kind": "bedrock", "model": "amazon.titan-embed-text-v2:0", "dimension": 1_024}
        options = ("--set", f"embedding={json.dumps(model)}", "--set", "store.index=titan")
        assert place.ingest("red", *options).json["chunks"]["embedded"] == LINES
        (place.folder / "docs" / "large.txt").rename(place.folder / "docs" / "moved.txt")
        done = place.ingest("red", *options).json["chunks"]
    assert (done["reused"], done["embedded"], done["deleted"], done["total"]) == (LINES, 0, LINES, LINES)
    assert (max(place.read), sum(place.read)) == (2 * PART, LINES)


def test_what_is_new_of_a_large_document_is_put_before_what_is_there_changes(place: Place) -> None:
    """However many parts there are to look up."""
    known = {record.key for record in place.contents().values()}
    place.write(lines=LINES + 1)
    assert place.ingest("blue").json["chunks"]["written"] == LINES + 1
    assert not place.puts[0] & known
    assert set.union(*place.puts[1:]) == known
    assert teams(place.contents()) == {"blue"}


def test_a_large_document_of_which_something_new_fails_stays_as_it_was(place: Place) -> None:
    """Nothing of it is rewritten, and the next run makes it whole."""
    place.write(lines=LINES + 1)
    place.refused = f"Line {LINES} of it"
    ended = place.ingest("blue")
    assert (ended.status, ended.json["documents"]["failed"]) == (3, 1)
    assert (teams(place.contents()), place.puts) == ({"red"}, [])
    place.refused = "nothing"
    assert place.ingest("blue").status == 0
    after = place.contents()
    assert (teams(after), len(after)) == ({"blue"}, LINES + 1)
