"""query: retrieve, rerank, generate. One engine answers many questions, from several threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from ragctl import indexes, prompts, tenancy
from ragctl.adapters.base import SearchRequest
from ragctl.errors import ConfigError, RagctlError, TenantLeak
from ragctl.filters import Filter, combine, normalise
from ragctl.records import Answer, Hit, SearchMode, Usage

if TYPE_CHECKING:
    from pathlib import Path

    from ragctl.adapters.base import Embedder, Generator, Reranker, VectorStore
    from ragctl.config import Experiment
    from ragctl.records import Vector

log = logging.getLogger("ragctl.query")

MAX_QUESTION = 1_024  # characters; the bound of a text query on S3 Vectors, kept on every store


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """How to answer one question; None means as the experiment says."""

    mode: SearchMode | None = None
    top_k: int | None = None  # hits that the generator reads
    # Hits to retrieve, where an evaluation looks deeper than top_k; the rest stands in Answer.cut
    depth: int = 0
    filter: Mapping[str, object] | None = None
    tenant: str | None = None
    retrieve_only: bool = False


class QueryEngine:
    """Store, embedder, reranker and generator of an experiment, each opened when a question first needs it."""

    def __init__(self, experiment: Experiment) -> None:
        from ragctl.adapters import open_embedder

        self._experiment = experiment
        self._stores: dict[str, VectorStore] = {}  # by index: more than one where each tenant has its own
        self._opening = threading.Lock()
        self._embedder: Embedder = open_embedder(experiment)
        self._reranker: Reranker | None = None
        self._generator: Generator | None = None
        self._template = prompts.load_template(_prompt_path(experiment))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores.values():
            store.close()

    def ask(
        self, question: str, options: QueryOptions, on_text: Callable[[str], None] | None = None
    ) -> Answer:
        """Answer a question; `on_text` gets the answer piece by piece.

        Raises ConfigError for a question, filter or option that cannot be asked, NotFound without an index, Refused
        when the index was made with another embedder, TenantLeak when the store returns what it must not.
        """
        condition = self.check(question, options)
        store = self._store(options)
        _check_top_k(options, store.limits.top_k)
        timings: dict[str, float] = {}
        request, usage = self._request(question, options, condition, store.limits.top_k, timings)
        start = perf_counter()
        found = self._search(store, request, options)
        timings["search"] = perf_counter() - start
        ranked = self._rerank(question, found, timings)
        top_k = options.top_k or self._experiment.retrieval.top_k
        hits, cut = tuple(ranked[:top_k]), tuple(ranked[top_k:])
        answer = Answer(question, None, (), hits, timings, usage, cut=cut)
        return answer if options.retrieve_only else self._generate(answer, timings, on_text)

    def check(self, question: str, options: QueryOptions) -> Filter | None:
        """The filter of a question. Raises ConfigError where question, filter or tenant cannot be asked; no call is made."""
        _check(question)
        return self._filter(options)

    def warm_up(self, question: str, tenant: str | None) -> None:
        """Open what a first question would have to wait for: index, embedder, search."""
        self.ask(question, QueryOptions(tenant=tenant, retrieve_only=True))

    def _request(
        self,
        question: str,
        options: QueryOptions,
        condition: Filter | None,
        most: int,
        timings: dict[str, float],
    ) -> tuple[SearchRequest, Usage]:
        mode = options.mode or self._experiment.retrieval.mode
        top_k = max(options.top_k or self._experiment.retrieval.top_k, options.depth)
        if self._experiment.reranking is not None:
            top_k = max(top_k, self._experiment.reranking.candidates)
        start = perf_counter()
        vector: Vector | None = None
        usage = Usage()
        if mode != "text":
            embedded = self._embedder.embed([question], "query")
            vector, usage = embedded.vectors[0], embedded.usage
        timings["embed"] = perf_counter() - start
        text = None if mode == "vector" else question
        return SearchRequest(mode, min(top_k, most), vector, text, condition), usage

    def _store(self, options: QueryOptions) -> VectorStore:
        """The index to search, opened and compared with the experiment once."""
        from ragctl.adapters import open_store

        experiment, whose = self._experiment, ""
        if options.tenant and experiment.tenancy and tenancy.has_index_each(experiment):
            whose = f" for {experiment.tenancy.key} {options.tenant!r}"
            experiment = tenancy.of_tenant(experiment, options.tenant)
        name = experiment.store.index
        with self._opening:
            if name not in self._stores:
                store = open_store(experiment)
                info = indexes.require(store, name + whose)
                indexes.refuse_other_settings(info, indexes.spec_of(experiment, self._embedder))
                self._stores[name] = store
            return self._stores[name]

    def _filter(self, options: QueryOptions) -> Filter | None:
        """The experiment's, the caller's and the tenant's filter, all of which must hold."""
        parts = [self._experiment.retrieval.filter, options.filter]
        normal = [normalise(part) for part in parts if part is not None]
        if (tenant := self._tenant(options)) is not None:
            normal.insert(0, normalise(tenant))
        return combine(*normal)

    def _tenant(self, options: QueryOptions) -> dict[str, object] | None:
        section = self._experiment.tenancy
        if section is None:
            if options.tenant is not None:
                raise ConfigError(
                    "this experiment keeps no tenants apart",
                    hint="name their key under tenancy, or leave --tenant out",
                )
            return None
        if not options.tenant:
            if section.required:
                raise ConfigError(
                    f"this experiment keeps the documents of each {section.key} apart",
                    hint="say whose: --tenant NAME; in a data set, tenant",
                )
            return None
        return {section.key: {"$eq": options.tenant}}

    def _search(self, store: VectorStore, request: SearchRequest, options: QueryOptions) -> list[Hit]:
        hits = store.search(request)
        section = self._experiment.tenancy
        if section is not None and options.tenant:
            strangers = sum(hit.metadata.get(section.key) != options.tenant for hit in hits)
            if strangers:  # the store broke its word; nothing of it may be shown
                raise TenantLeak(
                    f"the store returned {strangers} of {len(hits)} hits of another {section.key}; nothing is shown",
                    hint="do not use this index; make it anew, and report this",
                )
        return hits

    def _rerank(self, question: str, hits: list[Hit], timings: dict[str, float]) -> list[Hit]:
        section = self._experiment.reranking
        if section is None or not hits:
            return hits
        if self._reranker is None:
            from ragctl.adapters import open_reranker

            self._reranker = open_reranker(self._experiment)
        assert self._reranker is not None
        start = perf_counter()
        head, tail = hits[: section.candidates], hits[section.candidates :]
        scores = self._reranker.rerank(question, [hit.text[: section.max_chars] for hit in head])
        scored = [
            replace(hit, score=score, ranks=replace(hit.ranks, rerank_score=score))
            for hit, score in zip(head, scores, strict=True)
        ]
        timings["rerank"] = perf_counter() - start
        return sorted(scored, key=lambda hit: (-hit.score, hit.key)) + tail

    def _generate(
        self, answer: Answer, timings: dict[str, float], on_text: Callable[[str], None] | None
    ) -> Answer:
        if self._generator is None:
            from ragctl.adapters import open_generator

            self._generator = open_generator(self._experiment)
        start = perf_counter()
        prompt = prompts.build_prompt(self._template, answer.question, answer.hits)
        try:
            generation = self._generator.generate(prompt, on_text)
        except RagctlError as error:
            error.usage = answer.usage + (error.usage or Usage())
            raise
        timings["generate"] = perf_counter() - start
        strange = prompts.unknown_markers(generation.text, answer.hits)
        if strange:
            log.warning("the answer cites passages that there are not: %s", ", ".join(map(str, strange)))
        return replace(
            answer,
            text=generation.text,
            reasoning=generation.reasoning,
            citations=prompts.citations(generation.text, answer.hits),
            usage=answer.usage + generation.usage,
            abstained=generation.abstained or prompts.abstained(generation.text),
        )


