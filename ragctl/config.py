"""The experiment: everything one run needs, as frozen pydantic models. Reading files is `loading.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from ragctl.backends import (
    Deployment,
    Embedding,
    ExtractiveGeneration,
    Generation,
    HashingEmbedding,
    LocalStore,
    Reranking,
    Section,
    Store,
)
from ragctl.errors import ConfigError
from ragctl.gate import parse_gate
from ragctl.metrics import ANSWER_METRICS, check_rank_metrics
from ragctl.records import RESERVED, MetadataValue, SearchMode


def _unreserved(metadata: dict[str, MetadataValue]) -> dict[str, MetadataValue]:
    taken = sorted(RESERVED & metadata.keys())
    if taken:
        raise ValueError(f"{', '.join(taken)}: ragctl writes this key itself, use another name")
    return metadata


SourceName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
UserMetadata = Annotated[dict[str, MetadataValue], AfterValidator(_unreserved)]


# --- sources and parsing ---------------------------------------------------------------------------------


class Records(Section):
    """How the records of .jsonl, .csv and .tsv files become documents."""

    files: str = Field(
        "**/*", description="Glob of the record files that this applies to; the first match counts."
    )
    id: str = Field("id", description="Field that identifies a record in its file.")
    text: tuple[str, ...] = Field(("text",), min_length=1, description="Text fields, joined by a blank line.")
    metadata: tuple[str, ...] = Field((), description="Fields kept as metadata.")


class SourceSection(Section):
    name: SourceName = Field(description="Prefix of the document ids.")
    include: tuple[str, ...] = Field(("**/*",), description="Globs below the path.")
    exclude: tuple[str, ...] = ()
    path_metadata: str | None = Field(
        None, description='Pattern such as "{customer}/{year}/*.pdf"; digits become numbers.'
    )
    metadata: UserMetadata = Field(
        default_factory=dict, description="The same for every document of the source."
    )
    records: tuple[Records, ...] = (Records(),)


class LocalSource(SourceSection):
    """A folder on this machine."""

    kind: Literal["local"]
    path: Path = Field(description="Folder, or a single file.")
    follow_links: bool = Field(False, description="Follow symbolic links to files and folders.")


class S3Source(SourceSection):
    """A prefix of a bucket."""

    kind: Literal["s3"]
    bucket: str
    prefix: str = ""


Source = Annotated[LocalSource | S3Source, Field(discriminator="kind")]


class Parsing(Section):
    """Bytes to text."""

    max_file_mb: float = Field(200, gt=0, description="A larger file is a failure, not a surprise.")
    timeout_s: float = Field(120, gt=0, description="Per document.")
    memory_mb: int = Field(
        2_048, ge=256, description="Address space that parsing one document may take on top."
    )
    pdf_passwords: tuple[SecretStr, ...] = Field((), description="Tried on encrypted PDFs; use ${ENV}.")
    title: bool = Field(True, description="Keep the document's title as metadata.")
    page_count: bool = Field(True, description="Keep the number of pages as metadata.")


class Chunking(Section):
    """Text to chunks."""

    kind: Literal["recursive", "characters", "tokens", "markdown", "html", "sentences", "page", "record"] = (
        "recursive"
    )
    size: int = Field(1_000, ge=1, description="Largest chunk, in units.")
    overlap: int = Field(0, ge=0, description="Units that neighbours share at most.")
    unit: Literal["characters", "tokens"] = Field(
        "characters", description="What size and overlap count; of kind tokens always tokens."
    )
    tokenizer: Path | None = Field(
        None,
        description="tokenizer.json of the embedding model; default: words and punctuation marks are tokens.",
    )
    separator: str = Field("\n\n", min_length=1, description="Where `characters` cuts.")

    @model_validator(mode="before")
    @classmethod
    def _tokens_by_kind(cls, section: object) -> object:
        if isinstance(section, dict) and section.get("kind") == "tokens":
            return {"unit": "tokens", **section}
        return section

    @model_validator(mode="after")
    def _tokens_are_no_characters(self) -> Self:
        if self.kind == "tokens" and self.unit == "characters":
            raise ValueError("kind tokens counts in tokens, and unit says characters; leave unit out")
        return self

    @model_validator(mode="after")
    def _overlap_below_size(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than size ({self.size})")
        return self


class Index(Section):
    """One of several indexes over the same sources."""

    chunking: Chunking = Field(description="Takes the place of the experiment's.")


IndexKey = Annotated[str, Field(max_length=32, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
MIN_INDEX_NAME, MAX_INDEX_NAME = 3, 63  # characters of an index's name on S3 Vectors, CreateIndex


# --- running ---------------------------------------------------------------------------------------------


class Ingest(Section):
    """How ingest works; nothing here changes what ends up in the index."""

    max_delete: float = Field(
        0.2, ge=0, le=1, description="Largest share of documents that one run may remove."
    )
    fail_threshold: float = Field(
        1.0, gt=0, le=1, description="Stop early when more than this share has failed."
    )
    workers: int | None = Field(
        None, ge=1, le=64, description="Parser processes; default: the number of cores."
    )
    embed_concurrency: int = Field(8, ge=1, le=256, description="Embedding calls under way at once, at most.")
    put_concurrency: int = Field(4, ge=1, le=64, description="Put calls under way at once, at most.")
    memory_mb: int = Field(64, ge=16, description="Bound of what waits between the stages, in MiB.")
    checkpoint_s: float = Field(5, gt=0, description="Seconds between saves of the ledger.")


class Cache(Section):
    """Embeddings by content, shared by the experiments that name the same place."""

    path: str = Field(description="A folder, or s3://bucket/prefix.")


class Retrieval(Section):
    mode: SearchMode = "hybrid"
    top_k: int = Field(8, ge=1, le=10_000)
    filter: dict[str, object] | None = Field(
        None, description="Applied to every query, in the S3 Vectors grammar."
    )


class Tenancy(Section):
    """Keeps tenants apart: a query reaches the documents of its own tenant and no others."""

    key: str = Field(description="Metadata key that names the tenant of a document.")
    required: bool = True
    layout: Literal["filter", "index"] = Field("filter", description="One index for all, or one per tenant.")


def _as_value_error(check: Callable[[], object]) -> None:
    """Pydantic gathers ValueErrors, with their path, to show all faults at once."""
    try:
        check()
    except ConfigError as error:
        raise ValueError(error.message) from error


class GoldenSet(Section):
    """Questions with what is known about their answers, as JSONL."""

    kind: Literal["golden"]
    path: Path
    tenant: str | None = None


class BeirSet(Section):
    """A BEIR folder or zip: queries.jsonl and qrels/<split>.tsv; its corpus is ingested as a source."""

    kind: Literal["beir"]
    path: Path
    split: str = "test"
    source: SourceName = Field(description="Name of the source that holds corpus.jsonl.")
    tenant: str | None = None


Dataset = Annotated[GoldenSet | BeirSet, Field(discriminator="kind")]


class Evaluation(Section):
    dataset: Dataset
    metrics: tuple[str, ...] = ("nDCG@10", "R@10", "RR@10", "Success@5")
    answers: bool = Field(True, description="Generate and score answers; false: retrieval only.")
    gate: dict[str, str] = Field(
        default_factory=dict,
        description='For example nDCG@10: ">= 0.6", which the value decides; ">= 0.6 at 95%": its whole 95 % interval.',
    )
    min_scored: float = Field(
        0.95, gt=0, le=1, description="Smallest share of scored questions on which the gate may decide."
    )
    concurrency: int = Field(4, ge=1, le=64)

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        _as_value_error(lambda: check_rank_metrics(metrics))
        return metrics

    @field_validator("gate")
    @classmethod
    def _known_rules(cls, gate: dict[str, str]) -> dict[str, str]:
        _as_value_error(lambda: parse_gate(gate))
        return gate

    @model_validator(mode="after")
    def _gate_within_reach(self) -> Self:
        unreachable = sorted(self.gate.keys() & set(ANSWER_METRICS))
        if unreachable and not self.answers:
            raise ValueError(f"gate: {', '.join(unreachable)} needs answers, but `answers` is false")
        return self


class Tracking(Section):
    """MLflow (extra: mlflow)."""

    uri: str = Field(
        pattern=r"^(sqlite:///.|https?://[^?#]+$|arn:aws(-us-gov)?:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(tracking-server|app)/.)",
        description="sqlite:///FILE, http://HOST:PORT without a query, or the ARN of a SageMaker tracking server.",
    )
    experiment: str = "ragctl"


class Budget(Section):
    """What one command may cost, in US dollars, over all the indexes that it works on. It stops, with all that it did
    saved, before it goes past that.
    """

    ingest_usd: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Tokens that are embedded, and puts."
    )
    eval_usd: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Tokens of questions and answers, and reranking."
    )


class Prices(Section):
    """What models cost you where they are paid by use, in US dollars. What is not said is unknown, never free."""

    embedding: float | None = Field(None, ge=0, description="A million tokens to embed.")
    input: float | None = Field(None, ge=0, description="A million tokens that the generator reads.")
    output: float | None = Field(None, ge=0, description="A million tokens that the generator writes.")
    reranking: float | None = Field(None, ge=0, description="A thousand questions that are reranked.")


class Endpoints(Section):
    """Other addresses of AWS services, for VPC endpoints and tests; the AWS_ENDPOINT_URL_* variables work too."""

    s3: str | None = None
    s3vectors: str | None = None
    sagemaker: str | None = None
    sagemaker_runtime: str | None = None
    bedrock: str | None = None
    bedrock_runtime: str | None = None
    bedrock_agent_runtime: str | None = None
    sts: str | None = None


class Aws(Section):
    """Whose account and where; empty: what the environment says."""

    profile: str | None = None
    region: str | None = None
    role_arn: str | None = Field(None, description="Role to assume first.")
    external_id: str | None = None
    use_fips: bool = False
    endpoints: Endpoints = Endpoints()


EXPERIMENT_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")


def index_of(experiment: str) -> str:
    """The index of an experiment that names none: its name, made one that every store takes."""
    name = experiment.rstrip("-")
    return name if len(name) >= MIN_INDEX_NAME else f"{name}-index"


class Experiment(Section):
    """One experiment file."""

    extends: Path | None = Field(
        None, description="Another experiment file, of which this one changes some keys."
    )
    name: Annotated[str, Field(min_length=1, max_length=63, pattern=EXPERIMENT_NAME.pattern)]
    sources: tuple[Source, ...]
    parsing: Parsing = Parsing()
    chunking: Chunking = Chunking()
    embedding: Embedding = HashingEmbedding()
    store: Store = Field(default_factory=LocalStore)
    indexes: dict[IndexKey, Index] = Field(
        default_factory=dict,
        description='Several indexes, for example one per chunking strategy; "fine" of store.index "docs" is "docs-fine".',
    )
    retrieval: Retrieval = Retrieval()
    reranking: Reranking | None = None
    generation: Generation = ExtractiveGeneration()
    evaluation: Evaluation | None = None
    ingest: Ingest = Ingest()
    cache: Cache | None = None
    tenancy: Tenancy | None = None
    tracking: Tracking | None = None
    budget: Budget | None = None
    prices: Prices = Prices()
    aws: Aws = Aws()
    deployment: Deployment = Deployment()
    state: str = Field(
        ".ragctl/state",
        description="Where the ledger lives: a folder, or s3://bucket/prefix; default: beside the experiment file.",
    )
    runs: Path = Field(
        Path("runs"), description="Where the run reports go; default: beside the experiment file."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_kinds(cls, sections: object) -> object:
        """A section that has a default backend may change one of its settings without naming it."""
        if not isinstance(sections, dict):
            return sections
        named = {
            name: {"kind": kind, **sections[name]}
            for name, kind in (("store", "local"), ("embedding", "hashing"), ("generation", "extractive"))
            if isinstance(sections.get(name), dict)
        }
        return {**sections, **named}

    @model_validator(mode="before")
    @classmethod
    def _index_of_its_own(cls, sections: object) -> object:
        """Two experiments share an index only where both name it."""
        if not isinstance(sections, dict):
            return sections
        name, store = sections.get("name"), sections.get("store", {})
        if not (isinstance(name, str) and EXPERIMENT_NAME.fullmatch(name) and isinstance(store, dict)):
            return sections
        return {**sections, "store": {"index": index_of(name), **store}}

    @model_validator(mode="after")
    def _tenants_kept_apart(self) -> Self:
        from ragctl.tenancy import setting_faults

        faults = list(setting_faults(self))
        if faults:
            raise ValueError("\n  ".join(faults))
        return self

    @model_validator(mode="after")
    def _index_names_fit(self) -> Self:
        from ragctl.tenancy import MAX_BASE, has_index_each

        longest = max(map(len, self.indexes), default=None)
        room = (MAX_BASE if has_index_each(self) else MAX_INDEX_NAME) - len(self.store.index) - 1
        if longest is not None and longest > room:
            raise ValueError(
                f"indexes: a name may have {max(0, room)} characters behind store.index, not {longest}"
            )
        return self

    @model_validator(mode="after")
    def _source_names_differ(self) -> Self:
        if not self.sources:
            raise ValueError("sources: name at least one")
        names = [source.name for source in self.sources]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"sources: name used twice: {', '.join(double)}")
        return self
