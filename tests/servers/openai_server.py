"""An OpenAI-compatible server in memory: embeddings and chat whose answers depend on what they are asked.

    with OpenAIServer(api_key="sesame") as server:
        ... base_url=f"{server.url}/v1" ...

or, as a process of its own, `python -m tests.servers.openai_server --port 0`, which prints its URL first. It is strict:
a path, member or type that the API does not have is refused and remembered in `unexpected`. Like vLLM it quotes what
it was sent in some of its errors.
"""

import argparse
import json
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from tests.servers.http import Handler, LoopbackServer, Refusal, Reply, Request
from tests.servers.model_check import Match
from tests.servers.models import answer, count_tokens, embed
from tests.servers.process import run_until_told

EMBEDDINGS, CHAT = "Embeddings", "ChatCompletions"
ROUTES = {"/v1/embeddings": EMBEDDINGS, "/v1/chat/completions": CHAT}

Text = TypeVar("Text", str, bytes)
Document = dict[str, Any]
Tamper = Callable[[Document], Document]


def _as_it_is(document: Document) -> Document:
    return document


@dataclass(frozen=True)
class Behaviour:
    """What kind of server this is; `tamper` may spoil the documents that it answers, stream events included."""

    embedder: str = "words"  # name of the embedding model
    writer: str = "quoter"  # name of the text model
    dimension: int = 64
    shortens: bool = True  # knows `dimensions`
    packs: Literal["yes", "ignores", "refuses", "fails"] = "yes"  # what it does when asked for base64
    max_batch: int = 32
    max_tokens: int = 512  # that a text or a conversation may have
    too_long: int = 400  # status for one that has more: vLLM 400, Text Embeddings Inference 413
    api_key: str | None = None
    counts_streams: bool = True  # knows `stream_options`
    thinks: Literal["no", "tags", "field"] = "no"  # how the text model shows its reasoning
    ends: bool = True  # a stream is sent to its end
    tamper: Tamper = _as_it_is