def to_json(answer: Answer, *, explain: bool = False) -> dict[str, Any]:
    """The answer as design.md gives it; with `explain`, how each hit came to its place and what was cut."""
    document: dict[str, Any] = {
        "schema": "ragctl.query/1",
        "question": answer.question,
        "answer": answer.text,
        "abstained": answer.abstained,
        "citations": [
            {"marker": c.marker, "key": c.key, "document": c.document, "page": c.page}
            for c in answer.citations
        ],
        "hits": [_hit(hit, explain=explain) for hit in answer.hits],
        "timings": {stage: round(seconds, 4) for stage, seconds in answer.timings.items()},
    }
    if answer.reasoning:
        document["reasoning"] = answer.reasoning
    if explain:
        document["cut"] = [_hit(hit, explain=True) for hit in answer.cut]
    return document


def _hit(hit: Hit, *, explain: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "key": hit.key,
        "score": hit.score,
        "distance": hit.distance,
        "document": hit.document,
        "page": hit.page,
        "text": hit.text,
        "metadata": {key: value for key, value in hit.metadata.items() if key != "text"},
    }
    if explain or hit.ranks.rerank_score is not None:
        ranks = hit.ranks
        document["ranks"] = {
            "vector": ranks.vector_rank,
            "distance": ranks.vector_distance,
            "text": ranks.text_rank,
            "bm25": ranks.text_score,
            "fused": ranks.fused_score,
            "rerank": ranks.rerank_score,
        }
    return document


def _prompt_path(experiment: Experiment) -> Path | None:
    generation = experiment.generation
    return None if generation.kind == "extractive" else generation.prompt


def _check(question: str) -> None:
    if not question.strip():
        raise ConfigError("the question is empty")
    if any("\ud800" <= character <= "\udfff" for character in question):  # how Python holds such bytes
        raise ConfigError(
            "the question is not valid UTF-8", hint="check the encoding of the terminal or file"
        )
    if len(question) > MAX_QUESTION:
        raise ConfigError(f"the question has {len(question):,} characters, {MAX_QUESTION:,} are the most")


def _check_top_k(options: QueryOptions, most: int) -> None:
    if options.top_k is not None and not 1 <= options.top_k <= most:
        raise ConfigError(f"top_k: must be from 1 to {most:,}, not {options.top_k}")
