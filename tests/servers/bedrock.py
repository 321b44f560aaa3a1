"""Amazon Bedrock in memory: embeddings, Converse and its stream, Rerank, and what a doctor asks about models.

    with BedrockServer() as server:
        client = boto3.client("bedrock-runtime", endpoint_url=server.url)

or, as a process of its own, `python -m tests.servers.bedrock --port 0`, which prints its URL first. One server
stands for bedrock, bedrock-runtime and bedrock-agent-runtime. Answers depend on the input.
"""

import argparse
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from tests.servers.eventstream import CONTENT_TYPE, event
from tests.servers.http import Handler, LoopbackServer, Refusal, Reply, Request
from tests.servers.model_check import check_request
from tests.servers.models import answer, count_tokens, embed, overlap
from tests.servers.process import run_until_told

RUNTIME = "bedrock-runtime"
REGION = "eu-west-1"
TITAN, COHERE_3, COHERE_4 = (
    "amazon.titan-embed-text-v2:0",
    "cohere.embed-english-v3",
    "cohere.embed-v4:0",
)
WRITER = "anthropic.claude-sonnet-4-5-20250929-v1:0"
RERANKER = "cohere.rerank-v3-5:0"
MODELS = {TITAN: "EMBEDDING", COHERE_3: "EMBEDDING", COHERE_4: "EMBEDDING", WRITER: "TEXT", RERANKER: "TEXT"}
THOUGHT = "Ich prüfe die Stellen … 🤔"
BLOCKED = "This question is not answered here."


@dataclass(frozen=True)
class Manner:
    """How the text models answer."""

    thinks: Literal["no", "blocks", "tags"] = "no"
    fails: str | None = None  # name of the exception in the middle of a stream; "end": the stream just ends
    blocked: str = "forbidden"  # a guardrail stops prompts with this word
    context: int = 8_192  # tokens
    tamper: Callable[[Any], Any] = lambda document: document  # spoils what embedding models answer
    page: int = 1_000  # results of one page of Rerank


