"""What every reranker must do. A new one is one line in RERANKERS."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ragctl.adapters.base import Reranker
from ragctl.adapters.bedrock import BedrockReranker
from ragctl.adapters.fastembed import FastembedReranker, open_folder
from ragctl.adapters.sagemaker import SageMakerReranker
from tests.onnx_models import cross_encoder
from tests.servers.bedrock import REGION, RERANKER, BedrockServer, Manner
from tests.servers.clients import connect
from tests.servers.sagemaker_runtime import RerankModel, SageMakerRuntime

QUESTION = "When was the turbine inspected?"
TEXTS = [
    "The canteen serves green tea.",
    "The turbine was inspected in March.",
    "Visitors register at the gate ☕.",
]


@contextmanager
def bedrock(page: int) -> Iterator[Reranker]:
    """A reranker and Bedrock, which answers in pages of this many results."""
    arn = f"arn:aws:bedrock:{REGION}::foundation-model/{RERANKER}"
    with BedrockServer(Manner(page=page)) as server, connect("bedrock-agent-runtime", server.url) as runtime:
        yield BedrockReranker(runtime, model_arn=arn)
    assert (server.unexpected, server.broken) == ([], [])


@contextmanager
def fastembed() -> Iterator[Reranker]:
    """A reranker of a model in a folder."""
    with TemporaryDirectory() as folder:
        yield FastembedReranker(open_folder(cross_encoder(Path(folder))))


@contextmanager
def sagemaker() -> Iterator[Reranker]:
    """A reranker and an endpoint that takes fewer texts at a time than there are."""
    with (
        SageMakerRuntime({"scorer": RerankModel(max_batch=4)}) as server,
        connect("sagemaker-runtime", server.url) as runtime,
    ):
        yield SageMakerReranker(runtime, endpoint="scorer", max_batch=4)
    assert (server.unexpected, server.broken) == ([], [])


RERANKERS: dict[str, Callable[[], AbstractContextManager[Reranker]]] = {
    "bedrock": lambda: bedrock(1_000),
    "bedrock-pages": lambda: bedrock(7),
    "fastembed": fastembed,
    "sagemaker": sagemaker,
}


@pytest.fixture(params=RERANKERS)
def reranker(request: pytest.FixtureRequest) -> Iterator[Reranker]:
    """Each reranker in turn."""
    with RERANKERS[request.param]() as reranker:
        yield reranker


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_scores_stand_in_the_order_of_the_texts(order: list[int], reranker: Reranker) -> None:
    """The text that answers the question has the highest score, wherever it stands."""
    scores = reranker.rerank(QUESTION, [TEXTS[place] for place in order])
    assert len(scores) == 3
    assert scores.index(max(scores)) == order.index(1)


def test_equal_texts_get_equal_scores(reranker: Reranker) -> None:
    """Place has no part in a score."""
    scores = reranker.rerank(QUESTION, TEXTS * 10)
    assert scores == pytest.approx(scores[:3] * 10, abs=1e-5)


def test_nothing_and_blank_texts(reranker: Reranker) -> None:
    """No texts, no scores; a text without words is scored like any other."""
    assert reranker.rerank(QUESTION, []) == []
    scores = reranker.rerank(QUESTION, ["", TEXTS[1]])
    assert scores[1] > scores[0]


def test_limits_and_identity_say_something(reranker: Reranker) -> None:
    """The caller cuts by the limit; reports name the reranker."""
    assert reranker.identity.isprintable()
    assert reranker.identity
