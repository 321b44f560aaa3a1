"""SageMaker endpoints in memory: embedding and text models whose answers depend on what they are asked.

    with SageMakerRuntime({"embedder": EmbeddingModel("tei"), "writer": TextModel("chat")}) as server:
        client = boto3.client("sagemaker-runtime", endpoint_url=server.url)

or, as a process of its own, `python -m tests.servers.sagemaker_runtime --port 0 --endpoint embedder=tei:384`, which
prints its URL first. Containers refuse what the real ones refuse (too many texts, too long ones, another family's
body, a temperature of 0 with TGI), and like them quote the input in their message.
"""

import argparse
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import orjson

from tests.servers.eventstream import CONTENT_TYPE, event
from tests.servers.http import Handler, LoopbackServer, Refusal, Reply, Request
from tests.servers.model_check import check_error, check_request
from tests.servers.models import answer, count_tokens, embed, overlap
from tests.servers.process import run_until_told

SERVICE = "sagemaker-runtime"
STREAM = "InvokeEndpointWithResponseStream"
ACCOUNT = "123456789012"
MAX_BODY = 6_291_456
TEXTS = {"tei": "inputs", "huggingface": "text_inputs", "openai": "input"}  # where a family's texts are

Tamper = Callable[[Any], Any]


def _as_it_is(document: Any) -> Any:
    return document


