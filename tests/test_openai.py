"""OpenAI-compatible servers: what is sent, what is understood, and how every refusal ends."""

import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from ragctl import errors
from ragctl.adapters.openai import RETRIES, OpenAIEmbedder, OpenAIGenerator, Server, StatusRefused
from ragctl.config import Experiment
from ragctl.prompts import build_prompt, load_template
from ragctl.records import DOCUMENT, TEXT, Hit, Prompt, Usage
from tests.servers.http import Fault, Reply
from tests.servers.models import embed
from tests.servers.openai_server import Behaviour, OpenAIServer
from tests.servers.process import ServerProcess

Start = Callable[..., OpenAIServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers of a behaviour, which must end with nothing unknown asked of them."""
    servers: list[OpenAIServer] = []
    with ExitStack() as stack:

        def start(**behaviour: Any) -> OpenAIServer:
            servers.append(stack.enter_context(OpenAIServer(Behaviour(**behaviour))))
            return servers[-1]

        yield start
    assert [server.unexpected for server in servers] == [[]] * len(servers)


def connect(url: str, section: str = "embedding", key: str | None = None) -> Server:
    """A server as the adapters see it, whose calls are repeated without a pause."""
    retries = RETRIES.new(backoff_factor=0, backoff_jitter=0)
    return Server(urllib3.PoolManager(retries=retries, timeout=5), f"{url}/v1/", section=section, api_key=key)


def embedder(server: OpenAIServer, **settings: Any) -> OpenAIEmbedder:
    """An embedder of the server's model."""
    return OpenAIEmbedder(connect(server.url), **{"model": "words", **settings})


def generator(server: OpenAIServer, **settings: Any) -> OpenAIGenerator:
    """A generator of the server's model."""
    return OpenAIGenerator(connect(server.url, "generation"), **{"model": "quoter", **settings})


def prompt(question: str = "When did the café open?", text: str = "The café opened on 23 May.") -> Prompt:
    """A prompt with one passage."""
    hit = Hit("k", 1.0, None, {TEXT: text, DOCUMENT: "d.txt"})
    return build_prompt(load_template(None), question, [hit])


# --- embedding -------------------------------------------------------------------------------------------


def test_vectors_come_in_the_order_of_the_texts_with_the_tokens_used(start: Start) -> None:
    """The server answers in reverse order; the index decides."""
    found = embedder(start()).embed(["harbour buoys", "salmon", "grüne Boote"], "document")
    np.testing.assert_allclose(
        found.vectors, [embed(text, 64) for text in ("harbour buoys", "salmon", "grüne Boote")]
    )
    assert found.vectors.dtype == np.float32
    assert found.usage == Usage(input_tokens=5)


@pytest.mark.parametrize(
    ("packs", "asked"),
    [
        ("yes", ["base64", "base64"]),
        ("ignores", ["base64", "base64"]),
        ("refuses", ["base64", "float", "float"]),
        ("fails", ["base64", "float", "float"]),
    ],
)
def test_vectors_come_in_base64_where_the_server_knows_it(start: Start, packs: str, asked: list[str]) -> None:
    """Servers that answer digits all the same, refuse, or fail over it give the same vectors, and are asked once."""
    server = start(packs=packs)
    asking = embedder(server)
    for text in ("harbour buoys", "salmon"):
        np.testing.assert_array_equal(asking.embed([text], "document").vectors, [embed(text, 64)])
    assert [request["encoding_format"] for request in server.requests] == asked


def test_a_server_that_knows_base64_is_not_asked_twice_for_a_text_that_it_refuses(start: Start) -> None:
    """Once it has answered, a refusal is about the text; before, it may be about the encoding."""
    server = start(max_tokens=3)
    asking = embedder(server)
    with pytest.raises(errors.InputRefused):
        asking.embed(["the first of four words"], "document")
    asking.embed(["salmon"], "document")
    with pytest.raises(errors.InputRefused):
        asking.embed(["one more of four words"], "document")
    assert [request["encoding_format"] for request in server.requests] == [
        "base64",
        "float",
        "base64",
        "base64",
    ]


@pytest.mark.parametrize(
    ("embedding", "kind", "words"),
    [
        ("AAAA", errors.ServiceError, "the answer is not shaped as OpenAI's API answers"),  # three bytes
        ("not base64 at all", errors.ServiceError, "the answer is not shaped as OpenAI's API answers"),
        ("", errors.ServiceError, "the vectors are not rows of numbers of one length"),
        ("AACAfwAAgD8=", errors.InputRefused, "the model answered a vector that is not finite"),
    ],
)
def test_base64_that_holds_no_vector_is_an_error(
    start: Start, embedding: str, kind: type[errors.RagctlError], words: str
) -> None:
    """Nothing that is not a whole, finite vector becomes one."""
    server = start(tamper=lambda reply: {**reply, "data": [{"index": 0, "embedding": embedding}]})
    with pytest.raises(kind) as caught:
        embedder(server).embed(["a"], "document")
    assert caught.value.message == f"{server.url}/v1: {words}"


def test_prefixes_go_in_front_of_queries_and_passages(start: Start) -> None:
    """Models that were trained with prefixes get them, each role its own."""
    server = start()
    prefixed = embedder(server, query_prefix="query: ", passage_prefix="passage: ")
    prefixed.embed(["a"], "query")
    prefixed.embed(["b"], "document")
    assert [request["input"] for request in server.requests] == [["query: a"], ["passage: b"]]


def test_the_dimension_is_found_by_one_call(start: Start) -> None:
    """Where the config does not say how long a vector is, the server is asked once."""
    server = start(dimension=48)
    asking = embedder(server)
    assert (asking.dimension, asking.dimension) == (48, 48)
    assert len(server.requests) == 1
    assert "dimensions" not in server.requests[0]


def test_a_dimension_in_the_config_is_asked_for(start: Start) -> None:
    """`dimensions` is sent when the config has a dimension, and no call is spent on finding it out."""
    server = start()
    short = embedder(server, dimension=16)
    assert short.dimension == 16
    assert server.requests == []
    assert short.embed(["a"], "query").vectors.shape == (1, 16)
    assert server.requests[0]["dimensions"] == 16


def test_a_server_that_ignores_the_dimension_is_an_error(start: Start) -> None:
    """Vectors of another length never reach an index."""
    server = start(
        tamper=lambda reply: {**reply, "data": [{**row, "embedding": [1.0]} for row in reply["data"]]}
    )
    with pytest.raises(errors.ServiceError, match="answered vectors of 1 dimensions, expected 16"):
        embedder(server, dimension=16).embed(["a"], "query")


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (lambda reply: {**reply, "data": reply["data"][1:]}, "answered 1 vectors for 2 texts"),
        (lambda reply: {**reply, "data": reply["data"][:1] * 2}, "answered 2 vectors for 2 texts"),
        (lambda reply: {"vectors": []}, "the answer is not shaped as OpenAI's API answers"),
        (lambda reply: {**reply, "data": None}, "the answer is not shaped as OpenAI's API answers"),
    ],
)
def test_an_answer_that_does_not_fit_is_an_error(
    start: Start, tamper: Callable[[Any], Any], fault: str
) -> None:
    """Missing, doubled or misshapen vectors are never put beside the wrong text."""
    with pytest.raises(errors.ServiceError, match=fault):
        embedder(start(tamper=tamper)).embed(["a", "b"], "document")


