"""The vocabulary: small frozen values that the stages hand to one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragctl.sparse import AnyVector

    Vectors = NDArray[np.float32]  # (n, dimension)
    Vector = NDArray[np.float32]  # (dimension,)

MetadataValue = str | int | float | bool | list[str] | list[int] | list[float]
Metadata = Mapping[str, MetadataValue]
SearchMode = Literal["vector", "text", "hybrid"]

# Metadata keys that ragctl writes itself; a document or config may not use them.
TEXT = "text"  # the chunk's text
DOCUMENT = "document"  # the document id
PAGE = "page"  # 1-based number of the page on which the chunk starts; absent where there are no pages
START = "start"  # first character of the chunk in the document's text, from 0
END = "end"  # one past the last character
RESERVED = frozenset({TEXT, DOCUMENT, PAGE, START, END})
# Not filterable, so that they are not paid for in every query and do not use up the 2 KB for filters.
NON_FILTERABLE = (TEXT, START, END)


class SourceFile(NamedTuple):  # a third of what a frozen dataclass costs, for every file of every listing
    """A file that a source lists; nothing of it has been read."""

    id: str  # "<source name>/<path below the source's root>", with forward slashes
    location: str  # where the bytes are: a local path or an s3:// URI
    size: int  # bytes
    stamp: str  # changes whenever the content may have changed: mtime in ns, or the ETag
    source: str  # the source's name
    metadata: Metadata = {}  # noqa: RUF012  from the config and the path pattern; no mapping is ever changed


@dataclass(frozen=True, slots=True)
class Page:
    """Where page `number` (from 1) lies in a document's text: text[start:end]."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it, text[start:end], up to the next heading of any level."""

    level: int  # 1 is the highest
    title: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """Parsed text with its spans; a file, or one record of a record file."""

    id: str  # the file's id, or "<file id>#<record id>"
    text: str
    content_hash: str  # of what the text and metadata were made from: the file's bytes, or the record's
    metadata: Metadata = field(default_factory=dict)
    pages: tuple[Page, ...] = ()
    sections: tuple[Section, ...] = ()
    warnings: tuple[str, ...] = ()  # for example "page 3 has no text layer"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: `text == document.text[start:end]`, never blank."""

    text: str
    start: int
    end: int
    page: int | None = None  # on which it starts

    @property
    def where(self) -> str:
        """Its place in the document, in words."""
        page = f" on page {self.page}" if self.page is not None else ""
        return f"characters {self.start} to {self.end}{page}"

    def __reduce__(self) -> tuple[type[Chunk], tuple[str, int, int, int | None]]:
        """Pickled by its fields: a third of what a frozen dataclass costs, for every chunk that a worker sends."""
        return Chunk, (self.text, self.start, self.end, self.page)


@dataclass(frozen=True, slots=True)
class VectorRecord:
    """What a store holds under a key: a vector and metadata, the chunk's text among them (under TEXT).

    A store takes either kind of vector and returns all the numbers.
    """

    key: str
    vector: AnyVector
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Ranks:
    """How a hit came to its place, for `query --explain`; ranks count from 1."""

    vector_rank: int | None = None
    vector_distance: float | None = None
    text_rank: int | None = None
    text_score: float | None = None  # BM25
    fused_score: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found. `score`: higher is better in every mode and store; `distance`: the metric's own."""

    key: str
    score: float
    distance: float | None  # None where the hit was found by text alone
    metadata: Metadata
    ranks: Ranks = Ranks()

    @property
    def text(self) -> str:
        return str(self.metadata.get(TEXT, ""))

    @property
    def document(self) -> str:
        return str(self.metadata.get(DOCUMENT, ""))

    @property
    def page(self) -> int | None:
        page = self.metadata.get(PAGE)
        return int(page) if isinstance(page, int | float) else None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a model call reports; 0 where the service says nothing."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors (n, dimension) as float32 in the order of the texts, and what the call used."""

    vectors: Vectors
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a generator is asked: `system` and `context` are text made from the template, `question` the user's."""

    system: str
    context: str  # the numbered passages, and what leads to the question; `prompts.user_message` adds it
    question: str
    hits: tuple[Hit, ...]  # marker [n] stands for hits[n - 1]


@dataclass(frozen=True, slots=True)
class Generation:
    """A generator's reply. `text` carries markers like [1]; `reasoning` holds <think> parts, kept apart."""

    text: str
    reasoning: str = ""
    usage: Usage = Usage()
    stop_reason: str = ""
    abstained: bool = False  # the generator itself says that the passages do not answer


@dataclass(frozen=True, slots=True)
class Citation:
    """A marker of an answer and the hit it maps to."""

    marker: int
    key: str
    document: str
    page: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to one question; `text` is None when only retrieval was asked for."""

    question: str
    text: str | None
    citations: tuple[Citation, ...]
    hits: tuple[Hit, ...]
    timings: Mapping[str, float]  # seconds by stage: embed, search, rerank, generate
    usage: Usage = Usage()
    abstained: bool = False
    reasoning: str = ""
    cut: tuple[Hit, ...] = ()  # candidates that the reranker or top_k left out, for --explain


def some_vectors(count: int, dimension: int) -> Vectors:
    """Vectors (count, dimension) that any store takes, and that take no room."""
    import numpy as np

    return np.broadcast_to(np.ones(1, np.float32), (count, dimension))


def vector_bytes(dimension: int) -> int:
    """Memory that a vector takes with all its numbers, as float32."""
    return 4 * dimension


def short_hash(data: str | bytes) -> str:
    """20 hexadecimal characters (80 bits) of BLAKE2b: 2**40 values before a collision is likely."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return blake2b(raw, digest_size=10).hexdigest()


def chunk_keys(document_id: str, texts: list[str]) -> list[str]:
    """The keys of a document's chunks in order: `<hash of id>-<hash of text>`, repeats numbered from `.2`.

    41 characters and a counter: well below the 1,024 bytes that a key may have.
    """
    prefix = short_hash(document_id)
    seen: dict[str, int] = {}
    keys = []
    for text in texts:
        stem = short_hash(text)
        seen[stem] = count = seen.get(stem, 0) + 1
        keys.append(f"{prefix}-{stem}" if count == 1 else f"{prefix}-{stem}.{count}")
    return keys


def is_key_of(key: str, document_id: str) -> bool:
    """Whether a chunk of the document may have this key."""
    return key.startswith(f"{short_hash(document_id)}-")


def stem_of(key: str) -> str:
    """The hash of the text in a chunk key, without the counter of repeats."""
    return key.partition("-")[2].partition(".")[0]
