"""What every embedder must do. A new one is one line in EMBEDDERS."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import urllib3

from ragctl import turns
from ragctl.adapters import embeddings
from ragctl.adapters.base import Embedder
from ragctl.adapters.bedrock import BedrockEmbedder
from ragctl.adapters.fastembed import FastembedEmbedder, open_folder
from ragctl.adapters.openai import OpenAIEmbedder, Server
from ragctl.adapters.sagemaker import SageMakerEmbedder
from tests.onnx_models import embedding_model
from tests.servers.bedrock import COHERE_3, COHERE_4, TITAN, BedrockServer
from tests.servers.clients import connect
from tests.servers.openai_server import OpenAIServer
from tests.servers.sagemaker_runtime import EmbeddingModel, SageMakerRuntime

TEXTS = [
    "The turbine hall was inspected in March.",
    "Inspection of the turbine hall took place in spring.",
    "Die Kantine bietet grünen Tee an ☕.",
    "茶は緑色です。",
    "x",
    "Line one\nline two\tand a tab",
    "The turbine hall was inspected in March.",
]


@contextmanager
def sagemaker(family: Any) -> Iterator[Embedder]:
    """An embedder and its endpoint."""
    with (
        SageMakerRuntime({"e": EmbeddingModel(family)}) as server,
        connect("sagemaker-runtime", server.url) as runtime,
    ):
        yield SageMakerEmbedder(runtime, endpoint="e", family=family)
    assert (server.unexpected, server.broken) == ([], [])


@contextmanager
def bedrock(model: str) -> Iterator[Embedder]:
    """An embedder and Bedrock."""
    with BedrockServer() as server, connect("bedrock-runtime", server.url) as runtime:
        yield BedrockEmbedder(runtime, model=model)
    assert (server.unexpected, server.broken) == ([], [])


@contextmanager
def openai() -> Iterator[Embedder]:
    """An embedder and an OpenAI-compatible server."""
    with OpenAIServer() as server:
        pool = urllib3.PoolManager(maxsize=8)
        yield OpenAIEmbedder(Server(pool, f"{server.url}/v1", section="embedding"), model="words")
    assert server.unexpected == []


@contextmanager
def fastembed() -> Iterator[Embedder]:
    """An embedder of a model in a folder."""
    with TemporaryDirectory() as folder:
        yield FastembedEmbedder(open_folder(embedding_model(Path(folder))))


EMBEDDERS: dict[str, Callable[[], AbstractContextManager[Embedder]]] = {
    "sagemaker-tei": lambda: sagemaker("tei"),
    "sagemaker-huggingface": lambda: sagemaker("huggingface"),
    "sagemaker-openai": lambda: sagemaker("openai"),
    "bedrock-titan": lambda: bedrock(TITAN),
    "bedrock-cohere-3": lambda: bedrock(COHERE_3),
    "bedrock-cohere-4": lambda: bedrock(COHERE_4),
    "openai": openai,
    "fastembed": fastembed,
}


@pytest.fixture(params=EMBEDDERS)
def embedder(request: pytest.FixtureRequest) -> Iterator[Embedder]:
    """Each embedder in turn."""
    with EMBEDDERS[request.param]() as embedder:
        yield embedder


def vectors_of(embedder: Embedder, texts: list[str]) -> Any:
    """The vectors of the texts, in batches as the embedder takes them."""
    step = embedder.max_batch
    batches = [texts[at : at + step] for at in range(0, len(texts), step)]
    return np.concatenate([embedder.embed(batch, "document").vectors for batch in batches])


def test_one_finite_float32_vector_per_text(embedder: Embedder) -> None:
    """Shape, type and length of what comes back are as promised."""
    vectors = vectors_of(embedder, TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.dimension)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) > 0).all()


def test_vectors_stand_in_the_order_of_the_texts(embedder: Embedder) -> None:
    """A batch gives what its texts give alone, whatever their neighbours."""
    alone = np.concatenate([vectors_of(embedder, [text]) for text in TEXTS])
    np.testing.assert_allclose(vectors_of(embedder, TEXTS), alone, atol=1e-5)


def test_largest_batch(embedder: Embedder) -> None:
    """As many texts as the embedder says go into one call."""
    texts = [f"text number {number}" for number in range(embedder.max_batch)]
    assert embedder.embed(texts, "document").vectors.shape == (embedder.max_batch, embedder.dimension)


def test_texts_about_the_same_are_nearer(embedder: Embedder) -> None:
    """A question finds the text that it is about."""
    question = embedder.embed(["When was the turbine hall inspected?"], "query").vectors[0]
    vectors = vectors_of(embedder, TEXTS[:4])
    similarity = vectors @ question / np.linalg.norm(vectors, axis=1)
    assert similarity[0] > max(similarity[2:])


def test_same_vectors_from_several_threads(embedder: Embedder) -> None:
    """Workers share one embedder."""
    expected = vectors_of(embedder, TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: vectors_of(embedder, TEXTS), range(16)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_limits_and_identity_say_something(embedder: Embedder) -> None:
    """The caller cuts by the limits; the identity is short enough to be kept with an index."""
    assert embedder.max_batch >= 1
    assert embedder.max_bytes >= 1_000
    assert embedder.max_tokens is None or embedder.max_tokens >= 1
    assert 0 < len(embedder.identity) <= 200
    assert embedder.identity.isprintable()


def test_usage_is_counted_or_zero(embedder: Embedder) -> None:
    """What a service does not report is 0, and embedding writes no tokens."""
    usage = embedder.embed(TEXTS[:1], "document").usage
    assert usage.input_tokens >= 0
    assert (usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (0, 0, 0)


def test_a_service_is_free_again_before_its_answer_is_read(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a turn need not wait until thousands of numbers are read as well."""
    done: list[str] = []

    def read(*arguments: Any, **named: Any) -> Any:
        done.append("read")
        return embeddings.as_vectors(*arguments, **named)

    monkeypatch.setattr(f"{type(embedder).__module__}.as_vectors", read)
    with turns.turn(lambda: done.append("free")):
        embedder.embed(TEXTS[:1], "document")
    is_service = not isinstance(embedder, FastembedEmbedder)
    assert done == (["free", "read"] if is_service else ["read", "free"])
