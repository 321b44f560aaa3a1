"""Markdown: the text as it stands, headings as sections."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parsed import document

LINE = st.one_of(
    st.sampled_from(
        ["# One", "## Two #", "text", "", "===", "---", "```", "~~~ sh", "   # three", "    # code", "- item"]
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"), max_size=20),
)


def headings(text: str) -> list[tuple[int, str]]:
    """Level and title of each section."""
    return [(section.level, section.title) for section in document("a.md", text).sections]


@given(st.lists(LINE, max_size=30).map("\n".join))
def test_the_text_is_the_files_and_sections_partition_it(text: str) -> None:
    """Spans of chunks are spans of the file; sections follow one another to the end."""
    found = document("a.md", text)
    assert found.text == text
    for section, following in zip(found.sections, found.sections[1:], strict=False):
        assert section.start < section.end == following.start
    assert not found.sections or found.sections[-1].end == len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# One\n## Two ##\n### Three #3\n#four\n####### five", [(1, "One"), (2, "Two"), (3, "Three #3")]),
        ("#\n## \n", [(1, ""), (2, "")]),
        ("One\n===\n\nTwo\n---\n", [(1, "One"), (2, "Two")]),
        ("A title\nof two lines\n===", [(1, "A title of two lines")]),
        ("# One\nTwo\n---\nThree\n===", [(1, "One"), (2, "Two"), (1, "Three")]),
        ("para\n\n---\nmore", []),
        ("- item\n---", []),
        ("> quoted\n---", []),
        ("    code\n---", []),
        ("***\n---", []),
        ("```\n# code\n```\n# text", [(1, "text")]),
        ("~~~ python\n# code\n```\n~~~\n# text", [(1, "text")]),
        ("````\n```\n# code\n````\n# text", [(1, "text")]),
        ("1. item\n\n     ```\n     x\n   # code\n     ```\n# text", [(1, "text")]),
        ("```\n# never closed", []),
        ("`# inline`\n", []),
        ("    # indented code", []),
        ("   # three spaces", [(1, "three spaces")]),
    ],
)
def test_headings_are_those_of_commonmark(text: str, expected: list[tuple[int, str]]) -> None:
    """With # and with underlines, and never inside code."""
    assert headings(text) == expected


def test_a_section_reaches_to_the_next_heading() -> None:
    """Of any level; what stands above the first belongs to none."""
    text = "intro\n\n# One\na\n## Two\nb\n"
    found = document("a.md", text)
    assert [text[section.start : section.end] for section in found.sections] == ["# One\na\n", "## Two\nb\n"]


def test_headings_lose_their_markup() -> None:
    """Titles are for people."""
    assert headings('# The `code` of [a link](http://x/) *now* \\[1\\]<a name="x"></a> {#id}') == [
        (1, "The code of a link now [1]")
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\ntitle: Of the matter\n---\n# Heading", "Of the matter"),
        ("---\nlayout: x\n---\n## Two\n# Heading", "Heading"),
        ("---\ntitle: [broken\n---\n# Heading", "Heading"),
        ("---\ntitle: {a: b}\n---\n# Heading", "Heading"),
        ("---\n- title: x\n---\n# Heading", "Heading"),
        ("---\ndate: 2024-13-45\ntitle: 2024\n---\n", "2024"),
        ("---\n" + "[" * 5_000 + "\n---\n# Heading", "Heading"),
        ("---\ntitle: !!python/object/apply:os.getcwd []\n---\n# Heading", "Heading"),
        ("## Only two\n", None),
    ],
)
def test_the_title_is_that_of_the_front_matter_or_the_first_heading(text: str, title: str | None) -> None:
    """Malformed or hostile front matter is passed over."""
    assert document("a.md", text).metadata.get("title") == title


def test_front_matter_is_no_heading() -> None:
    """Its last line looks like the underline of one."""
    assert headings("---\ntitle: x\n---\ntext\n") == []
