"""The embedded store, where it goes beyond the contract: exact results, what is left on disk, damage, other processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragctl.adapters import local, local_rows, local_search
from ragctl.adapters.base import IndexSpec, Metric, SearchRequest
from ragctl.adapters.lance import import_lancedb
from ragctl.adapters.local import LocalStore
from ragctl.adapters.local_filters import facets
from ragctl.config import Experiment
from ragctl.errors import ConfigError, PermissionDenied, Refused, ServiceError
from ragctl.filters import matches, normalise
from ragctl.records import Hit, SearchMode, VectorRecord
from ragctl.sparse import dense

from . import filtering

SPEC = IndexSpec(dimension=2, metric="cosine", embedder="compass/1")
EAST = np.array([1, 0], np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    opened = LocalStore(tmp_path / "db", "papers")
    opened.create(SPEC)
    yield opened
    opened.close()


def record(key: str, *direction: float, **metadata: Any) -> VectorRecord:
    return VectorRecord(key, np.array(direction or (1, 0), np.float32), metadata)


def search(store: LocalStore, mode: SearchMode = "vector", **changes: Any) -> list[Hit]:
    return store.search(replace(SearchRequest(mode, 10, EAST, "winds"), **changes))


def keys(hits: list[Hit]) -> list[str]:
    return [hit.key for hit in hits]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- filters ---------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shelf=st.lists(filtering.metadata, min_size=12, max_size=12),
    conditions=st.lists(filtering.filters, min_size=6, max_size=6),
)
def test_filters_find_what_the_reference_says(
    store: LocalStore, shelf: list[dict[str, Any]], conditions: list[dict[str, Any]]
) -> None:
    """Whatever keys and values are called, a search with a filter finds exactly the records that match."""
    store.put([record(f"k{number}", text="winds", **metadata) for number, metadata in enumerate(shelf)])
    for number, condition in enumerate(map(normalise, conditions)):
        mode: SearchMode = "text" if number % 2 else "vector"
        expected = {f"k{n}" for n, metadata in enumerate(shelf) if matches(condition, metadata)}
        assert set(keys(search(store, mode, top_k=100, filter=condition))) == expected, condition


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.text(min_size=1, max_size=200),
    metadata=st.dictionaries(
        st.text(), st.text() | st.booleans() | filtering.numbers | st.lists(st.text(), min_size=1)
    ),
)
def test_records_come_back_as_they_went_in(store: LocalStore, key: str, metadata: dict[str, Any]) -> None:
    """Any key and any metadata are read back as they were, types included, and can be deleted again."""
    store.put([VectorRecord(key, EAST, metadata)])
    found = store.get([key], vectors=True)[key]
    assert json.dumps(found.metadata, sort_keys=True) == json.dumps(metadata, sort_keys=True)
    assert dense(found.vector).tolist() == [1, 0]
    store.delete([key])
    assert list(store.keys()) == []


def test_a_hundred_constraints_are_answered(store: LocalStore) -> None:
    """The largest filter that is allowed is no problem."""
    store.put([record(f"k{number}", number=number) for number in range(200)])
    wanted = normalise({"number": {"$in": list(range(50, 150))}})
    assert len(search(store, top_k=200, filter=wanted)) == 100


def test_facets_are_lines() -> None:
    """A value cannot pretend to be another key's line."""
    lines = facets({"a": 'x\n"b":true', "b": [1.0, -1], "text": "hidden"}, {"text"})
    assert lines == '\n"a":"x\\n\\"b\\":true"\n"b"[#bff0000000000000\n"b"[#400fffffffffffff\n'


# --- search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_equal_hits_are_ordered_by_key(store: LocalStore, mode: SearchMode) -> None:
    """The same paragraph in many documents comes back as the same one each time, however it was written."""
    names = [f"k{number:03}" for number in range(300)]
    for batch in (names[150:], names[:150][::-1]):
        store.put([record(name, text="winds") for name in batch])
    assert keys(search(store, mode, top_k=5)) == names[:5]
    store.finish()
    assert keys(search(store, mode, top_k=5)) == names[:5]


