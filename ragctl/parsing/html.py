"""HTML: its readable text, block by block, with headings as sections.

Left out is what a page says about itself rather than about its subject: scripts, forms, navigation, and headers
and footers outside the main content. What is left out never leaves a page empty that has text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lxml import etree

from ragctl.errors import DocumentError
from ragctl.parsing.encoding import clean, decode
from ragctl.records import Document, Section, short_hash

if TYPE_CHECKING:
    from ragctl.config import Parsing
    from ragctl.records import SourceFile

_CHARSET: Final = re.compile(
    rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]{0,100}?encoding=["']([\w.:-]+)""",
    re.IGNORECASE,
)
_HEADINGS: Final = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_PARAGRAPHS: Final = frozenset([
    "p", "blockquote", "ul", "ol", "dl", "table", "pre", "figure", "section", "article", "main", "hr",
    "form", "h1", "h2", "h3", "h4", "h5", "h6",
])  # fmt: skip
_LINES: Final = frozenset([
    "address", "aside", "body", "caption", "center", "dd", "details", "div", "dt", "fieldset",
    "figcaption", "footer", "header", "legend", "li", "noframes", "summary", "tbody", "td", "tfoot",
    "th", "thead", "tr",
])  # fmt: skip
# No text for readers, on whatever page.
_MUTE: Final = frozenset([
    "script", "style", "template", "noscript", "head", "svg", "canvas", "audio", "video", "iframe",
    "object", "annotation",
])  # fmt: skip
_CHROME: Final = frozenset(["nav", "button", "input", "select", "textarea", "datalist"])
_ROLES: Final = frozenset(["navigation", "search", "menu", "menubar", "toolbar", "dialog", "alertdialog"])
_BANNERS: Final = frozenset(["header", "footer", "aside"])
# Authors' own marks for what is no part of the text: not for print, or a tool of the page.
_TOOLS: Final = frozenset([
    "noprint", "no-print", "d-print-none", "headerlink", "navbar", "printfooter", "mw-editsection",
    "mw-hidden-catlinks", "mw-jump-link", "mw-portlet",
])  # fmt: skip
_SPACE: Final = re.compile(r"\s+")
_INVISIBLE: Final = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphen, zero-width space and joiners


def read(file: SourceFile, data: bytes, parsing: Parsing) -> Document:  # noqa: ARG001 - one signature for all
    """The page as a Document. DocumentError when it is no text, or nested more than 2,048 elements deep."""
    declared = _CHARSET.search(data, 0, 2048)
    label = (declared[1] or declared[2]).decode("ascii") if declared else None
    text, warnings = decode(data, declared=label)
    root = _tree(text)
    page = _written(root, _Chrome(root))
    if not page.text:
        page = _written(root, None)
    title = next((element.text for element in root.iter("title") if element.text), None)
    return Document(
        file.id,
        page.text,
        short_hash(data),
        metadata={"title": title or next((found.title for found in page.sections if found.level == 1), "")},
        sections=page.sections,
        warnings=warnings,
    )


def _tree(text: str) -> Any:
    """The page's elements; nothing outside the text is loaded, and entities of its own making stay unexpanded."""
    parser = etree.HTMLParser(
        encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=True
    )
    root = etree.fromstring(text.encode("utf-8"), parser)
    if any("Excessive depth" in entry.message for entry in parser.error_log):
        raise DocumentError("is nested too deep to be a page", hint="exclude it")
    return root if root is not None else etree.Element("html")


# --- what is left out ------------------------------------------------------------------------------------


class _Chrome:
    """Tells a page's furniture from its content while the page is walked."""

    def __init__(self, root: Any) -> None:
        self._has_main = any(_is_main(element) for element in root.iter("main", "article", "div"))
        self._main = 0  # how many main elements or articles we are inside of

    def enter(self, element: Any) -> bool:
        """Whether the element is furniture; call it at the element's start, and `leave` at its end."""
        self._main += _is_main(element)
        if element.tag in _CHROME or element.get("role") in _ROLES:
            return True
        if not _TOOLS.isdisjoint((element.get("class") or "").split()):
            return True
        return element.tag in _BANNERS and not self._main and self._is_banner(element)

    def leave(self, element: Any) -> None:
        self._main -= _is_main(element)

    def _is_banner(self, element: Any) -> bool:
        if element.tag == "aside":
            return self._has_main
        return element.tag == "footer" or next(element.iter("h1"), None) is None


def _is_main(element: Any) -> bool:
    return element.tag in ("main", "article") or element.get("role") == "main"


# --- walking and writing ---------------------------------------------------------------------------------


def _written(root: Any, chrome: _Chrome | None) -> _Page:
    """The page's text. The walk keeps its place itself, so that depth costs no stack."""
    page = _Page()
    walk = etree.iterwalk(root, events=("start", "end"))
    skipped = None
    for event, element in walk:
        if event == "start":
            furniture = chrome is not None and chrome.enter(element)
            if furniture or element.tag in _MUTE:
                skipped = element
                walk.skip_subtree()
            else:
                _open(page, element)
                page.write(element.text)
            continue
        if element is skipped:
            skipped = None
        else:
            _close(page, element)
        if chrome is not None:
            chrome.leave(element)
        if element is not root:
            page.write(element.tail)
    return page


