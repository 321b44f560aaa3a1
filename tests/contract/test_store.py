"""What every store must do. Vectors are directions on a compass, so that distances can be worked out in the head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ragctl.adapters.base import SearchRequest, VectorStore
from ragctl.errors import ConfigError, FilterError, InputRefused, LeaseLost, NotFound, RecordRefused, Refused
from ragctl.filters import matches, normalise
from ragctl.records import Hit, SearchMode, VectorRecord
from ragctl.sparse import SparseVector, dense

from .conftest import SPEC

if TYPE_CHECKING:
    from ragctl.records import Vector

EAST, NORTH, WEST, NORTH_EAST = (1, 0), (0, 1), (-1, 0), (1, 1)
# Cosine distance from EAST: 0, 1 - cos 45 degrees, 1 and 2.
DISTANCES = {"east": 0.0, "north-east": 1 - math.sqrt(0.5), "north": 1.0, "west": 2.0}
MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")


def arrow(direction: Sequence[float]) -> Vector:
    return np.array(direction, dtype=np.float32)


def record(key: str, direction: Sequence[float] = EAST, **metadata: Any) -> VectorRecord:
    return VectorRecord(key, arrow(direction), metadata)


def compass() -> list[VectorRecord]:
    return [
        record("west", WEST, text="Sunsets over the harbour", document="w.txt", height=4),
        record("east", EAST, text="The sun rises in the east", document="e.txt", height=1),
        record("north", NORTH, text="Polar bears and ice", document="n.txt", height=3),
        record("north-east", NORTH_EAST, text="Cold winds from Siberia", document="ne.txt", height=2),
    ]


def put(store: VectorStore, records: Sequence[VectorRecord]) -> None:
    size = store.limits.put_records
    for first in range(0, len(records), size):
        store.put(records[first : first + size])


def search(store: VectorStore, mode: SearchMode = "vector", **changes: Any) -> list[Hit]:
    request = SearchRequest(
        mode,
        top_k=10,
        vector=None if mode == "text" else arrow(EAST),
        text=None if mode == "vector" else "winds",
    )
    return store.search(replace(request, **changes))


def keys(hits: Sequence[Hit]) -> list[str]:
    return [hit.key for hit in hits]


# --- the index -------------------------------------------------------------------------------------------


def test_a_write_that_may_not_be_made_is_not_made(store: VectorStore) -> None:
    """Whoever has lost the lease is stopped at the last moment."""
    store.put(compass())

    def check() -> None:
        raise LeaseLost("taken over")

    store.before_writes(check)
    with pytest.raises(LeaseLost, match="taken over"):
        store.put([record("south", WEST)])
    with pytest.raises(LeaseLost, match="taken over"):
        store.delete(["west"])
    assert sorted(store.keys()) == ["east", "north", "north-east", "west"]


def test_an_absent_index_is_described_as_none(absent: VectorStore) -> None:
    """Asking whether there is an index makes none."""
    assert absent.describe() is None
    assert absent.describe() is None


def test_an_absent_index_is_named_with_a_hint(absent: VectorStore) -> None:
    """Reading, searching and writing without an index say so, and what to do."""
    for attempt in (
        lambda: absent.put([record("a")]),
        lambda: absent.get(["a"]),
        lambda: absent.delete(["a"]),
        lambda: list(absent.keys()),
        lambda: list(absent.scan()),
        lambda: search(absent),
    ):
        with pytest.raises(NotFound, match="papers") as caught:
            attempt()
        assert "ragctl" in (caught.value.hint or "")


def test_describing_says_what_it_was_made_for(store: VectorStore) -> None:
    """Everything that later runs compare is kept with the index."""
    info = store.describe()
    assert info is not None
    assert (info.dimension, info.metric, info.embedder) == (2, "cosine", "compass/1")
    assert set(info.non_filterable) == set(SPEC.non_filterable)
    assert (info.text_search, info.language) == (True, "en")


def test_creating_twice_is_harmless(absent: VectorStore) -> None:
    """The second time finds the index equal, and what it holds stays."""
    assert absent.create(SPEC) is True
    absent.put([record("a")])
    assert absent.create(SPEC) is False
    assert list(absent.keys()) == ["a"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedder": "sextant/2"}, "embedder: the index has compass/1, the experiment asks for sextant/2"),
        ({"dimension": 3}, "dimension: the index has 2, the experiment asks for 3"),
        ({"metric": "euclidean"}, "metric: the index has cosine, the experiment asks for euclidean"),
        (
            {"non_filterable": ("text", "title")},
            "non-filterable keys: the index has end, start, text, the experiment asks for text, title",
        ),
    ],
)
def test_creating_with_other_settings_is_refused(
    store: VectorStore, changes: dict[str, Any], words: str
) -> None:
    """An index made for something else is neither used nor replaced; each difference is listed."""
    store.put([record("a")])
    with pytest.raises(Refused) as caught:
        store.create(replace(SPEC, **changes))
    assert words in caught.value.message
    assert list(store.keys()) == ["a"]


def test_an_impossible_index_is_refused(absent: VectorStore) -> None:
    """What no store could make is said before any call."""
    with pytest.raises(ConfigError, match="dimension 4097: an index takes 1 to 4,096"):
        absent.create(replace(SPEC, dimension=4_097))
    assert absent.describe() is None


def test_dropping_takes_everything_along(store: VectorStore) -> None:
    """An index that is made again under the same name starts empty, and can be told from the one before."""
    before = store.describe()
    store.put(compass())
    assert store.drop() is True
    assert store.describe() is None
    assert store.create(SPEC) is True
    after = store.describe()
    assert list(store.keys()) == []
    assert before is not None
    assert after is not None
    assert before.created != after.created


def test_dropping_twice_is_harmless(store: VectorStore) -> None:
    """The second time says that there was none."""
    assert store.drop() is True
    assert store.drop() is False


# --- records ---------------------------------------------------------------------------------------------


def test_put_twice_keeps_one_copy(store: VectorStore) -> None:
    """Writing again what is there changes nothing, so a second ingest never duplicates."""
    store.put(compass())
    store.put(compass())
    store.finish()
    assert sorted(store.keys()) == sorted(DISTANCES)


def test_put_replaces_vector_and_metadata_whole(store: VectorStore) -> None:
    """Nothing of the record that had the key before is left, neither to read nor to find."""
    store.put([record("a", EAST, text="winds", year=2023, draft=True)])
    store.finish()
    store.put([record("a", NORTH, text="ice", year=2024)])
    found = store.get(["a"], vectors=True)["a"]
    assert found.metadata == {"text": "ice", "year": 2024}
    assert dense(found.vector).tolist() == [0, 1]
    assert search(store, "text", text="winds") == []
    assert search(store, filter=normalise({"draft": True})) == []


def test_a_vector_without_its_zeros_is_stored_as_the_same(store: VectorStore) -> None:
    """What the hashing embedder gives is found, read and compared like any other, also beside others in one put."""
    west = SparseVector(2, np.array([0], np.int32), np.array([-1], np.float32))
    sparse = replace(record("west", text="Sunsets", document="w.txt"), vector=west)
    full = record("west", WEST, text="Sunsets", document="w.txt")
    store.check(sparse)
    assert store.encoded_size(sparse) == store.encoded_size(full)
    for others in ([], [record("east", EAST)]):
        store.put([sparse, *others])
        assert dense(store.get(["west"], vectors=True)["west"].vector).tolist() == [-1, 0]
    assert {hit.key: hit.distance for hit in search(store)} == pytest.approx({"east": 0, "west": 2})


@pytest.mark.parametrize(
    ("size", "values", "words"),
    [
        (3, [1], "the vector has 3 numbers, the index takes 2"),
        (2, [math.inf], "the vector holds NaN or infinity"),
        (2, [], "the vector is zero"),
    ],
)
def test_a_vector_without_its_zeros_is_refused_like_any_other(
    store: VectorStore, size: int, values: list[float], words: str
) -> None:
    """The limits hold for both kinds."""
    vector = SparseVector(size, np.arange(len(values), dtype=np.int32), np.array(values, np.float32))
    with pytest.raises(RecordRefused, match=words):
        store.check(VectorRecord("k", vector, {}))


def test_a_key_that_stands_twice_in_a_batch_is_refused(store: VectorStore) -> None:
    """Which of the two would stay is nobody's guess; nothing is written."""
    with pytest.raises(RecordRefused, match="key a: stands twice in one batch"):
        store.put([record("a"), record("b"), record("a", NORTH)])
    assert list(store.keys()) == []