def test_fresh_records_are_scored_like_indexed_ones(store: LocalStore) -> None:
    """BM25 counts over the whole index, whether its records were indexed together, one by one, or not yet."""
    texts = ["winds", "cold winds from the north", "cold winds, cold nights", "harbour lights", "lights"]
    store.put([record(str(number), text=text) for number, text in enumerate(texts)])
    fresh = search(store, "text", text="cold harbour winds")
    store.finish()
    together = search(store, "text", text="cold harbour winds")
    store.drop()
    store.create(SPEC)
    for number, text in enumerate(texts):
        store.put([record(str(number), text=text)])
        store.finish()
    singly = search(store, "text", text="cold harbour winds")
    assert keys(fresh) == keys(together) == keys(singly)
    assert [hit.score for hit in together] == pytest.approx([hit.score for hit in fresh], rel=1e-3)
    assert [hit.score for hit in together] == pytest.approx([hit.score for hit in singly], rel=1e-3)


def test_hybrid_scores_are_reciprocal_ranks(store: LocalStore) -> None:
    """Second by vector and first by text: 1/62 + 1/61; ranks and scores of both are kept."""
    store.put([record("a", 1, 0, text="ice"), record("b", 1, 1, text="winds"), record("c", 0, 1, text="")])
    best = search(store, "hybrid")[0]
    assert best.key == "b"
    assert best.score == pytest.approx(1 / 62 + 1 / 61)
    assert (best.ranks.vector_rank, best.ranks.text_rank) == (2, 1)
    assert best.ranks.vector_distance == pytest.approx(1 - 0.5**0.5, abs=1e-6)
    assert best.ranks.text_score == pytest.approx(search(store, "text")[0].score)


