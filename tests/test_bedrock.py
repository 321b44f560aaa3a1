"""Bedrock over real HTTP: embeddings, Converse and its stream, Rerank."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from ragctl.adapters.bedrock import BedrockEmbedder, BedrockGenerator, BedrockReranker
from ragctl.errors import (
    ConfigError,
    InputRefused,
    NotFound,
    PermissionDenied,
    RagctlError,
    ServiceError,
    Throttled,
)
from ragctl.records import Prompt, Usage
from tests.experiments import experiment
from tests.servers.bedrock import (
    BLOCKED,
    COHERE_3,
    COHERE_4,
    RERANKER,
    THOUGHT,
    TITAN,
    WRITER,
    BedrockServer,
    Manner,
)
from tests.servers.clients import connect
from tests.servers.http import Fault
from tests.servers.models import embed

SECRET = "Grünkohl in Bremen"
PASSAGE = '<passage number="1" document="d">\nKatzen schlafen. Hunde bellen nachts — größer.\n</passage>'
PROMPT = Prompt("Be brief, please.", f"{PASSAGE}\n\nQuestion: ", "Wann bellen Hunde?", ())
ANSWER = "Hunde bellen nachts — größer. [1]"

Start = Callable[..., BedrockServer]


def unheard(text: str) -> None:
    """Somebody who lets an answer stream by."""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server of these manners; nothing ill-formed may have been asked or answered."""
    servers = []
    with ExitStack() as stack:

        def start(**manner: Any) -> BedrockServer:
            servers.append(stack.enter_context(BedrockServer(Manner(**manner))))
            return servers[-1]

        yield start
    assert [(server.unexpected, server.broken) for server in servers] == [([], [])] * len(servers)


@pytest.fixture
def client_of() -> Iterator[Callable[..., Any]]:
    """Make clients of a server."""
    with ExitStack() as stack:

        def client_of(server: BedrockServer, service: str = "bedrock-runtime", **config: Any) -> Any:
            return stack.enter_context(connect(service, server.url, **config))

        yield client_of


@pytest.fixture
def server(start: Start) -> BedrockServer:
    """A server of ordinary manners."""
    return start()


@pytest.fixture
def runtime(server: BedrockServer, client_of: Callable[..., Any]) -> Any:
    """A client of `server`."""
    return client_of(server)


# --- embedding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "dimension", "width", "batch"),
    [
        (TITAN, None, 1024, 1),
        (TITAN, 256, 256, 1),
        (COHERE_3, None, 1024, 96),
        (COHERE_4, None, 1536, 96),
        (COHERE_4, 512, 512, 96),
        (f"us.{COHERE_4}", None, 1536, 96),
        (f"arn:aws:bedrock:eu-west-1::foundation-model/{TITAN}", 512, 512, 1),
    ],
)
def test_families_by_id_profile_and_arn(
    model: str, dimension: int | None, width: int, batch: int, runtime: Any
) -> None:
    """Each family's shapes are spoken, and its limits known, whatever the model is called by."""
    embedder = BedrockEmbedder(runtime, model=model, dimension=dimension)
    assert (embedder.dimension, embedder.max_batch) == (width, batch)
    texts = ["two words", "three more words"][:batch]
    embedded = embedder.embed(texts, "document")
    np.testing.assert_array_equal(embedded.vectors, [embed(text, width) for text in texts])
    assert embedded.usage == Usage(input_tokens=sum(len(text.split()) for text in texts))


@pytest.mark.parametrize("model", [COHERE_3, COHERE_4])
def test_cohere_is_told_the_role_and_not_to_cut(model: str, server: BedrockServer, runtime: Any) -> None:
    """Questions and documents have their own input type; a text that is too long is an error, not cut."""
    embedder = BedrockEmbedder(runtime, model=model)
    embedder.embed(["a"], "query")
    embedder.embed(["a"], "document")
    assert [body["input_type"] for body in server.requests] == ["search_query", "search_document"]
    assert {body["truncate"] for body in server.requests} == {"NONE"}


def test_identity_is_the_same_in_every_region(runtime: Any) -> None:
    """A profile or another region leaves the vectors as they are; another dimension does not."""
    ids = [COHERE_4, f"us.{COHERE_4}", f"arn:aws:bedrock:us-east-1::foundation-model/{COHERE_4}"]
    assert {BedrockEmbedder(runtime, model=model).identity for model in ids} == {"bedrock:embed-v4:1536"}
    assert BedrockEmbedder(runtime, model=COHERE_4, dimension=256).identity == "bedrock:embed-v4:256"