def test_get_leaves_out_what_is_absent(store: VectorStore) -> None:
    """An unknown key is no error; vectors come only when they are asked for."""
    store.put(compass())
    found = store.get(["east", "nowhere", "west"])
    assert sorted(found) == ["east", "west"]
    assert found["east"].vector.shape == (0,)
    assert found["east"].metadata["document"] == "e.txt"


def test_delete_ignores_what_is_absent(store: VectorStore) -> None:
    """Only the named records go, and they go for searches as well."""
    store.put(compass())
    store.finish()
    store.delete(["east", "nowhere"])
    assert sorted(store.keys()) == ["north", "north-east", "west"]
    assert keys(search(store)) == ["north-east", "north", "west"]
    assert search(store, "text", text="sun rises") == []


def test_nothing_to_do_is_harmless(store: VectorStore) -> None:
    """Empty batches make no call that could fail."""
    store.put([])
    store.delete([])
    assert store.get([]) == {}


def test_every_key_comes_once_over_many_pages(store: VectorStore) -> None:
    """Listing goes to the end; nothing is lost or repeated between the pages."""
    put(store, [record(f"k{number}", (1, number), number=number) for number in range(2_500)])
    listed = list(store.keys())
    assert len(listed) == 2_500
    assert set(listed) == {f"k{number}" for number in range(2_500)}


