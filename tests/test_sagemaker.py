"""SageMaker endpoints over real HTTP: families, batches with a bad text, busy models, streams."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from moto import mock_aws
from moto.sagemakerruntime.models import sagemakerruntime_backends

from ragctl.adapters import sagemaker
from ragctl.adapters.aws import ATTEMPTS
from ragctl.adapters.payloads import stream_data
from ragctl.adapters.sagemaker import SageMakerEmbedder, SageMakerGenerator
from ragctl.errors import ConfigError, InputRefused, NotFound, RagctlError, ServiceError, Throttled
from ragctl.records import Prompt, Usage
from tests.experiments import experiment
from tests.servers.clients import connect
from tests.servers.http import Fault
from tests.servers.models import embed
from tests.servers.sagemaker_runtime import EmbeddingModel, Model, SageMakerRuntime, TextModel, model_error

SECRET = "Grünkohl in Bremen"
PASSAGE = '<passage number="1" document="d">\nKatzen schlafen. Hunde bellen nachts — größer.\n</passage>'
PROMPT = Prompt("Be brief.", f"{PASSAGE}\n\nQuestion: ", "Wann bellen Hunde?", ())
ANSWER = "Hunde bellen nachts — größer. [1]"
THOUGHT = "Ich prüfe die Stellen … 🤔"

Start = Callable[[Model], SageMakerRuntime]


def unheard(text: str) -> None:
    """Somebody who lets an answer stream by."""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server whose endpoint "e" is this model; nothing ill-formed may have been asked or answered."""
    servers = []
    with ExitStack() as stack:

        def start(model: Model) -> SageMakerRuntime:
            servers.append(stack.enter_context(SageMakerRuntime({"e": model})))
            return servers[-1]

        yield start
    assert [(server.unexpected, server.broken) for server in servers] == [([], [])] * len(servers)


@pytest.fixture
def runtime_of() -> Iterator[Callable[..., Any]]:
    """Make clients of a server."""
    with ExitStack() as stack:

        def runtime_of(server: SageMakerRuntime, **config: Any) -> Any:
            return stack.enter_context(connect("sagemaker-runtime", server.url, **config))

        yield runtime_of


@pytest.fixture
def embedder(start: Start, runtime_of: Callable[..., Any]) -> Callable[..., SageMakerEmbedder]:
    """Make an embedder and the model that it asks."""

    def embedder(model: EmbeddingModel | None = None, **options: Any) -> SageMakerEmbedder:
        model = model or EmbeddingModel(dimension=16)
        return SageMakerEmbedder(runtime_of(start(model)), endpoint="e", family=model.family, **options)

    return embedder


@pytest.fixture
def generator(start: Start, runtime_of: Callable[..., Any]) -> Callable[..., SageMakerGenerator]:
    """Make a generator and the model that it asks."""

    def generator(container: TextModel, **options: Any) -> SageMakerGenerator:
        runtime = runtime_of(start(container))
        return SageMakerGenerator(runtime, endpoint="e", family=container.family, **options)

    return generator


# --- embedding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tei", "huggingface", "openai"])
@pytest.mark.parametrize("texts", [["one"], ["one", "two", "three"]])
def test_families_give_the_same_vectors_in_order(
    family: Any, texts: list[str], embedder: Callable[..., SageMakerEmbedder]
) -> None:
    """Each dialect is spoken and understood, for one text and for several."""
    vectors = embedder(EmbeddingModel(family, 16)).embed(texts, "document").vectors
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [embed(text, 16) for text in texts])


def test_tokens_are_counted_where_the_family_does(embedder: Callable[..., SageMakerEmbedder]) -> None:
    """Only the OpenAI shape reports usage."""
    assert embedder(EmbeddingModel("openai")).embed(["two words"], "query").usage == Usage(input_tokens=2)
    assert embedder(EmbeddingModel("tei")).embed(["two words"], "query").usage == Usage()


def test_prefixes_by_role(embedder: Callable[..., SageMakerEmbedder]) -> None:
    """Questions and passages get their own instruction, and it is part of the identity."""
    prefixed = embedder(EmbeddingModel(dimension=16), query_prefix="query: ", passage_prefix="passage: ")
    np.testing.assert_array_equal(prefixed.embed(["x"], "query").vectors[0], embed("query: x", 16))
    np.testing.assert_array_equal(prefixed.embed(["x"], "document").vectors[0], embed("passage: x", 16))
    assert prefixed.identity != embedder().identity


