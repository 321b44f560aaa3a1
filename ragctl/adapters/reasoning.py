"""A model's reply as it arrives: the answer apart from the reasoning, for every generator that asks a model.

Reasoning models put `<think>...</think>` in front of the answer unless their server takes it out. The tags may
be cut anywhere by a stream, the closing one is missing when the tokens run out, and the opening one is missing
where the chat template has already written it (DeepSeek-R1 and its distillations).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ragctl.errors import ServiceError
from ragctl.records import Generation, Usage

_TAG = re.compile(r"<(/?)think>")
_TAGS = ("<think>", "</think>")
# Models whose chat template opens the reasoning itself, so that a reply starts inside of it.
_OPENS_ITSELF = re.compile(r"deepseek.*r1|\br1-distill|qwq|thinking", re.IGNORECASE)
CUT_REASONS = frozenset({"length", "max_tokens"})


def opens_itself(model: str) -> bool:
    """Whether a model of this name starts its replies inside the reasoning, without an opening tag."""
    return bool(_OPENS_ITSELF.search(model))


class Reply:
    """Collects a reply piece by piece and hands the answer on as soon as it is known to be answer."""

    def __init__(
        self, on_text: Callable[[str], None] | None = None, *, starts_in_reasoning: bool = False
    ) -> None:
        """`on_text` gets the answer's pieces; with `starts_in_reasoning` none before a closing tag, or the end."""
        self._on_text = on_text
        self._answer: list[str] = []
        self._reasoning: list[str] = []
        self._pending = ""  # may be the beginning of a tag
        self._inside = False
        self._undecided = starts_in_reasoning  # what comes is shown once it is known what it is

    def add(self, text: str) -> None:
        """Take a piece of the model's text, tags and all."""
        text = self._pending + text
        at = 0
        for tag in _TAG.finditer(text):
            self._take(text[at : tag.start()])
            self._close() if tag[1] else self._open()
            at = tag.end()
        keep = _started_tag(text[at:])
        self._take(text[at : len(text) - keep])
        self._pending = text[len(text) - keep :]

    def add_reasoning(self, text: str) -> None:
        """Take a piece that the service itself calls reasoning."""
        self._undecided = False
        self._reasoning.append(text)

    def finish(self, where: str, *, stop_reason: str = "", usage: Usage | None = None) -> Generation:
        """The whole reply. ServiceError, naming `where`, when there is no answer in it."""
        self._take(self._pending)
        if self._undecided and stop_reason in CUT_REASONS:
            self._reasoning, self._answer = self._answer, []
        elif self._undecided and self._on_text:
            self._on_text("".join(self._answer))
        text, reasoning = "".join(self._answer).strip(), "".join(self._reasoning).strip()
        if not text:
            error = _no_answer(where, stop_reason, reasoned=bool(reasoning))
            error.usage = usage
            raise error
        return Generation(text, reasoning=reasoning, usage=usage or Usage(), stop_reason=stop_reason)

    def _open(self) -> None:
        self._inside, self._undecided = True, False

    def _close(self) -> None:
        if not self._inside:  # nothing had opened it: all that came so far was reasoning
            self._reasoning += self._answer
            self._answer.clear()
        self._inside = self._undecided = False

    def _take(self, text: str) -> None:
        if self._inside:
            self._reasoning.append(text)
            return
        if not self._answer:
            text = text.lstrip()  # the blank lines between reasoning and answer
        if text:
            self._answer.append(text)
            if self._on_text and not self._undecided:
                self._on_text(text)


def _started_tag(text: str) -> int:
    """How many characters at the end of the text may be the beginning of a tag."""
    longest = max(map(len, _TAGS)) - 1
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if any(t.startswith(text[-n:]) for t in _TAGS)), 0
    )


def _no_answer(where: str, stop_reason: str, *, reasoned: bool) -> ServiceError:
    why = f" (stop reason: {stop_reason})" if stop_reason else ""
    if stop_reason in CUT_REASONS:
        what = "the tokens ran out while the model was reasoning" if reasoned else "the tokens ran out"
        return ServiceError(f"{where}: no answer, {what}{why}", hint="raise generation.max_tokens")
    return ServiceError(f"{where}: the answer is empty{why}")