def test_scan_yields_every_record_with_metadata(store: VectorStore) -> None:
    """A ledger can be rebuilt from what scan gives; vectors are left out."""
    put(store, [record(f"k{number}", (1, number), number=number) for number in range(1_200)])
    scanned = list(store.scan())
    assert sorted(int(item.metadata["number"]) for item in scanned) == list(range(1_200))  # type: ignore[arg-type]  # numbers were put
    assert all(item.key == f"k{item.metadata['number']}" for item in scanned)
    assert all(item.vector.shape == (0,) for item in scanned)


def test_metadata_come_back_as_they_went_in(store: VectorStore) -> None:
    """Types stay what they were; texts keep every character, keys may have any name."""
    metadata: dict[str, Any] = {
        "text": 'Zeile eins\nZeile "zwei"\ttab\u2028 – naïve 東京 😀 \\n \x00',
        "whole": 3,
        "half": 0.5,
        "round": 2.0,
        "negative": -(2**53),
        "yes": True,
        "no": False,
        "empty": "",
        "names": ["b", "a", "b"],
        "numbers": [1, 2.5],
        "a.b": "dotted",
        "$sign": "dollar",
        "quo\"te's": "'; DROP TABLE papers; --",
        "ключ 鍵": "unicode",
        "": "no name",
    }
    store.put([VectorRecord("schlüssel/'1'", arrow(EAST), metadata)])
    found = store.get(["schlüssel/'1'"])["schlüssel/'1'"].metadata
    assert found == metadata
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in metadata.items()
    }


def test_a_record_needs_no_metadata(store: VectorStore) -> None:
    """A vector alone can be kept, read and found."""
    store.put([record("bare")])
    assert store.get(["bare"])["bare"].metadata == {}
    assert keys(search(store)) == ["bare"]


def test_threads_write_at_once(store: VectorStore) -> None:
    """Several writers lose nothing of one another."""
    batches = [[record(f"{batch}-{number}") for number in range(25)] for batch in range(6)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.put, batches))
    assert sorted(store.keys()) == sorted(item.key for batch in batches for item in batch)


def test_threads_search_while_others_write(store: VectorStore) -> None:
    """A search sees every record that was there before, whatever is written meanwhile."""
    store.put(compass())

    def work(turn: int) -> list[str]:
        if turn % 2:
            store.put([record(f"far-{turn}", WEST)])
        return keys(search(store, top_k=3))

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(12)):
            assert found == ["east", "north-east", "north"]


@pytest.mark.parametrize(
    ("faulty", "words"),
    [
        (record("k", (1, 2, 3)), "the vector has 3 numbers, the index takes 2"),
        (record("k", (0, 0)), "the vector is zero"),
        (record("k", (math.nan, 1)), "the vector holds NaN or infinity"),
        (record("x" * 1_025), "the key has 1,025 bytes, 1 to 1,024 are allowed"),
        (
            record("k", document="a.pdf", text="x" * 50_000),
            "document a.pdf, key k: its metadata and text take",
        ),
        (record("k", notes="x" * 2_100), "its filterable metadata take 2,117 bytes, at most 2,048"),
        (record("k", many=[1, "x"]), 'metadata "many": a list holds only strings or only numbers'),
        (record("k", nothing=None), 'metadata "nothing": a value is a string, number, boolean'),
    ],
)
def test_a_record_beyond_the_limits_is_refused(store: VectorStore, faulty: VectorRecord, words: str) -> None:
    """The same records are refused on every store, before any call, saying which and why."""
    with pytest.raises(RecordRefused) as caught:
        store.check(faulty)
    assert words in caught.value.message