@pytest.mark.parametrize(
    ("model", "dimension", "words"),
    [
        (TITAN, 300, "gives vectors of 1024, 512, 256, not 300"),
        (COHERE_3, 512, "gives vectors of 1024, not 512"),
        ("amazon.titan-embed-text-v1", None, "is of no family that ragctl knows"),
        ("arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abc", None, "no family"),
    ],
)
def test_models_and_dimensions_that_there_are_not(
    model: str, dimension: int | None, words: str, runtime: Any
) -> None:
    """Found out before any call."""
    with pytest.raises(ConfigError, match=words):
        BedrockEmbedder(runtime, model=model, dimension=dimension)


@pytest.mark.parametrize(
    ("model", "text"),
    [(TITAN, ""), (TITAN, "x" * 50_001), (TITAN, "x " * 8_193), (COHERE_3, "x" * 2_049), (TITAN, "\ud800")],
)
def test_text_that_is_too_long_or_empty_is_refused_alone(model: str, text: str, runtime: Any) -> None:
    """The fault is the text's: the caller finds it in its batch."""
    with pytest.raises(InputRefused, match=f"^model {model}: "):
        BedrockEmbedder(runtime, model=model).embed([text], "document")


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        (lambda d: {**d, "embeddings": d["embeddings"][:1]}, ServiceError, "answered 1 vectors for 2 texts"),
        (lambda d: {**d, "embeddings": [[1.0] * 8] * 2}, ServiceError, "of 8 dimensions, expected 256"),
        (lambda d: {**d, "embeddings": [[None] * 256] * 2}, InputRefused, "a vector that is not finite"),
        (lambda d: {**d, "embeddings": {"int8": []}}, ServiceError, "the answer is not shaped as documented"),
        (lambda d: {"message": SECRET}, ServiceError, "the answer is not shaped as documented"),
        (lambda d: {**d, "embeddings": {"float": d["embeddings"]}}, None, ""),
    ],
)
def test_answers_of_other_shapes(
    change: Callable[[Any], Any],
    expected: type[RagctlError] | None,
    words: str,
    start: Start,
    client_of: Callable[..., Any],
) -> None:
    """Both of Cohere's shapes are read; fewer, shorter or broken vectors never pass for good ones."""
    embedder = BedrockEmbedder(client_of(start(tamper=change)), model=COHERE_4, dimension=256)
    if expected is None:
        assert embedder.embed(["a", "b"], "document").vectors.shape == (2, 256)
        return
    with pytest.raises(RagctlError, match=words) as caught:
        embedder.embed(["a", "b"], "document")
    assert type(caught.value) is expected
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (Fault("error", status=429, code="ThrottlingException"), Throttled, "still throttled"),
        (Fault("error", status=429, code="ModelNotReadyException"), Throttled, "ModelNotReadyException"),
        (
            Fault(
                "error",
                status=403,
                code="AccessDeniedException",
                message="You don't have access to the model",
            ),
            PermissionDenied,
            "access denied: You don't have access to the model",
        ),
        (Fault("error", status=424, code="ModelErrorException", message=SECRET), ServiceError, "ModelError"),
        (Fault("hang", seconds=30), ServiceError, "ReadTimeoutError"),
    ],
)
def test_refusals_of_the_service(
    fault: Fault,
    expected: type[RagctlError],
    words: str,
    server: BedrockServer,
    client_of: Callable[..., Any],
) -> None:
    """Access to the model, throttling and failures are told apart, and name call and model."""
    server.faults.add(fault)
    embedder = BedrockEmbedder(client_of(server, read_timeout=0.2), model=TITAN)
    with pytest.raises(RagctlError, match=words) as caught:
        embedder.embed(["a"], "document")
    assert type(caught.value) is expected
    assert str(caught.value).startswith(f"bedrock:InvokeModel on model {TITAN}: ")
    assert SECRET not in str(caught.value)


def test_unknown_model(runtime: Any) -> None:
    """A model that the region does not have does not exist."""
    with pytest.raises(NotFound, match="model identifier is invalid"):
        BedrockEmbedder(runtime, model="nobody.embed-v4:9").embed(["a"], "document")