class BedrockServer(LoopbackServer):
    """The models of `MODELS`, by id, inference profile or ARN; SageMaker endpoint ARNs answer like `WRITER`."""

    services = (RUNTIME, "bedrock-agent-runtime", "bedrock")

    def __init__(self, manner: Manner | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.manner = manner or Manner()
        self.requests: list[dict[str, Any]] = []  # the bodies of Converse and InvokeModel
        self._cached: set[str] = set()
        self._lock = threading.Lock()

    def handlers(self) -> Mapping[str, Handler]:
        """See `LoopbackServer`."""
        return {
            "InvokeModel": self._invoke,
            "Converse": self._converse,
            "ConverseStream": self._converse_stream,
            "Rerank": self._rerank,
            "ListFoundationModels": self._list_models,
            "GetFoundationModelAvailability": self._availability,
        }

    # --- embeddings ---

    def _invoke(self, request: Request) -> Reply:
        """The header with the count of tokens is in no model, so the reply is made by hand."""
        model, body = self._model(request), request.document
        with self._lock:
            self.requests.append(body)
        if model == TITAN:
            texts, document = [body.get("inputText", "")], _titan(body)
        elif model in (COHERE_3, COHERE_4):
            texts, document = body.get("texts", []), _cohere(model, body)
        else:
            raise invalid("Malformed input request: this model makes no embeddings")
        headers = {
            "Content-Type": "application/json",
            "X-Amzn-Bedrock-Input-Token-Count": str(sum(map(count_tokens, texts))),
        }
        body_bytes = orjson.dumps(self.manner.tamper(document), option=orjson.OPT_SERIALIZE_NUMPY)
        return Reply(body=body_bytes, headers=headers)

    # --- text ---

    def _converse(self, request: Request) -> Mapping[str, Any]:
        thought, said, reason, usage = self._say(request)
        reasoning = [{"reasoningContent": {"reasoningText": {"text": thought}}}] if thought else []
        return {
            "output": {"message": {"role": "assistant", "content": [*reasoning, {"text": said}]}},
            "stopReason": reason,
            "usage": usage,
            "metrics": {"latencyMs": 1},
        }

    def _converse_stream(self, request: Request) -> Reply:
        return Reply(body=self._events(*self._say(request)), headers={"Content-Type": CONTENT_TYPE})

    def _events(self, thought: str, said: str, reason: str, usage: Mapping[str, int]) -> Iterator[bytes]:
        yield _event("messageStart", {"role": "assistant"})
        if thought:
            yield _delta(0, {"reasoningContent": {"text": thought}})
            yield _delta(0, {"reasoningContent": {"signature": "c2lnbmVk"}})
            yield _event("contentBlockStop", {"contentBlockIndex": 0})
        for at in range(0, len(said), 5):
            if self.manner.fails and at > len(said) // 2:
                if self.manner.fails != "end":
                    yield _event(self.manner.fails, {"message": "something happened on the way"})
                return
            yield _delta(1, {"text": said[at : at + 5]})
        yield _event("contentBlockStop", {"contentBlockIndex": 1})
        yield _event("messageStop", {"stopReason": reason})
        yield _event("metadata", {"usage": usage, "metrics": {"latencyMs": 1}})

    def _say(self, request: Request) -> tuple[str, str, str, dict[str, int]]:
        """What is thought, what is said, why it ends, and what it takes."""
        model, body = self._model(request), request.document
        with self._lock:
            self.requests.append(body)
        faults = check_request(RUNTIME, request.match.operation, {"modelId": model, **body})
        if faults:
            raise invalid(f"The request is not valid: {faults[0]}")
        system = "".join(block.get("text", "") for block in body.get("system", []))
        prompt = "".join(block["text"] for message in body["messages"] for block in message["content"])
        if count_tokens(system + prompt) > self.manner.context:
            raise invalid("Input is too long for requested model.")
        usage = self._usage(body, system, prompt)
        if "guardrailConfig" in body and self.manner.blocked in prompt:
            return "", BLOCKED, "guardrail_intervened", usage
        thought, said = THOUGHT if self.manner.thinks == "blocks" else "", answer(prompt)
        if self.manner.thinks == "tags":
            said = f"<think>{THOUGHT}</think>\n\n{said}"
        words, limit = said.split(" "), body.get("inferenceConfig", {}).get("maxTokens", 4_096)
        said, reason = " ".join(words[:limit]), "end_turn" if len(words) <= limit else "max_tokens"
        usage["outputTokens"] = count_tokens(thought + said)
        usage["totalTokens"] = sum(usage.values())
        return thought, said, reason, usage

    def _usage(self, body: Mapping[str, Any], system: str, prompt: str) -> dict[str, int]:
        """Tokens read; what stands before a checkpoint is written to the cache at first, then read from it."""
        tokens = count_tokens(system)
        usage = {"inputTokens": count_tokens(prompt), "outputTokens": 0, "totalTokens": 0}
        if not any("cachePoint" in block for block in body.get("system", [])):
            return {**usage, "inputTokens": usage["inputTokens"] + tokens}
        with self._lock:
            known = system in self._cached
            self._cached.add(system)
        return {
            **usage,
            "cacheReadInputTokens": tokens if known else 0,
            "cacheWriteInputTokens": 0 if known else tokens,
        }

    # --- reranking ---

    def _rerank(self, request: Request) -> Mapping[str, Any]:
        body = request.document
        faults = check_request("bedrock-agent-runtime", "Rerank", body)
        if faults:
            raise invalid(f"The request is not valid: {faults[0]}")
        configuration = body["rerankingConfiguration"]["bedrockRerankingConfiguration"]
        arn = configuration["modelConfiguration"]["modelArn"]
        if not arn.endswith(f"foundation-model/{RERANKER}"):
            raise Refusal(404, "ResourceNotFoundException", f"Could not find the model {arn}")
        question = body["queries"][0]["textQuery"]["text"]
        texts = [source["inlineDocumentSource"]["textDocument"]["text"] for source in body["sources"]]
        scored = sorted(((-overlap(question, text), index) for index, text in enumerate(texts)))
        scored = scored[: configuration.get("numberOfResults", 5)]
        start = int(body.get("nextToken", "0"))
        end = start + self.manner.page
        results = [{"index": index, "relevanceScore": -score} for score, index in scored[start:end]]
        return {"results": results} | ({"nextToken": str(end)} if end < len(scored) else {})

    # --- what there is ---

    def _list_models(self, request: Request) -> Mapping[str, Any]:
        summaries = [
            {
                "modelArn": f"arn:aws:bedrock:{REGION}::foundation-model/{model}",
                "modelId": model,
                "outputModalities": [modality],
                "inferenceTypesSupported": ["ON_DEMAND"],
                "modelLifecycle": {"status": "ACTIVE"},
            }
            for model, modality in MODELS.items()
        ]
        return {"modelSummaries": summaries}

    def _availability(self, request: Request) -> Mapping[str, Any]:
        model = self._model(request)
        return {
            "modelId": model,
            "agreementAvailability": {"status": "AVAILABLE"},
            "authorizationStatus": "AUTHORIZED",
            "entitlementAvailability": "AVAILABLE",
            "regionAvailability": "AVAILABLE",
        }

    def _model(self, request: Request) -> str:
        """The model that a request names; raises `Refusal` when there is none."""
        name = request.match.labels["modelId"]
        if name.startswith("arn:aws:sagemaker:"):
            return WRITER
        for model in MODELS:
            # A profile's id is the model's with a region before it
            if name.rpartition("/")[2].endswith(model):
                return model
        raise invalid("The provided model identifier is invalid.")


def invalid(message: str) -> Refusal:
    """A ValidationException."""
    return Refusal(400, "ValidationException", message)


def _titan(body: Mapping[str, Any]) -> dict[str, Any]:
    _only(body, "inputText", "dimensions", "normalize", "embeddingTypes")
    text, dimension = body.get("inputText"), body.get("dimensions", 1024)
    if not isinstance(text, str) or not text:
        raise invalid("Malformed input request: expected minLength: 1, actual: 0")
    if len(text) > 50_000:
        raise invalid(f"Malformed input request: expected maxLength: 50000, actual: {len(text)}")
    if count_tokens(text) > 8_192:
        tokens = count_tokens(text)
        raise invalid(
            f"400 Bad Request: Too many input tokens. Max input tokens: 8192, request input token count: {tokens}"
        )
    if dimension not in (256, 512, 1024):
        raise invalid(f"Malformed input request: #/dimensions: {dimension} is not a valid enum value")
    vector = embed(text, dimension) * (1 if body.get("normalize", True) else 7)
    return {
        "embedding": vector,
        "inputTextTokenCount": count_tokens(text),
        "embeddingsByType": {"float": vector},
    }


def _cohere(model: str, body: Mapping[str, Any]) -> dict[str, Any]:
    size = ("output_dimension", "max_tokens") if model == COHERE_4 else ()
    _only(body, "texts", "input_type", "truncate", "embedding_types", *size)
    texts, role = body.get("texts"), body.get("input_type")
    if not isinstance(texts, list) or not 0 < len(texts) <= 96:
        raise invalid("Malformed input request: #/texts: expected maximum item count: 96")
    if role not in ("search_document", "search_query", "classification", "clustering"):
        raise invalid("Malformed input request: #: required key [input_type] not found")
    for number, text in enumerate(texts):
        longest = 2_048 if model == COHERE_3 else 500_000
        if len(text) > longest:
            raise invalid(
                f"Malformed input request: #/texts/{number}: expected maxLength: {longest}, actual: {len(text)}"
            )
    dimension = body.get("output_dimension", 1536 if model == COHERE_4 else 1024)
    vectors = [embed(text, dimension) for text in texts]
    by_type = "embedding_types" in body and model == COHERE_3
    return {
        "id": "0",
        "texts": texts,
        "embeddings": {"float": vectors} if by_type else vectors,
        "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
    }


def _only(body: Mapping[str, Any], *known: str) -> None:
    extra = sorted(body.keys() - set(known))
    if extra:
        raise invalid(f"Malformed input request: #: extraneous key [{extra[0]}] is not permitted")


def _event(name: str, value: Mapping[str, Any]) -> bytes:
    return event(RUNTIME, "ConverseStream", name, value)


def _delta(block: int, delta: Mapping[str, Any]) -> bytes:
    return _event("contentBlockDelta", {"delta": delta, "contentBlockIndex": block})


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of every call")
    options = parser.parse_args()
    run_until_told(BedrockServer(port=options.port, latency={"*": options.latency_ms / 1000}))


if __name__ == "__main__":
    main()