@dataclass(frozen=True)
class EmbeddingModel:
    """A container that embeds; `tamper` may spoil what it answers."""

    family: Literal["tei", "huggingface", "openai"] = "tei"
    dimension: int = 384
    max_tokens: int = 512  # per text
    max_batch: int = 32
    too_long: int = 413  # the status for a text that is
    component: str | None = None  # the inference component that it runs as
    tamper: Tamper = _as_it_is

    def reply(self, request: Mapping[str, Any]) -> Any:
        """The document that the container answers; raises `Refusal` with its status and words."""
        texts = request.get(TEXTS[self.family])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise model_error(422, f"Failed to deserialize {request!r}")
        if not 0 < len(texts) <= self.max_batch:
            raise model_error(
                self.too_long, f"batch size {len(texts)} > maximum allowed batch size {self.max_batch}"
            )
        for text in texts:
            if count_tokens(text) > self.max_tokens and not request.get("truncate"):
                message = (
                    f"Input validation error: `inputs` must have less than {self.max_tokens} tokens: {text}"
                )
                raise model_error(self.too_long, message)
        return self.tamper(self._shape(texts))

    def _shape(self, texts: list[str]) -> Any:
        vectors = [embed(text, self.dimension) for text in texts]
        if self.family == "tei":
            return vectors
        if self.family == "huggingface":
            return {"embedding": vectors if len(vectors) > 1 else vectors[0]}
        # The last first: the index is what counts.
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        tokens = sum(map(count_tokens, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data[::-1], "usage": usage}


@dataclass(frozen=True)
class TextModel:
    """A container that answers; `tamper` may spoil each document that it answers."""

    family: Literal["chat", "text", "completions"] = "chat"
    dialect: Literal["lmi", "tgi", "outputs"] = "lmi"  # of the family text; outputs: LMI's streams of old
    # How it thinks: not at all, between tags, without the opening tag, or in a field of its own.
    thinks: Literal["no", "tags", "implied", "field"] = "no"
    context: int = 8_192  # tokens
    part_bytes: int = 7  # of a stream; a prime, so that characters are cut too
    fails: Literal["no", "exception", "line", "end"] = "no"  # in the middle of a stream
    component: str | None = None
    tamper: Tamper = _as_it_is

    def reply(self, request: Mapping[str, Any]) -> Any:
        """The document that the container answers; raises `Refusal` with its status and words."""
        prompt, limit = self._read(request)
        thought, said, reason = self._say(prompt, limit)
        usage = {"prompt_tokens": count_tokens(prompt), "completion_tokens": count_tokens(thought + said)}
        if self.family == "chat":
            field = {"reasoning_content": thought} if self.thinks == "field" else {}
            message = {"role": "assistant", "content": said, **field}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return self.tamper({"choices": [choice], "usage": usage})
        if self.family == "completions":
            choice = {"index": 0, "text": said, "finish_reason": reason}
            return self.tamper({"choices": [choice], "usage": usage})
        text = {"generated_text": said}
        return self.tamper([text] if self.dialect == "tgi" else text)

    def stream(self, request: Mapping[str, Any]) -> Iterator[bytes]:
        """The lines that the container answers; raises `Refusal` before the first."""
        if request.get("stream") is not True:
            raise model_error(400, "the body does not ask for a stream")
        prompt, limit = self._read(request)
        return self._lines(*self._say(prompt, limit))

    def _lines(self, thought: str, said: str, reason: str) -> Iterator[bytes]:
        frame = b"%b\n" if self.family == "text" and self.dialect != "tgi" else b"data: %b\n\n"
        if self.family != "text":
            yield b": comments are to be ignored\n\n"
        pieces = [said[at : at + 5] for at in range(0, len(said), 5)]
        documents = (
            [{"choices": [{"delta": {"reasoning_content": thought}}]}] if self.thinks == "field" else []
        )
        documents += [self._piece(piece) for piece in pieces] + [self._last(said, reason)]
        for number, document in enumerate(documents):
            if self.fails == "line" and number == 1:
                yield frame % orjson.dumps({"error": {"message": f"failed on {said}", "code": 500}})
            if self.fails == "end" and number == 1:
                return
            yield frame % orjson.dumps(self.tamper(document))
        if self.family != "text":
            yield b"data: [DONE]\n\n"

    def _piece(self, piece: str) -> dict[str, Any]:
        if self.family == "chat":
            return {"choices": [{"delta": {"content": piece}, "finish_reason": None}]}
        if self.family == "completions":
            return {"choices": [{"text": piece, "finish_reason": None}]}
        if self.dialect == "outputs":
            return {"outputs": [piece]}
        return {"token": {"id": 1, "text": piece, "special": False}, "generated_text": None, "details": None}

    def _last(self, said: str, reason: str) -> dict[str, Any]:
        if self.family == "chat":
            return {"choices": [{"delta": {}, "finish_reason": reason}]}
        if self.family == "completions":
            return {"choices": [{"text": "", "finish_reason": reason}]}
        if self.dialect == "outputs":
            return {"outputs": [""]}
        details = {"finish_reason": reason, "generated_tokens": count_tokens(said)}
        token = {"id": 2, "text": "</s>", "special": True}
        return {"token": token, "generated_text": said, "details": details}

    def _read(self, request: Mapping[str, Any]) -> tuple[str, int]:
        """The prompt and the largest number of new tokens."""
        try:
            if self.family == "chat":
                prompt = "\n\n".join(message["content"] for message in request["messages"])
            else:
                prompt = request["prompt" if self.family == "completions" else "inputs"].removesuffix(
                    "Answer:"
                )
            options = request["parameters"] if self.family == "text" else request
            limit = options["max_new_tokens" if self.family == "text" else "max_tokens"]
        except (LookupError, TypeError, AttributeError) as error:
            raise model_error(422, f"Failed to deserialize {request!r}") from error
        if self.dialect == "tgi" and not options.get("temperature", 1) > 0:
            raise model_error(422, "`temperature` must be strictly positive")
        if count_tokens(prompt) + limit > self.context:
            message = f"This model's maximum context length is {self.context} tokens: {prompt}"
            raise model_error(400, message)
        return prompt, limit

    def _say(self, prompt: str, limit: int) -> tuple[str, str, str]:
        """What is thought in a field of its own, what is said, and why it ends."""
        thought, said = "Ich prüfe die Stellen … 🤔", answer(prompt)
        if self.thinks in ("tags", "implied"):
            said = f"{'<think>' if self.thinks == 'tags' else ''}\n{thought}\n</think>\n\n{said}"
        words = said.split(" ")
        reason = "stop" if len(words) <= limit else "length"
        return thought if self.thinks == "field" else "", " ".join(words[:limit]), reason


@dataclass(frozen=True)
class RerankModel:
    """TEI with a cross-encoder: scores by the words that a text shares with the question, best first."""

    max_batch: int = 32
    component: str | None = None
    tamper: Tamper = _as_it_is

    def reply(self, request: Mapping[str, Any]) -> Any:
        """The document that the container answers; raises `Refusal` with its status and words."""
        texts, question = request.get("texts"), request.get("query")
        if not isinstance(texts, list) or not isinstance(question, str):
            raise model_error(422, f"Failed to deserialize {request!r}")
        if not 0 < len(texts) <= self.max_batch:
            raise model_error(413, f"batch size {len(texts)} > maximum allowed batch size {self.max_batch}")
        rows = [{"index": n, "score": overlap(question, text)} for n, text in enumerate(texts)]
        return self.tamper(sorted(rows, key=lambda row: -row["score"]))


Model = EmbeddingModel | TextModel | RerankModel


class SageMakerRuntime(LoopbackServer):
    """The runtime of endpoints by name; `embedded` counts the texts that were turned into vectors."""

    services = (SERVICE,)

    def __init__(self, endpoints: Mapping[str, Model], **options: Any) -> None:
        super().__init__(**options)
        self.endpoints = dict(endpoints)
        self.embedded = 0
        self._counting = threading.Lock()

    def handlers(self) -> Mapping[str, Handler]:
        """See `LoopbackServer`."""
        return {
            "InvokeEndpoint": partial(self._refusing, self._invoke),
            STREAM: partial(self._refusing, self._stream),
        }

    def report(self) -> dict[str, Any]:
        """See `LoopbackServer`."""
        return {**super().report(), "embedded": self.embedded}

    def _invoke(self, request: Request) -> Mapping[str, Any]:
        model = self._model(request)
        document = model.reply(request.document)
        if isinstance(model, EmbeddingModel):
            with self._counting:
                self.embedded += len(request.document[TEXTS[model.family]])
        body = (
            document
            if isinstance(document, bytes)
            else orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        )
        return {"Body": body, "ContentType": "application/json", "InvokedProductionVariant": "AllTraffic"}

    def _stream(self, request: Request) -> Reply:
        model = self._model(request)
        if not isinstance(model, TextModel):
            raise model_error(400, "this container does not stream")
        headers = {
            "Content-Type": CONTENT_TYPE,
            "X-Amzn-SageMaker-Content-Type": "text/event-stream",
            "x-Amzn-Invoked-Production-Variant": "AllTraffic",
        }
        return Reply(body=_events(model, model.stream(request.document)), headers=headers)

    def _model(self, request: Request) -> Model:
        """The model behind the endpoint that a request names; raises `Refusal` for what the service refuses."""
        name = request.match.labels["EndpointName"]
        component = request.headers.get("X-Amzn-SageMaker-Inference-Component")
        members = {"EndpointName": name, "Body": request.body}
        faults = check_request(SERVICE, request.match.operation, members)
        if faults:
            raise Refusal(400, "ValidationError", f"1 validation error detected: {faults[0]}")
        if len(request.body) > MAX_BODY:
            raise Refusal(413, "413", "Request Entity Too Large")
        if name not in self.endpoints:
            raise Refusal(400, "ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        if component != self.endpoints[name].component:
            raise Refusal(400, "ValidationError", f"Inference Component Name {component} not found.")
        return self.endpoints[name]

    @staticmethod
    def _refusing(
        handler: Callable[[Request], Mapping[str, Any] | Reply], request: Request
    ) -> Mapping[str, Any] | Reply:
        """Write refusals as this service does: with a capital letter."""
        try:
            return handler(request)
        except Refusal as refusal:
            document = {"Message": refusal.message, **refusal.members}
            faults = check_error(SERVICE, refusal.code, document)
            assert not faults, faults
            headers = {"Content-Type": "application/json", "x-amzn-ErrorType": refusal.code}
            return Reply(refusal.status, orjson.dumps(document), headers)


def _events(model: TextModel, lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines as events, cut into parts wherever it falls."""
    body = b"".join(lines)
    for at in range(0, len(body), model.part_bytes):
        yield event(SERVICE, STREAM, "PayloadPart", {"Bytes": body[at : at + model.part_bytes]})
        if model.fails == "exception" and at > len(body) // 2:
            failure = {"Message": "the container is gone", "ErrorCode": "ModelInvocationTimeExceeded"}
            yield event(SERVICE, STREAM, "ModelStreamError", failure)
            return


def model_error(status: int, message: str) -> Refusal:
    """What the service says when the container answers an error."""
    return Refusal(
        424,
        "ModelError",
        f'Received client error ({status}) from primary with message "{message[:500]}".',
        OriginalStatusCode=status,
        OriginalMessage=message,
        LogStreamArn=f"arn:aws:logs:eu-west-1:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/one",
    )


def model_from(text: str) -> Model:
    """A model from words of the command line: "tei:384" is an embedding model, "chat" or "text" one that answers."""
    family, _, dimension = text.partition(":")
    if family in ("chat", "text", "completions"):
        return TextModel(family)  # type: ignore[arg-type] # checked in the line above
    if family in ("tei", "huggingface", "openai"):
        return EmbeddingModel(family, int(dimension or 384))  # type: ignore[arg-type] # checked in the line above
    raise ValueError(f"no such family: {family}")


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--endpoint", action="append", default=[], metavar="NAME=FAMILY[:DIMENSION]")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of a call that embeds or answers")
    options = parser.parse_args()
    named = options.endpoint or ["embedder=tei:384", "writer=chat"]
    endpoints = {name: model_from(text) for name, _, text in (entry.partition("=") for entry in named)}
    latency = {"*": options.latency_ms / 1000}
    run_until_told(SageMakerRuntime(endpoints, port=options.port, latency=latency))


if __name__ == "__main__":
    main()
