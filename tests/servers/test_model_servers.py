"""The SageMaker and Bedrock servers: as strict as the services, and honest about what they do not know."""

from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from tests.servers.bedrock import COHERE_4, MODELS, TITAN, WRITER, BedrockServer
from tests.servers.clients import connect
from tests.servers.eventstream import event, message
from tests.servers.http import Fault
from tests.servers.models import NO_ANSWER, answer, embed, overlap
from tests.servers.process import ServerProcess
from tests.servers.sagemaker_runtime import EmbeddingModel, Model, SageMakerRuntime, TextModel, model_from

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.text(max_size=50), max_size=4), st.binary(max_size=500))
def test_messages_are_what_botocore_reads(headers: dict[str, str], payload: bytes) -> None:
    """The framing and both checksums are read back by botocore's own parser."""
    buffer = EventStreamBuffer()
    buffer.add_data(message(headers, payload))
    (read,) = buffer
    assert (read.headers, read.payload) == (headers, payload)


def test_event_that_does_not_fit_its_shape_fails_loudly() -> None:
    """The server cannot teach a client an event that the service would not send."""
    with pytest.raises(AssertionError, match="ConverseStream messageStop: stopReason: must be one of"):
        event("bedrock-runtime", "ConverseStream", "messageStop", {"stopReason": "tired"})


def test_vectors_and_answers_depend_on_the_input() -> None:
    """Near texts have near vectors; the answer quotes the sentence that fits, or says that none does."""
    assert embed("dogs run", 256) @ embed("a dog runs", 256) > embed("dogs run", 256) @ embed("tea", 256)
    assert embed("", 4).tolist() == [1, 0, 0, 0]
    assert overlap("Is it dogs that run fast?", "dogs sleep") == pytest.approx(1 / 3)
    passages = '<passage number="2" document="d">\nTea is green. Dogs run.\n</passage>\n\nQuestion: '
    assert answer(f"{passages}Who runs, dogs?") == "Dogs run. [2]"
    assert answer(f"{passages}Parsifal?") == NO_ANSWER


def refused(model: Model, operation: str, body: bytes, **arguments: Any) -> dict[str, Any]:
    """The error of a call to the endpoint "e"."""
    with (
        SageMakerRuntime({"e": model}) as server,
        connect("sagemaker-runtime", server.url) as client,
        pytest.raises(ClientError) as caught,
    ):
        getattr(client, operation)(**{"EndpointName": "e", "Body": body, **arguments})
    assert (server.unexpected, server.broken) == ([], [])
    response: dict[str, Any] = caught.value.response
    return response


@pytest.mark.parametrize(
    ("model", "body", "status", "words"),
    [
        (EmbeddingModel(), b'{"inputs": [%b"x"]}' % (b'"x", ' * 32), 413, "batch size 33 > maximum"),
        (EmbeddingModel(max_tokens=2, too_long=422), b'{"inputs": ["a b c"]}', 422, "less than 2 tokens"),
        (EmbeddingModel(), b'{"text_inputs": ["x"]}', 422, "Failed to deserialize"),
        (EmbeddingModel("openai"), b'{"inputs": ["x"]}', 422, "Failed to deserialize"),
        (TextModel("chat"), b'{"inputs": "x"}', 422, "Failed to deserialize"),
        (TextModel("completions"), b'{"messages": []}', 422, "Failed to deserialize"),
        (
            TextModel("text", "tgi"),
            b'{"inputs": "x", "parameters": {"max_new_tokens": 1, "temperature": 0}}',
            422,
            "strictly positive",
        ),
    ],
)
def test_containers_refuse_what_they_do_not_speak(model: Model, body: bytes, status: int, words: str) -> None:
    """The container's status and words come in a ModelError, as the service wraps them."""
    response = refused(model, "invoke_endpoint", body)
    assert (response["Error"]["Code"], response["OriginalStatusCode"]) == ("ModelError", status)
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert words in response["OriginalMessage"]


