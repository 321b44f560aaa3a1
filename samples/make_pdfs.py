"""Typeset the PDFs of the sample corpus from the texts in samples/sources.

How to run, from the root of the repository, in an environment with the development dependencies
(reportlab, BSD licence, is used by this script only):

    python samples/make_pdfs.py            # rewrites the PDFs in samples/corpus
    python samples/make_pdfs.py --out DIR  # the same tree elsewhere

The same sources and the same reportlab give the same bytes: dates and identifiers are left out and
streams are stored uncompressed, so that no zlib version shows through.

A source holds a small part of Markdown: one `# ` title, `## ` headings (each one but the first
starts a page), paragraphs on single lines, and tables whose rows start with `|`, the first row
being the header.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

SAMPLES = Path(__file__).parent
SOURCES = SAMPLES / "sources"
CORPUS = SAMPLES / "corpus"

AUTHOR = "Quillmere Instruments, Inc."
MARGIN = 22 * mm
LINE_COLOUR = colors.HexColor("#33606e")

TITLE = ParagraphStyle("title", fontName="Helvetica-Bold", fontSize=20, leading=26, spaceAfter=10)
HEADING = ParagraphStyle("heading", fontName="Helvetica-Bold", fontSize=15, leading=19, spaceAfter=8)
BODY = ParagraphStyle("body", fontName="Times-Roman", fontSize=12.5, leading=16.5, spaceAfter=8)

GRID = TableStyle(
    [
        ("FONT", (0, 0), (-1, -1), "Helvetica", 10),
        ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 10),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, LINE_COLOUR),
        ("LINEBELOW", (0, 1), (-1, -1), 0.25, colors.lightgrey),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
    ]
)


def target(source: Path, corpus: Path) -> Path:
    """Where the PDF of a source belongs: at the same place under `corpus`."""
    return (corpus / source.relative_to(SOURCES)).with_suffix(".pdf")


def cells(row: str) -> list[str]:
    """The cells of one table row, `| a | b |`, without their padding."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def is_figures(column: Sequence[str]) -> bool:
    """Whether each cell below the header is a number, a dash or empty."""
    return all(re.fullmatch(r"[-+(]?[\d.,]*[)%]?", cell) for cell in column[1:])


def table(rows: list[str]) -> list[Flowable]:
    """A ruled table the width of its contents, figures to the right, with air around it."""
    body = [cells(row) for row in rows]
    grid = Table(body, style=GRID, hAlign="LEFT")
    figures = [number for number, column in enumerate(zip(*body, strict=True)) if is_figures(column)]
    grid.setStyle(TableStyle([("ALIGN", (number, 0), (number, -1), "RIGHT") for number in figures]))
    return [Spacer(1, 3), grid, Spacer(1, 9)]


def text(line: str, pages_begun: bool) -> list[Flowable]:
    """The title, a heading (on a new page once a section has begun) or a paragraph."""
    if line.startswith("## "):
        heading = Paragraph(escape(line[3:]), HEADING)
        return [PageBreak(), heading] if pages_begun else [heading]
    if line.startswith("# "):
        return [Paragraph(escape(line[2:]), TITLE)]
    return [Paragraph(escape(line), BODY)]


def story(source: str) -> Iterator[Flowable]:
    """The flowables of a source, in order; runs of table rows become one table each."""
    pages_begun = False
    for is_table, lines in groupby(source.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            yield from table(list(lines))
            continue
        for line in filter(str.strip, lines):
            yield from text(line, pages_begun)
            pages_begun = pages_begun or line.startswith("## ")


def footer(title: str, canvas: Canvas, document: BaseDocTemplate) -> None:
    """Print the running title and the page number below the text."""
    canvas.setFont("Helvetica", 8)
    canvas.drawString(MARGIN, 12 * mm, title)
    canvas.drawRightString(A4[0] - MARGIN, 12 * mm, f"Page {document.page}")


def build(source: Path, out: Path) -> None:
    """Write the PDF of one source file to `out`, making its folder when needed.

    Raises ValueError when the source does not begin with a `# ` title.
    """
    markdown = source.read_text(encoding="utf-8")
    found = re.match(r"# (.+)\n", markdown)
    if found is None:
        raise ValueError(f"{source}: the first line must be a '# ' title")
    title = found.group(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    document = BaseDocTemplate(
        str(out), pagesize=A4, title=title, author=AUTHOR, invariant=1, pageCompression=0, lang="en"
    )
    frame = Frame(MARGIN, 18 * mm, A4[0] - 2 * MARGIN, A4[1] - 18 * mm - MARGIN, id="text")
    document.addPageTemplates(PageTemplate("page", [frame], onPageEnd=partial(footer, title)))
    document.build(list(story(markdown)))


def main(argv: list[str] | None = None) -> None:
    """Build every source; `--out` names another corpus folder to write to."""
    parser = argparse.ArgumentParser(description="typeset the PDFs of the sample corpus")
    parser.add_argument("--out", type=Path, default=CORPUS, help="corpus folder (default: samples/corpus)")
    corpus = parser.parse_args(argv).out
    for source in sorted(SOURCES.rglob("*.md")):
        build(source, target(source, corpus))


if __name__ == "__main__":
    main()