def test_an_infinite_vector_is_the_fault_of_a_text(start: Start) -> None:
    """The caller bisects to find the text that the model cannot take."""
    row = {"index": 0, "embedding": [1e300, 0]}
    with pytest.raises(errors.InputRefused, match="not finite"):
        embedder(start(tamper=lambda reply: {**reply, "data": [row]})).embed(["a"], "document")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_that_is_too_long_is_refused_without_being_shown(start: Start, status: int) -> None:
    """Some servers say it with 400 and words, Text Embeddings Inference with 413; the words quote the text and stay out."""
    server = start(max_tokens=3, too_long=status)
    with pytest.raises(errors.InputRefused) as caught:
        embedder(server).embed(["a secret of four words"], "document")
    assert caught.value.message == f"{server.url}/v1: the model refuses an input ({status})"
    assert "secret" not in str(caught.value)


def test_half_a_surrogate_pair_is_refused(start: Start) -> None:
    """Text that no encoding has never becomes a crash."""
    with pytest.raises(errors.InputRefused, match="half a surrogate pair"):
        embedder(start()).embed(["\ud800"], "document")


def test_the_identity_names_what_shapes_a_vector_and_not_the_address(start: Start) -> None:
    """Model, dimension and prefixes count; the same model served elsewhere keeps its vectors."""
    one, other = start(), start()
    assert embedder(one).identity == embedder(other).identity == "openai:words"
    assert embedder(one, dimension=16).identity == "openai:words:16"
    prefixed = {embedder(one, query_prefix=a, passage_prefix=b).identity for a, b in [("x", ""), ("", "x")]}
    assert len(prefixed) == 2