def test_dimension_is_asked_for_once(start: Start, runtime_of: Callable[..., Any]) -> None:
    """Where neither config nor record says, one call finds out."""
    server = start(EmbeddingModel(dimension=24))
    embedder = SageMakerEmbedder(runtime_of(server), endpoint="e", family="tei")
    assert [embedder.dimension, embedder.dimension] == [24, 24]
    assert len(server.calls) == 1


def test_identity_is_the_models_and_not_the_endpoints() -> None:
    """A model that is deployed again elsewhere does not embed everything again."""
    with connect("sagemaker-runtime", "http://127.0.0.1:1") as runtime:

        def identity(**options: Any) -> str:
            return SageMakerEmbedder(runtime, family="tei", **options).identity

        assert identity(endpoint="a", model="gte", model_version="1.0.8") == "sagemaker:gte@1.0.8:tei"
        assert identity(endpoint="b", model="gte", model_version="1.0.8") == "sagemaker:gte@1.0.8:tei"
        assert identity(endpoint="a", model="gte", model_version="1.1.0") == "sagemaker:gte@1.1.0:tei"
        assert identity(endpoint="a") == "sagemaker:a:tei"


@pytest.mark.parametrize("status", [413, 422])
def test_one_bad_text_refuses_its_batch_and_can_be_found(
    status: int, embedder: Callable[..., SageMakerEmbedder]
) -> None:
    """The caller bisects: the halves without the bad text are embedded."""
    model = embedder(EmbeddingModel(dimension=16, max_tokens=4, too_long=status))
    texts = ["a", "b", "this one is much too long", "c"]
    with pytest.raises(InputRefused, match=rf"^endpoint e: the model refuses an input \({status}\)$"):
        model.embed(texts, "document")
    assert model.embed(texts[:2] + texts[3:], "document").vectors.shape == (3, 16)


def test_body_over_six_megabytes_is_refused_before_it_is_sent(
    start: Start, runtime_of: Callable[..., Any]
) -> None:
    """Escapes can make a body larger than the text; the service's limit counts the body."""
    server = start(EmbeddingModel())
    embedder = SageMakerEmbedder(runtime_of(server), endpoint="e", family="tei")
    with pytest.raises(InputRefused, match=r"a request of 6,4\d\d,\d\d\d bytes; the limit is 6,291,456"):
        embedder.embed(["\x01" * 1_080_000], "document")
    assert server.calls == []


def test_half_a_surrogate_pair_is_the_texts_fault(embedder: Callable[..., SageMakerEmbedder]) -> None:
    """Hostile text fails alone instead of ending the run."""
    with pytest.raises(InputRefused, match="half a surrogate pair"):
        embedder().embed(["fine", "\udc00"], "document")


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        (lambda rows: rows[:-1], ServiceError, "answered 1 vectors for 2 texts"),
        (lambda rows: [[[1.0, 2.0]], [[1.0, 2.0]]], ServiceError, "not rows of numbers of one length"),
        (lambda rows: [[1.0], [1.0, 2.0]], ServiceError, "not rows of numbers of one length"),
        (lambda rows: [[1.0, 2.0], [1.0, 2.0]], ServiceError, "vectors of 2 dimensions, expected 4"),
        (lambda rows: [rows[0], [1.0, None, 1.0, 1.0]], InputRefused, "a vector that is not finite"),
        (lambda rows: b"[[1, 2, 3, NaN], [1, 2, 3, 4]]", InputRefused, "a vector that is not finite"),
        (lambda rows: [rows[0], [1e39, 1.0, 1.0, 1.0]], InputRefused, "a vector that is not finite"),
        (lambda rows: {"embedding": rows}, ServiceError, "the answer is not shaped as family tei answers"),
        (lambda rows: 3, ServiceError, "the answer is not shaped as family tei answers"),
        (lambda rows: b"<html>", ServiceError, r"the answer is no JSON \(6 bytes\)"),
        (lambda rows: b"", ServiceError, r"the answer is no JSON \(0 bytes\)"),
    ],
)
def test_bad_answers(
    change: Callable[[Any], Any],
    expected: type[RagctlError],
    words: str,
    embedder: Callable[..., SageMakerEmbedder],
) -> None:
    """Fewer, other or broken vectors never pass for good ones; NaN is one text's fault."""
    with pytest.raises(RagctlError, match=words) as caught:
        embedder(EmbeddingModel("tei", 4, tamper=change), dimension=4).embed(["a", "b"], "document")
    assert type(caught.value) is expected


