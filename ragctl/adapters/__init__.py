"""The one table of backends: section and kind -> class and the extra it needs. A backend is imported when chosen."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from ragctl.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, Generator, Reranker, VectorStore
    from ragctl.adapters.s3vectors import S3VectorsStore
    from ragctl.config import Experiment

# (section, kind) -> (module in ragctl.adapters, class, extra or None)
BACKENDS: dict[tuple[str, str], tuple[str, str, str | None]] = {
    ("store", "local"): ("local", "LocalStore", None),
    ("store", "s3vectors"): ("s3vectors", "S3VectorsStore", None),
    ("embedding", "hashing"): ("hashing", "HashingEmbedder", None),
    ("embedding", "fastembed"): ("fastembed", "FastembedEmbedder", "fastembed"),
    ("embedding", "openai"): ("openai", "OpenAIEmbedder", None),
    ("embedding", "sagemaker"): ("sagemaker", "SageMakerEmbedder", None),
    ("embedding", "bedrock"): ("bedrock", "BedrockEmbedder", None),
    ("reranking", "fastembed"): ("fastembed", "FastembedReranker", "fastembed"),
    ("reranking", "bedrock"): ("bedrock", "BedrockReranker", None),
    ("reranking", "sagemaker"): ("sagemaker", "SageMakerReranker", None),
    ("generation", "extractive"): ("extractive", "ExtractiveGenerator", None),
    ("generation", "openai"): ("openai", "OpenAIGenerator", None),
    ("generation", "sagemaker"): ("sagemaker", "SageMakerGenerator", None),
    ("generation", "bedrock"): ("bedrock", "BedrockGenerator", None),
}


def _open(section: str, kind: str, experiment: Experiment) -> Any:
    module, name, extra = BACKENDS[section, kind]
    try:
        backend = getattr(import_module(f"ragctl.adapters.{module}"), name)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("ragctl"):
            raise
        raise MissingExtra(f"{section}: kind {kind}", extra) from error
    return backend.from_config(experiment)


def open_store(experiment: Experiment) -> VectorStore:
    """The experiment's store; nothing is created."""
    return cast("VectorStore", _open("store", experiment.store.kind, experiment))


def s3vectors_store(experiment: Experiment) -> S3VectorsStore:
    """The experiment's store, for what only S3 Vectors can do. ConfigError where it is of another kind."""
    kind = experiment.store.kind
    if kind != "s3vectors":
        raise ConfigError(f"store.kind is {kind}: only s3vectors has vector buckets and index modes")
    return cast("S3VectorsStore", _open("store", kind, experiment))


def open_embedder(experiment: Experiment) -> Embedder:
    """The experiment's embedder."""
    return cast("Embedder", _open("embedding", experiment.embedding.kind, experiment))


def open_reranker(experiment: Experiment) -> Reranker | None:
    """The experiment's reranker, or None where it names none."""
    if experiment.reranking is None:
        return None
    return cast("Reranker", _open("reranking", experiment.reranking.kind, experiment))


def open_generator(experiment: Experiment) -> Generator:
    """The experiment's generator."""
    return cast("Generator", _open("generation", experiment.generation.kind, experiment))
