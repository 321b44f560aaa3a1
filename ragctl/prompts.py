"""Prompt templates, numbered passages, and reading the markers of an answer.

A template is a text file in two parts, each below a line of its own:

    === system ===
    What the model is told before everything else.
    === user ===
    {passages}

    Question: {question}

`{passages}` and `{question}` are the only placeholders. Each stands once, in the user part, which ends with the
question: nothing after it can be taken for a part of it, and what comes before is the same for a question asked twice.
Other braces, as in an example of JSON, are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from ragctl.errors import ConfigError
from ragctl.records import Citation, Hit, Prompt

# What a generator says when the passages do not answer; the template in the package asks for it word by word.
NO_ANSWER = "The corpus does not answer this question."

_PART = re.compile(r"^=== *(\w+) *===[ \t]*$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")

# [1], [2, 3], [1-3], 【1】; three digits at most, so that a year in brackets is no marker.
_NUMBERS = r"\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*"
_MARKER = re.compile(rf"\[\s*({_NUMBERS})\s*\]|【\s*({_NUMBERS})\s*(?:†[^】\n]*)?】")
_RANGE = re.compile(r"(\d+)(?:\s*[–-]\s*(\d+))?")
_NO_ANSWER = re.compile(r"\s+".join(map(re.escape, NO_ANSWER.rstrip(".").split())) + r"\b\.?", re.IGNORECASE)

# What a document could use to pose as something else: our own delimiters, and the tokens with which chat templates
# mark turns, which inference servers may read as such wherever they stand in a message.
_POSING_ANGLE = re.compile(
    r"[<＜](?=\s*/?\s*passage|[|｜]|/?s>|<?/?SYS>|/?(?:bos|eos|(?:start|end)_of_turn)>)", re.IGNORECASE
)
_POSING_SQUARE = re.compile(
    rf"\[(\s*(?:{_NUMBERS}|/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS))\s*)\]",
    re.IGNORECASE,
)
_POSING_LENTICULAR = re.compile(rf"【(?=\s*{_NUMBERS}\s*[†】])")
# Control characters, and Unicode's invisible tags (a copy of ASCII that a model reads and a person does not see).
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\U000e0000-\U000e007f]")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template: the system text, and the user text before and between its two placeholders."""

    system: str
    before: str  # of the user part, up to {passages}
    between: str  # from {passages} to {question}


def load_template(path: Path | None) -> Template:
    """The template of a file, or the package's own for None; ConfigError names the file and its fault."""
    if path is None:
        return parse_template(
            files("ragctl").joinpath("templates/answer.txt").read_text("utf-8"), "the package's template"
        )
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the prompt template {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _fault(str(path), f"byte {error.start} is not UTF-8") from error
    return parse_template(text, str(path))


def parse_template(text: str, name: str) -> Template:
    """A template from its text; ConfigError calls it `name`."""
    lead, *pieces = _PART.split(text)
    titles, bodies = pieces[::2], pieces[1::2]
    if lead.strip() or titles != ["system", "user"]:
        raise _fault(
            name,
            f"it must consist of the parts system and user, found: {', '.join(titles) or 'none'}"
            + (", and text before the first" if lead.strip() else ""),
        )
    system, user = (body.strip() for body in bodies)
    _check_placeholders(name, system, user)
    before, _, rest = user.partition("{passages}")
    return Template(system, before, rest.removesuffix("{question}"))


def _check_placeholders(name: str, system: str, user: str) -> None:
    inside = _PLACEHOLDER.findall(system)
    if inside:
        raise _fault(name, f"{{{inside[0]}}} stands in the system part, where nothing is filled in")
    found = _PLACEHOLDER.findall(user)
    unknown = [word for word in found if word not in ("passages", "question")]
    if unknown:
        raise _fault(name, f"{{{unknown[0]}}} is unknown; the placeholders are {{passages}} and {{question}}")
    if found != ["passages", "question"]:
        raise _fault(name, "the user part must hold {passages} once and {question} once, in this order")
    if not user.endswith("{question}"):
        raise _fault(name, "the user part must end with {question}; put what follows it into the system part")


def _fault(name: str, what: str) -> ConfigError:
    hint = (
        'a template has a line "=== system ===" with text, then "=== user ===" with {passages} and {question}'
    )
    return ConfigError(f"prompt template {name}: {what}", hint=hint)


def build_prompt(template: Template, question: str, hits: Sequence[Hit]) -> Prompt:
    """The prompt for a question: hits[n - 1] becomes passage n, fenced so that its text stays data."""
    passages = "\n\n".join(_passage(number, hit) for number, hit in enumerate(hits, 1))
    context = f"{template.before}{passages}{template.between}"
    return Prompt(template.system, context, question, tuple(hits))


def user_message(prompt: Prompt) -> str:
    """What the user says in a chat: the passages, then the question."""
    return prompt.context + prompt.question


def _passage(number: int, hit: Hit) -> str:
    page = "" if hit.page is None else f' page="{hit.page}"'
    document = escape(" ".join(harmless(hit.document).split()))
    return (
        f'<passage number="{number}" document="{document}"{page}>\n{harmless(hit.text).strip()}\n</passage>'
    )


def harmless(text: str) -> str:
    """The text of a document without what could end its passage, open another, or pose as a marker or a turn.

    The brackets that would do so become look-alikes (‹ and ［］): the text stays readable, also where it is code.
    """
    text = _INVISIBLE.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _POSING_ANGLE.sub("‹", text)
    return _POSING_LENTICULAR.sub("［", _POSING_SQUARE.sub(r"［\1］", text))


def citations(text: str, hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """The markers of an answer that stand for a hit, each once, in the order of their first appearance."""
    markers = (marker for marker in _markers(text) if 1 <= marker <= len(hits))
    return tuple(
        Citation(marker, hits[marker - 1].key, hits[marker - 1].document, hits[marker - 1].page)
        for marker in markers
    )


def unknown_markers(text: str, hits: Sequence[Hit]) -> tuple[int, ...]:
    """The markers of an answer that stand for no hit, each once: the model made them up."""
    return tuple(marker for marker in _markers(text) if not 1 <= marker <= len(hits))


def without_markers(text: str) -> str:
    """An answer as it reads without its markers."""
    return _MARKER.sub("", text)


def abstained(text: str) -> bool:
    """Whether an answer says NO_ANSWER, and does not go on to state and cite something all the same."""
    if not _NO_ANSWER.search(text):
        return False
    rest = _NO_ANSWER.sub("", text)
    return not _MARKER.search(rest) or not re.search(r"\w", _MARKER.sub("", rest))


def _markers(text: str) -> Iterator[int]:
    """The distinct numbers of all markers, in order; a range counts as every number in it."""
    seen: dict[int, None] = {}
    for match in _MARKER.finditer(text):
        for first, last in _RANGE.findall(match[1] or match[2]):
            seen.update(dict.fromkeys(range(int(first), int(last or first) + 1)))
    yield from seen
