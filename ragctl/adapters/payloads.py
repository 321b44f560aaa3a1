"""What the containers behind SageMaker endpoints are asked and what they answer, by payload family.

Embedding: `tei` (Text Embeddings Inference), `huggingface` (JumpStart's older script on the Hugging Face
container), `openai` (vLLM, SGLang). Text: `chat` (messages: LMI, vLLM, newer TGI), `text` (inputs and parameters:
LMI, TGI), `completions` (prompt: vLLM). For another shape the readers raise LookupError, TypeError, ValueError or
AttributeError.
"""

from __future__ import annotations

import codecs
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ragctl.prompts import user_message
from ragctl.records import Prompt, Usage

# --- embedding -------------------------------------------------------------------------------------------


def embedding_request(family: str, texts: Sequence[str], model: str) -> dict[str, Any]:
    """The request body that asks for the vectors of the texts; `model` is the JumpStart id, where known."""
    if family == "tei":
        # Cut texts would be embedded without a word about it: too long must be an error.
        return {"inputs": list(texts), "truncate": False}
    if family == "huggingface":
        mode = {"mode": "embedding"} if "sentencesimilarity" in model else {}
        return {"text_inputs": list(texts), **mode}
    return {"input": list(texts), "encoding_format": "float"}


def embedding_rows(family: str, document: Any) -> list[Any]:
    """The vectors in a reply, in the order of the texts. ValueError for base64 that is none."""
    if family == "tei":
        if not isinstance(document, list):
            raise TypeError("no list of vectors")
        return document
    if family == "huggingface":
        rows = document["embedding"]
        return list(rows) if isinstance(rows[0], list) else [rows]  # one text gives a flat list
    data = sorted(document["data"], key=lambda row: row["index"])
    if [row["index"] for row in data] != list(range(len(data))):
        raise ValueError("an index is missing or there twice")
    return [_numbers(row["embedding"]) for row in data]


def _numbers(embedding: Any) -> Any:
    """A vector as it stands in a reply, or, as base64, the 32-bit numbers in it, least significant byte first."""
    if not isinstance(embedding, str):
        return embedding
    import numpy as np

    return np.frombuffer(b64decode(embedding, validate=True), dtype="<f4")


def embedding_usage(document: Any) -> Usage:
    """Tokens that a reply reports; only the OpenAI shape does."""
    return _usage(document.get("usage")) if isinstance(document, Mapping) else Usage()


# --- reranking -------------------------------------------------------------------------------------------


def rerank_request(question: str, texts: Sequence[str]) -> dict[str, Any]:
    """The request body that asks TEI to score the texts."""
    # What it cannot read whole it scores by its beginning: a shorter text is no error of the question.
    return {"query": question, "texts": list(texts), "truncate": True}


def rerank_scores(document: Any, count: int) -> list[float]:
    """The scores in a reply, in the order of the texts. ValueError when a text has none, or more than one."""
    rows = sorted((int(row["index"]), float(row["score"])) for row in document)
    if [index for index, _ in rows] != list(range(count)):
        raise ValueError(f"scores of {len(rows)} texts instead of {count}")
    return [score for _, score in rows]


# --- text ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """What one JSON document of a reply says: the whole answer, or a piece of a stream."""

    text: str = ""
    reasoning: str = ""
    stop_reason: str = ""
    usage: Usage | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.text, str) and isinstance(self.reasoning, str)):
            raise TypeError("a text is no string")


def text_request(
    family: str, prompt: Prompt, *, max_tokens: int, temperature: float, stream: bool
) -> dict[str, Any]:
    """The request body that asks for an answer."""
    request = _TEXT_REQUESTS[family](prompt, max_tokens, temperature)
    return {**request, "stream": True} if stream else request


def _chat(prompt: Prompt, max_tokens: int, temperature: float) -> dict[str, Any]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages = [*system, {"role": "user", "content": user_message(prompt)}]
    return {"messages": messages, "max_tokens": max_tokens, "temperature": temperature}


def _text(prompt: Prompt, max_tokens: int, temperature: float) -> dict[str, Any]:
    # TGI refuses a temperature of 0; without sampling it is not asked for.
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    )
    parameters = {"max_new_tokens": max_tokens, "return_full_text": False, **sampling}
    return {"inputs": _plain(prompt), "parameters": parameters}


def _completions(prompt: Prompt, max_tokens: int, temperature: float) -> dict[str, Any]:
    return {"prompt": _plain(prompt), "max_tokens": max_tokens, "temperature": temperature}


def _plain(prompt: Prompt) -> str:
    """One text for models without chat turns; it ends where the answer is to begin."""
    return "\n\n".join(filter(None, (prompt.system, user_message(prompt), "Answer:")))


_TEXT_REQUESTS: Final[Mapping[str, Callable[[Prompt, int, float], dict[str, Any]]]] = {
    "chat": _chat,
    "text": _text,
    "completions": _completions,
}


def read_answer(document: Any) -> Piece:
    """The whole of a reply that was not streamed."""
    if isinstance(document, list):  # TGI answers a list of one, LMI the object itself
        document = document[0]
    if "choices" in document:
        return _choice(document, "message")
    details = document.get("details") or {}
    return Piece(
        document["generated_text"], "", details.get("finish_reason") or "", _generated(details, document)
    )


def read_piece(document: Any) -> Piece:
    """One document of a stream; one that carries no text gives an empty piece."""
    if "choices" in document:
        return _choice(document, "delta")
    if "outputs" in document:  # LMI before its JSON lines
        return Piece("".join(document["outputs"]))
    token = document["token"]
    details = document.get("details") or {}
    text = "" if token.get("special") else token["text"]
    return Piece(text, "", details.get("finish_reason") or "", _generated(details, document))


def _choice(document: Any, part: str) -> Piece:
    usage = _usage(document["usage"]) if document.get("usage") else None
    if not document["choices"]:  # the last document of a stream may hold the usage alone
        return Piece(usage=usage)
    choice = document["choices"][0]
    said = choice.get(part) or {}
    return Piece(
        said.get("content") or choice.get("text") or "",
        said.get("reasoning_content") or said.get("reasoning") or "",
        choice.get("finish_reason") or "",
        usage,
    )


def _usage(usage: Any) -> Usage:
    usage = usage or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return Usage(prompt - cached, completion, cache_read_tokens=cached)


def _generated(details: Any, document: Any) -> Usage | None:
    """TGI and LMI count what they generated, and what they read only when asked to repeat it."""
    if document.get("usage"):
        return _usage(document["usage"])
    return Usage(output_tokens=details["generated_tokens"]) if details.get("generated_tokens") else None


# --- streams ---------------------------------------------------------------------------------------------


def stream_data(parts: Iterable[bytes]) -> Iterator[str]:
    """The data of a stream's lines, server-sent events and JSON lines alike, `[DONE]` among them.

    Parts may be cut anywhere, inside a character too. Only a line feed ends a line: JSON may hold U+2028 as it is.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for part in parts:
        *lines, rest = (rest + decoder.decode(part)).split("\n")
        yield from filter(None, map(_data, lines))
    yield from filter(None, [_data(rest + decoder.decode(b"", final=True))])


def _data(line: str) -> str:
    """What a line carries; nothing for the comments and names of server-sent events."""
    line = line.strip(" \r")
    if line.startswith((":", "event:", "id:", "retry:")):
        return ""
    return line.removeprefix("data:").strip(" ")
