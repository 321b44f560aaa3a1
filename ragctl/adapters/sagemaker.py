"""SageMaker endpoints: embedding, reranking and text models in every payload family of `payloads.py`."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, get_args

from botocore.exceptions import ClientError

from ragctl import turns
from ragctl.adapters.aws import ATTEMPTS, aws_errors, client, error_code, json_body
from ragctl.adapters.embeddings import as_vectors, read_json
from ragctl.adapters.payloads import (
    Piece,
    embedding_request,
    embedding_rows,
    embedding_usage,
    read_answer,
    read_piece,
    rerank_request,
    rerank_scores,
    stream_data,
    text_request,
)
from ragctl.adapters.reasoning import Reply, opens_itself
from ragctl.backends import SageMakerEmbedding, SageMakerGeneration, SageMakerReranking
from ragctl.deployment import recorded
from ragctl.errors import ConfigError, InputRefused, ServiceError, Throttled
from ragctl.records import Embedded, Generation, Prompt, Usage, short_hash

if TYPE_CHECKING:
    from ragctl.adapters.base import EmbedRole
    from ragctl.config import Experiment

MAX_REQUEST: Final = 6 * 1024 * 1024  # bytes of a body (InvokeEndpoint API reference)
# The service ends a call after 60 s and asks for sockets that wait 70 (InvokeEndpoint API reference).
READ_TIMEOUT_S: Final = 70
BUSY_DELAY_S = 0.5  # before the first repetition of a call that found the model busy; doubles

# How containers say that an input is too long where they do not say it with 413 or 422.
TOO_LONG = re.compile(
    r"too long|too large|too many (input )?tokens|must have less than|maximum context|context.{0,9}(length|size)"
    r"|max_(input|total)_|exceed",
    re.IGNORECASE,
)

# Named by the deployment record of `deploy-models`: endpoint, family, dimension, model_id, model_version.
Deployment = Mapping[str, object]


class SageMakerEmbedder:
    """An embedding model behind an endpoint."""

    cpu_bound = False
    max_bytes = 4_000_000  # of text; JSON's escapes and the frame fit into the rest of MAX_REQUEST

    def __init__(
        self,
        runtime: Any,
        *,
        endpoint: str,
        family: str,
        model: str = "",
        model_version: str = "",
        dimension: int | None = None,
        max_batch: int = 32,
        max_tokens: int | None = None,
        query_prefix: str = "",
        passage_prefix: str = "",
        inference_component: str | None = None,
    ) -> None:
        """`runtime` is a boto3 client of sagemaker-runtime, `model` the JumpStart id where known."""
        self._call = _Endpoint(runtime, endpoint, inference_component)
        self._family, self._model, self._dimension = family, model, dimension
        self._prefixes: dict[EmbedRole, str] = {"query": query_prefix, "document": passage_prefix}
        self._probing = threading.Lock()
        self.max_batch, self.max_tokens = max_batch, max_tokens
        # A query prefix leaves the index as it is
        prefix = short_hash(passage_prefix) if passage_prefix else ""
        # A model that is known by name is the same on every endpoint; without a name the endpoint stands for it.
        name = f"{model}@{model_version}" if model else endpoint
        self.identity = ":".join(filter(None, ("sagemaker", name, family, prefix)))

    @classmethod
    def from_config(cls, experiment: Experiment, deployment: Deployment | None = None) -> Self:
        """The embedder of a config; what it leaves open comes from the deployment record. ConfigError if neither."""
        section = experiment.embedding
        assert isinstance(section, SageMakerEmbedding)
        record = recorded(experiment, "embedding") if deployment is None else deployment
        dimension = record.get("dimension")
        return cls(
            _runtime(experiment),
            endpoint=_known("embedding", "endpoint", section.endpoint, record),
            family=_family("embedding", section, record),
            model=section.model or str(record.get("model_id") or ""),
            model_version=str(record.get("model_version") or section.model_version),
            dimension=section.dimension or (dimension if isinstance(dimension, int) else None),
            max_batch=section.max_batch,
            max_tokens=section.max_batch_tokens,
            query_prefix=section.query_prefix,
            passage_prefix=section.passage_prefix,
            inference_component=_optional(section.inference_component or record.get("inference_component")),
        )

    @property
    def dimension(self) -> int:
        """Length of a vector; asks the endpoint once where neither config nor record says."""
        with self._probing:
            if self._dimension is None:
                self._dimension = int(self.embed(["dimension"], "document").vectors.shape[1])
        return self._dimension

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:
        """Vectors of the texts. Throttled, InputRefused and ServiceError as `Embedder` has them."""
        prefixed = [self._prefixes[role] + text for text in texts]
        body = self._call.encode(embedding_request(self._family, prefixed, self._model))
        document = self._call.invoke(body)
        with self._call.reading(self._family):
            rows, usage = embedding_rows(self._family, document), embedding_usage(document)
        where = self._call.where
        return Embedded(as_vectors(rows, count=len(texts), dimension=self._dimension, where=where), usage)


class SageMakerGenerator:
    """A text model behind an endpoint."""

    def __init__(
        self,
        runtime: Any,
        *,
        endpoint: str,
        family: str,
        model: str = "",
        model_version: str = "",
        max_tokens: int = 1_024,
        temperature: float = 0.0,
        inference_component: str | None = None,
    ) -> None:
        """`runtime` is a boto3 client of sagemaker-runtime, `model` the JumpStart id where known."""
        self._call = _Endpoint(runtime, endpoint, inference_component)
        self._family = family
        # Without chat turns there is no template that could open the reasoning.
        self._starts_in_reasoning = family == "chat" and opens_itself(model or endpoint)
        self._request = partial(text_request, family, max_tokens=max_tokens, temperature=temperature)
        name = f"{model}@{model_version}" if model else endpoint
        self.identity = f"sagemaker:{name}:{family}"

    @classmethod
    def from_config(cls, experiment: Experiment, deployment: Deployment | None = None) -> Self:
        """The generator of a config; what it leaves open comes from the deployment record. ConfigError if neither."""
        section = experiment.generation
        assert isinstance(section, SageMakerGeneration)
        record = recorded(experiment, "generation") if deployment is None else deployment
        return cls(
            _runtime(experiment),
            endpoint=_known("generation", "endpoint", section.endpoint, record),
            family=_family("generation", section, record),
            model=section.model or str(record.get("model_id") or ""),
            model_version=str(record.get("model_version") or section.model_version),
            max_tokens=section.max_tokens,
            temperature=section.temperature,
            inference_component=_optional(section.inference_component or record.get("inference_component")),
        )

    def generate(self, prompt: Prompt, on_text: Callable[[str], None] | None = None) -> Generation:
        """The model's answer, streamed when somebody listens. InputRefused when the prompt is too long for it."""
        reply = Reply(on_text, starts_in_reasoning=self._starts_in_reasoning)
        body = self._call.encode(self._request(prompt, stream=on_text is not None))
        stop_reason, usage = "", Usage()
        for piece in self._whole(body) if on_text is None else self._streamed(body):
            if piece.reasoning:
                reply.add_reasoning(piece.reasoning)
            reply.add(piece.text)
            stop_reason, usage = piece.stop_reason or stop_reason, piece.usage or usage
        return reply.finish(self._call.where, stop_reason=stop_reason, usage=usage)

    def _whole(self, body: bytes) -> Iterator[Piece]:
        document = self._call.invoke(body)
        with self._call.reading(self._family):
            yield read_answer(document)

    def _streamed(self, body: bytes) -> Iterator[Piece]:
        """The pieces of a stream. ServiceError when it breaks off, as far as the family lets one tell."""
        ended = self._family == "text"  # TGI and LMI send no mark of the end
        with closing(self._call.stream(body)) as parts:
            for data in stream_data(parts):
                if data == "[DONE]":
                    return
                piece = self._piece(data)
                ended = ended or bool(piece.stop_reason)
                yield piece
        if not ended:
            raise ServiceError(f"{self._call.where}: the answer broke off before its end")

    def _piece(self, data: str) -> Piece:
        with self._call.reading(self._family):
            document = json.loads(data)
            if "error" in document:  # its text may quote the prompt
                raise ServiceError(f"{self._call.where}: the model failed while it answered")
            return read_piece(document)