class OpenAIServer(LoopbackServer):
    """POST /v1/embeddings and /v1/chat/completions. `canned` replies, if any, are given first, in their order."""

    services: ClassVar[Sequence[str]] = ()

    def __init__(
        self, behaviour: Behaviour | None = None, *, port: int = 0, latency: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(port=port, latency=latency)
        self.behaviour = behaviour or Behaviour()
        self.canned: deque[Reply] = deque()
        self.requests: list[Document] = []  # the bodies that were understood
        self.headers: list[dict[str, str]] = []

    def handlers(self) -> Mapping[str, Handler]:
        """The two operations."""
        return {EMBEDDINGS: self._embeddings, CHAT: self._chat}

    def _find(self, method: str, path: str) -> Match | None:
        operation = ROUTES.get(path)
        return Match("openai", operation, {}) if operation and method == "POST" else None

    def _answer(self, request: Request) -> Reply:
        self.headers.append(dict(request.headers.items()))
        if self.canned:
            return self.canned.popleft()
        try:
            answer = self.handlers()[request.match.operation](request)
            assert isinstance(answer, Reply)
        except Refusal as refusal:
            error = {"message": refusal.message, "type": "invalid_request_error", "code": refusal.code}
            return _json({"error": error}, refusal.status)
        return answer

    def _embeddings(self, request: Request) -> Reply:
        document = self._read(
            request, {"model", "input", "encoding_format"}, {"dimensions"}, self.behaviour.embedder
        )
        texts, dimension = document["input"], document.get("dimensions", self.behaviour.dimension)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self._malformed(f"input is no list of strings: {texts!r}")
        encoding = document["encoding_format"]
        if encoding not in ("float", "base64") or not 0 < len(texts) <= self.behaviour.max_batch:
            raise self._malformed(f"{len(texts)} texts as {encoding}")
        if "dimensions" in document and not self.behaviour.shortens:
            raise Refusal(400, "unknown", "Model does not support matryoshka representation")
        if encoding == "base64" and self.behaviour.packs in ("refuses", "fails"):
            status = 400 if self.behaviour.packs == "refuses" else 500
            raise Refusal(status, "failed", "Cannot deserialize value of type ArrayList from String value")
        packed = encoding == "base64" and self.behaviour.packs == "yes"
        tokens = [self._counted(text) for text in texts]
        data = [
            {"object": "embedding", "index": index, "embedding": _written(embed(text, dimension), packed)}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
        # In no order: the API promises none.
        return self._spoilt(
            {"object": "list", "model": document["model"], "data": data[::-1], "usage": usage}
        )

    def _chat(self, request: Request) -> Reply:
        document = self._read(
            request,
            {"model", "messages", "max_tokens", "temperature"},
            {"stream", "stream_options"},
            self.behaviour.writer,
        )
        if "stream_options" in document and not self.behaviour.counts_streams:
            raise Refusal(400, "unknown_parameter", "Unrecognized request argument: stream_options")
        roles = [message["role"] for message in document["messages"]]
        if roles not in (["user"], ["system", "user"]):
            raise self._malformed(f"roles {roles}")
        said = "\n".join(message["content"] for message in document["messages"])
        usage = {"prompt_tokens": self._counted(said), "completion_tokens": 0}
        text = answer(document["messages"][-1]["content"])
        usage["completion_tokens"] = count_tokens(text)
        if document.get("stream"):
            counted = usage if document.get("stream_options", {}).get("include_usage") else None
            return Reply(body=self._stream(text, counted), headers={"Content-Type": "text/event-stream"})
        choice = {"index": 0, "message": self._message(text), "finish_reason": "stop"}
        return self._spoilt({"object": "chat.completion", "choices": [choice], "usage": usage})

    def _message(self, text: str) -> Document:
        thought = {"reasoning_content": "Let me see."} if self.behaviour.thinks == "field" else {}
        tags = "<think>Let me see.</think>\n\n" if self.behaviour.thinks == "tags" else ""
        return {"role": "assistant", "content": tags + text, **thought}

    def _stream(self, text: str, usage: Document | None) -> Iterator[bytes]:
        """The events of a reply, three characters each, cut into parts of seven bytes."""
        message = self._message(text)
        deltas = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": piece} for piece in _cut(message.get("reasoning_content", ""), 3)]
        deltas += [{"content": piece} for piece in _cut(message["content"], 3)]
        events: list[Document] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
        ]
        if self.behaviour.ends:
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            events += [{"choices": [], "usage": usage}] if usage else []
        lines = [json.dumps(self.behaviour.tamper(event), ensure_ascii=False) for event in events]
        lines += ["[DONE]"] if self.behaviour.ends else []
        yield from _cut(b": hello\n\n" + b"".join(b"data: %b\n\n" % line.encode() for line in lines), 7)

    def _read(self, request: Request, required: set[str], optional: set[str], model: str) -> Document:
        """The body, if it is what the API takes: as JSON, under the right key, for a model that is here."""
        key = self.behaviour.api_key
        if key and request.headers["Authorization"] != f"Bearer {key}":
            raise Refusal(401, "invalid_api_key", f"Incorrect key: {request.headers['Authorization']}")
        document = request.document
        members = document.keys()
        if not required <= members <= required | optional:
            raise self._malformed(f"members {sorted(members)}")
        self.requests.append(document)
        if document["model"] != model:
            raise Refusal(404, "model_not_found", f"The model `{document['model']}` does not exist.")
        return document

    def _malformed(self, what: str) -> Refusal:
        self.unexpected.append(what)
        return Refusal(400, "malformed", what)

    def _counted(self, text: str) -> int:
        """The tokens of a text, if it is not too long."""
        count, most = count_tokens(text), self.behaviour.max_tokens
        if count > most:
            words = f"This model's maximum context length is {most} tokens. You sent {count}: {text}"
            raise Refusal(self.behaviour.too_long, "context_length_exceeded", words)
        return count

    def _spoilt(self, document: Document) -> Reply:
        return _json(self.behaviour.tamper(document))


def _json(document: Document, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(document), {"Content-Type": "application/json"})


def _written(vector: NDArray[np.float32], packed: bool) -> list[float] | str:
    """A vector as it stands in an answer: as numbers, or as the base64 of their bytes."""
    return b64encode(vector.astype("<f4").tobytes()).decode() if packed else vector.tolist()


def _cut(whole: Text, size: int) -> Iterator[Text]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def main() -> None:
    """Serve until told to stop; the URL is the first line on stdout."""
    parser = argparse.ArgumentParser(description="A strict OpenAI-compatible service on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--api-key")
    parser.add_argument("--latency", type=json.loads, default={}, help='JSON, such as {"Embeddings": 0.08}')
    options = parser.parse_args()
    behaviour = Behaviour(dimension=options.dimension, api_key=options.api_key)
    run_until_told(OpenAIServer(behaviour, port=options.port, latency=options.latency))


if __name__ == "__main__":
    main()
