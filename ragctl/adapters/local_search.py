"""How an index in LanceDB is searched: by vector, by words, or both; and the indexes that make it quick."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ragctl import fusion
from ragctl.adapters import local_rows as rows
from ragctl.adapters.local_filters import where
from ragctl.records import Hit, Ranks

if TYPE_CHECKING:
    from ragctl.adapters.base import IndexInfo, Metric, SearchRequest

# Comparing with every vector is exact, and takes 0.3 s of CPU for this many bytes (350,000 x 384); an index answers a
# process that asks more than once in 0.05 s. It takes some 10 s to build, so not before it pays.
VECTOR_INDEX_BYTES = 2**29
# The index keeps each vector in a few bits (RaBitQ), a 32nd or an eighth of its size, and no second copy of it; the
# shorter the vector, the more bits it needs. What it finds is compared once more with the vectors themselves: ten times
# as many as are asked for. Of 147,000 x 2,048 and x 384 all of the best ten were found so; x 64, of the best hundred, 99.9 %.
LONG_VECTOR = 2_048  # numbers
REFINED = 10
TRAINED_ON = 64  # vectors a partition; LanceDB would take 256, more memory and time
RABITQ_STEP = 8  # it works on so many numbers at once
# A partition holds about 4,096 vectors: up to half a million records all are read and results stay exact. Beyond,
# some may be missed: of the best ten of 700,000 x 384 there were 99.8 % found, in 0.1 s instead of 0.7 s.
PARTITIONS_READ = 128
DISTANCES: dict[Metric, Literal["cosine", "l2"]] = {"cosine": "cosine", "euclidean": "l2"}
# Languages with a stemmer and stop words, as LanceDB calls them; a dictionary cuts the others into words.
STEMMED = {
    "en": "English",
    "fr": "French",
    "es": "Spanish",
    "pt": "Portuguese",
    "it": "Italian",
    "de": "German",
    "nl": "Dutch",
}
UNSPACED = frozenset({"zh", "ja", "ko"})
TEXT_INDEX_MB = 4  # of memory to build it in, which takes no longer than with the 2 GiB a core of LanceDB
TOKEN_CHARACTERS = 255  # LanceDB's own 40 would lose checksums and long identifiers

Row = dict[str, Any]


def search(table: Any, info: IndexInfo, request: SearchRequest) -> list[Hit]:
    """Return the nearest records, best first, equal ones by key.

    Scores: vector 1 - distance (cosine) or 1 / (1 + distance) (euclidean), text BM25, hybrid the fused ranks.
    """
    if request.mode == "vector":
        return _by_vector(table, info, request, request.top_k)
    if request.mode == "text":
        return _by_text(table, request, request.top_k)
    depth = fusion.depth(request.top_k)
    by_vector = _by_vector(table, info, request, depth)
    return fusion.fuse(by_vector, _by_text(table, request, depth))[: request.top_k]


# --- by vector -------------------------------------------------------------------------------------------


def _by_vector(table: Any, info: IndexInfo, request: SearchRequest, top_k: int) -> list[Hit]:
    from lancedb.query import LanceVectorQueryBuilder

    assert request.vector is not None
    vector = rows.query_vector(request.vector)

    def nearest(limit: int) -> list[Row]:
        query = LanceVectorQueryBuilder(table, vector, "vector")
        query = query.distance_type(DISTANCES[info.metric])
        # 0: as many more as it takes, where a filter leaves fewer than the limit.
        query = query.nprobes(PARTITIONS_READ).maximum_nprobes(0).refine_factor(REFINED)
        return _fetch(query, "_distance", request, limit)

    found = _first(nearest, top_k, lambda row: row["_distance"])
    return [_vector_hit(row, rank, info.metric) for rank, row in enumerate(found, 1)]


def _vector_hit(row: Row, rank: int, metric: Metric) -> Hit:
    distance = max(0.0, row["_distance"])  # rounding may put an identical vector slightly below zero
    if metric == "euclidean":
        distance = math.sqrt(distance)  # LanceDB gives the square
    score = 1 - distance if metric == "cosine" else 1 / (1 + distance)
    ranks = Ranks(vector_rank=rank, vector_distance=distance)
    return Hit(row["key"], score, distance, rows.metadata(row), ranks)


# --- by words --------------------------------------------------------------------------------------------


def _by_text(table: Any, request: SearchRequest, top_k: int) -> list[Hit]:
    from lancedb.query import MatchQuery

    assert request.text is not None
    # Words to look for: nothing in them is an operator.
    words = MatchQuery(request.text, "text")  # type: ignore[call-arg]  # mypy does not see its defaults

    def best(limit: int) -> list[Row]:
        return _fetch(table.search(words, query_type="fts"), "_score", request, limit)

    found = _first(best, top_k, lambda row: -row["_score"])
    return [_text_hit(row, rank) for rank, row in enumerate(found, 1)]


def _text_hit(row: Row, rank: int) -> Hit:
    ranks = Ranks(text_rank=rank, text_score=row["_score"])
    return Hit(row["key"], row["_score"], None, rows.metadata(row), ranks)


# --- both ------------------------------------------------------------------------------------------------


def _fetch(query: Any, value: str, request: SearchRequest, limit: int) -> list[Row]:
    query = query.select(["key", *rows.METADATA_COLUMNS, value]).limit(limit)
    if request.filter is not None:
        query = query.where(where(request.filter), prefilter=True)
    found: list[Row] = query.to_arrow().to_pylist()
    return found


def _first(fetch: Callable[[int], list[Row]], top_k: int, value: Callable[[Row], float]) -> list[Row]:
    """Return the first `top_k` rows by (value, key).

    LanceDB returns any of the rows that tie for the last place, so where there are such, more are fetched: the same
    paragraph in many documents must not come back as another one each time.
    """
    limit = top_k + 1
    found = fetch(limit)
    while len(found) == limit <= 10 * top_k + 1_000:
        found.sort(key=value)
        if value(found[top_k - 1]) < value(found[-1]):
            break
        limit *= 4
        found = fetch(limit)
    return sorted(found, key=lambda row: (value(row), row["key"]))[:top_k]


# --- indexes ---------------------------------------------------------------------------------------------


def text_index(language: str | None) -> Any:
    """Return LanceDB's settings of a BM25 index over the column `text`; no language: whole words as they are."""
    from lancedb.index import FTS

    stemmed = language in STEMMED
    return FTS(
        base_tokenizer="icu" if language in UNSPACED else "simple",
        language=STEMMED.get(language or "", "English"),
        stem=stemmed,
        remove_stop_words=stemmed,
        max_token_length=TOKEN_CHARACTERS,
        memory_limit=TEXT_INDEX_MB,
    )


def vector_index(metric: Metric, dimension: int) -> Any:
    """Return LanceDB's settings of an index over the column `vector`."""
    from lancedb.index import IvfFlat, IvfRq

    if dimension % RABITQ_STEP:
        return IvfFlat(distance_type=DISTANCES[metric])
    return IvfRq(
        distance_type=DISTANCES[metric],
        num_bits=1 if dimension >= LONG_VECTOR else 4,
        sample_rate=TRAINED_ON,
    )


def is_indexed(table: Any, column: str) -> bool:
    """Say whether a column has an index."""
    return any(column in index.columns for index in table.list_indices())
