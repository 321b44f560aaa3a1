"""Servers that speak OpenAI's API, such as vLLM, Text Embeddings Inference and Ollama: embeddings and chat.

Calls are repeated in one place, the `Retry` of the connection pool, which also keeps to Retry-After.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import urllib3
from urllib3 import exceptions as http
from urllib3.util import Retry, Timeout

from ragctl import __version__, repeats, turns
from ragctl.adapters.embeddings import as_vectors, read_json
from ragctl.adapters.payloads import (
    Piece,
    embedding_request,
    embedding_rows,
    embedding_usage,
    read_answer,
    read_piece,
    stream_data,
    text_request,
)
from ragctl.adapters.reasoning import Reply, opens_itself
from ragctl.backends import OpenAIEmbedding, OpenAIGeneration
from ragctl.errors import (
    CredentialsError,
    InputRefused,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    ServiceError,
    Throttled,
)
from ragctl.records import Embedded, Generation, Prompt, Usage, short_hash

if TYPE_CHECKING:
    from ragctl.adapters.base import EmbedRole
    from ragctl.config import Experiment

log = logging.getLogger("ragctl.adapters.openai")

# One immediate repetition, then pauses of 1, 2 and 4 s and up to half a second, or as long as the server asks for.
RETRIES: Final = Retry(
    total=None,
    connect=2,
    read=1,
    redirect=0,
    status=4,
    other=0,
    allowed_methods=None,  # an embedding or an answer may be asked for twice
    status_forcelist=(429, 502, 503, 504),
    backoff_factor=0.5,
    backoff_jitter=0.5,
    retry_after_max=30,
    raise_on_status=False,
)
CONNECT_TIMEOUT_S: Final = 10
BUSY: Final = frozenset({429, 503})

# How servers say with 400 that an input is too long: vLLM, Ollama, llama.cpp, OpenAI.
_TOO_LONG = re.compile(
    r"too long|too large|too many (?:input )?tokens|(?:context|sequence).{0,20}(?:length|window|size)"
    r"|context_length|maximum.{0,30}tokens|exceed",
    re.IGNORECASE,
)


class OpenAIEmbedder:
    """An embedding model behind POST {base_url}/embeddings."""

    cpu_bound = False
    max_bytes = 4_000_000  # of text per call

    def __init__(
        self,
        server: Server,
        *,
        model: str,
        dimension: int | None = None,
        max_batch: int = 32,
        max_tokens: int | None = None,
        query_prefix: str = "",
        passage_prefix: str = "",
    ) -> None:
        """`dimension` is asked for and checked; None takes the model's own."""
        self._server, self._model = server, model
        self._asked, self._dimension = dimension, dimension
        self._prefixes: dict[EmbedRole, str] = {"query": query_prefix, "document": passage_prefix}
        self._probing = threading.Lock()
        self._packs: bool | None = None  # whether the server knows base64; None until it has answered
        self.max_batch, self.max_tokens = max_batch, max_tokens
        # A query prefix leaves the index as it is
        prefix = short_hash(passage_prefix) if passage_prefix else ""
        # Not the address: the same model served elsewhere gives the same vectors.
        self.identity = ":".join(filter(None, ("openai", model, str(dimension or ""), prefix)))

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The embedder of a config; nothing is called."""
        section = experiment.embedding
        assert isinstance(section, OpenAIEmbedding)
        return cls(
            _server("embedding", section, connections=experiment.ingest.embed_concurrency),
            model=section.model,
            dimension=section.dimension,
            max_batch=section.max_batch,
            max_tokens=section.max_batch_tokens,
            query_prefix=section.query_prefix,
            passage_prefix=section.passage_prefix,
        )

    @property
    def dimension(self) -> int:
        """Length of a vector; asks the server once where the config does not say."""
        with self._probing:
            if self._dimension is None:
                self._dimension = int(self.embed(["dimension"], "document").vectors.shape[1])
        return self._dimension

    def embed(self, texts: Sequence[str], role: EmbedRole) -> Embedded:
        """Vectors of the texts. Throttled, InputRefused and ServiceError as `Embedder` has them."""
        request = embedding_request("openai", [self._prefixes[role] + text for text in texts], self._model)
        request |= {"model": self._model} | ({"dimensions": self._asked} if self._asked else {})
        document = self._ask(request)
        where = self._server.where
        with _reading(where):
            if sorted(row["index"] for row in document["data"]) != list(range(len(texts))):
                raise ServiceError(
                    f"{where}: answered {len(document['data'])} vectors for {len(texts)} texts"
                )
            rows, usage = embedding_rows("openai", document), embedding_usage(document)
        return Embedded(as_vectors(rows, count=len(texts), dimension=self._dimension, where=where), usage)

    def _ask(self, request: Mapping[str, Any]) -> Any:
        """The server's answer: in base64, which has a quarter of the bytes of digits and is read at once.

        Not every server or gateway knows it, and some fail over it without a word of it. So a refusal, until something
        was answered, may be for that, and is asked again for digits.
        """
        if self._packs is False:
            return self._server.post("embeddings", request)
        try:
            document = self._server.post("embeddings", {**request, "encoding_format": "base64"})
        except (InputRefused, StatusRefused):
            if self._packs:
                raise
            document = self._server.post("embeddings", request)
            self._packs = False
        else:
            self._packs = True
        return document


class OpenAIGenerator:
    """A text model behind POST {base_url}/chat/completions."""

    def __init__(
        self, server: Server, *, model: str, max_tokens: int = 1_024, temperature: float = 0.0
    ) -> None:
        self._server, self._model = server, model
        self._request = partial(text_request, "chat", max_tokens=max_tokens, temperature=temperature)
        self._counts_streams = True  # until the server refuses to
        self.identity = f"openai:{model}"

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The generator of a config; nothing is called."""
        section = experiment.generation
        assert isinstance(section, OpenAIGeneration)
        connections = experiment.evaluation.concurrency if experiment.evaluation else 1
        return cls(
            _server("generation", section, connections=connections),
            model=section.model,
            max_tokens=section.max_tokens,
            temperature=section.temperature,
        )

    def generate(self, prompt: Prompt, on_text: Callable[[str], None] | None = None) -> Generation:
        """The model's answer, streamed when somebody listens. InputRefused when the prompt is too long for it."""
        reply = Reply(on_text, starts_in_reasoning=opens_itself(self._model))
        request = {"model": self._model} | self._request(prompt, stream=on_text is not None)
        stop_reason, usage = "", Usage()
        for piece in self._whole(request) if on_text is None else self._streamed(request):
            if piece.reasoning:
                reply.add_reasoning(piece.reasoning)
            reply.add(piece.text)
            stop_reason, usage = piece.stop_reason or stop_reason, piece.usage or usage
        return reply.finish(self._server.where, stop_reason=stop_reason, usage=usage)

    def _whole(self, request: Mapping[str, Any]) -> Iterator[Piece]:
        document = self._server.post("chat/completions", request)
        with _reading(self._server.where):
            yield read_answer(document)

    def _streamed(self, request: Mapping[str, Any]) -> Iterator[Piece]:
        """The pieces of a stream. ServiceError when it breaks off."""
        ended = False
        with closing(self._open_stream(request)) as parts:
            for data in stream_data(parts):
                if data == "[DONE]":
                    return
                piece = self._piece(data)
                ended = ended or bool(piece.stop_reason)
                yield piece
        if not ended:
            raise ServiceError(f"{self._server.where}: the answer broke off before its end")

    def _open_stream(self, request: Mapping[str, Any]) -> Generator[bytes]:
        """The parts of the reply; with the tokens counted, unless the server does not know how to be asked for that."""
        if self._counts_streams:
            try:
                counted = {**request, "stream_options": {"include_usage": True}}
                return self._server.stream("chat/completions", counted)
            except OptionRefused:
                self._counts_streams = False
        return self._server.stream("chat/completions", request)

    def _piece(self, data: str) -> Piece:
        with _reading(self._server.where):
            document = json.loads(data)
            if "error" in document:  # its text may quote the prompt
                raise ServiceError(f"{self._server.where}: the model failed while it answered")
            return read_piece(document)