def test_service_refuses_before_the_container() -> None:
    """Missing endpoints and bodies over 6 MB never reach a container."""
    model = EmbeddingModel()
    missing = refused(model, "invoke_endpoint", b"{}", EndpointName="nope")
    assert missing["Error"] == {
        "Code": "ValidationError",
        "Message": "Endpoint nope of account 123456789012 not found.",
    }
    large = refused(model, "invoke_endpoint", b"x" * 6_291_457)
    assert large["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert refused(model, "invoke_endpoint_with_response_stream", b"{}")["OriginalStatusCode"] == 400
    assert (
        refused(TextModel(), "invoke_endpoint_with_response_stream", b"{}")["OriginalMessage"]
        == "the body does not ask for a stream"
    )


def test_faults_and_unknown_operations_are_remembered() -> None:
    """What a test did not foresee is found at its end."""
    with SageMakerRuntime({}) as server, connect("sagemaker-runtime", server.url) as client:
        with pytest.raises(ClientError, match="does not know InvokeEndpointAsync"):
            client.invoke_endpoint_async(EndpointName="e", InputLocation="s3://b/k")
        server.faults.add(Fault("error", status=429, code="ThrottlingException"))
        with pytest.raises(ClientError, match="ThrottlingException"):
            client.invoke_endpoint(EndpointName="e", Body=b"{}")
    assert server.unexpected == ["InvokeEndpointAsync"]
    assert server.report()["faults"] == 1


def test_processes_say_where_they_are_and_end() -> None:
    """Benchmarks run the servers beside themselves."""
    module = "tests.servers.sagemaker_runtime"
    with (
        ServerProcess(module, "--port", "0", "--endpoint", "a=tei:8", "--latency-ms", "1") as server,
        connect("sagemaker-runtime", server.url) as client,
    ):
        client.invoke_endpoint(EndpointName="a", Body=b'{"inputs": ["x", "y"]}')
        assert server.report()["embedded"] == 2
    assert server.process.returncode == 0
    with (
        ServerProcess("tests.servers.bedrock", "--port", "0") as bedrock,
        connect("bedrock", bedrock.url) as client,
    ):
        listed = client.list_foundation_models()["modelSummaries"]
    assert {summary["modelId"] for summary in listed} == set(MODELS)
    assert bedrock.process.returncode == 0


def test_endpoints_from_words() -> None:
    """The command line names endpoints as family and dimension."""
    assert model_from("tei:16") == EmbeddingModel("tei", 16)
    assert model_from("chat") == TextModel("chat")
    with pytest.raises(ValueError, match="no such family: riddles"):
        model_from("riddles")


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        (TITAN, b'{"inputText": ""}', "expected minLength: 1"),
        (TITAN, b'{"inputText": "x", "dimensions": 300}', "300 is not a valid enum value"),
        (TITAN, b'{"texts": ["x"]}', "extraneous key [texts] is not permitted"),
        (COHERE_4, b'{"texts": ["x"]}', "required key [input_type] not found"),
        (WRITER, b"{}", "this model makes no embeddings"),
        ("nobody.at-all", b"{}", "model identifier is invalid"),
    ],
)
def test_bedrock_refuses_ill_formed_bodies(model: str, body: bytes, words: str) -> None:
    """Models check their bodies as closely as the service does."""
    with (
        BedrockServer() as server,
        connect("bedrock-runtime", server.url) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.invoke_model(modelId=model, body=body)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert words in caught.value.response["Error"]["Message"]


def test_bedrock_says_which_models_may_be_used() -> None:
    """A doctor asks before the first call that costs."""
    with BedrockServer() as server, connect("bedrock", server.url) as client:
        found = client.get_foundation_model_availability(modelId=TITAN)
        assert (found["authorizationStatus"], found["regionAvailability"]) == ("AUTHORIZED", "AVAILABLE")
    assert (server.unexpected, server.broken) == ([], [])
