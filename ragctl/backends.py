"""The sections of an experiment that are told apart by `kind`: each kind with exactly its own settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

Prefix = Annotated[str, Field(max_length=2_000)]


class Section(BaseModel):
    """Frozen, and an unknown key is an error: a misspelt setting must never be a silent default."""

    # Deferred: sections are built once, as parts of the experiment, and not each by itself before
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, data: Any) -> Any:
        """YAML reads yes and on as true, which pydantic takes for 1."""
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and not _takes_boolean(field.annotation):
                raise ValueError(
                    f"{name}: {str(value).lower()} is no value for it; YAML reads yes and on as true"
                )
        return data


def _takes_boolean(annotation: object) -> bool:
    """Whether a field may be true or false, or holds values that may."""
    return annotation in (bool, Any, object) or any(map(_takes_boolean, get_args(annotation)))


# --- embedding -------------------------------------------------------------------------------------------


def _fit_for_a_header(key: SecretStr) -> SecretStr:
    value = key.get_secret_value().strip()  # a secret that is mounted as a file ends in a newline
    if not (value.isascii() and (value.isprintable() or not value)):
        raise ValueError("holds a character that no HTTP header takes")
    return SecretStr(value)


ApiKey = Annotated[SecretStr, AfterValidator(_fit_for_a_header)]


def _to_be_called(address: str) -> str:
    """The address, if it is one that can be called and shown: http or https, a host, no password or query in it."""
    from urllib3.exceptions import LocationParseError  # which takes time that only these kinds need
    from urllib3.util import parse_url

    try:
        url = parse_url(address)
    except LocationParseError:
        raise ValueError("not an address") from None
    if url.auth:
        raise ValueError("holds a user or password; a key goes into api_key")
    if url.query or url.fragment:  # not shown: a key may stand there
        raise ValueError('goes on behind a "?" or "#"; end it before; a key goes into api_key')
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{address} is not an address such as http://127.0.0.1:8080/v1")
    return address


BaseUrl = Annotated[str, AfterValidator(_to_be_called)]


class HashingEmbedding(Section):
    """Signed hashing of stemmed words: deterministic, nothing to download."""

    kind: Literal["hashing"] = "hashing"
    dimension: int = Field(2048, ge=64, le=4096, description="Length of a vector.")


class FastembedEmbedding(Section):
    """A local ONNX model through fastembed (extra: fastembed)."""

    kind: Literal["fastembed"]
    model: str | None = Field(
        None, description="Name of a model on the hub, for example BAAI/bge-small-en-v1.5."
    )
    path: Path | None = Field(None, description="Folder that holds the model; works offline.")
    query_prefix: Prefix = ""
    passage_prefix: Prefix = ""
    threads: int | None = Field(None, ge=1)


class OpenAIEmbedding(Section):
    """Any server that speaks OpenAI's embeddings API: vLLM, TEI, Ollama."""

    kind: Literal["openai"]
    base_url: BaseUrl = Field(description="For example http://127.0.0.1:8080/v1")
    model: str
    api_key: ApiKey | None = None
    dimension: int | None = Field(
        None, ge=1, description="Ask the server for this length, where it can shorten."
    )
    max_batch: int = Field(32, ge=1, le=2048, description="Texts per call.")
    max_batch_tokens: int | None = Field(
        None, ge=1, description="Tokens per call; counted with chunking.tokenizer, else estimated from words."
    )
    query_prefix: Prefix = ""
    passage_prefix: Prefix = ""
    timeout_s: float = Field(60, gt=0)


class SageMakerEmbedding(Section):
    """A SageMaker endpoint; `model` lets deploy-models make it from JumpStart."""

    kind: Literal["sagemaker"]
    endpoint: str | None = Field(None, description="Endpoint name; default: from the deployment record.")
    model: str | None = Field(None, description="JumpStart model id.")
    model_version: str = "*"
    family: Literal["tei", "huggingface", "openai"] | None = Field(
        None, description="Payload family; default: from the deployment record."
    )
    inference_component: str | None = None
    dimension: int | None = Field(None, ge=1, le=4096)
    max_batch: int = Field(32, ge=1)
    max_batch_tokens: int | None = Field(
        None, ge=1, description="Tokens per call; counted with chunking.tokenizer, else estimated from words."
    )
    query_prefix: Prefix = ""
    passage_prefix: Prefix = ""