def _open(page: _Page, element: Any) -> None:
    tag = element.tag
    if tag == "table" and _is_data(element):
        page.start_table()
    elif tag == "tr":
        page.start_row()
    elif tag in ("td", "th"):
        page.start_cell()
    elif tag == "br":
        page.new_line()
    elif tag in _PARAGRAPHS:
        page.part(2)
    elif tag in _LINES:
        page.part(1)
    if tag in _HEADINGS:
        page.start_heading(_HEADINGS[tag])
    elif tag == "li":
        page.start_item()
    elif tag == "pre":
        page.verbatim += 1


def _close(page: _Page, element: Any) -> None:
    tag = element.tag
    if tag == "pre":
        page.verbatim -= 1
    elif tag in _HEADINGS:
        page.end_heading()
    if tag == "table":
        page.end_table()
    elif tag in ("tr", "caption"):
        page.end_row()
    elif tag in _PARAGRAPHS:
        page.part(2)
    elif tag in _LINES:
        page.part(1)


def _is_data(table: Any) -> bool:
    """Whether rows are lines: not where a table lays out a page, with headings or further tables inside."""
    return (
        table.get("role") != "presentation"
        and next(table.iterdescendants("table", "pre", *_HEADINGS), None) is None
    )


class _Page:
    """Text as it grows: white space folded as browsers do, breaks between blocks written when more text comes."""

    def __init__(self) -> None:
        self.verbatim = 0  # how many <pre> we are inside of
        self._parts: list[str] = []
        self._length = 0
        self._breaks = 0  # line feeds due before the next text
        self._space = False  # a space is due
        self._marker = ""  # the bullet that is due
        self._in_table = False
        self._cells = 0  # cells begun in this row
        self._bars = 0  # cell separators due
        self._heading: tuple[int, int | None] | None = None  # level and start of the heading being written
        self._headings: list[tuple[int, int, int]] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def sections(self) -> tuple[Section, ...]:
        text = self.text
        ends = [*(start for _, start, _ in self._headings[1:]), self._length]
        return tuple(
            Section(level, " ".join(text[start:stop].split()), start, end)
            for (level, start, stop), end in zip(self._headings, ends, strict=False)  # no heading, one end
        )

    def write(self, text: str | None) -> None:
        """Add text; nothing is written for white space alone, outside <pre>."""
        if not text:
            return
        text = _INVISIBLE.sub("", clean(text))
        if self.verbatim and not self._in_table:
            self._write_verbatim(text)
            return
        folded = _SPACE.sub(" ", text)
        self._space = self._space or folded.startswith(" ")
        if bare := folded.strip(" "):
            self._put(bare)
            self._space = folded.endswith(" ")

    def part(self, lines: int) -> None:
        """End a block: 1 for a new line, 2 for a blank line between. In a table's cell, a space."""
        if self._in_table:
            self._space = True
        else:
            self._breaks = max(self._breaks, lines)

    def new_line(self) -> None:
        """What <br> does."""
        if self.verbatim:
            self._write_verbatim("\n")
        else:
            self.part(1)

    def start_item(self) -> None:
        if not self._in_table:
            self._marker = "- "

    def start_heading(self, level: int) -> None:
        self._heading = (level, None)

    def end_heading(self) -> None:
        if self._heading and self._heading[1] is not None:
            self._headings.append((self._heading[0], self._heading[1], self._length))
        self._heading = None

    def start_table(self) -> None:
        self.part(2)
        self._in_table = True

    def end_table(self) -> None:
        self._in_table = False
        self._bars = 0
        self.part(2)

    def start_row(self) -> None:
        self.end_row()
        self._cells = 0

    def end_row(self) -> None:
        self._bars = 0
        self._breaks = max(self._breaks, 1)

    def start_cell(self) -> None:
        if not self._in_table:
            self.part(1)
        elif self._cells:
            self._bars += 1
        self._cells += 1

    def _write_verbatim(self, text: str) -> None:
        """Keep every space and line feed; those at the ends wait, so that a block neither starts nor ends with them."""
        body = text.strip("\n")
        before = len(text) - len(text.lstrip("\n"))
        self._breaks = max(self._breaks, before)
        if body:
            self._put(body)
            self._breaks = len(text) - before - len(body)

    def _put(self, text: str) -> None:
        """Write text that is not blank, after the breaks, separators and the bullet that are due."""
        lead = "\n" * self._breaks if self._length else ""
        if self._bars:
            bars = " | " * self._bars
            lead += bars if self._length and not self._breaks else bars.lstrip()
        elif self._space and self._length and not self._breaks:
            lead += " "
        lead += self._marker
        self._breaks, self._bars, self._space, self._marker = 0, 0, False, ""
        self._length += len(lead)
        if self._heading and self._heading[1] is None:
            self._heading = (self._heading[0], self._length)
        self._parts += (lead, text)
        self._length += len(text)