def test_a_record_within_the_limits_passes(store: VectorStore) -> None:
    """Text is not filterable, so a long one passes; its size is estimated with it."""
    large = record("k", text="x" * 30_000, document="a.pdf")
    store.check(large)
    assert store.encoded_size(large) > 30_000


# --- search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_index_has_no_hits(store: VectorStore, mode: SearchMode) -> None:
    """Searching before the first ingest is no error."""
    assert search(store, mode) == []
    store.finish()
    assert search(store, mode) == []


@pytest.mark.parametrize("finished", [False, True])
def test_vector_search_ranks_by_angle(store: VectorStore, finished: bool) -> None:
    """Nearest first; the score is 1 - distance; fresh records are found as well as indexed ones."""
    store.put(compass())
    if finished:
        store.finish()
    hits = search(store)
    assert keys(hits) == list(DISTANCES)
    for hit in hits:
        assert hit.distance == pytest.approx(DISTANCES[hit.key], abs=1e-5)
        assert hit.score == pytest.approx(1 - DISTANCES[hit.key], abs=1e-5)
    assert hits[0].document == "e.txt"
    assert hits[0].text == "The sun rises in the east"


def test_the_length_of_a_vector_does_not_matter_to_the_angle(store: VectorStore) -> None:
    """Cosine distance is that of the directions."""
    store.put([record("long", (1_000, 0)), record("short", (0.001, 0.001))])
    assert [round(hit.distance or 0, 4) for hit in search(store)] == [0, 0.2929]


def test_euclidean_distance_is_the_length_between(absent: VectorStore) -> None:
    """(3, 4) is 5 away from the origin, not 25; the score is 1 / (1 + distance)."""
    absent.create(replace(SPEC, metric="euclidean"))
    absent.put([record("far", (3, 4)), record("near", (0, 1)), record("here", (0, 0))])
    hits = search(absent, vector=arrow((0, 0)))
    assert keys(hits) == ["here", "near", "far"]
    assert [hit.distance for hit in hits] == pytest.approx([0, 1, 5], abs=1e-5)
    assert [hit.score for hit in hits] == pytest.approx([1, 1 / 2, 1 / 6], abs=1e-5)


@pytest.mark.parametrize("finished", [False, True])
def test_text_search_finds_words(store: VectorStore, finished: bool) -> None:
    """Only records with a word of the question, those with more of them first; no distance."""
    store.put(compass())
    if finished:
        store.finish()
    hits = search(store, "text", text="Sun rises? Harbour!")
    assert keys(hits) == ["east", "west"]
    assert hits[0].score > hits[1].score > 0
    assert [hit.distance for hit in hits] == [None, None]


def test_text_search_stems(store: VectorStore) -> None:
    """A question in the singular finds the plural."""
    store.put(compass())
    assert keys(search(store, "text", text="rising bear")) != []
    assert keys(search(store, "text", text="bear")) == ["north"]
    assert keys(search(store, "text", text="WIND")) == ["north-east"]


@pytest.mark.parametrize(
    "text",
    ['"', "NOT", "(winds OR", "+winds -cold", "wi*ds", "text:winds", "\\", "winds~2", "?!", "😀", "\x00"],
)
def test_a_question_is_words_never_syntax(store: VectorStore, text: str) -> None:
    """Operators of query languages are ordinary characters; no question is a crash."""
    store.put(compass())
    assert keys(search(store, "text", text=text)) == (["north-east"] if "winds" in text else [])


@pytest.mark.parametrize("finished", [False, True])
def test_hybrid_search_fuses_both(store: VectorStore, finished: bool) -> None:
    """What both searches put high wins; the score is the fused one, and says so."""
    store.put(compass())
    if finished:
        store.finish()
    hits = search(store, "hybrid", text="cold winds")
    assert keys(hits)[:2] == ["north-east", "east"]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.ranks.fused_score == hit.score
    assert hits[0].distance == pytest.approx(DISTANCES["north-east"], abs=1e-5)
    assert (hits[0].ranks.text_score or 0) > 0


@pytest.mark.parametrize("mode", MODES)
def test_top_k_bounds_the_hits(store: VectorStore, mode: SearchMode) -> None:
    """No more than asked for, and no error where there are fewer."""
    store.put(compass())
    whole = search(store, mode, text=None if mode == "vector" else "sun harbour ice winds", top_k=1_000)
    assert sorted(keys(whole)) == sorted(DISTANCES)
    best = search(store, mode, text=None if mode == "vector" else "sun harbour ice winds", top_k=2)
    assert keys(best) == keys(whole)[:2]


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_holds_in_every_mode(store: VectorStore, mode: SearchMode) -> None:
    """Only matching records come back, however near the others are, and none is missing."""
    store.put([record(f"k{number}", (1, number), text="winds", even=number % 2 == 0) for number in range(40)])
    for _ in range(2):
        hits = search(store, mode, top_k=40, filter=normalise({"even": True}))
        assert sorted(keys(hits)) == sorted(f"k{number}" for number in range(0, 40, 2))
        store.finish()