# --- generation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        WRITER,
        f"eu.{WRITER}",
        f"arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.{WRITER}",
        "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/jumpstart-writer",
    ],
)
@pytest.mark.parametrize("thinks", ["no", "blocks", "tags"])
def test_answers_alike_streamed_or_not(
    model: str, thinks: str, start: Start, client_of: Callable[..., Any]
) -> None:
    """Foundation models, profiles and endpoint ARNs answer alike; reasoning is kept apart in either form."""
    writer = BedrockGenerator(client_of(start(thinks=thinks)), model=model)
    shown: list[str] = []
    whole, streamed = writer.generate(PROMPT), writer.generate(PROMPT, shown.append)
    assert whole == streamed
    assert whole.text == "".join(shown) == ANSWER
    assert whole.reasoning == ("" if thinks == "no" else THOUGHT)
    assert whole.stop_reason == "end_turn"
    assert len(shown) > 1


@pytest.mark.parametrize("on_text", [None, unheard])
def test_cache_checkpoint_behind_the_static_part(
    on_text: Callable[[str], None] | None, server: BedrockServer, runtime: Any
) -> None:
    """The system text is written to the cache once and then read; both counts reach the report."""
    writer = BedrockGenerator(runtime, model=WRITER, prompt_cache=True)
    first, second = writer.generate(PROMPT, on_text).usage, writer.generate(PROMPT, on_text).usage
    assert (first.cache_write_tokens, first.cache_read_tokens) == (3, 0)
    assert (second.cache_write_tokens, second.cache_read_tokens) == (0, 3)
    assert first.input_tokens == second.input_tokens > 0
    assert server.requests[0]["system"] == [
        {"text": "Be brief, please."},
        {"cachePoint": {"type": "default"}},
    ]
    assert server.requests[0]["messages"][0]["content"] == [
        {"text": f"{PASSAGE}\n\nQuestion: Wann bellen Hunde?"}
    ]


def test_no_checkpoint_unless_asked_for(server: BedrockServer, runtime: Any) -> None:
    """Writing to the cache costs more than reading, so it is a choice; without a system text there is none."""
    BedrockGenerator(runtime, model=WRITER).generate(PROMPT)
    BedrockGenerator(runtime, model=WRITER, prompt_cache=True).generate(Prompt("", PASSAGE, "Hunde?", ()))
    assert server.requests[0]["system"] == [{"text": "Be brief, please."}]
    assert "system" not in server.requests[1]


@pytest.mark.parametrize("on_text", [None, unheard])
def test_guardrail_that_steps_in_is_visible(
    on_text: Callable[[str], None] | None, server: BedrockServer, runtime: Any
) -> None:
    """The guardrail's message is the answer, and the stop reason says whose it is."""
    writer = BedrockGenerator(runtime, model=WRITER, guardrail="abc123", guardrail_version="2")
    generation = writer.generate(Prompt("", PASSAGE, "What is forbidden?", ()), on_text)
    assert (generation.text, generation.stop_reason) == (BLOCKED, "guardrail_intervened")
    assert server.requests[0]["guardrailConfig"] == {
        "guardrailIdentifier": "abc123",
        "guardrailVersion": "2",
    }


@pytest.mark.parametrize(
    ("fails", "expected", "words"),
    [
        ("throttlingException", Throttled, "still throttled after the retries (ThrottlingException)"),
        ("serviceUnavailableException", Throttled, "ServiceUnavailableException"),
        (
            "modelStreamErrorException",
            ServiceError,
            "ModelStreamErrorException: the model answered no status",
        ),
        ("internalServerException", ServiceError, "InternalServerException: something happened on the way"),
        ("validationException", ServiceError, "ValidationException: something happened on the way"),
        ("end", ServiceError, f"model {WRITER}: the answer broke off before its end"),
    ],
)
def test_stream_that_breaks_off(
    fails: str, expected: type[RagctlError], words: str, start: Start, client_of: Callable[..., Any]
) -> None:
    """Half an answer is never taken for a whole one, and the reason is told."""
    writer = BedrockGenerator(client_of(start(fails=fails)), model=WRITER)
    with pytest.raises(RagctlError) as caught:
        writer.generate(PROMPT, unheard)
    assert type(caught.value) is expected
    assert words in str(caught.value)


@pytest.mark.parametrize("on_text", [None, unheard])
def test_prompt_that_is_too_long(
    on_text: Callable[[str], None] | None, start: Start, client_of: Callable[..., Any]
) -> None:
    """The fault is the question's and its passages', not the run's."""
    writer = BedrockGenerator(client_of(start(context=10)), model=WRITER)
    with pytest.raises(InputRefused, match="the model refuses an input, too long or empty"):
        writer.generate(PROMPT, on_text)


