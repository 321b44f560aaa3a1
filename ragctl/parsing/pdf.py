"""PDF: the text of each page, by pdfium, or by pypdf where pdfium cannot make sense of the file.

pdfium is not safe to use from several threads of one process; parse in processes.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import pypdf
import pypdfium2
import pypdfium2.raw as pdfium

from ragctl.errors import DocumentError
from ragctl.parsing.encoding import clean
from ragctl.records import Document, Page, short_hash

if TYPE_CHECKING:
    from ragctl.config import Parsing
    from ragctl.records import SourceFile

logger = logging.getLogger(__name__)
# What pypdf says about a broken file may quote it, and is of no use to who runs ragctl.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)

BETWEEN_PAGES: Final = "\n\n"
# What pdfium puts where a line ends in a hyphen (its two functions differ in the character).
_HYPHEN: Final = re.compile(r"[\u0002\ufffe]\s*")
_WORD: Final = re.compile(r"[\w\u0002\ufffe-]+")
_LAST_WORD: Final = re.compile(r"(-?)(\w+)$")
_FIRST_WORD: Final = re.compile(r"\w{1,100}")
_LINE_END: Final = re.compile(r"[ \t]+\n")
# Titles that a program wrote and nobody read.
_JUNK_TITLE: Final = re.compile(
    r"(microsoft (word|powerpoint|excel) ?- .*|untitled.*|unspecified|\(?anonymous\)?|title|document\d*|binder\d*"
    r"|slide \d+|powerpoint[- ]pr.*|presentation\d*|printmgr file|print|layout \d+|.*\.(docx?|pptx?|xlsx?|odt|rtf|indd"
    r"|qxd|dvi|tex|txt|html?|pdf|ps|eps|ai|p65|pm\d|wpd|cdr|jpe?g|png|tiff?))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a reader finds in a PDF. `bare`: numbers of pages that show something and have no text."""

    pages: tuple[str, ...]
    title: str
    bare: tuple[int, ...] = ()
    characters: int = 0  # that the reader saw, on the pages or off their edge


def read(file: SourceFile, data: bytes, parsing: Parsing) -> Document:
    """The file as a Document: its pages joined by a blank line, with their spans.

    DocumentError when it is encrypted and no password fits, or when no reader can open it.
    """
    content = _best_content(data, [password.get_secret_value() for password in parsing.pdf_passwords])
    pages = tidy(content.pages)
    between = BETWEEN_PAGES if any(pages) else ""
    title = clean(content.title).strip()
    return Document(
        file.id,
        between.join(pages),
        short_hash(data),
        metadata={"title": "" if _JUNK_TITLE.fullmatch(title) else title, "page_count": len(pages)},
        pages=tuple(_spans(pages, len(between))),
        warnings=_warnings(content, pages),
    )


def _best_content(data: bytes, passwords: Sequence[str]) -> _Content:
    content = _by_pdfium(data, passwords)
    if content and content.characters:
        return content
    other = _by_pypdf(data, passwords)
    if other and (content is None or any(other.pages)):
        return other
    if content is None or not content.pages:
        raise DocumentError("cannot be read as PDF: it is damaged", hint="repair it, or exclude it")
    return content


# --- the readers -----------------------------------------------------------------------------------------


def _by_pdfium(data: bytes, passwords: Sequence[str]) -> _Content | None:
    """What pdfium reads; None when it cannot open the file."""
    pdf = _open_pdfium(data, passwords)
    if pdf is None:
        return None
    with closing(pdf):
        pages = [_pdfium_page(pdf, number) for number in range(len(pdf))]
        return _Content(
            tuple(text for text, _, _ in pages),
            pdf.get_metadata_value("Title"),
            tuple(number for number, (text, shown, _) in enumerate(pages, 1) if shown and not text.strip()),
            sum(characters for _, _, characters in pages),
        )


def _open_pdfium(data: bytes, passwords: Sequence[str]) -> Any:
    for password in (None, *passwords):
        try:
            return pypdfium2.PdfDocument(data, password)
        except pypdfium2.PdfiumError as error:
            if error.err_code != pdfium.FPDF_ERR_PASSWORD:
                return None
    raise _encrypted(passwords)


def _pdfium_page(pdf: Any, number: int) -> tuple[str, bool, int]:
    """The text on a page, whether the page shows anything, and the characters that pdfium saw, off its edge too."""
    try:
        page = _flat_page(pdf, number)
    except pypdfium2.PdfiumError:  # a damaged page: it shows something, and nobody knows what
        return "", True, 0
    with closing(page), closing(page.get_textpage()) as text:
        characters = text.count_chars()
        return _text_within(page, text, characters), pdfium.FPDFPage_CountObjects(page) > 0, characters


