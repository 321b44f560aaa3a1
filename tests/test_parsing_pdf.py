"""PDF: the text of each page, with spans."""

from contextlib import closing
from pathlib import Path

import pypdfium2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragctl.config import Parsing
from ragctl.errors import DocumentError
from ragctl.parsing import pdf as pdf_parser
from ragctl.records import Document
from tests.parsed import document, parsed
from tests.pdfs import blank_pdf, encrypted_pdf, pdf

SAMPLES = Path(__file__).parents[1] / "samples"
WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=8), min_size=1, max_size=6).map(" ".join)


def page_texts(found: Document) -> list[str]:
    """The text of each page by its span."""
    return [found.text[page.start : page.end] for page in found.pages]


@settings(max_examples=30)
@given(st.lists(st.lists(WORDS, max_size=4), min_size=1, max_size=5))
def test_spans_partition_the_pages(pages: list[list[str]]) -> None:
    """Each span holds its page, in order, and a blank line stands between them."""
    found = document("a.pdf", pdf(*pages))
    # Which words share a line is pdfium's to say.
    assert ["".join(text.split()) for text in page_texts(found)] == [
        "".join(lines).replace(" ", "") for lines in pages
    ]
    assert [page.number for page in found.pages] == list(range(1, len(pages) + 1))
    assert found.text == ("\n\n".join(page_texts(found)) if any(pages) else "")


def test_a_pdf_says_its_title_and_its_pages() -> None:
    """As metadata, unless the config does not want them."""
    data = pdf(["One (1)"], ["Two"], title="Annual report")
    assert document("a.pdf", data).metadata == {"title": "Annual report", "page_count": 2}
    assert document("a.pdf", data, parsing=Parsing(title=False, page_count=False)).metadata == {}


@pytest.mark.parametrize(
    "title", ["Microsoft Word - draft3.doc", "Untitled", "untitled document", "Report.indd", "  ", "Slide 1"]
)
def test_titles_that_programs_wrote_are_none(title: str) -> None:
    """They say nothing about the document."""
    assert "title" not in document("a.pdf", pdf(["x"], title=title)).metadata


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["very dan-", "gerous"], "very dangerous"),
        (["a cost-", "effective plan: it is cost-effective"], "a cost-effective plan: it is cost-effective"),
        (["the cost-", "saving, the cost, the saving"], "the cost-saving, the cost, the saving"),
        (["year-over-", "year"], "year-over-year"),
        (["the Frus-", "tration-free, no Frustration"], "the Frustration-free, no Frustration"),
        (["Franco-", "German"], "Franco-German"),
    ],
)
def test_words_cut_at_the_end_of_a_line_are_made_whole(lines: list[str], text: str) -> None:
    """The hyphen stays where it belongs to the word."""
    assert document("a.pdf", pdf(lines)).text == text


def test_soft_hyphens_are_removed() -> None:
    """They mark where a word could have been cut."""
    assert pdf_parser.tidy(["op\u00adtio\u00adnal"]) == ["optional"]


def test_a_password_opens_what_is_encrypted() -> None:
    """Every password of the config is tried."""
    data = encrypted_pdf(["secret"], "right")
    parsing = Parsing.model_validate({"pdf_passwords": ["wrong", "right"]})
    assert document("a.pdf", data, parsing=parsing).text == "secret"


@pytest.mark.parametrize(
    ("passwords", "message"),
    [
        ([], "papers/a.pdf is encrypted; give its password in parsing.pdf_passwords"),
        (["wrong"], "papers/a.pdf is encrypted; no password in parsing.pdf_passwords opens it"),
    ],
)
def test_without_the_password_it_is_an_error(passwords: list[str], message: str) -> None:
    """That says where to put it, and never repeats one."""
    with pytest.raises(DocumentError) as error:
        parsed(
            "a.pdf",
            encrypted_pdf(["secret"], "right"),
            parsing=Parsing.model_validate({"pdf_passwords": passwords}),
        )
    assert error.value.message == message


def test_protection_against_changes_does_not_matter() -> None:
    """Reading is all that is done."""
    assert document("a.pdf", encrypted_pdf(["open"], "x", owner_only=True)).text == "open"


def test_a_scan_is_an_empty_document_with_a_warning() -> None:
    """It is not an error, and not silence."""
    found = document("a.pdf", pdf([], []))
    assert (found.text, page_texts(found)) == ("", ["", ""])
    assert found.warnings == ("no text layer; needs OCR",)


def test_scanned_pages_among_others_are_named() -> None:
    """So that somebody can look."""
    assert document("a.pdf", pdf(["x"], [], ["y"], [])).warnings == (
        "no text layer on pages 2, 4; needs OCR",
    )
    many = document("a.pdf", pdf(["x"], *[[]] * 12))
    assert many.warnings == ("no text layer on pages 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more; needs OCR",)


def test_a_blank_page_needs_no_warning() -> None:
    """Nothing is there to be read."""
    found = document("a.pdf", blank_pdf())
    assert (found.text, found.warnings) == ("", ())


def test_text_off_the_page_is_not_read() -> None:
    """Nobody sees it there; it is a way to slip words into an index."""
    assert document("a.pdf", pdf(["seen"], off_page="unseen")).text == "seen"


def test_pypdf_reads_what_pdfium_does_not_open() -> None:
    """Here a file whose first bytes are damaged."""
    data = pdf(["still", "there"], title="Rescued")
    found = document("a.pdf", b"%XDF" + data[4:])
    assert (found.text, found.metadata) == ("still\nthere", {"title": "Rescued", "page_count": 1})


def test_pypdf_asks_for_the_password_too() -> None:
    """The fallback ends in the same words."""
    data = encrypted_pdf(["secret"], "right")
    with pytest.raises(DocumentError, match="is encrypted; give its password"):
        parsed("a.pdf", b"%XDF" + data[4:])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"%PDF-1.7 and nothing more",
        pdf(["x"])[:200],
    ],
)
def test_a_damaged_file_is_an_error(data: bytes) -> None:
    """A short one, whatever the readers say."""
    with pytest.raises(DocumentError, match=r"^papers/a.pdf cannot be read as PDF: it is damaged$"):
        parsed("a.pdf", data)


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [
        (b"/Count 1", b"/Count 2000000000"),
        (b"/Kids [4 0 R]", b"/Kids [2 0 R]"),
        (b"startxref", b"startxfer"),
        (b"/Contents 5 0 R", b"/Contents 4 0 R"),
    ],
)
def test_a_lying_structure_ends(whole: bytes, damaged: bytes) -> None:
    """Counts out of bounds and page trees that hold themselves: at most the page that is there."""
    found = document("a.pdf", pdf(["x"]).replace(whole, damaged))
    assert found.text in ("x", "")
    assert len(found.pages) == 1


def test_the_fallback_keeps_its_library_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What it says of a broken file may quote it."""
    caplog.set_level("WARNING")
    with pytest.raises(DocumentError):
        parsed("a.pdf", b"%XDF confidential 1 0 obj << /Pages")
    assert caplog.messages == []


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.pdf")), ids=lambda path: path.parent.name)
def test_a_page_gives_what_pdfium_has_for_its_box(path: Path) -> None:
    """Asking for the text once, with room enough, changes nothing of it."""
    found = document("a.pdf", path.read_bytes())
    with closing(pypdfium2.PdfDocument(path)) as whole:
        texts = [page.get_textpage().get_text_bounded() for page in whole]
    assert page_texts(found) == pdf_parser.tidy(texts)
    assert all(texts)