SHELF: dict[str, dict[str, Any]] = {
    "a": {"year": 2023, "lang": "en", "tags": ["x", "y"], "draft": True, "a.b": 1},
    "b": {"year": 2024, "lang": "de", "tags": ["y"], "draft": False, "price": 9.5},
    "c": {"year": 2024.0, "lang": "en-GB", "sizes": [1, 2], "quote's": 'say "hi"'},
    "d": {"year": "2024", "lang": "", "price": -1},
    "e": {},
}
FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"year": 2024}, "bc"),
    ({"year": "2024"}, "d"),
    ({"year": {"$ne": 2024}}, "ad"),
    ({"year": {"$gt": 2023}}, "bc"),
    ({"year": {"$gte": 2023, "$lt": 2024}}, "a"),
    ({"price": {"$lte": 0}}, "d"),
    ({"price": {"$gt": -1.5, "$lt": 9.5}}, "d"),
    ({"year": {"$in": [2023, "2024"]}}, "ad"),
    ({"year": {"$nin": [2023, "2024"]}}, "bc"),
    ({"lang": {"$startsWith": "en"}}, "ac"),
    ({"lang": {"$startsWith": ""}}, "abcd"),
    ({"lang": ""}, "d"),
    ({"lang": "EN"}, ""),
    ({"draft": True}, "a"),
    ({"draft": {"$ne": True}}, "b"),
    ({"draft": 1}, ""),
    ({"a.b": True}, ""),
    ({"a.b": 1}, "a"),
    ({"tags": "y"}, "ab"),
    ({"tags": {"$ne": "x"}}, "b"),
    ({"tags": {"$in": ["x", "z"]}}, "a"),
    ({"tags": {"$nin": ["x", "z"]}}, "b"),
    ({"sizes": 2}, "c"),
    ({"tags": {"$exists": True}}, "ab"),
    ({"tags": {"$exists": False}}, "cde"),
    ({"quote's": 'say "hi"'}, "c"),
    ({"nobody": "has this"}, ""),
    ({"nobody": {"$ne": "has this"}}, ""),
    ({"lang": "de", "year": 2024}, "b"),
    ({"$or": [{"lang": "de"}, {"year": 2023}]}, "ab"),
    ({"$or": [{"tags": {"$exists": False}}, {"draft": True}], "year": {"$exists": True}}, "acd"),
    ({"$and": [{"$or": [{"lang": "en"}, {"lang": "de"}]}, {"tags": "x"}]}, "a"),
    ({"year": {"$in": list(range(1950, 2024))}}, "a"),
]


def test_filters_mean_the_same_everywhere(store: VectorStore) -> None:
    """Every operator, on missing keys, arrays and mixed types, finds what the reference says."""
    store.put([record(key, **metadata) for key, metadata in SHELF.items()])
    for condition, expected in FILTERS:
        normal = normalise(condition)
        assert "".join(key for key, metadata in SHELF.items() if matches(normal, metadata)) == expected, (
            condition
        )
        assert "".join(sorted(keys(search(store, filter=normal)))) == expected, condition


def test_a_filter_on_a_key_that_is_only_shown_is_refused(store: VectorStore) -> None:
    """A key that the index does not filter by would match nothing; it is named instead."""
    store.put(compass())
    with pytest.raises(FilterError) as caught:
        search(store, filter=normalise({"text": {"$startsWith": "The"}}))
    assert caught.value.message == "filter.text: the index does not filter by this key"


def test_a_question_that_no_index_could_answer_is_refused(store: VectorStore) -> None:
    """A vector of another length or without direction is said to be the question's fault."""
    store.put(compass())
    with pytest.raises(ConfigError, match="the question's vector has 3 numbers, the index takes 2"):
        search(store, vector=arrow((1, 2, 3)))
    with pytest.raises(InputRefused, match="the question's vector is zero"):
        search(store, vector=arrow((0, 0)))
    with pytest.raises(ConfigError, match="top_k 0: a search returns 1 to 10,000 hits"):
        search(store, top_k=0)