class BedrockEmbedding(Section):
    """Titan v2 or Cohere embeddings on Amazon Bedrock."""

    kind: Literal["bedrock"]
    model: str = Field(
        description="Model id, inference profile or ARN, for example amazon.titan-embed-text-v2:0"
    )
    dimension: int | None = Field(None, ge=1, le=4096)


Embedding = Annotated[
    HashingEmbedding | FastembedEmbedding | OpenAIEmbedding | SageMakerEmbedding | BedrockEmbedding,
    Field(discriminator="kind"),
]

# --- store -----------------------------------------------------------------------------------------------

IndexName = Annotated[str, Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=63)]
TextLanguage = Literal["en", "fr", "es", "pt", "it", "de", "nl", "zh", "ja", "ko"]


class StoreSection(Section):
    index: IndexName = Field(
        default_factory=str,  # an experiment fills it in
        validate_default=False,
        description="Name of the index; default: that of the experiment.",
    )
    metric: Literal["cosine", "euclidean"] = "cosine"
    text_search: bool = Field(
        True, description="Make the chunk text searchable by words; S3 Vectors: on an ENHANCED index."
    )
    language: TextLanguage | None = Field("en", description="Language of the text search; null: no stemming.")
    non_filterable: tuple[MetadataKey, ...] = Field(
        (), max_length=5, description="More metadata keys that are only shown, never filtered by."
    )


class LocalStore(StoreSection):
    """LanceDB in a local folder."""

    kind: Literal["local"] = "local"
    path: Path = Field(
        Path(".ragctl/store"), description="Folder of the database; default: beside the experiment file."
    )


class S3VectorsStore(StoreSection):
    """Amazon S3 Vectors."""

    kind: Literal["s3vectors"]
    bucket: Annotated[str, Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*[a-z0-9]$")]
    kms_key_arn: str | None = Field(
        None, description="Full ARN of a KMS key; default: as the bucket, SSE-S3 where ragctl makes it."
    )
    tags: dict[str, str] = Field(default_factory=dict, max_length=40)
    vectors_per_second: int = Field(
        2_500, ge=1, le=2_500, description="Writes and deletes; the service's limit."
    )
    requests_per_second: int = Field(1_000, ge=1, le=1_000, description="Likewise, in calls.")


Store = Annotated[LocalStore | S3VectorsStore, Field(discriminator="kind")]

# --- reranking -------------------------------------------------------------------------------------------


class RerankingSection(Section):
    candidates: int = Field(50, ge=1, le=1000, description="Hits that are reranked.")
    max_chars: int = Field(4_000, ge=100, description="Characters of each hit that the reranker sees.")


class FastembedReranking(RerankingSection):
    """A local cross-encoder through fastembed (extra: fastembed)."""

    kind: Literal["fastembed"]
    model: str | None = None
    path: Path | None = None


class BedrockReranking(RerankingSection):
    """Bedrock's Rerank API."""

    kind: Literal["bedrock"]
    model: str = Field(description="Model id or ARN, for example cohere.rerank-v3-5:0")


class SageMakerReranking(RerankingSection):
    """A SageMaker endpoint with a cross-encoder on TEI; `model` lets deploy-models make it from JumpStart."""

    kind: Literal["sagemaker"]
    endpoint: str | None = Field(None, description="Endpoint name; default: from the deployment record.")
    model: str | None = Field(None, description="JumpStart model id.")
    model_version: str = "*"
    family: Literal["tei"] | None = Field(
        None, description="Payload family; default: from the deployment record."
    )
    inference_component: str | None = None
    max_batch: int = Field(32, ge=1)


Reranking = Annotated[FastembedReranking | BedrockReranking | SageMakerReranking, Field(discriminator="kind")]

# --- generation ------------------------------------------------------------------------------------------


class GenerationSection(Section):
    prompt: Path | None = Field(None, description="Prompt template file; default: the one in the package.")
    max_tokens: int = Field(1_024, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)


class ExtractiveGeneration(Section):
    """Quotes the best supporting sentences; no model."""

    kind: Literal["extractive"] = "extractive"
    sentences: int = Field(3, ge=1, le=20, description="Sentences of an answer at most.")
    min_support: float = Field(
        0.45, ge=0, le=1, description="Share of the question's rare words that a statement must answer to."
    )


class OpenAIGeneration(GenerationSection):
    """Any server that speaks OpenAI's chat API."""

    kind: Literal["openai"]
    base_url: BaseUrl
    model: str
    api_key: ApiKey | None = None
    timeout_s: float = Field(120, gt=0)


class SageMakerGeneration(GenerationSection):
    """A SageMaker endpoint; `model` lets deploy-models make it from JumpStart."""

    kind: Literal["sagemaker"]
    endpoint: str | None = None
    model: str | None = None
    model_version: str = "*"
    family: Literal["chat", "text", "completions"] | None = None
    inference_component: str | None = None


class BedrockGeneration(GenerationSection):
    """Converse on Bedrock: foundation models, inference profiles, Marketplace endpoint ARNs."""

    kind: Literal["bedrock"]
    model: str
    prompt_cache: bool = Field(
        False, description="Put a cache checkpoint behind the static part of the prompt."
    )
    guardrail: str | None = None
    guardrail_version: str = "DRAFT"


Generation = Annotated[
    ExtractiveGeneration | OpenAIGeneration | SageMakerGeneration | BedrockGeneration,
    Field(discriminator="kind"),
]

# --- deployment ------------------------------------------------------------------------------------------

Duration = Annotated[str, Field(pattern=r"^[1-9][0-9]*[smhd]$", examples=["90s", "30m", "8h", "2d"])]
InstanceType = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]