# --- generation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thinks", ["no", "tags", "field"])
@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_with_its_tokens_and_its_reasoning_apart(start: Start, thinks: str, streamed: bool) -> None:
    """Whole or in odd pieces, the answer is the same, and what the model thought is not part of it."""
    pieces: list[str] = []
    reply = generator(start(thinks=thinks)).generate(prompt(), pieces.append if streamed else None)
    assert reply.text == "The café opened on 23 May. [1]"
    assert reply.reasoning == ("" if thinks == "no" else "Let me see.")
    assert reply.stop_reason == "stop"
    assert reply.usage.input_tokens > 100
    assert reply.usage.output_tokens == 7
    assert "".join(pieces).strip() == (reply.text if streamed else "")


def test_what_the_model_is_sent(start: Start) -> None:
    """System and user message from the template, and the settings of the config."""
    server = start()
    asked = prompt()
    generator(server, max_tokens=50, temperature=0.5).generate(asked)
    assert server.requests[0] == {
        "model": "quoter",
        "messages": [
            {"role": "system", "content": asked.system},
            {"role": "user", "content": asked.context + asked.question},
        ],
        "max_tokens": 50,
        "temperature": 0.5,
    }


def test_a_server_that_cannot_count_its_streams_is_asked_without(start: Start) -> None:
    """`stream_options` is left out once it was refused, and the tokens are then unknown."""
    server = start(counts_streams=False)
    writer = generator(server)
    for _ in range(2):
        assert writer.generate(prompt(), print).usage == Usage()
    assert ["stream_options" in request for request in server.requests] == [True, False, False]


def test_a_stream_that_breaks_off_is_an_error(start: Start) -> None:
    """Half an answer is not passed off as a whole one."""
    with pytest.raises(errors.ServiceError, match="the answer broke off before its end"):
        generator(start(ends=False)).generate(prompt(), print)


def test_an_error_within_a_stream_is_an_error(start: Start) -> None:
    """A model that fails while it answers says so in an event, whose words may quote the prompt."""
    server = start(tamper=lambda event: {"error": {"message": "CUDA, prompt: 23 May"}})
    with pytest.raises(errors.ServiceError, match=r"/v1: the model failed while it answered$"):
        generator(server).generate(prompt(), print)


def test_a_prompt_that_is_too_long_is_refused(start: Start) -> None:
    """The question fails, not the run."""
    with pytest.raises(errors.InputRefused, match=r"the model refuses an input \(400\)"):
        generator(start(max_tokens=10)).generate(prompt(), print)


# --- errors ----------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 and 503 are repeated in one place, and Retry-After is kept to."""
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    server = start()
    server.canned.extend(
        [Reply(429, headers={"Retry-After": "7"}), Reply(503, headers={"Retry-After": "900"})]
    )
    assert embedder(server).embed(["a"], "query").vectors.shape == (1, 64)
    assert slept == [7, 30]  # nobody is made to wait for longer than half a minute


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_stays_busy_is_throttling(start: Start, status: int) -> None:
    """After five calls the caller is told to slow down."""
    server = start()
    server.faults.add(Fault("error", status=status, times=None))
    with pytest.raises(errors.Throttled, match=rf"still busy after the retries \({status}\)") as caught:
        embedder(server).embed(["a"], "document")
    assert len(server.calls) == 5
    assert caught.value.hint == "lower ingest.embed_concurrency"


def test_a_broken_connection_is_repeated_once(start: Start) -> None:
    """A connection that the server closed in the meantime costs nothing but time."""
    server = start()
    server.faults.add(Fault("reset"))
    assert embedder(server).embed(["a"], "query").vectors.shape == (1, 64)
    server.faults.add(Fault("reset", times=None))
    with pytest.raises(errors.ServiceError, match=r"/v1: the connection broke \(ProtocolError\)"):
        embedder(server).embed(["a"], "query")


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(401), errors.CredentialsError, "the API key is missing or wrong (401)"),
        (Reply(403), errors.PermissionDenied, "the API key may not use model words (403)"),
        (Reply(404), errors.NotFound, "knows no model words, or is no OpenAI-compatible server (404)"),
        (Reply(400, b'{"error": "no"}'), StatusRefused, "answered 400"),
        (Reply(500), StatusRefused, "answered 500"),
        (
            Reply(307, headers={"Location": "http://elsewhere/"}),
            errors.ServiceError,
            "redirects to http://else",
        ),
        (Reply(200, b"<html>"), errors.ServiceError, "the answer is no JSON (6 bytes)"),
    ],
)
def test_every_refusal_has_its_error(
    start: Start, reply: Reply, kind: type[errors.RagctlError], words: str
) -> None:
    """Each status ends in the error that says what to do; nothing is repeated and no redirect followed."""
    server = start()
    asking = embedder(server)
    assert asking.dimension == 64  # from here on a refusal is not about base64
    server.canned.append(reply)
    with pytest.raises(kind) as caught:
        asking.embed(["a"], "document")
    assert type(caught.value) is kind
    assert words in caught.value.message
    assert caught.value.message.startswith(f"{server.url}/v1: ")
    assert len(server.calls) == 2


