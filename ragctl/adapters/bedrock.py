"""Amazon Bedrock: embeddings through InvokeModel, answers through Converse, reranking through Rerank."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from botocore.exceptions import ClientError

from ragctl import turns
from ragctl.adapters.aws import aws_errors, client, error_code, error_text, json_body, partition, region
from ragctl.adapters.embeddings import as_vectors, read_json
from ragctl.adapters.reasoning import Reply, opens_itself
from ragctl.backends import BedrockEmbedding, BedrockGeneration, BedrockReranking
from ragctl.errors import ConfigError, InputRefused, ServiceError
from ragctl.prompts import user_message
from ragctl.records import Embedded, Generation, Prompt, Usage

if TYPE_CHECKING:
    from ragctl.adapters.base import EmbedRole
    from ragctl.config import Experiment

ANSWER_TIMEOUT_S: Final = 300  # a reasoning model may say nothing for minutes
RERANK_TEXT: Final = 32_000  # characters of the query and of each source (Rerank API reference)
# How the models say that a text is too long, or empty; other faults of a request are not one text's.
_TEXT_REFUSED = re.compile(
    r"maxLength|minLength|too many input tokens|too long|context (length|limit|window)", re.IGNORECASE
)

# --- embedding -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Family:
    """What sets one family of embedding models apart. Sources: the user guide's pages on their parameters."""

    name: str  # is part of the model's id
    dimensions: tuple[int, ...]  # the first is the default
    max_batch: int
    max_bytes: int

    @property
    def titan(self) -> bool:
        """One text per call, answered in Amazon's shape; the others speak Cohere's."""
        return self.name.startswith("titan")


FAMILIES: Final = (
    Family("titan-embed-text-v2", (1024, 512, 256), max_batch=1, max_bytes=200_000),
    Family("embed-v4", (1536, 1024, 512, 256), max_batch=96, max_bytes=4_000_000),
    Family("embed-english-v3", (1024,), max_batch=96, max_bytes=1_000_000),
    Family("embed-multilingual-v3", (1024,), max_batch=96, max_bytes=1_000_000),
)
_INPUT_TYPES: Final[Mapping[EmbedRole, str]] = {"document": "search_document", "query": "search_query"}


