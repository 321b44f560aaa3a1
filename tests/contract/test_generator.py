"""What every generator must do. A new one is one line in GENERATORS."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import urllib3

from ragctl.adapters.base import Generator
from ragctl.adapters.bedrock import BedrockGenerator
from ragctl.adapters.extractive import ExtractiveGenerator
from ragctl.adapters.openai import OpenAIGenerator, Server
from ragctl.adapters.sagemaker import SageMakerGenerator
from ragctl.prompts import abstained, build_prompt, citations, load_template
from ragctl.records import Hit, Prompt
from tests.servers.bedrock import WRITER, BedrockServer, Manner
from tests.servers.clients import connect
from tests.servers.openai_server import Behaviour, OpenAIServer
from tests.servers.sagemaker_runtime import SageMakerRuntime, TextModel

HITS = (
    Hit("k1", 0.9, 0.1, {"text": "The canteen serves green tea.", "document": "docs/canteen.md"}),
    Hit(
        "k2",
        0.8,
        0.2,
        {"text": "Turbine 3 was inspected in März 2024 — without findings.", "document": "docs/t"},
    ),
    Hit("k3", 0.7, 0.3, {"text": "Visitors register at the gate.", "document": "docs/gate.md"}),
)


def prompt(question: str) -> Prompt:
    """A question about the three passages, in the package's own template."""
    return build_prompt(load_template(None), question, HITS)


@contextmanager
def sagemaker(model: TextModel, name: str = "") -> Iterator[Generator]:
    """A generator and its endpoint."""
    with (
        SageMakerRuntime({"e": model}) as server,
        connect("sagemaker-runtime", server.url) as runtime,
    ):
        yield SageMakerGenerator(runtime, endpoint="e", family=model.family, model=name)
    assert (server.unexpected, server.broken) == ([], [])


@contextmanager
def bedrock(**manner: Any) -> Iterator[Generator]:
    """A generator and Bedrock."""
    with BedrockServer(Manner(**manner)) as server, connect("bedrock-runtime", server.url) as runtime:
        yield BedrockGenerator(runtime, model=WRITER)
    assert (server.unexpected, server.broken) == ([], [])


@contextmanager
def openai(**behaviour: Any) -> Iterator[Generator]:
    """A generator and an OpenAI-compatible server."""
    with OpenAIServer(Behaviour(**behaviour)) as server:
        pool = urllib3.PoolManager(maxsize=8)
        yield OpenAIGenerator(Server(pool, f"{server.url}/v1", section="generation"), model="quoter")
    assert server.unexpected == []


GENERATORS: dict[str, Callable[[], AbstractContextManager[Generator]]] = {
    "sagemaker-chat": lambda: sagemaker(TextModel("chat")),
    "sagemaker-deepseek": lambda: sagemaker(TextModel("chat", thinks="implied"), "deepseek-r1-distill"),
    "sagemaker-text-lmi": lambda: sagemaker(TextModel("text")),
    "sagemaker-text-tgi": lambda: sagemaker(TextModel("text", "tgi")),
    "sagemaker-completions": lambda: sagemaker(TextModel("completions")),
    "bedrock": bedrock,
    "bedrock-reasoning": lambda: bedrock(thinks="blocks"),
    "openai": openai,
    "openai-reasoning": lambda: openai(thinks="tags"),
    "extractive": lambda: nullcontext(ExtractiveGenerator()),
}


@pytest.fixture(params=GENERATORS)
def generator(request: pytest.FixtureRequest) -> Iterator[Generator]:
    """Each generator in turn."""
    with GENERATORS[request.param]() as generator:
        yield generator


def test_answer_is_grounded_and_cited(generator: Generator) -> None:
    """The answer holds the fact, and its marker maps to the passage that says it."""
    generation = generator.generate(prompt("When was turbine 3 inspected?"))
    assert "März 2024" in generation.text
    assert [citation.key for citation in citations(generation.text, HITS)] == ["k2"]
    assert not generation.abstained


def test_streamed_answer_is_the_same(generator: Generator) -> None:
    """What a listener hears is the answer, all of it and nothing else."""
    heard: list[str] = []
    streamed = generator.generate(prompt("When was turbine 3 inspected?"), heard.append)
    assert "".join(heard).strip() == streamed.text
    assert streamed.text == generator.generate(prompt("When was turbine 3 inspected?")).text


def test_reasoning_is_no_part_of_the_answer(generator: Generator) -> None:
    """No tag and no thought reaches the answer."""
    generation = generator.generate(prompt("When was turbine 3 inspected?"))
    assert "think>" not in generation.text
    assert not generation.reasoning or generation.reasoning not in generation.text


def test_question_that_the_passages_do_not_answer(generator: Generator) -> None:
    """The generator says so instead of guessing."""
    generation = generator.generate(prompt("Who composed Parsifal?"))
    assert generation.abstained or abstained(generation.text)
    assert citations(generation.text, HITS) == ()


def test_several_threads(generator: Generator) -> None:
    """An evaluation asks many questions at once."""
    questions = ["When was turbine 3 inspected?", "Where do visitors register?"] * 8
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda question: generator.generate(prompt(question)).text, questions))
    assert set(texts[::2]) == {texts[0]}
    assert set(texts[1::2]) == {texts[1]}
    assert "gate" in texts[1]


def test_identity_says_something(generator: Generator) -> None:
    """Reports name the generator."""
    assert generator.identity
    assert generator.identity.isprintable()