@pytest.mark.parametrize("indexes", [[0, 0], [0, 2]])
def test_openai_indexes_must_be_complete(
    indexes: list[int], embedder: Callable[..., SageMakerEmbedder]
) -> None:
    """Two vectors with one index would silently swap texts."""

    def change(document: Any) -> Any:
        rows = [{**row, "index": index} for row, index in zip(document["data"], indexes, strict=True)]
        return {**document, "data": rows}

    with pytest.raises(ServiceError, match="not shaped as family openai"):
        embedder(EmbeddingModel("openai", 4, tamper=change)).embed(["a", "b"], "document")


def test_family_that_the_container_does_not_speak(start: Start, runtime_of: Callable[..., Any]) -> None:
    """A wrong family in the config is refused by the container, whose words quote the texts and stay out."""
    embedder = SageMakerEmbedder(runtime_of(start(EmbeddingModel("openai"))), endpoint="e", family="tei")
    with pytest.raises(RagctlError) as caught:
        embedder.embed([SECRET], "document")
    assert SECRET not in str(caught.value)


def test_missing_endpoint_and_component(start: Start, runtime_of: Callable[..., Any]) -> None:
    """What is not there is named."""
    runtime = runtime_of(start(EmbeddingModel(component="c")))
    with pytest.raises(
        NotFound, match=r"^sagemaker:InvokeEndpoint on endpoint nope: does not exist: Endpoint nope"
    ):
        SageMakerEmbedder(runtime, endpoint="nope", family="tei").embed(["a"], "query")
    with pytest.raises(NotFound, match="endpoint e: does not exist"):
        SageMakerEmbedder(runtime, endpoint="e", family="tei").embed(["a"], "query")
    found = SageMakerEmbedder(runtime, endpoint="e", family="tei", inference_component="c")
    assert found.embed(["a"], "query").vectors.shape == (1, 384)


def test_moto_is_read_as_well() -> None:
    """A second opinion on the wire: a result registered with moto comes back through the adapter."""
    with mock_aws():
        backend = sagemakerruntime_backends["123456789012"]["eu-west-1"]
        backend.results_queue.append(("[[0.5, 1.5]]", "application/json", "AllTraffic", ""))
        config = embedding(endpoint="e", family="tei", dimension=2)
        vectors = SageMakerEmbedder.from_config(config).embed(["a"], "query").vectors
    assert vectors.tolist() == [[0.5, 1.5]]


# --- a busy model ----------------------------------------------------------------------------------------


class Busy:
    """A container that answers 429 or 503 for its first calls."""

    def __init__(self, times: int, status: int) -> None:
        self.left, self.status = times, status

    def __call__(self, document: Any) -> Any:
        if self.left:
            self.left -= 1
            raise model_error(self.status, f"busy with {SECRET}")
        return document