class StatusRefused(ServiceError):
    """The server answered with a status of which nothing is known but that it is an error."""


class OptionRefused(ServiceError):
    """The server does not know `stream_options`."""


class Server:
    """The calls to one server, with its errors in our tree. Safe to use from several threads."""

    def __init__(
        self, pool: urllib3.PoolManager, base_url: str, *, section: str, api_key: str | None = None
    ) -> None:
        """`section` of the config is named in hints."""
        self.where = base_url.rstrip("/")
        self._pool, self._section = pool, section
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._headers = {"Content-Type": "application/json", "User-Agent": f"ragctl/{__version__}", **key}

    def post(self, path: str, request: Mapping[str, Any]) -> Any:
        """The JSON document that the server answers."""
        with self._errors():
            response = self._send(path, request, preload_content=True)
        turns.answered()
        self._check(response, request)
        try:
            return read_json(response.data)
        except ValueError as error:
            raise ServiceError(f"{self.where}: the answer is no JSON ({len(response.data)} bytes)") from error

    def stream(self, path: str, request: Mapping[str, Any]) -> Generator[bytes]:
        """The parts of the answer as they arrive; the call is made, and its status checked, before this returns."""
        with self._errors():
            response = self._send(path, request, preload_content=False)
            if response.status >= 300:
                response.read(cache_content=True)
        self._check(response, request)
        return self._parts(response)

    def _parts(self, response: urllib3.BaseHTTPResponse) -> Generator[bytes]:
        try:
            with self._errors():
                while part := response.read1():
                    yield part
        finally:
            response.close()  # a stream that is not read to its end must not go back into the pool

    def _send(
        self, path: str, request: Mapping[str, Any], *, preload_content: bool
    ) -> urllib3.BaseHTTPResponse:
        response = self._pool.request(
            "POST",
            f"{self.where}/{path}",
            body=self._encode(request),
            headers=self._headers,
            redirect=False,
            preload_content=preload_content,
        )
        before = response.retries.history if response.retries else ()
        throttles = sum(attempt.status in BUSY for attempt in before)
        repeats.count(throttles=throttles, retries=len(before) - throttles)
        return response

    def _encode(self, request: Mapping[str, Any]) -> bytes:
        try:
            return json.dumps(request, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputRefused(
                f"{self.where}: a text holds half a surrogate pair, which no encoding has"
            ) from error

    def _check(self, response: urllib3.BaseHTTPResponse, request: Mapping[str, Any]) -> None:
        """The error that a status means. The server's words go to the debug log only: they may quote texts."""
        status = response.status
        if status < 300:
            return
        said = response.data.decode("utf-8", "replace")
        log.debug("%s answered %d: %.500s", self.where, status, said)
        if status < 400:
            raise ServiceError(
                f"{self.where}: redirects to {response.headers.get('Location', 'nowhere')}",
                hint=f"redirects are not followed; set {self._section}.base_url to the right address",
            )
        if "stream_options" in request and status in (400, 422) and "stream_options" in said:
            raise OptionRefused(f"{self.where}: does not know stream_options")
        raise self._refusal(status, said, str(request["model"]))

    def _refusal(self, status: int, said: str, model: str) -> Exception:
        where, section = self.where, self._section
        if status in (413, 422) or (status == 400 and _TOO_LONG.search(said)):
            return InputRefused(f"{where}: the model refuses an input ({status})")
        if status == 401:
            hint = f"set {section}.api_key, for example to ${{OPENAI_API_KEY}}"
            return CredentialsError(f"{where}: the API key is missing or wrong (401)", hint=hint)
        if status == 403:
            return PermissionDenied(f"{where}: the API key may not use model {model} (403)")
        if status == 404:
            hint = f"{section}.base_url mostly ends in /v1; {where}/models lists the models"
            return NotFound(
                f"{where}: knows no model {model}, or is no OpenAI-compatible server (404)", hint=hint
            )
        if status == 429 and "insufficient_quota" in said:
            return QuotaExceeded(f"{where}: the quota of the API key is used up (429)")
        if status in BUSY:
            hint = "lower ingest.embed_concurrency" if section == "embedding" else "try again later"
            return Throttled(f"{where}: still busy after the retries ({status})", hint=hint)
        return StatusRefused(f"{where}: answered {status}", hint="--verbose shows what the server said")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except http.HTTPError as error:
            raise self._broken(error) from error

    def _broken(self, error: http.HTTPError) -> ServiceError:
        reason = error.reason if isinstance(error, http.MaxRetryError) and error.reason else error
        if isinstance(reason, http.NewConnectionError | http.ConnectTimeoutError):
            cause = getattr(reason.__cause__, "strerror", None) or "no answer"
            return ServiceError(
                f"{self.where}: cannot connect: {cause}",
                hint=f"is the server running, and is {self._section}.base_url right?",
            )
        if isinstance(reason, http.TimeoutError):
            return ServiceError(f"{self.where}: no answer in time", hint=f"raise {self._section}.timeout_s")
        if isinstance(reason, http.SSLError):
            return ServiceError(f"{self.where}: no secure connection: {reason}")
        return ServiceError(f"{self.where}: the connection broke ({type(reason).__name__})")


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """An answer of another shape than OpenAI's is an error of the server, told without its content."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ServiceError(f"{where}: the answer is not shaped as OpenAI's API answers") from error


def _server(section: str, settings: OpenAIEmbedding | OpenAIGeneration, *, connections: int) -> Server:
    timeout = Timeout(connect=CONNECT_TIMEOUT_S, read=settings.timeout_s)
    pool = urllib3.PoolManager(maxsize=connections, retries=RETRIES, timeout=timeout)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return Server(pool, settings.base_url, section=section, api_key=key)
