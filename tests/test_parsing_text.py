"""Encodings, plain text, and what every format has in common."""

import codecs
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.config import Parsing
from ragctl.errors import DocumentError
from ragctl.parsing import SUFFIXES, suffix
from ragctl.parsing.encoding import clean, decode
from ragctl.records import short_hash
from tests.parsed import document, parsed

GERMAN = "Über die Größe des Hauses lässt sich streiten. Die Bäume blühen schön im Frühling."
RUSSIAN = "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом."
# Text that a file can hold: no control characters but tab and newline, no lone surrogates, no byte order mark.
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n", exclude_characters="\ufeff")
)


@given(TEXT)
def test_utf8_comes_back_as_it_was(text: str) -> None:
    """Every character, and so every span."""
    assert decode(text.encode()) == (text, ())
    assert decode(codecs.BOM_UTF8 + text.encode()) == (text, ())


@given(
    st.lists(
        st.sampled_from(
            ["word ", "\r\n", "\r", "\n", "\t", "\0", "\x0b", "\x7f", "\x85", "é", "日", "\ufffd", "\ufeff"]
        )
    )
)
def test_utf8_is_cleaned_wherever_it_needs_it(pieces: list[str]) -> None:
    """Files with nothing to clean, which are nearly all, are found by their bytes; the others miss nothing by it."""
    text = "a plain beginning, " * 20 + "".join(pieces[:20])
    assert decode(text.encode())[0] == clean(text)


@given(TEXT, st.sampled_from(["utf-16", "utf-32"]))
def test_wide_encodings_with_a_mark_come_back(text: str, codec: str) -> None:
    """The mark says which they are."""
    assert decode(text.encode(codec))[0] == text


@given(st.binary(max_size=300))
def test_any_bytes_give_clean_text_or_an_error(data: bytes) -> None:
    """Whatever the bytes: no control characters, no lone surrogates, no other exception."""
    try:
        text, _ = decode(data)
    except DocumentError as error:
        assert "is not text" in error.message or "is in no encoding" in error.message  # noqa: PT017 - one of two ends
    else:
        assert clean(text) == text
        text.encode()


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["This is a test document.\n", GERMAN])
def test_utf16_without_a_mark_is_recognised(text: str, codec: str) -> None:
    """By the zeros between the letters."""
    assert decode(text.encode(codec)) == (text, ())


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("café", "latin-1"),
        ("naïve résumé — “quoted”", "cp1252"),
        (GERMAN, "latin-1"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        ("日本語で書かれた文章です。", "shift_jis"),
    ],
)
def test_other_encodings_are_recognised_by_their_letters(text: str, codec: str) -> None:
    """Short Western files among them, which most guesses get wrong."""
    assert decode(text.encode(codec))[0] == text


def test_one_fault_does_not_spoil_utf8() -> None:
    """A stray byte is marked and reported; the other letters stay what they are."""
    text, warnings = decode(("é" * 200).encode() + b"\xff")
    assert text == "é" * 200 + "\ufffd"
    assert warnings == ("1 bytes or sequences are not valid UTF-8",)


def test_a_declared_charset_is_believed_where_it_decodes() -> None:
    """After valid UTF-8, which a wrong declaration does not change."""
    assert decode("Ώρα".encode("iso8859-7"), declared="ISO-8859-7")[0] == "Ώρα"
    assert decode("Ώρα".encode(), declared="ISO-8859-7")[0] == "Ώρα"


@pytest.mark.parametrize("declared", ["unicode_escape", "zlib", "no-such-charset", "idna", "a\0b"])
def test_a_declared_charset_that_is_none_is_ignored(declared: str) -> None:
    """A page cannot choose which of Python's codecs is run on it."""
    assert decode("café au lait".encode("latin-1"), declared=declared)[0] == "café au lait"


@pytest.mark.parametrize(
    "data",
    [b"\0" * 100, b"\x00\x01\x02\x03" * 50, random.Random(7).randbytes(2_000), b"text\x00\x01\x02\x03\x04"],
)
def test_binary_data_is_no_text(data: bytes) -> None:
    """An error that says so, instead of rubbish in the index."""
    with pytest.raises(
        DocumentError, match=r"^papers/a.txt is (not text: it looks like binary data|in no encoding)"
    ):
        parsed("a.txt", data)


def test_control_characters_become_spaces_and_newlines_line_feeds() -> None:
    """A few of them are common in good text."""
    assert (
        document("a.txt", b"one\x00two\x0c\r\nthree\rfour" + b"." * 50).text
        == "one two \nthree\nfour" + "." * 50
    )


def test_a_text_file_is_one_document() -> None:
    """With the hash of its bytes, and the metadata of config and path."""
    found = document("notes/a.RST", "Title\n=====\n", metadata={"year": 2024})
    assert (found.id, found.text) == ("papers/notes/a.RST", "Title\n=====\n")
    assert found.content_hash == short_hash(b"Title\n=====\n")
    assert (found.metadata, found.pages, found.sections, found.warnings) == ({"year": 2024}, (), (), ())


def test_metadata_of_the_config_win_over_the_documents_own() -> None:
    """And the config can leave the document's out; none of it is in the content hash."""
    plain = document("a.md", "# Mine")
    assert plain.metadata == {"title": "Mine"}
    titled = document("a.md", "# Mine", metadata={"title": "Theirs", "year": 1})
    assert titled.metadata == {"title": "Theirs", "year": 1}
    assert titled.content_hash == plain.content_hash
    assert document("a.md", "# Mine", parsing=Parsing(title=False)).metadata == {}


def test_a_title_stays_short() -> None:
    """Every vector carries it, within 2 KB of metadata."""
    assert document("a.md", f"# {'long ' * 100}").metadata["title"] == ("long " * 40).strip()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.docx", "of type .docx"), ("LICENSE", "without an ending"), (".md", "without an ending")],
)
def test_an_unknown_type_is_an_error_that_lists_the_known(name: str, kind: str) -> None:
    """Never an empty document."""
    with pytest.raises(DocumentError, match=f"^papers/{name} is {kind}, which ragctl cannot read$") as error:
        parsed(name, b"x")
    assert error.value.hint is not None
    assert error.value.hint.endswith(" ".join(sorted(SUFFIXES)))


def test_endings() -> None:
    """In lower case, and none for names that are all ending."""
    assert [suffix(path) for path in ("a/b.MD", "a.tar.GZ", "README", ".profile", "a.b/c", "a.")] == [
        *(".md", ".gz", "", "", "", ".")
    ]
