"""HTML: readable text, block by block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.errors import DocumentError
from tests.parsed import document, parsed

PIECE = st.sampled_from(
    [
        "<p>",
        "</p>",
        "<h1>",
        "</h1>",
        "<h2>",
        "<div>",
        "</div>",
        "<table><tr><td>",
        "</table>",
        "<li>",
        "<pre>",
        "</pre>",
        "<nav>",
        "</nav>",
        "<main>",
        "<header>",
        "</header>",
        "<script>",
        "</script>",
        "<!--",
        "-->",
        "&amp;",
        "&#0;",
        "&#13;",
        "<br>",
        "word",
        "ü",
        "<",
        "&",
        "<![CDATA[",
    ]
) | st.sampled_from([" ", "\n", "\t two  words "])


def text(page: str) -> str:
    """The text of a page."""
    return document("a.html", page).text


@given(st.lists(PIECE, max_size=40).map("".join))
def test_any_page_gives_tidy_text_with_exact_sections(page: str) -> None:
    """However broken: no error, no blank ends, and each section starts with its title."""
    found = document("a.html", page)
    assert found.text == found.text.strip("\n")
    ends = [*(section.start for section in found.sections[1:]), len(found.text)]
    for section, end in zip(found.sections, ends, strict=False):  # no section, one end
        assert " ".join(found.text[section.start : section.end].split()).startswith(section.title)
        assert section.end == end


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("", ""),
        ("plain text", "plain text"),
        ("<p>one <b>bold</b>, two\n three<p>four", "one bold, two three\n\nfour"),
        ("a<br>b<div>c</div>d", "a\nb\nc\nd"),
        ("<ul><li>a<li>b <i>c</i></ul>", "- a\n- b c"),
        ("<p>x</p><pre>\ndef f():\n\n    <b>pass</b>\n</pre>y", "x\n\ndef f():\n\n    pass\n\ny"),
        ("caf&eacute; &lt;b&gt; &#8364; &nbsp;x", "café <b> € x"),
        ("soft\u00adly and zero\u200bwidth", "softly and zerowidth"),
        ("a<script>var x = '<p>';</script>b<style>p{}</style>c<template>t</template>", "abc"),
        ("<p>a</p><svg><text>drawn</text></svg><p>b</p>", "a\n\nb"),
        ("<p>a<!-- hidden -->b</p><?php x ?>", "ab"),
    ],
)
def test_blocks_stand_on_lines_of_their_own(page: str, expected: str) -> None:
    """White space folds, code keeps it, entities are read, programs are not."""
    assert text(page) == expected


def test_a_table_is_one_line_a_row() -> None:
    """Cells keep their places, blocks inside them do not break the line; empty rows vanish."""
    page = """<p>before<table><caption>Sales</caption><thead><tr><th>Year<th>Sum<th>Note</thead>
      <tr><td>2023<td><p>1</p><p>2</p><td>a<br>b<tr><td>2024<td><td><ul><li>x<li>y</ul>
      <tr><td><td><td></tr></table>after"""
    assert text(page) == "before\n\nSales\nYear | Sum | Note\n2023 | 1 2 | a b\n2024 |  | x y\n\nafter"


def test_a_table_that_lays_out_a_page_is_read_as_blocks() -> None:
    """Mail and old pages: headings and further tables inside."""
    page = "<table><tr><td><h1>Top</h1><p>One</p><td><table><tr><td>a<td>b</table></table>"
    assert text(page) == "Top\n\nOne\n\na | b"


def test_navigation_and_banners_are_left_out() -> None:
    """What repeats on every page of a site is not what the page is about."""
    page = """<header><a>Logo</a><nav>Menu</nav></header><aside>Ads</aside>
      <main><header><h1>Title</h1><p>By me</p></header><nav>Contents</nav><p>Text<a class="headerlink">#</a></p>
      <aside>Note</aside><footer>Sources</footer></main>
      <div role="search">Find <input value=x></div><footer>Imprint</footer>"""
    assert text(page) == "Title\n\nBy me\n\nText\n\nNote\nSources"


def test_a_header_with_the_title_is_kept() -> None:
    """Many pages put their first heading there."""
    assert text("<header><h1>Title</h1></header><p>Text</p>") == "Title\n\nText"


@pytest.mark.parametrize(
    "page", ["<nav>All there is</nav>", "<footer>All there is</footer>", "<button>All there is"]
)
def test_a_page_with_nothing_else_keeps_its_furniture(page: str) -> None:
    """Main content is never dropped, wherever it stands."""
    assert text(page) == "All there is"


def test_headings_become_sections() -> None:
    """With exact spans, up to the next heading."""
    found = document("a.html", "<p>intro<h1>One <i>two</i></h1>a<h3>Three</h3><p>b")
    assert [(s.level, s.title, found.text[s.start : s.end]) for s in found.sections] == [
        (1, "One two", "One two\n\na\n\n"),
        (3, "Three", "Three\n\nb"),
    ]


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("<title> A\n title </title><h1>Other</h1>", "A title"),
        ("<title></title><h2>No</h2><h1>Heading</h1>", "Heading"),
        ("<p>none", None),
    ],
)
def test_the_title_is_the_pages_or_its_first_heading(page: str, title: str | None) -> None:
    """On one line."""
    assert document("a.html", page).metadata.get("title") == title


@pytest.mark.parametrize(
    ("declaration", "codec"),
    [
        ('<meta charset="iso-8859-7">', "iso8859-7"),
        ("<meta http-equiv='Content-Type' content='text/html; charset=windows-1251'>", "cp1251"),
        ('<?xml version="1.0" encoding="iso-8859-2"?>', "iso8859-2"),
        ('<meta charset="iso-8859-1">', "utf-8"),
        ('<meta charset="utf-8">', "utf-16"),
    ],
)
def test_the_declared_charset_counts_after_marks_and_utf8(declaration: str, codec: str) -> None:
    """A wrong declaration does no harm where the bytes say what they are."""
    words = {"iso8859-7": "Ώρα", "cp1251": "Час", "iso8859-2": "čas"}.get(codec, "heure été")
    assert text_of(f"{declaration}<p>{words}</p>".encode(codec)) == words


def text_of(data: bytes) -> str:
    """The text of a page given as bytes."""
    return document("a.xhtml", data).text


def test_nothing_outside_the_page_is_loaded() -> None:
    """No entity, no frame, no picture: not from a file, not from the network (which the tests forbid)."""
    page = """<!DOCTYPE html [<!ENTITY secret SYSTEM "file:///etc/passwd">]><html><head>
      <link rel="stylesheet" href="http://192.0.2.1/x.css"></head><body><iframe src="http://192.0.2.1/"></iframe>
      <p>&secret;</p><img src="http://192.0.2.1/x.png"></body></html>"""
    assert "root:" not in text(page)
    assert "&secret;" in text(page)


def test_entities_do_not_multiply() -> None:
    """A document of a kilobyte stays one."""
    entities = "".join(f'<!ENTITY e{n} "&e{n - 1};&e{n - 1};">' for n in range(1, 40))
    assert len(text(f'<!DOCTYPE html [<!ENTITY e0 "ha">{entities}]><p>&e39;</p>')) < 5_000


def test_nesting_without_end_is_an_error() -> None:
    """Where the parser would give up, the rest of the page would be lost in silence."""
    assert text("<div>" * 1_500 + "deep") == "deep"
    with pytest.raises(DocumentError, match=r"^papers/a.html is nested too deep to be a page$"):
        parsed("a.html", "<div>" * 100_000 + "x")


def test_attributes_and_texts_without_end_are_read() -> None:
    """Pictures inside attributes are megabytes long."""
    assert text(f'<p title="{"x" * 11_000_000}">after</p>') == "after"
    assert len(text(f"<p>{'x' * 11_000_000}</p>")) == 11_000_000