class SageMakerReranker:
    """A cross-encoder behind an endpoint."""

    def __init__(
        self,
        runtime: Any,
        *,
        endpoint: str,
        model: str = "",
        model_version: str = "",
        max_batch: int = 32,
        inference_component: str | None = None,
    ) -> None:
        """`runtime` is a boto3 client of sagemaker-runtime, `max_batch` the texts that a call may carry."""
        self._call = _Endpoint(runtime, endpoint, inference_component)
        self._max_batch = max_batch
        self.identity = f"sagemaker:{f'{model}@{model_version}' if model else endpoint}:tei"

    @classmethod
    def from_config(cls, experiment: Experiment, deployment: Deployment | None = None) -> Self:
        """The reranker of a config; what it leaves open comes from the deployment record. ConfigError if neither."""
        section = experiment.reranking
        assert isinstance(section, SageMakerReranking)
        record = recorded(experiment, "reranking") if deployment is None else deployment
        return cls(
            _runtime(experiment),
            endpoint=_known("reranking", "endpoint", section.endpoint, record),
            model=section.model or str(record.get("model_id") or ""),
            model_version=str(record.get("model_version") or section.model_version),
            max_batch=section.max_batch,
            inference_component=_optional(section.inference_component or record.get("inference_component")),
        )

    def rerank(self, question: str, texts: Sequence[str]) -> list[float]:
        """One relevance score per text, 0 to 1, in their order; a text that is too long counts by its beginning."""
        scores: list[float] = []
        for at in range(0, len(texts), self._max_batch):
            batch = texts[at : at + self._max_batch]
            document = self._call.invoke(self._call.encode(rerank_request(question, batch)))
            with self._call.reading("tei"):
                scores += rerank_scores(document, len(batch))
        return scores