@pytest.mark.parametrize("status", [429, 503])
def test_busy_model_is_asked_again(
    status: int, embedder: Callable[..., SageMakerEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK does not repeat a 424 behind which the model says 429 or 503; we do, as often as the SDK would."""
    monkeypatch.setattr(sagemaker, "BUSY_DELAY_S", 0.0)
    model = EmbeddingModel(dimension=16, tamper=Busy(ATTEMPTS - 1, status))
    assert embedder(model).embed(["a"], "query").vectors.shape == (1, 16)


def test_model_that_stays_busy_is_throttled(
    start: Start, runtime_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end the caller is told to slow down, after as many calls as the limit says."""
    monkeypatch.setattr(sagemaker, "BUSY_DELAY_S", 0.0)
    server = start(EmbeddingModel(tamper=Busy(100, 429)))
    embedder = SageMakerEmbedder(runtime_of(server), endpoint="e", family="tei")
    with pytest.raises(Throttled, match=r"^endpoint e: the model is still busy after the retries \(429\)$"):
        embedder.embed(["a"], "query")
    assert len(server.calls) == ATTEMPTS


def test_throttled_service_and_broken_model(start: Start, runtime_of: Callable[..., Any]) -> None:
    """The service's own throttling is Throttled; a container that fails is an error that names its log."""
    server = start(EmbeddingModel(tamper=Busy(1, 500)))
    embedder = SageMakerEmbedder(runtime_of(server), endpoint="e", family="tei")
    with pytest.raises(ServiceError) as caught:
        embedder.embed(["a"], "query")
    assert re.search(r"ModelError: the model answered 500, its log is arn:aws:logs:", str(caught.value))
    assert SECRET not in str(caught.value)
    server.faults.add(Fault("error", status=429, code="ThrottlingException", message="slow down"))
    with pytest.raises(Throttled, match="sagemaker:InvokeEndpoint on endpoint e: still throttled"):
        embedder.embed(["a"], "query")


def test_silent_endpoint_times_out(start: Start, runtime_of: Callable[..., Any]) -> None:
    """An endpoint that says nothing does not stop a run for ever."""
    server = start(EmbeddingModel())
    server.faults.add(Fault("hang", seconds=30))
    embedder = SageMakerEmbedder(runtime_of(server, read_timeout=0.2), endpoint="e", family="tei")
    with pytest.raises(ServiceError, match=r"endpoint e: the connection failed \(ReadTimeoutError\)"):
        embedder.embed(["a"], "query")


# --- text ------------------------------------------------------------------------------------------------

TEXT_MODELS = [
    TextModel("chat"),
    TextModel("chat", thinks="tags"),
    TextModel("chat", thinks="field"),
    TextModel("text", "lmi"),
    TextModel("text", "lmi", thinks="tags"),
    TextModel("text", "tgi"),
    TextModel("text", "outputs"),
    TextModel("completions"),
]


@pytest.mark.parametrize("model", TEXT_MODELS, ids=lambda m: f"{m.family}-{m.dialect}-{m.thinks}")
@pytest.mark.parametrize("part_bytes", [1, 7, 100_000])
def test_families_answer_alike_streamed_or_not(
    model: TextModel, part_bytes: int, generator: Callable[..., SageMakerGenerator]
) -> None:
    """However the stream is cut, inside characters too, the answer is the same and its reasoning apart."""
    cut = TextModel(model.family, model.dialect, thinks=model.thinks, part_bytes=part_bytes)
    writer = generator(cut)
    shown: list[str] = []
    whole, streamed = writer.generate(PROMPT), writer.generate(PROMPT, shown.append)
    assert whole.text == streamed.text == "".join(shown) == ANSWER
    assert whole.reasoning == streamed.reasoning == ("" if model.thinks == "no" else THOUGHT)
    assert len(shown) > 1


def test_reasoning_without_its_opening_tag_is_not_shown(generator: Callable[..., SageMakerGenerator]) -> None:
    """The template of DeepSeek's distillations opens the tag; the model is known by its JumpStart id."""
    writer = generator(TextModel("chat", thinks="implied"), model="deepseek-llm-r1-distill-qwen-7b")
    shown: list[str] = []
    generation = writer.generate(PROMPT, shown.append)
    assert (generation.text, generation.reasoning, "".join(shown)) == (ANSWER, THOUGHT, ANSWER)


def test_usage_and_stop_reason(generator: Callable[..., SageMakerGenerator]) -> None:
    """What the container counts reaches the report."""
    generation = generator(TextModel("chat")).generate(PROMPT)
    assert generation.stop_reason == "stop"
    assert generation.usage.input_tokens > 10
    assert generation.usage.output_tokens == 5


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_temperature_of_zero_is_no_sampling_for_tgi(
    temperature: float, generator: Callable[..., SageMakerGenerator]
) -> None:
    """TGI refuses a temperature of 0; it is then asked not to sample."""
    writer = generator(TextModel("text", "tgi"), temperature=temperature)
    assert writer.generate(PROMPT).text == ANSWER


def test_tokens_that_run_out_while_reasoning(generator: Callable[..., SageMakerGenerator]) -> None:
    """An answer that never began is an error with a hint, not a thought shown as an answer."""
    writer = generator(TextModel("chat", thinks="tags"), max_tokens=3)
    with pytest.raises(ServiceError, match="endpoint e: no answer, the tokens ran out") as caught:
        writer.generate(PROMPT)
    assert caught.value.hint == "raise generation.max_tokens"


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_that_is_too_long(stream: bool, generator: Callable[..., SageMakerGenerator]) -> None:
    """Containers that answer 400 are understood by their words, which quote the prompt and stay out."""
    writer = generator(TextModel("chat", context=1_030))
    with pytest.raises(InputRefused, match=r"^endpoint e: the model refuses an input \(400\)$"):
        writer.generate(PROMPT, unheard if stream else None)


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("exception", r"sagemaker:InvokeEndpointWithResponseStream on endpoint e: ModelStreamError"),
        ("line", "endpoint e: the model failed while it answered"),
        ("end", "endpoint e: the answer broke off before its end"),
    ],
)
@pytest.mark.parametrize("family", ["chat", "completions"])
def test_stream_that_breaks_off(
    fails: Any, words: str, family: Any, generator: Callable[..., SageMakerGenerator]
) -> None:
    """Half an answer is never taken for a whole one."""
    writer = generator(TextModel(family, fails=fails))
    with pytest.raises(ServiceError, match=words) as caught:
        writer.generate(PROMPT, unheard)
    assert "Hunde" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: {"choices": [{"message": {"content": 7}}]},
        lambda document: {"choices": 3},
        lambda document: [],
        lambda document: "text",
        lambda document: {"outputs": []},
    ],
)
def test_answers_of_another_shape(
    change: Callable[[Any], Any], generator: Callable[..., SageMakerGenerator]
) -> None:
    """A container that speaks otherwise is told from one without an answer."""
    writer = generator(TextModel("chat", tamper=change))
    with pytest.raises(ServiceError, match="endpoint e: the answer is not shaped as family chat answers"):
        writer.generate(PROMPT)


