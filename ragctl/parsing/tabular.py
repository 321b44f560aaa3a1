"""Record files: JSON Lines, CSV and TSV, where each record becomes a document of its own.

A file is read record by record, and its bytes are the only copy that is held of it.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO, TextIOWrapper
from typing import TYPE_CHECKING, Final, NoReturn, TypeGuard

from ragctl.errors import DocumentError
from ragctl.globs import compile_glob
from ragctl.parsing.encoding import clean, detect, refuse_rubbish
from ragctl.records import RESERVED, Document, MetadataValue, short_hash

if TYPE_CHECKING:
    from ragctl.config import Records
    from ragctl.records import SourceFile

logger = logging.getLogger(__name__)

Record = Mapping[str, object]
# The line on which a record starts, from 1; the record, or what is wrong with it.
Row = tuple[int, Record | str]

# The default of 128 KiB is less than an article may have. The size of the file bounds a field anyway.
csv.field_size_limit(2**31 - 1)

_SAMPLE: Final = 1 << 16  # bytes
_DELIMITERS: Final = ",;\t|"
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,14}")  # 15 digits survive as a 64-bit float; "007" is a name
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,8})\.[0-9]{1,6}")
_BOOLEANS: Final = {"true": True, "false": False}


def read(file: SourceFile, data: bytes, records: Sequence[Records]) -> Iterator[Document | DocumentError]:
    """A Document for each record, or the DocumentError that says what is wrong with it and on which line.

    Raises DocumentError for the file: no entry of `records` is meant for it, it is no text, or it lacks the
    fields that the entry names.
    """
    rules = _rules_for(file, records)
    read_rows = _csv_rows if file.id.lower().endswith((".csv", ".tsv")) else _json_rows
    seen: set[str] = set()
    for line, row in read_rows(file, data, rules):
        try:
            document = _document(file, row, rules, seen)
        except DocumentError as error:
            place = f"{file.id} line {line}"  # what to call a record that may have no id, or another one's
            words = f"{place}: {error.message}"
            yield DocumentError(words, hint=error.hint, document=place, record=error.record)
        else:
            yield document


def _rules_for(file: SourceFile, records: Sequence[Records]) -> Records:
    path = file.id.removeprefix(f"{file.source}/")
    for rules in records:
        if compile_glob(rules.files, hidden=True).fullmatch(path):
            taken = sorted(RESERVED.intersection(rules.metadata))
            if taken:
                raise DocumentError(
                    f"cannot keep the field {taken[0]!r} as metadata: ragctl writes this key itself",
                    hint="rename the field in the file and in the source's records.metadata",
                )
            return rules
    raise DocumentError(
        "is a record file that no entry of the source's records is for",
        hint=f"add an entry to records of source {file.source!r} whose `files` matches {path}, or exclude the file",
    )


# --- one record ------------------------------------------------------------------------------------------


def _document(file: SourceFile, row: Record | str, rules: Records, seen: set[str]) -> Document:
    if isinstance(row, str):
        raise DocumentError(row)
    identity = _identity(row, rules.id)
    record = f"{file.id}#{identity}"
    if identity in seen:
        raise DocumentError(f"the id {identity[:80]!r} was used before in this file", record=record)
    seen.add(identity)
    try:
        text = _text(row, rules.text)
        kept = ((field, _metadata_value(field, row.get(field))) for field in rules.metadata)
        metadata = {field: value for field, value in kept if value is not None}
    except DocumentError as error:
        error.record = record
        raise
    made_from = json.dumps([identity, text, metadata], sort_keys=True)
    return Document(record, text, short_hash(made_from), metadata={**file.metadata, **metadata})


def _identity(record: Record, field: str) -> str:
    value = record.get(field)
    if isinstance(value, bool | float | list | dict):
        raise DocumentError(f"the id field {field!r} must hold text or a whole number")
    identity = "" if value is None else clean(str(value)).strip()
    if not identity:
        raise DocumentError(f"the id field {field!r} is empty")
    return identity


def _text(record: Record, fields: Sequence[str]) -> str:
    parts = []
    for field in fields:
        value = record.get(field)
        if isinstance(value, list | dict):
            raise DocumentError(f"the text field {field!r} holds {_kind(value)}, not text")
        part = "" if value is None else clean(str(value))
        if part.strip():
            parts.append(part)
    if not parts:
        raise DocumentError(f"no text in {', '.join(fields)}")
    return "\n\n".join(parts)


def _metadata_value(field: str, value: object) -> MetadataValue | None:
    """The value as the stores can keep it; None for null and empty lists, which are left out."""
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, bool) or _is_number(value):
        return value
    if isinstance(value, list):
        return _metadata_list(field, value)
    raise DocumentError(
        f"the metadata field {field!r} holds {_kind(value)}",
        hint="metadata are text, numbers, booleans, or lists of text or of numbers: flatten it",
    )


def _metadata_list(field: str, values: list[object]) -> list[str] | list[float] | None:
    if not values:
        return None
    texts = [clean(value) for value in values if isinstance(value, str)]
    numbers = [value for value in values if _is_number(value)]
    for kept in (texts, numbers):
        if len(kept) == len(values):
            return kept
    raise DocumentError(
        f"the metadata field {field!r} holds a list of mixed or nested values",
        hint="a list in metadata is of text or of numbers",
    )


def _is_number(value: object) -> TypeGuard[float]:
    """A number that a 64-bit float can hold: neither infinite (how JSON's 1e999 is read) nor beyond it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _kind(value: object) -> str:
    names = {bool: "true or false", float: "a number out of bounds", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


# --- the formats -----------------------------------------------------------------------------------------


def _lines(data: bytes, newline: str) -> TextIOWrapper:
    """The text of the bytes line by line; DocumentError when they are no text."""
    encoding = detect(data)
    refuse_rubbish(data[:_SAMPLE].decode(encoding.codec, "replace"))
    return TextIOWrapper(BytesIO(data), encoding=encoding.codec, errors=encoding.errors, newline=newline)


def _json_rows(file: SourceFile, data: bytes, rules: Records) -> Iterator[Row]:
    """The lines of JSON Lines. Whether it has the fields is known once one record has them."""
    _require_some(_parsed_lines(data), rules)
    rare = set(rules.metadata)
    for line, row in _parsed_lines(data):
        if rare and not isinstance(row, str):
            rare -= row.keys()
        yield line, row
    if rare:
        logger.warning("%s: no record has the metadata fields %s", file.id, ", ".join(sorted(rare)))


def _parsed_lines(data: bytes) -> Iterator[Row]:
    for number, line in enumerate(_lines(data, "\n"), 1):
        if bare := line.rstrip():
            yield number, _parsed(bare)


def _parsed(line: str) -> Record | str:
    try:
        value = _JSON.decode(line)
    except json.JSONDecodeError as error:
        return f"not valid JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets in brackets in brackets
        return "not valid JSON: a number or the nesting is beyond all bounds"
    return value if isinstance(value, dict) else "a record is a JSON object, this is none"


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no JSON number", name, 0)


_JSON: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _require_some(rows: Iterable[Row], rules: Records) -> None:
    """DocumentError when no record of the file has the id field, or none has a text field."""
    lacking = {rules.id: {rules.id}, " or ".join(rules.text): set(rules.text)}
    names: dict[str, None] = {}
    for _, row in rows:
        if isinstance(row, str):
            continue
        lacking = {label: fields for label, fields in lacking.items() if fields.isdisjoint(row)}
        if not lacking:
            return
        if len(names) < 100:
            names |= dict.fromkeys(row)
    if names:
        raise _no_such_fields(lacking, names)


def _csv_rows(file: SourceFile, data: bytes, rules: Records) -> Iterator[Row]:
    """The rows of CSV (RFC 4180, with any of four delimiters) or TSV; values become numbers where they are."""
    delimiter = "\t" if file.id.lower().endswith(".tsv") else _delimiter(data, rules)
    reader = csv.reader(_lines(data, ""), delimiter=delimiter, strict=True)
    header = _header(reader, rules)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not valid CSV: {error}"
            continue
        if len(values) == len(header):
            yield line, _typed(dict(zip(header, values, strict=True)), rules)
        elif values:
            yield line, f"{len(values)} fields, the header has {len(header)}"


def _delimiter(data: bytes, rules: Records) -> str:
    """The delimiter with which the header has most of the fields that are asked for, or else most fields."""
    wanted = {rules.id, *rules.text, *rules.metadata}

    def score(delimiter: str) -> tuple[int, int]:
        names = _names(csv.reader(_lines(data, ""), delimiter=delimiter))
        return len(wanted.intersection(names)), len(names)

    return max(_DELIMITERS, key=score)


def _names(rows: Iterable[list[str]]) -> list[str]:
    """The first row that is not blank; empty where there is none."""
    return [clean(name).strip() for name in next((row for row in rows if row), [])]


def _header(rows: Iterable[list[str]], rules: Records) -> list[str]:
    try:
        names = _names(rows)
    except csv.Error as error:
        raise DocumentError(f"has no valid CSV header: {error}") from error
    wanted = (rules.id, *rules.text, *rules.metadata)
    if names and not set(names).issuperset(wanted):
        raise _no_such_fields([field for field in wanted if field not in names], names)
    double = [field for field in wanted if names.count(field) > 1]
    if double:
        raise DocumentError(f"has more than one column named {double[0]!r}")
    return names


def _typed(record: dict[str, str], rules: Records) -> Record:
    return record | {
        field: _number(record[field]) for field in rules.metadata if field not in (rules.id, *rules.text)
    }


def _number(text: str) -> str | float | bool | None:
    """What a metadata cell means, on the safe side: `12`, `-0.5` and `true` are values, `007` and `1e5` are names."""
    if not text:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    return _BOOLEANS.get(text.lower(), text)


def _no_such_fields(lacking: Iterable[str], names: Iterable[str]) -> DocumentError:
    shown = [name[:40] for name in names]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return DocumentError(
        f"has no field {', '.join(dict.fromkeys(lacking))}; its fields are {', '.join(shown[:20])}{more}",
        hint="name its fields under id, text and metadata of the source's records",
    )