class _Endpoint:
    """The calls to one endpoint, with its errors in our tree."""

    def __init__(self, runtime: Any, name: str, inference_component: str | None) -> None:
        self.where = f"endpoint {name}"
        self._runtime = runtime
        component = {"InferenceComponentName": inference_component} if inference_component else {}
        self._arguments = {"EndpointName": name, "ContentType": "application/json", **component}
        # The SDK repeats what the service refuses, but not a 424 behind which the model says that it is busy.
        runtime.meta.events.register(
            "needs-retry.sagemaker-runtime", _busy_delay, unique_id="ragctl-busy-model"
        )

    def encode(self, request: Mapping[str, Any]) -> bytes:
        """The body of a request. InputRefused when it is larger than the service takes or no valid text."""
        body = json_body(request, self.where)
        if len(body) > MAX_REQUEST:
            raise InputRefused(
                f"{self.where}: a request of {len(body):,} bytes; the limit is {MAX_REQUEST:,}"
            )
        return body

    def invoke(self, body: bytes) -> Any:
        """The JSON document that the model answers."""
        with self._errors("InvokeEndpoint"):
            reply = self._runtime.invoke_endpoint(**self._arguments, Accept="application/json", Body=body)
            answer = reply["Body"].read()
        turns.answered()
        try:
            return read_json(answer)
        except ValueError as error:
            raise ServiceError(f"{self.where}: the answer is no JSON ({len(answer)} bytes)") from error

    def stream(self, body: bytes) -> Generator[bytes]:
        """The parts that the model answers, as they arrive."""
        with self._errors("InvokeEndpointWithResponseStream"):
            reply = self._runtime.invoke_endpoint_with_response_stream(**self._arguments, Body=body)
            try:
                for event in reply["Body"]:
                    yield event["PayloadPart"]["Bytes"]
            finally:
                reply["Body"].close()

    @contextmanager
    def reading(self, family: str) -> Iterator[None]:
        """An answer of another shape than the family's is an error of the endpoint, told without its content."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ServiceError(
                f"{self.where}: the answer is not shaped as family {family} answers",
                hint="set the family that the endpoint's container speaks",
            ) from error

    @contextmanager
    def _errors(self, operation: str) -> Iterator[None]:
        with aws_errors(f"sagemaker:{operation}", self.where):
            try:
                yield
            except ClientError as error:
                self._raise_for_model(error)
                raise

    def _raise_for_model(self, error: ClientError) -> None:
        """What the model itself refuses: the input, or work at this moment. Its words stay out, they quote the input."""
        status, said = _model_status(error), str(error.response.get("OriginalMessage") or error)
        if status in (413, 422) or (status == 400 and TOO_LONG.search(said)):
            raise InputRefused(f"{self.where}: the model refuses an input ({status})") from error
        if status in (429, 503):
            raise Throttled(
                f"{self.where}: the model is still busy after the retries ({status})",
                hint="lower ingest.embed_concurrency, or give the endpoint more instances",
            ) from error


def _model_status(error: ClientError) -> int:
    """The HTTP status of the container, or of the service where it refuses the body itself; 0 for other errors."""
    if error_code(error) == "ModelError":
        return int(error.response.get("OriginalStatusCode") or 0)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return 413 if status == 413 else 0


def _busy_delay(response: Any = None, attempts: int = 1, **_: object) -> float | None:
    """Seconds to wait before a call is repeated, for botocore's needs-retry event; None: it is not repeated."""
    refusal = response[1] if response else {}
    is_of_model = refusal.get("Error", {}).get("Code") == "ModelError"
    is_busy = is_of_model and refusal.get("OriginalStatusCode") in (429, 503)
    if not is_busy or attempts >= ATTEMPTS:
        return None
    return random.uniform(0, BUSY_DELAY_S * 2**attempts)  # noqa: S311 - spreads callers, guards nothing


def _runtime(experiment: Experiment) -> Any:
    return client("sagemaker-runtime", experiment, read_timeout=READ_TIMEOUT_S)


def _family(name: str, section: SageMakerEmbedding | SageMakerGeneration, record: Deployment) -> str:
    family = _known(name, "family", section.family, record)
    known = get_args(get_args(type(section).model_fields["family"].annotation)[0])
    if family not in known:
        raise ConfigError(
            f"{name}: deploy-models has recorded the payload family {family}, which ragctl does not speak",
            hint=f"set {name}.family to one of {', '.join(known)}",
        )
    return family


def _known(name: str, field: str, configured: str | None, record: Deployment) -> str:
    value = configured or record.get(field)
    if not value:
        raise ConfigError(
            f"{name}.{field} is not set, and deploy-models has not recorded one",
            hint=f"set {name}.{field}, or run: ragctl deploy-models CONFIG",
        )
    return str(value)


def _optional(value: object) -> str | None:
    return str(value) if value else None
