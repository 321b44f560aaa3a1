"""Record files: JSON Lines, CSV and TSV."""

import csv
import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.config import Records
from ragctl.errors import DocumentError
from ragctl.parsing.encoding import clean
from ragctl.records import Document, Metadata
from tests.parsed import parsed

BEIR = Records(id="_id", text=("title", "text"))
CELL = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\r\n\t", exclude_characters="\ufeff"),
    max_size=30,
)


def lines(*records: Any) -> str:
    """Records as JSON Lines; a string stands as it is."""
    return "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)


def read(
    name: str, data: bytes | str, records: Records | None = None, metadata: Metadata | None = None
) -> list[Document | str]:
    """The documents, and the messages of those that failed."""
    found = parsed(name, data, records=(records or Records(),), metadata=metadata)
    return [one.message if isinstance(one, DocumentError) else one for one in found]


def texts(name: str, data: bytes | str, records: Records | None = None) -> dict[str, str]:
    """Text by id, where nothing failed."""
    found = read(name, data, records)
    assert all(isinstance(one, Document) for one in found), found
    return {one.id: one.text for one in found if isinstance(one, Document)}


# --- JSON Lines


def test_each_line_is_a_document() -> None:
    """BEIR's corpus: text fields joined by a blank line, empty ones left out."""
    corpus = lines(
        {"_id": "4983", "title": "One", "text": "Two"}, "", {"_id": 7, "title": "", "text": "Three"}
    )
    assert texts("corpus.jsonl", corpus, BEIR) == {
        "papers/corpus.jsonl#4983": "One\n\nTwo",
        "papers/corpus.jsonl#7": "Three",
    }


def test_metadata_keep_their_types_and_win_over_path_and_config() -> None:
    """Null and empty lists are left out."""
    record = {
        "id": "a",
        "text": "t",
        "s": "x",
        "i": 1,
        "f": 0.5,
        "b": True,
        "n": None,
        "l": ["a", "b"],
        "e": [],
        "o": [1, 2.5],
    }
    rules = Records(metadata=("s", "i", "f", "b", "n", "l", "e", "o"))
    (found,) = read("x.jsonl", lines(record), rules, {"s": "config", "year": 2024})
    assert isinstance(found, Document)
    assert found.metadata == {
        "s": "x",
        "year": 2024,
        "i": 1,
        "f": 0.5,
        "b": True,
        "l": ["a", "b"],
        "o": [1, 2.5],
    }


def test_the_hash_of_a_record_covers_what_it_was_made_from() -> None:
    """Another field, another place in the file or another metadata of the path change nothing."""
    rules = Records(metadata=("year",))

    def content_hash(*records: Any, metadata: Metadata | None = None) -> str:
        found = read("x.jsonl", lines(*records), rules, metadata)[-1]
        assert isinstance(found, Document)
        return found.content_hash

    base = {"id": "a", "text": "t", "year": 1}
    same = content_hash(base)
    assert content_hash({"id": "b", "text": "x"}, base | {"other": 1}, metadata={"team": "x"}) == same
    changed = [base | {"id": "b"}, base | {"text": "u"}, base | {"year": 2}, base | {"year": None}]
    assert same not in [content_hash(record) for record in changed]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"id": "b", "text": "t"', "not valid JSON at column 24: Expecting ',' delimiter"),
        ('{"id": "b", "text": NaN}', "not valid JSON at column 1: NaN is no JSON number"),
        ("[1, 2]", "a record is a JSON object, this is none"),
        ("[" * 100_000, "not valid JSON: a number or the nesting is beyond all bounds"),
        (
            '{"id": "b", "text": "t", "m": ' + "9" * 5_000 + "}",
            "not valid JSON: a number or the nesting is beyond all bounds",
        ),
        ({"text": "t"}, "the id field 'id' is empty"),
        ({"id": " ", "text": "t"}, "the id field 'id' is empty"),
        ({"id": ["b"], "text": "t"}, "the id field 'id' must hold text or a whole number"),
        ({"id": True, "text": "t"}, "the id field 'id' must hold text or a whole number"),
        ({"id": "b"}, "no text in text"),
        ({"id": "b", "text": " \n"}, "no text in text"),
        ({"id": "b", "text": {"en": "t"}}, "the text field 'text' holds an object, not text"),
        ({"id": "a", "text": "again"}, "the id 'a' was used before in this file"),
        ({"id": "b", "text": "t", "m": {"x": 1}}, "the metadata field 'm' holds an object"),
        (
            {"id": "b", "text": "t", "m": [["x"]]},
            "the metadata field 'm' holds a list of mixed or nested values",
        ),
        (
            {"id": "b", "text": "t", "m": ["x", 1]},
            "the metadata field 'm' holds a list of mixed or nested values",
        ),
        (
            {"id": "b", "text": "t", "m": [True]},
            "the metadata field 'm' holds a list of mixed or nested values",
        ),
        ('{"id": "b", "text": "t", "m": 1e999}', "the metadata field 'm' holds a number out of bounds"),
    ],
)
def test_a_record_at_fault_does_not_stop_the_others(bad: Any, message: str) -> None:
    """It is named with its line; the records around it are documents."""
    good = [{"id": "a", "text": "one"}, {"id": "c", "text": "three"}]
    before, fault, after = read("x.jsonl", lines(good[0], bad, good[1]), Records(metadata=("m",)))
    assert fault == f"papers/x.jsonl line 2: {message}"
    assert isinstance(before, Document)
    assert isinstance(after, Document)
    assert (before.text, after.text) == ("one", "three")


