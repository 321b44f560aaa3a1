"""Parsing bytes in tests as ingest would parse a file of the source `papers`."""

from collections.abc import Sequence

from ragctl.config import Parsing, Records
from ragctl.errors import DocumentError
from ragctl.parsing import parse
from ragctl.records import Document, Metadata, SourceFile


def parsed(
    name: str,
    data: bytes | str,
    *,
    parsing: Parsing | None = None,
    records: Sequence[Records] = (Records(),),
    metadata: Metadata | None = None,
) -> list[Document | DocumentError]:
    """What `parse` yields for a file of that name."""
    raw = data.encode() if isinstance(data, str) else data
    file = SourceFile(f"papers/{name}", f"/x/{name}", len(raw), "1", "papers", metadata or {})
    return list(parse(file, raw, parsing or Parsing(), records))


def document(
    name: str, data: bytes | str, *, parsing: Parsing | None = None, metadata: Metadata | None = None
) -> Document:
    """The one document in a file."""
    (found,) = parsed(name, data, parsing=parsing, metadata=metadata)
    assert isinstance(found, Document)
    return found
