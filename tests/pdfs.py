"""PDFs for the tests, written byte by byte, so that every one says what it is made of."""

from collections.abc import Sequence
from io import BytesIO

from pypdf import PdfReader, PdfWriter

FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
RECTANGLE = b"0 0 0 rg 72 72 200 200 re f"  # what a page shows without having text


def pdf(*pages: Sequence[str], title: str = "", off_page: str = "") -> bytes:
    """A PDF with the given lines on each page. A page of no lines shows a rectangle; `off_page` is out of sight."""
    contents = [_content(lines, off_page) for lines in pages]
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        FONT,
    ]
    for number, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * number)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    objects.append(b"<< /Title (%s) >>" % _escaped(title))
    return _file(objects)


def blank_pdf() -> bytes:
    """A PDF of one page that shows nothing."""
    return _file(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] >>",
            b"<< >>",
        ]
    )


def encrypted_pdf(lines: Sequence[str], password: str, *, owner_only: bool = False) -> bytes:
    """A PDF that asks for a password; `owner_only`: just for changing it."""
    writer = PdfWriter(PdfReader(BytesIO(pdf(lines))))
    writer.encrypt("" if owner_only else password, owner_password=f"owner-{password}", algorithm="RC4-128")
    stream = BytesIO()
    writer.write(stream)
    return stream.getvalue()


def _content(lines: Sequence[str], off_page: str) -> bytes:
    if not lines:
        shown = RECTANGLE
    else:
        shown = (
            b"BT /F1 12 Tf 72 720 Td 14 TL\n"
            + b"".join(b"(%s) Tj T*\n" % _escaped(line) for line in lines)
            + b"ET"
        )
    hidden = b"\nBT /F1 12 Tf 72 2000 Td (%s) Tj ET" % _escaped(off_page) if off_page else b""
    return shown + hidden


def _escaped(text: str) -> bytes:
    return text.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")


def _file(objects: Sequence[bytes]) -> bytes:
    """Objects numbered from 1, the catalogue first and the information last."""
    body = b"%PDF-1.7\n"
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"<< /Size %d /Root 1 0 R /Info %d 0 R >>" % (len(objects) + 1, len(objects))
    return body + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n%s\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        table,
        trailer,
        len(body),
    )
