"""Searches of S3 Vectors: a request as QueryVectors takes it, and its results as hits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragctl.errors import ConfigError
from ragctl.filters import refuse_non_filterable
from ragctl.limits import check_query
from ragctl.records import TEXT, Hit, Ranks, SearchMode

if TYPE_CHECKING:
    from ragctl.adapters.base import Metric, SearchRequest
    from ragctl.adapters.s3vectors_index import Found

log = logging.getLogger("ragctl.s3vectors")

MAX_TEXT: Final = 1_024  # characters of a query text (model)
UPGRADE: Final = "ragctl create-index CONFIG --upgrade"


def check_request(request: SearchRequest, found: Found) -> None:
    """Raise when the index cannot answer, before any call: ConfigError, FilterError for a key that is only shown."""
    check_query(request, dimension=found.info.dimension, metric=found.info.metric)
    if request.filter is not None:
        refuse_non_filterable(request.filter, found.info.non_filterable)
    if request.mode != "vector" and not (found.enhanced and found.info.text_search):
        lacks = "was made without text search" if found.enhanced else "is in CLASSIC mode"
        raise ConfigError(
            f"index {found.info.name} {lacks}, so it cannot answer searches of mode {request.mode}",
            hint=f"upgrade it in place: {UPGRADE}; or set retrieval.mode to vector",
        )


def query(request: SearchRequest, found: Found) -> dict[str, Any]:
    """Return the members of QueryVectors, without the names."""
    asked: dict[str, Any] = {"topK": request.top_k, "returnMetadata": True}
    if request.mode != "text":
        assert request.vector is not None
        vector = np.asarray(request.vector, dtype=np.float32)
        asked |= {"queryVector": {"float32": vector.tolist()}, "returnDistance": True}
    if request.mode != "vector":
        assert request.text is not None
        text = {"metadataKey": TEXT, "text": _within_limit(request.text)}
        asked |= {"queryTexts": [text], "returnScores": True}
    if request.filter is not None:
        asked["filter"] = request.filter
        if not found.enhanced:
            # Filters before the search, as on every other index, and $startsWith; it costs nothing.
            asked["queryMode"] = "ENHANCED"
    return asked


def hits(results: Iterable[Mapping[str, Any]], request: SearchRequest, metric: Metric) -> list[Hit]:
    """Return results as hits, best first, equal ones by key."""
    found = [_hit(result, request.mode, metric) for result in results]
    found.sort(key=lambda hit: (-hit.score, hit.key))
    if request.mode == "hybrid":
        return found
    name = "vector_rank" if request.mode == "vector" else "text_rank"
    return [replace(hit, ranks=replace(hit.ranks, **{name: rank})) for rank, hit in enumerate(found, 1)]


def _hit(result: Mapping[str, Any], mode: SearchMode, metric: Metric) -> Hit:
    """Return a result as a hit; see `hits` for the rank.

    The ranks within the two halves of a hybrid search stay None: the service does not tell them, and the order of
    what it returned is not the order of all that it ranked.
    """
    scores = result.get("scores", {})
    distance = result.get("distance", scores.get("vectorDistance"))
    words = [score["score"] for score in scores.get("bm25Scores", ())]
    text_score = sum(words) if words else None
    ranks = Ranks(vector_distance=distance, text_score=text_score, fused_score=scores.get("fused"))
    return Hit(result["key"], _score(ranks, mode, metric), distance, result.get("metadata", {}), ranks)


def _score(ranks: Ranks, mode: SearchMode, metric: Metric) -> float:
    if mode == "vector":
        assert ranks.vector_distance is not None
        return similarity(ranks.vector_distance, metric)
    return (ranks.fused_score if mode == "hybrid" else ranks.text_score) or 0.0


def similarity(distance: float, metric: Metric) -> float:
    """Return a score from a distance: 1 - d within -1 to 1 for cosine, 1 / (1 + d) for euclidean."""
    if metric == "cosine":
        return max(-1.0, min(1.0, 1 - distance))
    return 1 / (1 + max(0.0, distance))


def _within_limit(text: str) -> str:
    """Return a text cut, at a space, to what one query may hold."""
    if len(text) <= MAX_TEXT:
        return text
    log.warning("the question has %d characters: words are searched in the first %d", len(text), MAX_TEXT)
    cut = text[: MAX_TEXT + 1]
    return cut.rpartition(" ")[0].strip() or cut[:MAX_TEXT]
