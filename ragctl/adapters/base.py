"""The seams: what a backend must do to stand behind a stage. Comments say what each answer means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from ragctl.records import (
    NON_FILTERABLE,
    Embedded,
    Generation,
    Hit,
    Prompt,
    SearchMode,
    VectorRecord,
)

if TYPE_CHECKING:
    from ragctl.records import Vector  # names a numpy type, and numpy is not imported here

Metric = Literal["cosine", "euclidean"]
EmbedRole = Literal["document", "query"]


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What an index must be like. `embedder` is the embedder's identity, kept with the index."""

    dimension: int
    metric: Metric
    embedder: str
    non_filterable: tuple[str, ...] = NON_FILTERABLE
    text_search: bool = True
    language: str | None = "en"  # of the text search; None is a standard analyser without stemming


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index is like. `embedder` is None when the index does not say (somebody else made it)."""

    name: str
    dimension: int
    metric: Metric
    embedder: str | None
    non_filterable: tuple[str, ...]
    text_search: bool
    language: str | None = None
    created: str = ""  # differs between an index and one that was made anew under the same name
    version: str | None = None  # differs after every write; None where the store keeps no count of them
    # Mode, ARN, path ...: for people, not for decisions
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One search. `vector` is given unless mode is "text", `text` unless it is "vector"."""

    mode: SearchMode
    top_k: int
    vector: Vector | None = None
    text: str | None = None
    # As filters.normalise() gives it: validated, explicit $and, guarded
    filter: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much one call may carry. The caller cuts; an adapter never splits."""

    put_records: int
    put_bytes: int  # of the encoded request, as `VectorStore.encoded_size` counts it
    delete_keys: int
    get_keys: int
    top_k: int
    puts_at_once: int | None = None  # of which more would only wait for one another; None: no limit
    vectors_per_second: int | None = None  # written and deleted together; None: no limit


class VectorStore(Protocol):
    """One index of a vector store. Safe to call from several threads."""

    limits: StoreLimits

    def describe(self) -> IndexInfo | None:
        """What the index is like; None where there is none."""

    def create(self, spec: IndexSpec) -> bool:
        """Make the index. False: an equal one is there already; Refused where it differs."""

    def drop(self) -> bool:
        """Remove the index and what it holds; False where there was none."""

    def encoded_size(self, record: VectorRecord) -> int:
        """The bytes that a record adds to a put, at most; cheap."""

    def check(self, record: VectorRecord) -> None:
        """RecordRefused when a record breaks a limit. Makes no call."""

    def before_writes(self, check: Callable[[], None]) -> None:
        """Have each put and delete call `check` as the last thing before it is sent, each time that it is sent; what it
        raises ends them. They may have waited long, for their turn or for a service that throttles.
        """

    def put(self, records: Sequence[VectorRecord], *, fresh: bool = False) -> None:
        """Insert records, or replace those with the same key.

        `fresh`: as far as the caller knows, none of the keys is in the index as `describe` saw it last, or has been put
        since; a store need not look for them, unless somebody else has written.
        """

    def get(self, keys: Sequence[str], *, vectors: bool = False) -> dict[str, VectorRecord]:
        """Records by key; absent ones are left out."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove records; unknown keys are ignored."""

    def keys(self) -> Iterator[str]:
        """Every key once, in any order, paged to the end."""

    def scan(self) -> Iterator[VectorRecord]:
        """Every record with its metadata; its vector is empty, shape (0,)."""

    def search(self, request: SearchRequest) -> list[Hit]:
        """The nearest records, best first; fewer than asked for is normal."""

    def finish(self) -> None:
        """After a batch of writes: build or refresh indexes, compact. May do nothing."""

    def close(self) -> None:
        """Let go of files and connections."""


class Embedder(Protocol):
    """Texts to vectors. Safe to call from several threads."""

    # Everything that shapes a document's vector: kind, model, version, passage prefix, normalisation
    identity: str
    max_batch: int  # texts per call
    max_bytes: int  # UTF-8 bytes of text per call
    max_tokens: int | None  # per call; None: no limit
    # True: holds the interpreter, so it runs in the worker processes; False: waits or has threads of its own
    cpu_bound: bool

    @property
    def dimension(self) -> int:
        """Numbers in a vector; may make one call to find out."""

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:
        """A vector for each text, never fewer.

        InputRefused when some text of the batch is refused (the caller bisects), Throttled: slow down.
        """


class Reranker(Protocol):
    """Says how well passages answer a question."""

    identity: str

    def rerank(self, question: str, texts: Sequence[str]) -> list[float]:
        """A score for each text; higher is better."""


class Generator(Protocol):
    """Answers from passages."""

    identity: str

    def generate(self, prompt: Prompt, on_text: Callable[[str], None] | None = None) -> Generation:
        """The whole reply; `on_text` gets the answer piece by piece as it arrives, without reasoning."""
