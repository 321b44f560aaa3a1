"""Plain text, reStructuredText and logs: the text as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragctl.parsing.encoding import decode
from ragctl.records import Document, short_hash

if TYPE_CHECKING:
    from ragctl.config import Parsing
    from ragctl.records import SourceFile


def read(file: SourceFile, data: bytes, parsing: Parsing) -> Document:  # noqa: ARG001 - one signature for all
    """The file as a Document. DocumentError when it is no text."""
    text, warnings = decode(data)
    return Document(file.id, text, short_hash(data), warnings=warnings)