class BedrockEmbedder:
    """Titan Text Embeddings V2 and Cohere Embed 3 and 4."""

    max_tokens: int | None = None
    cpu_bound = False

    def __init__(self, runtime: Any, *, model: str, dimension: int | None = None) -> None:
        """`runtime` is a boto3 client of bedrock-runtime, `model` a model id, an inference profile, or their ARN.

        ConfigError when the model is of no known family or does not make vectors of this dimension.
        """
        self._runtime, self._model = runtime, model
        self._family = _family(model)
        self.dimension = dimension or self._family.dimensions[0]
        if self.dimension not in self._family.dimensions:
            allowed = ", ".join(map(str, self._family.dimensions))
            raise ConfigError(
                f"embedding.dimension: {model} gives vectors of {allowed}, not {self.dimension}"
            )
        self.max_batch, self.max_bytes = self._family.max_batch, self._family.max_bytes
        # The family, not the id: the same model behind a profile or in another region makes the same vectors.
        self.identity = f"bedrock:{self._family.name}:{self.dimension}"

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The embedder of a config."""
        section = experiment.embedding
        assert isinstance(section, BedrockEmbedding)
        return cls(client("bedrock-runtime", experiment), model=section.model, dimension=section.dimension)

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:
        """Vectors of the texts. Throttled, InputRefused and ServiceError as `Embedder` has them."""
        where = f"model {self._model}"
        body = json_body(self._request(texts, role), where)
        with aws_errors("bedrock:InvokeModel", where), _text_refusals(where):
            reply = self._runtime.invoke_model(
                modelId=self._model, body=body, contentType="application/json", accept="application/json"
            )
            answer = reply["body"].read()
        turns.answered()
        # Cohere's answers do not count tokens, the service's header always does.
        tokens = int(reply["ResponseMetadata"]["HTTPHeaders"].get("x-amzn-bedrock-input-token-count", 0))
        with _reading(where):
            rows = self._rows(read_json(answer))
        vectors = as_vectors(rows, count=len(texts), dimension=self.dimension, where=where)
        return Embedded(vectors, Usage(input_tokens=tokens))

    def _request(self, texts: Sequence[str], role: EmbedRole) -> dict[str, Any]:
        if self._family.titan:
            (text,) = texts
            return {"inputText": text, "dimensions": self.dimension, "normalize": True}
        request = {
            "texts": list(texts),
            "input_type": _INPUT_TYPES[role],
            "truncate": "NONE",  # cut texts would be embedded without a word about it
            "embedding_types": ["float"],
        }
        sizes = len(self._family.dimensions) > 1
        return {**request, "output_dimension": self.dimension} if sizes else request

    def _rows(self, document: Any) -> Any:
        if self._family.titan:
            return [document["embedding"]]
        rows = document["embeddings"]  # by type, or the one type's list alone
        return rows["float"] if isinstance(rows, dict) else rows


def _family(model: str) -> Family:
    for family in FAMILIES:
        if family.name in model:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ConfigError(
        f"embedding.model: {model} is of no family that ragctl knows ({known})",
        hint="name the model or a system inference profile; an application profile's ARN does not say its model",
    )


# --- generation ------------------------------------------------------------------------------------------


class BedrockGenerator:
    """Any model that Converse reaches: foundation models, inference profiles, JumpStart and Marketplace endpoints."""

    def __init__(
        self,
        runtime: Any,
        *,
        model: str,
        max_tokens: int = 1_024,
        temperature: float = 0.0,
        prompt_cache: bool = False,
        guardrail: str | None = None,
        guardrail_version: str = "DRAFT",
    ) -> None:
        """`runtime` is a boto3 client of bedrock-runtime. ConfigError for a temperature that Converse does not take."""
        if temperature > 1:
            raise ConfigError(f"generation.temperature: Converse takes 0 to 1, not {temperature}")
        self._runtime, self._model, self._prompt_cache = runtime, model, prompt_cache
        self._arguments: dict[str, Any] = {
            "modelId": model,
            "inferenceConfig": {"maxTokens": max_tokens, "temperature": temperature},
        }
        if guardrail:
            self._arguments["guardrailConfig"] = {
                "guardrailIdentifier": guardrail,
                "guardrailVersion": guardrail_version,
            }
        guarded = f":{guardrail}@{guardrail_version}" if guardrail else ""
        self.identity = f"bedrock:{model}{guarded}"

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The generator of a config."""
        section = experiment.generation
        assert isinstance(section, BedrockGeneration)
        return cls(
            client("bedrock-runtime", experiment, read_timeout=ANSWER_TIMEOUT_S),
            model=section.model,
            max_tokens=section.max_tokens,
            temperature=section.temperature,
            prompt_cache=section.prompt_cache,
            guardrail=section.guardrail,
            guardrail_version=section.guardrail_version,
        )

    def generate(self, prompt: Prompt, on_text: Callable[[str], None] | None = None) -> Generation:
        """The model's answer, streamed when somebody listens; a guardrail's message is an answer too.

        `stop_reason` is Converse's own, "guardrail_intervened" among them. InputRefused when the prompt is too long.
        """
        where = f"model {self._model}"
        reply = Reply(on_text, starts_in_reasoning=opens_itself(self._model))
        arguments = {**self._arguments, **self._messages(prompt)}
        if on_text is None:
            with aws_errors("bedrock:Converse", where), _text_refusals(where):
                answer = self._runtime.converse(**arguments)
            with _reading(where):
                stop_reason, usage = _take_answer(reply, answer)
        else:
            with aws_errors("bedrock:ConverseStream", where), _text_refusals(where):
                stream = self._runtime.converse_stream(**arguments)["stream"]
                with closing(stream):
                    stop_reason, usage = _take_stream(reply, stream)
            if not stop_reason:
                raise ServiceError(f"{where}: the answer broke off before its end")
        return reply.finish(where, stop_reason=stop_reason, usage=usage)

    def _messages(self, prompt: Prompt) -> dict[str, Any]:
        messages = [{"role": "user", "content": [{"text": user_message(prompt)}]}]
        if not prompt.system:
            return {"messages": messages}
        # What stands before the checkpoint is the same for every question.
        checkpoint = [{"cachePoint": {"type": "default"}}] if self._prompt_cache else []
        return {"system": [{"text": prompt.system}, *checkpoint], "messages": messages}