def test_empty_answer(generator: Callable[..., SageMakerGenerator]) -> None:
    """A model that says nothing has not answered."""
    said = {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}
    with pytest.raises(ServiceError, match=r"endpoint e: the answer is empty \(stop reason: stop\)"):
        generator(TextModel("chat", tamper=lambda document: said)).generate(PROMPT)


def test_only_line_feeds_end_a_line() -> None:
    """JSON may hold U+2028 and U+0085 as they are; a broken character costs one replacement mark, not the answer."""
    lines = 'data: {"a": "x\u2028y\x85z"}\r\n\nevent: end\n: comment\n{"b": 1}'.encode()
    assert list(stream_data([lines[:14], lines[14:]])) == ['{"a": "x\u2028y\x85z"}', '{"b": 1}']
    assert list(stream_data([b"caf\xc3", b"(\n"])) == ["caf\N{REPLACEMENT CHARACTER}("]


# --- configuration ---------------------------------------------------------------------------------------


def embedding(**section: Any) -> Any:
    return experiment(aws={"region": "eu-west-1"}, embedding={"kind": "sagemaker", **section})


def test_config_without_endpoint_points_to_deploy_models() -> None:
    """Nothing is guessed: without an endpoint or a family there is an error with what to do."""
    with pytest.raises(ConfigError) as caught:
        SageMakerEmbedder.from_config(embedding())
    assert str(caught.value) == "embedding.endpoint is not set, and deploy-models has not recorded one"
    assert caught.value.hint == "set embedding.endpoint, or run: ragctl deploy-models CONFIG"
    with pytest.raises(ConfigError, match=r"^embedding\.family is not set"):
        SageMakerEmbedder.from_config(embedding(endpoint="e"))
    generation = experiment(aws={"region": "eu-west-1"}, generation={"kind": "sagemaker"})
    with pytest.raises(ConfigError, match=r"^generation\.endpoint is not set"):
        SageMakerGenerator.from_config(generation)


RECORD = {
    "endpoint": "recorded",
    "family": "tei",
    "dimension": 3584,
    "model_id": "gte-qwen2-7b-instruct",
    "model_version": "1.0.8",
}


def test_deployment_record_fills_what_the_config_leaves_open() -> None:
    """The record knows endpoint, family, dimension and the exact version."""
    embedder = SageMakerEmbedder.from_config(embedding(), RECORD)
    assert embedder.identity == "sagemaker:gte-qwen2-7b-instruct@1.0.8:tei"
    assert embedder.dimension == 3584
    assert SageMakerEmbedder.from_config(embedding(family="openai", dimension=8), RECORD).dimension == 8


def test_recorded_family_that_is_not_spoken() -> None:
    """A record made by a newer version is refused with the families that there are."""
    with pytest.raises(ConfigError, match="recorded the payload family riddles") as caught:
        SageMakerEmbedder.from_config(embedding(), {**RECORD, "family": "riddles"})
    assert caught.value.hint == "set embedding.family to one of tei, huggingface, openai"


def test_generator_from_the_record(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of our own making answers over the endpoint override."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = start(TextModel("chat", thinks="implied"))
    config = experiment(
        aws={"region": "eu-west-1", "endpoints": {"sagemaker_runtime": server.url}},
        generation={"kind": "sagemaker", "max_tokens": 200},
    )
    record = {"endpoint": "e", "family": "chat", "model_id": "deepseek-r1", "model_version": "2.0.2"}
    writer = SageMakerGenerator.from_config(config, record)
    assert writer.identity == "sagemaker:deepseek-r1@2.0.2:chat"
    assert writer.generate(PROMPT).reasoning == THOUGHT