class Vpc(Section):
    """Where the containers of the models run."""

    subnets: tuple[str, ...] = Field(min_length=1, max_length=16)
    security_groups: tuple[str, ...] = Field(min_length=1, max_length=5)


class Autoscaling(Section):
    """Bounds of a model's instances; `min: 0` runs it as an inference component, which may scale to nothing."""

    min: int = Field(1, ge=0)
    max: int = Field(ge=1)
    target_invocations: float = Field(
        gt=0, description="Calls a minute that one instance (with min 0: one copy) is to get."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be greater than max ({self.max})")
        return self


# Variables of a container that hold a secret, such as HF_TOKEN; not MAX_BATCH_TOKENS.
SECRET_VARIABLE = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)


class ModelDeployment(Section):
    """How one model is deployed; what is left open is what JumpStart says of the model."""

    instance_type: InstanceType | None = None
    instance_count: int = Field(1, ge=1)
    env: dict[str, str] = Field(
        default_factory=dict,
        max_length=100,
        description="Environment of the container; wins over the model's own.",
    )
    inference_config: str | None = Field(
        None, description="One of the configurations that JumpStart offers for the model; default: its first."
    )
    inference_ami: str | None = Field(None, description="For example al2-ami-sagemaker-inference-gpu-3-1")
    accept_eula: bool = Field(False, description="True: you have read the model's license and accept it.")
    autoscaling: Autoscaling | None = None
    take_over: bool = Field(
        False,
        description="An endpoint that is named and was made by somebody else is ours now: teardown removes it.",
    )


class Deployment(Section):
    """What deploy-models makes for the sections of kind sagemaker that name a `model`."""

    role_arn: str | None = Field(None, description="Execution role of the models; needed to deploy.")
    expires_after: Duration | None = Field(
        None, description="For example 8h: commands warn after that, and teardown --expired removes."
    )
    timeout: Duration = Field("60m", description="How long an endpoint may take to be in service.")
    vpc: Vpc | None = None
    kms_key: str | None = Field(None, description="KMS key of the instances' storage.")
    network_isolation: bool | None = Field(None, description="Default: as JumpStart says of the model.")
    hub: str | None = Field(None, description="Name of a private hub that offers the models.")
    embedding: ModelDeployment = ModelDeployment()
    generation: ModelDeployment = ModelDeployment()
    reranking: ModelDeployment = ModelDeployment()