def test_what_a_record_says_is_never_in_an_error() -> None:
    """Errors reach logs; documents do not."""
    bad = (
        '{"id": "secret-1", "text": "confidential" oops}',
        {"id": "x", "text": ["confidential"]},
        {"id": "y", "text": "t", "m": {"confidential": 1}},
    )
    found = read("x.jsonl", lines({"id": "a", "text": "t"}, *bad), Records(metadata=("m",)))
    assert len(found) == 4
    assert "confidential" not in str(found[1:])


def test_lone_surrogates_do_not_leave_the_parser() -> None:
    """JSON can spell them; UTF-8 cannot hold them."""
    (found,) = read(
        "x.jsonl", '{"id": "a\\ud800", "text": "b\\udc00\\u0000c", "m": "\\udfff"}', Records(metadata=("m",))
    )
    assert isinstance(found, Document)
    assert (found.id, found.text, found.metadata) == ("papers/x.jsonl#a\ufffd", "b\ufffd c", {"m": "\ufffd"})


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_records_are_read_in_any_encoding(codec: str) -> None:
    """As other text files are."""
    data = '{"id": "a", "text": "Café für alle"}\r\n{"id": "b", "text": "x"}'.encode(codec)
    assert texts("x.ndjson", data) == {"papers/x.ndjson#a": "Café für alle", "papers/x.ndjson#b": "x"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (Records(), "has no field id; its fields are _id, title, text"),
        (
            Records(id="_id", text=("body", "abstract")),
            "has no field body or abstract; its fields are _id, title, text",
        ),
    ],
)
def test_fields_that_no_record_has_are_one_error(records: Records, message: str) -> None:
    """Not one for each record; the fields that are there help to mend the config."""
    data = lines({"_id": "1", "title": "a", "text": "b"}, {"_id": "2", "title": "a", "text": "b"})
    with pytest.raises(DocumentError) as error:
        read("x.jsonl", data, records)
    assert error.value.message == f"papers/x.jsonl {message}"
    assert error.value.hint == "name its fields under id, text and metadata of the source's records"


def test_a_field_that_comes_late_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """The first record without it fails alone; a metadata field that never comes is in the log."""
    caplog.set_level(logging.WARNING, "ragctl")
    found = read("x.jsonl", lines({"id": "a"}, {"id": "b", "text": "t"}), Records(metadata=("lang",)))
    assert found[0] == "papers/x.jsonl line 1: no text in text"
    assert isinstance(found[1], Document)
    assert caplog.messages == ["papers/x.jsonl: no record has the metadata fields lang"]


def test_an_empty_file_has_no_records() -> None:
    """Which is not an error."""
    assert [read(name, data) for name in ("x.jsonl", "x.csv", "x.tsv") for data in ("", "\n\n")] == [[]] * 6


def test_binary_data_is_no_record_file() -> None:
    """One error for the file."""
    with pytest.raises(DocumentError, match=r"^papers/x.jsonl is not text"):
        read("x.jsonl", b"\0\1\2\3" * 100)


# --- CSV and TSV


@given(st.lists(st.tuples(CELL, CELL), max_size=8), st.sampled_from(",;\t|"))
def test_cells_come_back_as_they_were(rows: list[tuple[str, str]], delimiter: str) -> None:
    """Whatever they hold: delimiters, quotes and newlines, in a file as Python's writer makes it."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=delimiter)
    writer.writerow(("id", "a", "b"))
    writer.writerows((str(number), *row) for number, row in enumerate(rows))
    name = "x.tsv" if delimiter == "\t" else "x.csv"
    found = read(name, target.getvalue(), Records(text=("a", "b")))
    for one, (a, b) in zip(found, rows, strict=True):
        parts = [clean(cell) for cell in (a, b) if clean(cell).strip()]
        if parts:
            assert isinstance(one, Document)
            assert one.text == "\n\n".join(parts)
        else:
            assert isinstance(one, str)
            assert one.endswith("no text in a, b")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_finds_the_fields(delimiter: str) -> None:
    """Whichever the header would be cut by most often."""
    header = delimiter.join(["id", "text", '"a,b;c|d"'])
    row = delimiter.join(["1", "t", "x"])
    assert texts("x.csv", f"{header}\n{row}\n") == {"papers/x.csv#1": "t"}


def test_quoted_newlines_and_marks_and_long_fields() -> None:
    """A byte order mark is no part of the first name, and a field may be longer than csv's default allows."""
    data = '\ufeffid,text\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2,' + "x" * 200_000 + "\r\n"
    assert texts("x.csv", data) == {"papers/x.csv#1": 'two\nlines, "quoted"', "papers/x.csv#2": "x" * 200_000}


