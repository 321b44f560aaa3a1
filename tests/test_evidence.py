"""Quotes are found in whatever chunks exist, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.datasets import Evidence
from ragctl.evidence import INSIDE, held, holds, words
from ragctl.records import DOCUMENT, PAGE, TEXT, Hit, MetadataValue

QUOTE = "Revenue in 2023 was 12.5 million euros, up from 11.9 million."


def hit(text: str, document: str = "papers/a.pdf", page: int | None = None) -> Hit:
    metadata: dict[str, MetadataValue] = {TEXT: text, DOCUMENT: document}
    return Hit(
        key="k", score=1.0, distance=None, metadata=metadata if page is None else {**metadata, PAGE: page}
    )


def found(text: str, quote: str = QUOTE) -> bool:
    return held([Evidence("papers/a.pdf", quote)], [hit(text)]) == [{0}]


@pytest.mark.parametrize(
    "text",
    [
        f"Before. {QUOTE} After.",
        "REVENUE  in\n2023\twas 12.5 million euros , up from 11.9\u00a0million",
        "Reve\u00adnue in 2023 was 12.5 mil-\nlion euros \u2013 up from 11.9 million\u2026",
        "Revenue in ２０２３ was “12.5 million” euros, up from 11.9 million",
    ],
    ids=["as it is", "case and space", "hyphens of a line's end", "typography"],
)
def test_the_whole_quote_is_found_however_it_is_set(text: str) -> None:
    """Parsers differ in space, hyphens and quotation marks, not in words."""
    assert found(text)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("As we said: Revenue in 2023 was 12.5 million eu", True),
        ("uros, up from 11.9 million. Costs fell.", False),
        ("llion euros, up from 11.9 million. Costs fell.", True),
        ("As we said: Revenue in 2023 was", False),
        ("was 12.5 million euros, up", True),
    ],
    ids=["first half", "less than half", "second half", "beginning only", "wholly inside"],
)
def test_a_quote_that_a_boundary_cuts(text: str, is_found: bool) -> None:
    """Half of the words suffice at a chunk's edge, and the word that the cut went through may be a rest."""
    assert found(text) is is_found


@pytest.mark.parametrize(
    "text",
    [
        "Revenue in 2023 was 12.5 million euros less than planned.",
        "Revenue in 2022 was 12.5 million euros, up from 11.9 million.",
        "Revenue in 2023 was 125 million euros, up from 11.9 million.",
        "Revenue",
        "",
    ],
    ids=["goes on otherwise", "another year", "another number", "a heading", "nothing"],
)
def test_a_sentence_that_only_resembles_the_quote_is_no_evidence(text: str) -> None:
    """Reports say almost the same of every year; one differing word within the overlap decides."""
    assert not found(text)


def test_a_short_quote_needs_its_own_words() -> None:
    """A number is not found in the rest of another, nor two words at an edge that could begin anything."""
    assert not found("2 million", "42 million")
    assert not found("2", "42")
    assert not found("We thank all of", "All of it counts")
    assert found("in all 42 of them", "42")


def test_scripts_without_spaces_match_inside_a_line() -> None:
    """Each character is a word, so a quote need not begin where the line does."""
    assert found("今日は東京の天気が良いです。", "東京の天気")


@pytest.mark.parametrize(
    ("document", "page", "is_found"),
    [
        ("papers/a.pdf", 2, True),
        ("papers/a.pdf", 1, True),
        ("papers/a.pdf", 3, True),
        ("papers/a.pdf", 4, False),
        ("papers/a.pdf", None, True),
        ("papers/a.pdf#7", None, True),
        ("papers/a.pdf2", 2, False),
        ("papers/b.pdf", 2, False),
    ],
)
def test_document_and_page_must_agree(document: str, page: int | None, is_found: bool) -> None:
    """One page of grace for chunks and quotes across a page break; a record counts for its file."""
    evidence = [Evidence("papers/a.pdf", QUOTE, 2)]
    assert bool(held(evidence, [hit(QUOTE, document, page)])[0]) is is_found


def test_each_hit_says_which_quotes_it_holds() -> None:
    """Several quotes in one chunk, one quote in several chunks."""
    evidence = [Evidence("papers/a.pdf", "red apples"), Evidence("papers/a.pdf", "green pears")]
    hits = [hit("green pears and red apples"), hit("none"), hit("green pears")]
    assert held(evidence, hits) == [{0, 1}, set(), {1}]


TEXTS = st.lists(st.text("abcde", min_size=1, max_size=4), min_size=INSIDE, max_size=60)


@given(TEXTS, st.data())
def test_however_a_text_is_cut_some_chunk_holds_the_quote(text: list[str], data: st.DataObject) -> None:
    """When chunks of five words or more tile the text, a quote as long is never lost between them."""
    first = data.draw(st.integers(0, len(text) - INSIDE))
    last = data.draw(st.integers(first + INSIDE, len(text)))
    cuts = [0]
    while len(text) - cuts[-1] >= 2 * INSIDE:
        cuts.append(data.draw(st.integers(cuts[-1] + INSIDE, len(text) - INSIDE)))
    chunks = [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    assert any(holds(chunk, text[first:last]) for chunk in chunks)


@given(TEXTS, TEXTS)
def test_texts_without_a_common_word_never_match(chunk: list[str], quote: list[str]) -> None:
    """Rests of cut words alone are no agreement."""
    assert not holds(chunk, [f"x{word}" for word in quote])


@given(st.text())
def test_words_are_stable(text: str) -> None:
    """Comparing words again changes nothing: they hold no space, and are found in their own text."""
    found_words = words(text)
    assert all(word and not word.isspace() for word in found_words)
    assert not found_words or holds(found_words, found_words)
