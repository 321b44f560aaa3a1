"""Bytes to text with spans: one module per family of formats, imported with the first file that needs it.

Documents are hostile: nothing they name is fetched, nothing in them is run, no parser recurses as deep as its
input, and no error quotes their text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from ragctl.errors import DocumentError

if TYPE_CHECKING:
    from ragctl.config import Parsing, Records
    from ragctl.records import Document, Metadata, MetadataValue, SourceFile

PARSER_VERSION = 1  # raise it whenever some document would come out differently: ingest then parses again
MAX_TITLE = 200  # characters: each vector carries the title in its 2 KB of filterable metadata

# ending -> module of this package; its `read` makes one Document of a file
FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".log": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
}
RECORD_FORMATS = frozenset({".jsonl", ".ndjson", ".csv", ".tsv"})  # each record is a document: `tabular`
SUFFIXES = RECORD_FORMATS | FORMATS.keys()


def suffix(path: str) -> str:
    """The ending that says a file's type, in lower case, with its dot; empty where there is none."""
    name = path.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


def parse(
    file: SourceFile, data: bytes, parsing: Parsing, records: Sequence[Records]
) -> Iterator[Document | DocumentError]:
    """The documents in a file's bytes: one, or one for each record of a record file.

    A record at fault is yielded as a DocumentError, and the others go on; a file at fault raises it. Metadata of
    the config and of the path win over what a file says of itself (`title`, `page_count`), a record's over all.
    `records` are tried in order; the first whose `files` matches the path below the source counts.
    """
    try:
        yield from _documents(file, data, parsing, records)
    except DocumentError as error:  # the parsers say what is wrong, here is said with which file
        raise DocumentError(f"{file.id} {error.message}", hint=error.hint) from error


def _documents(
    file: SourceFile, data: bytes, parsing: Parsing, records: Sequence[Records]
) -> Iterator[Document | DocumentError]:
    ending = suffix(file.id)
    if ending in RECORD_FORMATS:
        from ragctl.parsing import tabular

        yield from tabular.read(file, data, records)
    elif ending in FORMATS:
        document: Document = import_module(f"ragctl.parsing.{FORMATS[ending]}").read(file, data, parsing)
        own = _own_metadata(document.metadata, parsing)
        yield replace(document, metadata={**own, **file.metadata})
    else:
        raise DocumentError(
            f"is {f'of type {ending}' if ending else 'without an ending'}, which ragctl cannot read",
            hint=f"exclude it; types read: {' '.join(sorted(SUFFIXES))}",
        )


def _own_metadata(found: Metadata, parsing: Parsing) -> dict[str, MetadataValue]:
    """What a document says of itself, as far as the config wants it; the title on one line and not too long."""
    title = " ".join(str(found.get("title", "")).split())[:MAX_TITLE].strip()
    own: dict[str, MetadataValue] = {}
    if parsing.title and title:
        own["title"] = title
    if parsing.page_count and "page_count" in found:
        own["page_count"] = found["page_count"]
    return own
