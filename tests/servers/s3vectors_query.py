"""QueryVectors: vector, text and hybrid search, and the pages of a query as one session."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tests.servers.s3vectors_filters import FilterRules, InvalidFilter, Predicate, compile_filter
from tests.servers.s3vectors_index import VectorIndex
from tests.servers.s3vectors_paging import read_token, write_token
from tests.servers.s3vectors_records import check_query_vector, invalid

MAX_TOP_K = 10_000
PAGE = 100
RRF_K = 60
# How deep each ranking of a hybrid query goes at least. The service's own depth is not documented.
FUSION_DEPTH = 100

_PRESENTATION = ("nextToken", "returnMetadata", "returnDistance", "returnScores")


@dataclass(frozen=True)
class Result:
    """One hit with all a caller may ask to see; the metadata is that of the moment of the query."""

    key: str
    metadata: Mapping[str, Any]
    distance: float | None = None
    scores: Mapping[str, Any] | None = None

    def reply(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the members the request asks for."""
        reply: dict[str, Any] = {"key": self.key}
        if asked.get("returnMetadata"):
            reply["metadata"] = self.metadata
        if asked.get("returnDistance") and self.distance is not None:
            reply["distance"] = self.distance
        if asked.get("returnScores") and self.scores is not None:
            reply["scores"] = self.scores
        return reply


@dataclass(frozen=True)
class _Session:
    question: bytes
    results: Sequence[Result]
    ends: float


class QuerySessions:
    """The queries whose further pages may still be asked for."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        """Let a token live for `seconds` of `clock`."""
        self._seconds, self._clock = seconds, clock
        self._sessions: dict[str, _Session] = {}

    def page(
        self, asked: Mapping[str, Any], index: VectorIndex, search: Callable[[], Sequence[Result]]
    ) -> dict[str, Any]:
        """Return the page a request asks for: the first by searching, the others from the first's results."""
        question = _question(asked, index)
        name, start = read_token(asked["nextToken"], str, int) if "nextToken" in asked else ("", 0)
        if name:
            session = self._sessions.get(name)
            if session is None or session.ends < self._clock() or session.question != question:
                raise invalid("Invalid page token", "nextToken")
        else:
            name, session = secrets.token_hex(16), _Session(question, search(), self._clock() + self._seconds)
        page = session.results[start : start + PAGE]
        reply = {"vectors": [hit.reply(asked) for hit in page], "distanceMetric": index.rules.metric}
        if start + PAGE < len(session.results):
            self._remember(name, session)
            reply["nextToken"] = write_token(name, start + PAGE)
        return reply

    def _remember(self, name: str, session: _Session) -> None:
        now = self._clock()
        self._sessions = {n: s for n, s in self._sessions.items() if s.ends >= now} | {name: session}


def search(
    index: VectorIndex, asked: Mapping[str, Any], *, now: float, missing_ne_matches: bool
) -> list[Result]:
    """Answer a query from the index as it is now, best first, at most topK; raises what the service refuses."""
    top_k, texts = asked["topK"], asked.get("queryTexts", [])
    if top_k > MAX_TOP_K:
        raise invalid(f"topK must be at most {MAX_TOP_K}", "topK")
    if "queryVector" not in asked and not texts:
        raise invalid("Specify queryVector, queryTexts, or both", "queryVector")
    accept = _accept(index, asked, missing_ne_matches=missing_ne_matches)
    _check_texts(index, texts, now)
    rankings = {
        text["metadataKey"]: index.by_text(text["metadataKey"], text["text"], accept) for text in texts
    }
    if "queryVector" not in asked:
        return _by_text(index, rankings)[:top_k]
    query = check_query_vector(asked["queryVector"], index.rules)
    depth = max(top_k, FUSION_DEPTH) if texts else top_k
    nearest = index.by_distance(query, accept, depth)
    if not texts:
        return [Result(key, index.metadata[key], distance) for key, distance in nearest]
    return _fused(index, {name: ranking[:depth] for name, ranking in rankings.items()}, dict(nearest))[:top_k]


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the fused score of each key, 1 / (60 + rank) summed over the rankings it is in, best first."""
    fused: dict[str, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            fused[key] = fused.get(key, 0.0) + 1 / (RRF_K + rank)
    return dict(sorted(fused.items(), key=lambda item: (-item[1], item[0])))


def _by_text(index: VectorIndex, rankings: Mapping[str, Sequence[tuple[str, float]]]) -> list[Result]:
    """Rank by BM25, summed over the fields asked."""
    scores = _scores_by_key(rankings)
    best = sorted(scores, key=lambda key: (-sum(scores[key].values()), key))
    return [Result(key, index.metadata[key], scores={"bm25Scores": _bm25(scores[key])}) for key in best]


def _fused(
    index: VectorIndex,
    rankings: Mapping[str, Sequence[tuple[str, float]]],
    distances: Mapping[str, float],
) -> list[Result]:
    """Fuse one ranking per text field with the one by distance."""
    scores = _scores_by_key(rankings)
    fused = reciprocal_rank_fusion(
        [list(distances), *([key for key, _ in hits] for hits in rankings.values())]
    )
    results = []
    for key, score in fused.items():
        shown: dict[str, Any] = {"fused": score, "bm25Scores": _bm25(scores.get(key, {}))}
        if key in distances:
            shown["vectorDistance"] = distances[key]
        results.append(Result(key, index.metadata[key], distances.get(key), shown))
    return results


def _scores_by_key(rankings: Mapping[str, Sequence[tuple[str, float]]]) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for name, ranking in rankings.items():
        for key, score in ranking:
            scores.setdefault(key, {})[name] = score
    return scores


def _bm25(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"metadataKey": name, "score": score} for name, score in scores.items()]


def _accept(index: VectorIndex, asked: Mapping[str, Any], *, missing_ne_matches: bool) -> Predicate | None:
    """Compile the filter under the mode of the query, which may be above but not below the index's."""
    mode = asked.get("queryMode", index.mode)
    if mode == "CLASSIC" and index.mode == "ENHANCED":
        raise invalid("queryMode CLASSIC is not supported for an index in ENHANCED mode", "queryMode")
    if "filter" not in asked:
        return None
    rules = FilterRules(mode == "ENHANCED", index.rules.non_filterable, missing_ne_matches)
    try:
        return compile_filter(asked["filter"], rules)
    except InvalidFilter as error:
        raise invalid(str(error), "filter") from error


def _check_texts(index: VectorIndex, texts: Sequence[Mapping[str, str]], now: float) -> None:
    if texts and index.mode != "ENHANCED":
        raise invalid("Full-text and hybrid searches require an index in ENHANCED mode", "queryTexts")
    names = [text["metadataKey"] for text in texts]
    if len(set(names)) < len(names):
        raise invalid("Each query text must target a distinct metadata key", "queryTexts")
    for number, name in enumerate(names):
        path = f"queryTexts[{number}].metadataKey"
        if name not in index.text_fields:
            raise invalid(f"Metadata key '{name}' is not configured for text search", path)
        if now < index.text_fields[name].ready_at:
            raise invalid(f"Text search of metadata key '{name}' is still being built", path)


def _question(asked: Mapping[str, Any], index: VectorIndex) -> bytes:
    """Return what must stay the same over the pages of a query."""
    address = ("vectorBucketName", "indexName", "indexArn")
    rest = {k: v for k, v in asked.items() if k not in _PRESENTATION and k not in address}
    return orjson.dumps([index.arn, rest], option=orjson.OPT_SORT_KEYS)