def _take_answer(reply: Reply, answer: Mapping[str, Any]) -> tuple[str, Usage]:
    for block in answer["output"]["message"]["content"]:
        if "reasoningContent" in block:
            reply.add_reasoning(block["reasoningContent"].get("reasoningText", {}).get("text", ""))
        reply.add(block.get("text", ""))
    return answer["stopReason"], _usage(answer["usage"])


def _take_stream(reply: Reply, stream: Iterator[Mapping[str, Any]]) -> tuple[str, Usage]:
    """Hand the events of a stream on; the stop reason is empty when the stream broke off."""
    stop_reason, usage = "", Usage()
    for event in stream:
        delta = event.get("contentBlockDelta", {}).get("delta", {})
        if "reasoningContent" in delta:
            reply.add_reasoning(delta["reasoningContent"].get("text", ""))
        reply.add(delta.get("text", ""))
        stop_reason = event.get("messageStop", {}).get("stopReason", stop_reason)
        if "metadata" in event:
            usage = _usage(event["metadata"]["usage"])
    return stop_reason, usage


def _usage(usage: Mapping[str, int]) -> Usage:
    return Usage(
        usage.get("inputTokens", 0),
        usage.get("outputTokens", 0),
        usage.get("cacheReadInputTokens", 0),
        usage.get("cacheWriteInputTokens", 0),
    )


# --- reranking -------------------------------------------------------------------------------------------


class BedrockReranker:
    """A rerank model through Bedrock's Rerank API."""

    def __init__(self, agent_runtime: Any, *, model_arn: str) -> None:
        """`agent_runtime` is a boto3 client of bedrock-agent-runtime."""
        self._agent_runtime, self._model_arn = agent_runtime, model_arn
        self.identity = f"bedrock:{model_arn.rpartition('/')[2]}"

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The reranker of a config; a model id becomes the ARN in the region and its partition."""
        section = experiment.reranking
        assert isinstance(section, BedrockReranking)
        arn = section.model
        if not arn.startswith("arn:"):
            arn = f"arn:{partition(experiment)}:bedrock:{region(experiment)}::foundation-model/{arn}"
        return cls(client("bedrock-agent-runtime", experiment), model_arn=arn)

    def rerank(self, question: str, texts: Sequence[str]) -> list[float]:
        """One relevance score per text, in their order; the model sees 32,000 characters of each."""
        if not texts:
            return []
        scores = dict(self._scores(question, texts))
        if sorted(scores) != list(range(len(texts))):
            raise ServiceError(f"model {self._model_arn}: scored {len(scores)} of {len(texts)} texts")
        return [scores[index] for index in range(len(texts))]

    def _scores(self, question: str, texts: Sequence[str]) -> Iterator[tuple[int, float]]:
        request = self._request(question, texts)
        while True:
            with aws_errors("bedrock:Rerank", f"model {self._model_arn}"):
                page = self._agent_runtime.rerank(**request)
            yield from ((result["index"], float(result["relevanceScore"])) for result in page["results"])
            if not page.get("nextToken"):
                return
            request["nextToken"] = page["nextToken"]

    def _request(self, question: str, texts: Sequence[str]) -> dict[str, Any]:
        def source(text: str) -> dict[str, Any]:
            document = {"type": "TEXT", "textDocument": {"text": text[:RERANK_TEXT] or " "}}
            return {"type": "INLINE", "inlineDocumentSource": document}

        configuration = {
            "modelConfiguration": {"modelArn": self._model_arn},
            "numberOfResults": len(texts),  # fewer by default
        }
        return {
            "queries": [{"type": "TEXT", "textQuery": {"text": question}}],
            "sources": [source(text) for text in texts],
            "rerankingConfiguration": {
                "type": "BEDROCK_RERANKING_MODEL",
                "bedrockRerankingConfiguration": configuration,
            },
        }


# --- errors ----------------------------------------------------------------------------------------------


@contextmanager
def _text_refusals(where: str) -> Iterator[None]:
    """A text that is too long or empty is refused as itself; the caller finds it in its batch."""
    try:
        yield
    except ClientError as error:
        if error_code(error) == "ValidationException" and _TEXT_REFUSED.search(error_text(error)):
            raise InputRefused(f"{where}: the model refuses an input, too long or empty") from error
        raise


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """An answer of another shape than documented is an error of the service, told without its content."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ServiceError(f"{where}: the answer is not shaped as documented") from error