@pytest.mark.parametrize(
    ("language", "text", "question"),
    [
        ("en", "The runners were running", "run"),
        ("de", "Die Häuser am Hafen", "haus hafens"),
        ("fr", "Les chevaux couraient", "courir"),
        ("ja", "東京は日本の首都です", "東京"),
        ("zh", "我们在北京大学学习", "北京"),
        (None, "Naïve RUNNERS", "naive"),
        (None, "of the", "the"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_text_search_knows_the_language(
    tmp_path: Path, language: str | None, text: str, question: str, finished: bool
) -> None:
    """Words are stemmed, or cut out of text without spaces, as the language of the index wants it."""
    store = LocalStore(tmp_path, "papers")
    store.create(replace(SPEC, language=language))
    store.put([record("a", text=text), record("b", text="winds")])
    if finished:
        store.finish()
    assert keys(search(store, "text", text=question)) == ["a"]


def test_without_a_language_words_are_not_stemmed(tmp_path: Path) -> None:
    """Language null finds words as they stand."""
    store = LocalStore(tmp_path, "papers")
    store.create(replace(SPEC, language=None))
    store.put([record("a", text="runners")])
    assert search(store, "text", text="runner") == []
    assert keys(search(store, "text", text="Runners!")) == ["a"]


def test_a_question_of_stop_words_has_no_hits(store: LocalStore) -> None:
    """Nothing is left to look for, which is no error."""
    store.put([record("a", text="of the and")])
    assert search(store, "text", text="of the and") == []
    assert keys(search(store, "hybrid", text="of the and")) == ["a"]


def test_long_words_are_found(store: LocalStore) -> None:
    """A checksum is a word like any other."""
    checksum = "0123456789abcdef" * 4
    store.put([record("a", text=f"sha256 {checksum}")])
    assert keys(search(store, "text", text=checksum)) == ["a"]


def test_an_index_without_text_search_says_so(tmp_path: Path) -> None:
    """Asking it for words is a fault of the configuration, not an empty answer."""
    store = LocalStore(tmp_path, "papers")
    store.create(replace(SPEC, text_search=False))
    store.put([record("a", text="winds")])
    store.finish()
    assert keys(search(store)) == ["a"]
    with pytest.raises(ConfigError, match="index papers has no text search"):
        search(store, "text")
    with pytest.raises(Refused, match="text search: the index has no, the experiment asks for yes"):
        store.create(SPEC)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dimension", [2, 64, 2_048])
def test_a_large_index_is_searched_through_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimension: int, metric: Metric
) -> None:
    """Above the size where it pays a vector index is built; results and scores stay what they were."""
    store = LocalStore(tmp_path / "db", "papers")
    store.create(replace(SPEC, dimension=dimension, metric=metric))
    vectors = np.random.default_rng(7).normal(1, 1, (2_000, dimension)).astype(np.float32)
    middle = vectors[:20].mean(axis=0)
    question = SearchRequest("vector", 10, middle, "")
    store.put([VectorRecord(f"k{number}", vector, {}) for number, vector in enumerate(vectors)])
    store.finish()
    exact = store.search(question)
    monkeypatch.setattr(local_search, "VECTOR_INDEX_BYTES", 2_000 * dimension * 4)
    store.finish()
    table = import_lancedb().connect(store._path).open_table("papers")
    assert sorted(index.columns[0] for index in table.list_indices()) == ["text", "vector"]
    indexed = store.search(question)
    assert keys(indexed) == keys(exact)
    assert [hit.distance for hit in indexed] == pytest.approx([hit.distance for hit in exact], abs=1e-4)
    store.put([VectorRecord("new", middle, {})])
    assert keys(store.search(question))[0] == "new"


def test_a_filter_is_answered_from_all_partitions(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far from the question the few records lie that match, none of them is missing."""
    monkeypatch.setattr(local_search, "VECTOR_INDEX_BYTES", 1)
    monkeypatch.setattr(local_search, "PARTITIONS_READ", 1)
    circle = np.linspace(0, np.pi, 9_000)
    records = [
        record(f"k{n}", float(np.cos(angle)), float(np.sin(angle)), rare=n % 1_000 == 999)
        for n, angle in enumerate(circle)
    ]
    for first in range(0, len(records), store.limits.put_records):
        store.put(records[first : first + store.limits.put_records])
    store.finish()
    assert len(search(store, filter=normalise({"rare": True}))) == 9


# --- on disk ---------------------------------------------------------------------------------------------


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    """Looking for an index makes no folder."""
    store = LocalStore(tmp_path / "db", "papers")
    assert store.describe() is None
    assert store.drop() is False
    assert list(tmp_path.iterdir()) == []


def test_dropping_leaves_nothing_behind(store: LocalStore, tmp_path: Path) -> None:
    """Not even the folder of the database, unless another index is in it."""
    other = LocalStore(tmp_path / "db", "letters")
    other.create(SPEC)
    store.put([record("a", text="winds")])
    store.finish()
    store.drop()
    assert [path.name for path in (tmp_path / "db").iterdir()] == ["letters.lance"]
    other.drop()
    assert list(tmp_path.iterdir()) == []


def test_an_index_half_made_or_half_removed_is_none(store: LocalStore) -> None:
    """A kill while the index is made or dropped leaves nothing that counts as an index."""
    for version in store._versions.iterdir():
        version.unlink()
    again = LocalStore(store._path, "papers")
    assert again.describe() is None
    assert again.create(SPEC) is True
    again.put([record("a")])
    assert list(again.keys()) == ["a"]


def test_finishing_joins_files_and_removes_old_versions(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small writes end as one file and one version; versions that somebody may still read are kept."""
    monkeypatch.setattr(local, "KEEP_VERSIONS", timedelta(minutes=10))
    monkeypatch.setattr(local, "MOST_FILES", 11)
    for number in range(12):
        store.put([record(f"k{number}", text=f"winds {number}")])
    store.finish()
    assert len(list((store._folder / "data").iterdir())) > 1
    monkeypatch.setattr(local, "KEEP_VERSIONS", timedelta(milliseconds=1))
    monkeypatch.setattr(local, "MOST_VERSIONS", 1)
    store.finish()
    assert len(list((store._folder / "data").iterdir())) == 1
    assert sorted(store.keys()) == sorted(f"k{number}" for number in range(12))


def test_a_small_change_writes_little(store: LocalStore) -> None:
    """What an earlier ingest wrote is left as it is, in one file of rows and one text index."""
    store.put([record(f"k{number}", text=f"winds {number}") for number in range(100)])
    store.finish()
    before = files(store._folder / "data") | files(store._folder / "_indices")
    store.put([record("new", text="winds")])
    store.finish()
    after = files(store._folder / "data") | files(store._folder / "_indices")
    assert before < after
    assert len(after) == len(before) + 1  # the new record
    assert len(search(store, "text", text="winds", top_k=200)) == 101


def test_fresh_records_are_appended_as_long_as_nobody_else_writes(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look for their keys would read those of all records, with every put."""
    table, _ = store._open()
    merges: list[str] = []
    merge = type(table).merge_insert

    def noted(table: Any, on: str) -> Any:
        merges.append(on)
        return merge(table, on)

    monkeypatch.setattr(type(table), "merge_insert", noted)
    assert store.describe() is not None
    store.put([record("a")], fresh=True)
    store.put([record("b")], fresh=True)
    store.delete(["a"])
    store.put([record("a")], fresh=True)
    assert merges == []
    store.put([record("b", text="winds")])
    store.put([record("c")], fresh=True)
    assert merges == ["key"]
    LocalStore(store._path, "papers").put([record("d")])
    store.put([record("e")], fresh=True)
    assert len(merges) == 3
    assert sorted(store.keys()) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_key_is_never_there_twice_whoever_writes(store: LocalStore, fresh: bool) -> None:
    """A put replaces what this process wrote, what another one wrote since, and what was there before it; where somebody
    else writes as well, also a put of whoever thinks that they are the only one.
    """
    assert store.describe() is not None
    other = LocalStore(store._path, "papers")
    for writer in (store, other, store, store, other):
        writer.put([record("a", text="winds"), record("b")])
        writer.put([record("b", 0, 1), record("c")])
        assert sorted(writer.keys()) == ["a", "b", "c"]
    store.delete(["a"])
    other.put([record("a", text="lights")])
    store.put([record("a", text="ice")], fresh=fresh)
    assert sorted(LocalStore(store._path, "papers").keys()) == ["a", "b", "c"]
    assert store.get(["a"])["a"].metadata["text"] == "ice"


def test_finishing_twice_writes_nothing(store: LocalStore) -> None:
    """An ingest that changed nothing leaves the files as they are."""
    store.put([record("a", text="winds")])
    store.finish()
    before = files(store._folder)
    store.finish()
    assert files(store._folder) == before


def test_other_processes_see_each_write(store: LocalStore) -> None:
    """A store that was opened before sees what another has written, changed and removed since."""
    reader = LocalStore(store._path, "papers")
    assert search(reader) == []
    store.put([record("a", text="winds"), record("b", 0, 1)])
    assert keys(search(reader)) == ["a", "b"]
    store.delete(["a"])
    store.finish()
    assert keys(search(reader)) == ["b"]
    store.drop()
    with pytest.raises(ServiceError, match="there is no index papers"):
        search(reader)


def test_a_scan_goes_on_while_others_write(store: LocalStore) -> None:
    """Who lists a large index gets it as it was at the beginning, whatever is written and tidied up meanwhile."""
    store.put([record(f"k{number}", text="winds") for number in range(6_000)])
    listing = store.scan()
    first = next(listing)
    store.delete([f"k{number}" for number in range(6_000)])
    store.finish()
    assert len({first.key, *(item.key for item in listing)}) == 6_000


# --- faults ----------------------------------------------------------------------------------------------


def test_damaged_files_are_said_to_be_damaged(store: LocalStore) -> None:
    """A table that cannot be read ends in words and a way out, not in a traceback."""
    store.put([record("a", text="winds")])
    for path in (store._folder / "data").iterdir():
        path.write_bytes(b"rubbish")
    with pytest.raises(ServiceError, match=r"cannot search index papers in .*db: ") as caught:
        search(LocalStore(store._path, "papers"))
    assert "ragctl teardown CONFIG --index" in (caught.value.hint or "")
    for path in (store._folder / "_versions").iterdir():
        path.write_bytes(b"rubbish")
    with pytest.raises(ServiceError, match=r"cannot open index papers in .*db: "):
        LocalStore(store._path, "papers").describe()
    assert store.drop() is True


def test_a_panic_of_the_native_code_is_a_service_that_failed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that LanceDB does not expect ends in the same words as any other; a bug of ours stays a bug."""

    class RustPanic(Exception):
        """Cannot be imported from where it comes."""

    for raised, expected in ((RustPanic("unknown error"), ServiceError), (KeyError("ours"), KeyError)):
        with monkeypatch.context() as patch:
            patch.setattr(local_rows, "table", lambda *_, error=raised: _raise(error))
            with pytest.raises(expected) as caught:
                store.put([record("a")])
        assert str(caught.value) in (
            f"cannot write to index papers in {store._path}: RustPanic in LanceDB",
            "'ours'",
        )


def _raise(error: Exception) -> None:
    raise error


def test_an_index_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A LanceDB table that ragctl has not made is not taken for an index."""
    import_lancedb().connect(tmp_path).create_table("papers", [{"key": "a"}])
    with pytest.raises(ServiceError, match="was not made by this version of ragctl"):
        LocalStore(tmp_path, "papers").describe()


def test_a_full_disk_is_said_to_be_full(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do about it is in the hint, and the index can be read as before."""
    store.put([record("a")])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(local_rows, "table", full)
        with pytest.raises(
            ServiceError, match=r"cannot write to index papers in .*db: the disk is full"
        ) as caught:
            store.put([record("b")])
    assert caught.value.hint == "free some space and run the command again; what was written before is whole"
    assert list(store.keys()) == ["a"]


def test_a_folder_that_may_not_be_written_is_no_damage(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told to remove an index whose only fault is its permissions."""

    def forbidden(*_: object) -> None:
        raise RuntimeError("lance error: LanceError(IO): Permission denied (os error 13)")

    monkeypatch.setattr(local_rows, "table", forbidden)
    with pytest.raises(
        PermissionDenied, match=r"cannot write to index papers in .*db: permission denied"
    ) as caught:
        store.put([record("a")])
    assert caught.value.hint == "let this user write to the folder, or name another one in store.path"


def test_an_index_that_another_process_made_meanwhile_is_taken(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`create-index` beside the first `ingest`: one makes it, the other finds it, and compares the settings."""
    late = LocalStore(store._path, "papers")
    exists = iter([False])
    monkeypatch.setattr(LocalStore, "_exists", lambda _: next(exists, True))
    assert late.create(SPEC) is False
    exists = iter([False])
    with pytest.raises(Refused, match="index papers was made with other settings"):
        late.create(replace(SPEC, dimension=3))


def test_a_write_that_fails_half_way_changes_nothing(store: LocalStore) -> None:
    """A process that may write no large files fails with exit 8, and the index is what it was before."""
    store.put([record("a", text="before")])
    script = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from ragctl.adapters.local import LocalStore
from ragctl.errors import ServiceError
from ragctl.records import VectorRecord

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LocalStore(Path(sys.argv[1]), "papers")
store.describe()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
east = np.array([1, 0], np.float32)
rng = np.random.default_rng(0)
try:
    store.put([VectorRecord(key, east, {"text": rng.bytes(9_000).hex()}) for key in "abcdefgh"])
except ServiceError as error:
    sys.exit(error.exit_status)
"""
    done = subprocess.run([sys.executable, "-c", script, str(store._path)], capture_output=True, timeout=60)
    assert done.returncode == 8, done.stderr
    assert {item.key: item.metadata for item in store.scan()} == {"a": {"text": "before"}}


def test_the_store_comes_from_the_experiment(tmp_path: Path) -> None:
    """Folder and name are those of the configuration."""
    experiment = Experiment.model_validate(
        {
            "name": "demo",
            "sources": [{"kind": "local", "name": "docs", "path": tmp_path}],
            "store": {"kind": "local", "path": tmp_path / "db", "index": "papers"},
        }
    )
    store = LocalStore.from_config(experiment)
    store.create(SPEC)
    info = store.describe()
    assert info is not None
    assert info.details == {"path": str(tmp_path / "db" / "papers.lance"), "records": "0"}