def _text_within(page: Any, text: Any, characters: int) -> str:
    """What stands inside the page's box.

    pypdfium2's `get_text_bounded` has pdfium work it out twice, the first time for its length: a tenth of all the
    time that a page takes. Here the page's characters say how long it may get.
    """
    room = 2 * characters + 16  # UTF-16 units
    left, bottom, right, top = page.get_bbox()
    buffer = (ctypes.c_ushort * room)()
    written = pdfium.FPDFText_GetBoundedText(text, left, top, right, bottom, buffer, room)
    if written >= room:  # perhaps cut off
        return str(text.get_text_bounded())
    return bytes(memoryview(buffer)[:written]).decode("utf-16-le", "ignore").removesuffix("\0")


def _flat_page(pdf: Any, number: int) -> Any:
    """The page, with what is filled into a form or written over it as a part of its text."""
    page = pdf[number]
    if not pdfium.FPDFPage_GetAnnotCount(page):
        return page
    with closing(page):
        pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY)
    return pdf[number]


def _by_pypdf(data: bytes, passwords: Sequence[str]) -> _Content | None:
    """What pypdf reads; None when it cannot."""
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        locked = reader.is_encrypted and not any(reader.decrypt(password) for password in ("", *passwords))
        texts = () if locked else tuple(page.extract_text() for page in reader.pages)
        title = "" if locked else str((reader.metadata and reader.metadata.title) or "")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - on hostile bytes pypdf may raise anything; the caller reports it
        logger.debug("pypdf cannot read a file either: %s", type(error).__name__)
        return None
    if locked:
        raise _encrypted(passwords)
    return _Content(texts, title)


def _encrypted(passwords: Sequence[str]) -> DocumentError:
    if passwords:
        return DocumentError("is encrypted; no password in parsing.pdf_passwords opens it")
    return DocumentError("is encrypted; give its password in parsing.pdf_passwords")


# --- what is made of the pages ---------------------------------------------------------------------------


def _spans(pages: Sequence[str], between: int) -> Iterator[Page]:
    start = 0
    for number, text in enumerate(pages, 1):
        yield Page(number, start, start + len(text))
        start += len(text) + between


def _warnings(content: _Content, pages: Sequence[str]) -> tuple[str, ...]:
    if not content.bare:
        return ()
    if not any(pages):
        return ("no text layer; needs OCR",)
    return (f"no text layer on {_numbers(content.bare)}; needs OCR",)


def _numbers(pages: Sequence[int]) -> str:
    shown = ", ".join(str(page) for page in pages[:10])
    more = f" and {len(pages) - 10} more" if len(pages) > 10 else ""
    return f"page{'s' if len(pages) > 1 else ''} {shown}{more}"


def tidy(pages: Sequence[str]) -> list[str]:
    """The pages with words whole, no space at the ends of lines, and nothing that text may not hold."""
    texts = [page.replace("\u00ad", "") for page in pages]
    if any(_HYPHEN.search(text) for text in texts):
        words = _words(texts)
        texts = [_joined(text, words) for text in texts]
    return [_LINE_END.sub("\n", clean(text)).strip() for text in texts]


def _words(texts: Sequence[str]) -> set[str]:
    """The words and hyphenated compounds of a document, in lower case, without those cut by a line's end."""
    found: set[str] = set()
    for text in texts:
        found.update(_WORD.findall(text.lower()))
    whole = {word for word in found if not _HYPHEN.search(word)}
    return whole.union(*(word.split("-") for word in whole if "-" in word))


def _joined(text: str, words: set[str]) -> str:
    """The text with words cut by a line's end made whole."""
    first, *rest = _HYPHEN.split(text)
    parts = [first]
    for part in rest:
        parts += ("-" if _keeps_hyphen(parts[-1], part, words) else "", part)
    return "".join(parts)


def _keeps_hyphen(before: str, after: str, words: set[str]) -> bool:
    """Whether a hyphen at a line's end belongs to the word ("cost-", "effective") or not ("dan-", "gerous").

    What the document writes elsewhere decides; else a compound has words on both sides, or a capital or a digit
    where no syllable starts with one.
    """
    left, right = _LAST_WORD.search(before[-100:]), _FIRST_WORD.match(after)
    if not left or not right:
        return True
    one, two = left[2].lower(), right[0].lower()
    if one + two in words:
        return False
    if f"{one}-{two}" in words or left[1] or right[0][0].isupper() or one[-1].isdigit():
        return True
    return one in words and two in words