def test_tokens_that_run_out(start: Start, client_of: Callable[..., Any]) -> None:
    """An answer that was cut says so in its stop reason; one that never began is an error."""
    short = BedrockGenerator(client_of(start()), model=WRITER, max_tokens=2).generate(PROMPT)
    assert (short.text, short.stop_reason) == ("Hunde bellen", "max_tokens")
    with pytest.raises(ServiceError, match="no answer, the tokens ran out while the model was reasoning"):
        BedrockGenerator(client_of(start(thinks="tags")), model=WRITER, max_tokens=2).generate(PROMPT)


def test_temperature_that_converse_does_not_take(runtime: Any) -> None:
    """Found out before any call."""
    with pytest.raises(ConfigError, match=r"^generation.temperature: Converse takes 0 to 1, not 1.5$"):
        BedrockGenerator(runtime, model=WRITER, temperature=1.5)


# --- reranking -------------------------------------------------------------------------------------------

ARN = f"arn:aws:bedrock:eu-west-1::foundation-model/{RERANKER}"


@pytest.mark.parametrize("page", [2, 1_000])
def test_scores_come_back_in_the_order_of_the_texts(
    page: int, start: Start, client_of: Callable[..., Any]
) -> None:
    """The service answers by relevance and in pages; all of the texts get their score."""
    reranker = BedrockReranker(client_of(start(page=page), "bedrock-agent-runtime"), model_arn=ARN)
    texts = ["fish swim", "dogs bark at night", "a dog", "", "night dog barks"] * 2
    scores = reranker.rerank("When do dogs bark at night?", texts)
    assert scores == pytest.approx([0, 0.75, 0.25, 0, 0.75] * 2)


def test_nothing_to_rerank(server: BedrockServer, client_of: Callable[..., Any]) -> None:
    """No texts, no call."""
    reranker = BedrockReranker(client_of(server, "bedrock-agent-runtime"), model_arn=ARN)
    assert reranker.rerank("question", []) == []
    assert server.calls == []


def test_rerank_needs_a_score_for_every_text(server: BedrockServer) -> None:
    """A service that scores fewer than it was given would drop hits in silence."""

    class Forgetful:
        def rerank(self, **_: object) -> dict[str, Any]:
            return {"results": [{"index": 1, "relevanceScore": 0.5}]}

    with pytest.raises(ServiceError, match="scored 1 of 2 texts"):
        BedrockReranker(Forgetful(), model_arn=ARN).rerank("question", ["a", "b"])


def test_missing_rerank_model(server: BedrockServer, client_of: Callable[..., Any]) -> None:
    """A model that is not there is named."""
    reranker = BedrockReranker(client_of(server, "bedrock-agent-runtime"), model_arn=f"{ARN}-9")
    with pytest.raises(NotFound, match=f"^bedrock:Rerank on model {ARN}-9: does not exist"):
        reranker.rerank("question", ["a"])


# --- configuration ---------------------------------------------------------------------------------------


@pytest.fixture
def settings(server: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make experiments that call `server`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    endpoints = {"bedrock_runtime": server.url, "bedrock_agent_runtime": server.url}

    def settings(region: str = "eu-west-1", **sections: Any) -> Any:
        return experiment(aws={"region": region, "endpoints": endpoints}, **sections)

    return settings


def test_from_config(settings: Callable[..., Any]) -> None:
    """Each backend makes its own client of the right service."""
    config = settings(
        embedding={"kind": "bedrock", "model": TITAN, "dimension": 256},
        generation={"kind": "bedrock", "model": WRITER, "guardrail": "abc"},
        reranking={"kind": "bedrock", "model": RERANKER},
    )
    assert BedrockEmbedder.from_config(config).embed(["a"], "query").vectors.shape == (1, 256)
    writer = BedrockGenerator.from_config(config)
    assert writer.generate(PROMPT).text == ANSWER
    assert writer.identity == f"bedrock:{WRITER}:abc@DRAFT"
    reranker = BedrockReranker.from_config(config)
    assert reranker.rerank("dog", ["a dog", "a cat"]) == [1, 0]
    assert reranker.identity == f"bedrock:{RERANKER}"


@pytest.mark.parametrize(("region", "partition"), [("eu-west-1", "aws"), ("us-gov-west-1", "aws-us-gov")])
def test_rerank_model_becomes_the_regions_arn(
    region: str, partition: str, settings: Callable[..., Any]
) -> None:
    """The API wants an ARN; a config may say the id, and GovCloud has its own partition."""
    config = settings(region, reranking={"kind": "bedrock", "model": RERANKER})
    reranker = BedrockReranker.from_config(config)
    assert reranker._model_arn == f"arn:{partition}:bedrock:{region}::foundation-model/{RERANKER}"
