"""Reciprocal rank fusion: one ranking from a vector search and a text search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ragctl.records import Hit, Ranks

K = 60  # Cormack, Clarke and Büttcher, "Reciprocal rank fusion", SIGIR 2009


def depth(top_k: int) -> int:
    """Return how many hits of each search to fuse for the best `top_k`.

    A hit that only one search knows scores at most 1 / (K + depth) less than it should.
    """
    return max(100, 3 * top_k)


def fuse(by_vector: Sequence[Hit], by_text: Sequence[Hit]) -> list[Hit]:
    """Return the hits of both rankings, each once, best first; equal scores are ordered by key.

    The score is the sum of 1 / (K + rank) over the rankings that hold the hit, ranks counted from 1. Ranks and
    scores of both searches are kept; the distance is None where only the text was found.
    """
    texts = {hit.key: (rank, hit) for rank, hit in enumerate(by_text, 1)}
    fused = [_joined(hit, rank, *texts.pop(hit.key, (None, None))) for rank, hit in enumerate(by_vector, 1)]
    fused += [_joined(hit, None, rank, hit) for rank, hit in texts.values()]
    return sorted(fused, key=lambda hit: (-hit.score, hit.key))


def _joined(hit: Hit, vector_rank: int | None, text_rank: int | None, text_hit: Hit | None) -> Hit:
    score = sum(1 / (K + rank) for rank in (vector_rank, text_rank) if rank is not None)
    ranks = Ranks(
        vector_rank=vector_rank,
        vector_distance=hit.distance,
        text_rank=text_rank,
        text_score=text_hit.score if text_hit else None,
        fused_score=score,
    )
    return replace(hit, score=score, ranks=ranks)