def test_cells_become_values_where_nothing_is_lost() -> None:
    """Numbers and truth values in metadata; names that look like numbers stay text, and so do ids and text."""
    cells = {
        "12": 12,
        "-3": -3,
        "0": 0,
        "1.50": 1.5,
        "-0.25": -0.25,
        "true": True,
        "FALSE": False,
        "007": "007",
        "1e5": "1e5",
        "+1": "+1",
        "1.": "1.",
        ".5": ".5",
        "-0": "-0",
        "1,5": "1,5",
        "yes": "yes",
        "nan": "nan",
        "1234567890123456": "1234567890123456",
        " 1": " 1",
        "1.2.3": "1.2.3",
    }
    data = "id;text;m\n" + "".join(f"{number};12;{cell}\n" for number, cell in enumerate(cells)) + "x;t;\n"
    found = read("x.csv", data, Records(metadata=("m",)))
    assert [one.metadata.get("m") for one in found if isinstance(one, Document)] == [*cells.values(), None]
    assert {one.text for one in found[:-1] if isinstance(one, Document)} == {"12"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("1,a,extra", "3 fields, the header has 2"),
        ("1", "1 fields, the header has 2"),
        ('1,"a"b', "not valid CSV: ',' expected after '\"'"),
        (",a", "the id field 'id' is empty"),
        ("1,", "no text in text"),
        ("0,a", "the id '0' was used before in this file"),
    ],
)
def test_a_row_at_fault_does_not_stop_the_others(bad: str, message: str) -> None:
    """It is named with the line on which it starts."""
    found = read("x.csv", f'id,text\n0,"two\nlines"\n{bad}\n9,last\n')
    assert found[1] == f"papers/x.csv line 4: {message}"
    assert [one.text for one in found if isinstance(one, Document)] == ["two\nlines", "last"]


def test_a_quote_that_never_closes_is_an_error() -> None:
    """What it swallows is not taken for one long document."""
    found = read("x.csv", 'id,text\n1,good\n2,"open\n3,lost\n')
    assert found[1:] == ["papers/x.csv line 3: not valid CSV: unexpected end of data"]


@pytest.mark.parametrize(
    ("name", "data", "records", "message"),
    [
        ("x.csv", "key,text\n1,a", Records(), "has no field id; its fields are key, text"),
        (
            "x.csv",
            "id,text\n1,a",
            Records(metadata=("year", "team")),
            "has no field year, team; its fields are id, text",
        ),
        ("x.tsv", "id,text\n1,a", Records(), "has no field id, text; its fields are id,text"),
        ("x.csv", "id,text,text\n1,a,b", Records(), "has more than one column named 'text'"),
        ("x.csv", 'id,"te"xt\n1,a', Records(), "has no valid CSV header: ',' expected after '\"'"),
    ],
)
def test_a_header_that_does_not_fit_is_one_error(
    name: str, data: str, records: Records, message: str
) -> None:
    """For the file, before its rows."""
    with pytest.raises(DocumentError) as error:
        read(name, data, records)
    assert error.value.message == f"papers/{name} {message}"


def test_many_fields_are_not_all_named() -> None:
    """A file without a header has its first row there."""
    with pytest.raises(DocumentError, match=r"its fields are f0, f1, .*, f19 and 10 more$"):
        read("x.csv", ",".join(f"f{number}" for number in range(30)))


# --- which entry of the config


def test_the_first_entry_that_matches_counts() -> None:
    """By the path below the source."""
    entries = (Records(files="faq/*.csv", id="key", text=("answer",)), Records(files="**/*.csv"))
    assert [type(one) for one in parsed("faq/x.csv", "key,answer\n1,a", records=entries)] == [Document]
    assert [type(one) for one in parsed("x.csv", "id,text\n1,a", records=entries)] == [Document]


def test_no_entry_that_matches_is_an_error() -> None:
    """That says what is missing and where."""
    with pytest.raises(DocumentError) as error:
        parsed("x.jsonl", "{}", records=(Records(files="*.csv"),))
    assert (
        error.value.message == "papers/x.jsonl is a record file that no entry of the source's records is for"
    )
    assert error.value.hint == (
        "add an entry to records of source 'papers' whose `files` matches x.jsonl, or exclude the file"
    )


def test_a_key_of_ragctls_own_is_refused_as_metadata() -> None:
    """It would overwrite what ragctl writes beside each vector."""
    with pytest.raises(DocumentError) as error:
        read("x.csv", "id,text,page\n1,a,2", Records(metadata=("page",)))
    assert error.value.message == (
        "papers/x.csv cannot keep the field 'page' as metadata: ragctl writes this key itself"
    )
    assert error.value.hint == "rename the field in the file and in the source's records.metadata"