def test_a_used_up_quota_is_not_throttling(start: Start) -> None:
    """Slowing down would not help."""
    server = start()
    server.canned.extend([Reply(429, b'{"error": {"code": "insufficient_quota"}}')] * 5)
    with pytest.raises(errors.QuotaExceeded, match="the quota of the API key is used up"):
        embedder(server).embed(["a"], "document")


def test_nobody_listening_names_the_address() -> None:
    """The most common fault: the server is not running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(errors.ServiceError) as caught:
            OpenAIEmbedder(connect(url), model="words").embed(["a"], "query")
    assert caught.value.message == f"{url}/v1: cannot connect: Connection refused"
    assert caught.value.hint == "is the server running, and is embedding.base_url right?"


def test_no_answer_in_time_names_the_setting(start: Start) -> None:
    """A server that hangs does not hang us."""
    server = start()
    server.faults.add(Fault("hang", times=None))
    pool = urllib3.PoolManager(retries=False, timeout=0.05)
    quick = Server(pool, f"{server.url}/v1", section="generation")
    with pytest.raises(errors.ServiceError) as caught:
        OpenAIGenerator(quick, model="quoter").generate(prompt())
    assert caught.value.message == f"{server.url}/v1: no answer in time"
    assert caught.value.hint == "raise generation.timeout_s"


def test_the_key_is_sent_and_never_shown(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """The key goes into the Authorization header; not into errors, nor into the log above debug."""
    server = start(api_key="sesame")
    caplog.set_level(logging.INFO)
    right, wrong = (
        OpenAIEmbedder(connect(server.url, key=key), model="words") for key in ("sesame", "sesam")
    )
    right.embed(["a"], "query")
    with pytest.raises(errors.CredentialsError) as caught:
        wrong.embed(["a"], "query")
    assert server.headers[0]["Authorization"] == "Bearer sesame"
    assert "sesam" not in f"{caught.value} {caught.value.hint} {caplog.text} {wrong.identity}"
    assert "OPENAI_API_KEY" in (caught.value.hint or "")


# --- config ----------------------------------------------------------------------------------------------


def experiment(folder: Path, url: str) -> Experiment:
    """An experiment that embeds and generates through a server."""
    address = {"kind": "openai", "base_url": url, "api_key": "sesame"}
    return Experiment.model_validate(
        {
            "name": "e",
            "sources": [{"kind": "local", "name": "s", "path": str(folder)}],
            "embedding": {
                **address,
                "model": "words",
                "max_batch": 7,
                "max_batch_tokens": 99,
                "query_prefix": "q: ",
            },
            "generation": {**address, "model": "quoter", "max_tokens": 9},
        }
    )


def test_the_experiment_decides(start: Start, tmp_path: Path) -> None:
    """Both adapters take their settings, key included, from the config."""
    server = start(api_key="sesame")
    config = experiment(tmp_path, f"{server.url}/v1")
    embedding = OpenAIEmbedder.from_config(config)
    embedding.embed(["a"], "query")
    OpenAIGenerator.from_config(config).generate(prompt())
    assert (embedding.max_batch, embedding.max_tokens, embedding.cpu_bound) == (7, 99, False)
    assert server.requests[0]["input"] == ["q: a"]
    assert server.requests[1]["max_tokens"] == 9


def test_the_test_server_runs_as_a_process_of_its_own() -> None:
    """Benchmarks and tests of whole commands start it with `python -m` and read its report."""
    with ServerProcess("tests.servers.openai_server", "--port", "0", "--dimension", "8") as process:
        vectors = OpenAIEmbedder(connect(process.url), model="words").embed(["a"], "query").vectors
        assert vectors.shape == (1, 8)
        assert process.report()["calls"] == {"Embeddings": 1}


def test_the_test_server_is_strict() -> None:
    """A path or a member that the API does not have is refused and remembered."""
    with OpenAIServer() as server:
        http = urllib3.PoolManager()
        assert http.request("POST", f"{server.url}/v2/embeddings").status == 501
        body = json.dumps({"model": "words", "input": ["a"], "truncate": True})
        assert http.request("POST", f"{server.url}/v1/embeddings", body=body).status == 400
        assert server.unexpected == ["POST /v2/embeddings", "members ['input', 'model', 'truncate']"]
