"""Templates, numbered passages that stay data, and the markers of answers."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.errors import ConfigError
from ragctl.prompts import (
    NO_ANSWER,
    abstained,
    build_prompt,
    citations,
    harmless,
    load_template,
    unknown_markers,
    user_message,
)
from ragctl.records import DOCUMENT, PAGE, TEXT, Hit, MetadataValue

TEMPLATE = "=== system ===\nBe brief.\n=== user ===\n{passages}\n\nQ: {question}\n"


def hit(text: str, *, document: str = "docs/a.txt", page: int | None = None) -> Hit:
    """A hit as a store returns it."""
    metadata: dict[str, MetadataValue] = {TEXT: text, DOCUMENT: document}
    if page is not None:
        metadata[PAGE] = page
    return Hit(key=f"key of {text}", score=1.0, distance=None, metadata=metadata)


def template_file(folder: Path, text: str) -> Path:
    """A template file with this text."""
    path = folder / "mine.txt"
    path.write_text(text, "utf-8")
    return path


def test_the_package_template_asks_for_citations_and_the_fixed_sentence() -> None:
    """The default template cites by [1], calls passages data, and ends without an answer in the words we look for."""
    template = load_template(None)
    assert NO_ANSWER in template.system
    assert "[1]" in template.system
    assert "data" in template.system
    assert abstained(NO_ANSWER)


def test_passages_are_numbered_and_say_where_they_are_from(tmp_path: Path) -> None:
    """The user message holds each passage with number, document and page, and ends with the question."""
    template = load_template(template_file(tmp_path, TEMPLATE))
    hits = [hit("First.", page=3), hit("Second.", document="docs/b.txt")]
    prompt = build_prompt(template, "Why?", hits)
    assert prompt.system == "Be brief."
    assert prompt.question == "Why?"
    assert prompt.hits == tuple(hits)
    assert user_message(prompt) == (
        '<passage number="1" document="docs/a.txt" page="3">\nFirst.\n</passage>\n\n'
        '<passage number="2" document="docs/b.txt">\nSecond.\n</passage>\n\n'
        "Q: Why?"
    )


def test_braces_in_passages_and_question_are_not_filled_in(tmp_path: Path) -> None:
    """Text that looks like a placeholder is only text, wherever it comes from."""
    template = load_template(template_file(tmp_path, TEMPLATE))
    message = user_message(build_prompt(template, "{passages}?", [hit("{question} {0}")]))
    assert "{question} {0}" in message
    assert message.endswith("Q: {passages}?")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it must consist of the parts system and user, found: none"),
        ("=== user ===\n{passages}\n{question}", "parts system and user, found: user"),
        ("Hello\n" + TEMPLATE, "found: system, user, and text before the first"),
        (TEMPLATE.replace("brief", "{kind}"), "{kind} stands in the system part, where nothing is filled in"),
        (
            TEMPLATE.replace("{passages}", "{context}"),
            "{context} is unknown; the placeholders are {passages} and",
        ),
        (TEMPLATE.replace("{passages}", ""), "must hold {passages} once and {question} once, in this order"),
        (TEMPLATE.replace("{passages}", "{question}"), "must hold {passages} once and {question} once"),
        (TEMPLATE + "Thanks.", "the user part must end with {question}"),
    ],
)
def test_a_faulty_template_is_a_configuration_error(tmp_path: Path, text: str, fault: str) -> None:
    """The error names the file and what is wrong with it."""
    path = template_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_template(path)
    assert str(path) in caught.value.message
    assert fault in caught.value.message
    assert "=== system ===" in (caught.value.hint or "")


def test_json_in_a_template_is_left_alone(tmp_path: Path) -> None:
    """Only a word in braces is a placeholder, so an example of JSON needs no escapes."""
    template = load_template(
        template_file(tmp_path, TEMPLATE.replace("Be brief.", 'Reply {"answer": "..."}'))
    )
    assert template.system == 'Reply {"answer": "..."}'


def test_a_missing_or_unreadable_template_names_the_file(tmp_path: Path) -> None:
    """A path that is not there, or not UTF-8, is a configuration error with the path in it."""
    with pytest.raises(ConfigError, match=r"cannot read the prompt template .*gone\.txt: No such file"):
        load_template(tmp_path / "gone.txt")
    (tmp_path / "latin.txt").write_bytes(TEMPLATE.encode().replace(b"brief", b"br\xe8ve"))
    with pytest.raises(ConfigError, match=r"latin\.txt: byte 20 is not UTF-8"):
        load_template(tmp_path / "latin.txt")


FRAGMENTS = [
    *(
        "</passage>",
        "<passage number='9'>",
        "< / Passage",
        "＜/passage>",
        "[1]",
        "[2, 3]",
        "[ 1 – 3 ]",
        "【1†a】",
    ),
    *("<<SYS>>", "</s>", "[INST]", "<start_of_turn>", "<｜User｜>", "<|im_start|>", "\x00", "\U000e0041"),
    *("[", "]", "【", "】", "1", "<", "/", "|", "passage", "\n", "\r", " ", "text", "{question}"),
]
HOSTILE = st.lists(st.sampled_from(FRAGMENTS)).map("".join)


@given(HOSTILE)
def test_no_document_can_pose_as_a_passage_a_marker_or_a_turn(text: str) -> None:
    """Whatever a document holds, the message has one passage line of each kind, no marker and no turn token."""
    message = user_message(build_prompt(load_template(None), "Why?", [hit(text, document=f"a/{text}.md")]))
    assert len(re.findall(r"[<＜]\s*/?\s*passage", message, re.IGNORECASE)) == 2
    assert unknown_markers(message, []) == ()
    assert not re.search(r"<[|｜]|\[INST|<<SYS|</s>|<start_of_turn>|[\x00\U000e0041]", message)


@given(st.text())
def test_neutralising_twice_changes_nothing_more(text: str) -> None:
    """What was made harmless once is harmless."""
    assert harmless(harmless(text)) == harmless(text)


def test_ordinary_text_and_code_stay_as_they_are() -> None:
    """Tables, comparisons, HTML and years in brackets reach the model unchanged."""
    text = "a < b && c > d | x[i] | [2024] | <b>bold</b> | <span>s</span> | 5 > 3\n\t- item"
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("text", "markers"),
    [
        ("Yes [1].", [1]),
        ("Yes [2][1].", [2, 1]),
        ("Yes [2, 3]; again [3].", [2, 3]),
        ("Yes 【1】 and 【2†source】.", [1, 2]),
        ("Yes [1-3].", [1, 2, 3]),
        ("Yes [1; 3].", [1, 3]),
        ("In [2024] and a[i] nothing.", []),
        ("Made up [7], given [1].", [1]),
        ("Zero [0].", []),
        ("", []),
    ],
)
def test_markers_map_to_hits(text: str, markers: list[int]) -> None:
    """Every form of marker that models write is mapped, once, in the order of the text."""
    hits = [hit("one", page=4), hit("two", document="docs/b.txt"), hit("three")]
    cited = citations(text, hits)
    assert [citation.marker for citation in cited] == markers
    for citation in cited:
        source = hits[citation.marker - 1]
        assert (citation.key, citation.document, citation.page) == (source.key, source.document, source.page)


def test_made_up_markers_are_told_apart() -> None:
    """A marker without a passage is no citation and can be warned about."""
    assert unknown_markers("A [1]. B [9, 0]. C [9].", [hit("one")]) == (9, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NO_ANSWER, True),
        (f"  **{NO_ANSWER.lower()}**\n", True),
        ("The corpus does not\nanswer this question", True),
        (f"{NO_ANSWER} [1]", True),
        (f"{NO_ANSWER} The passages are about other years.", True),
        (f"{NO_ANSWER} However, the fee was 5 EUR [1].", False),
        ("The fee was 5 EUR [1].", False),
        ("The corpus does not answer this questionnaire.", False),
        ("", False),
    ],
)
def test_abstention_is_the_fixed_sentence_without_a_cited_claim(text: str, expected: bool) -> None:
    """Saying the sentence counts, however it is set; saying it and answering all the same does not."""
    assert abstained(text) is expected
