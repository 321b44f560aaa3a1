"""Text to statements that can be quoted on their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.sentences import Statement, sentences, statements


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Vielle of Quill Inc. signed.", ["Mr. Vielle of Quill Inc. signed."]),
        ("It cost $3.5 million. It was late.", ["It cost $3.5 million.", "It was late."]),
        ('She said "No." Then she left.', ['She said "No."', "Then she left."]),
        ("Sales fell to 498. Ellersby lost 27.", ["Sales fell to 498.", "Ellersby lost 27."]),
        ("3. Wash it. Dry it.", ["3. Wash it.", "Dry it."]),
        ("See J. R. Smith, e.g. Table 2. Done.", ["See J. R. Smith, e.g. Table 2.", "Done."]),
        ("  ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(paragraph: str, expected: list[str]) -> None:
    """Abbreviations, initials, decimals and list numbers do not end a sentence."""
    assert list(sentences(paragraph)) == expected


def test_wrapped_lines_are_one_sentence_and_a_heading_is_context() -> None:
    """Lines of a PDF page are joined; the short line above them is their heading, not a statement."""
    page = (
        "From Ellersby to Tamber Quay\r\n"
        "The new hall at Tamber Quay was finished eight days ahead of its date and\r\n"
        "above its budget of $9.5 million. It opened on 23 May.\r\n"
        "Annual Report 2023 Page 3\r\n"
    )
    assert statements(page) == [
        Statement(
            "The new hall at Tamber Quay was finished eight days ahead of its date and "
            "above its budget of $9.5 million.",
            "From Ellersby to Tamber Quay",
        ),
        Statement("It opened on 23 May.", "From Ellersby to Tamber Quay"),
    ]


def test_rows_of_a_pdf_table_stand_alone_below_their_header() -> None:
    """Each row is a statement and knows the line that names its columns."""
    table = (
        "The table shows what we emitted in both years, and how much power we used for it.\n"
        "Environmental data 2023 2022\n"
        "Emissions, tonnes 1,870 2,480\n"
        "Renewable electricity 64% 41%\n"
    )
    header = "Environmental data 2023 2022"
    assert statements(table)[1:] == [
        Statement(header, header=header),
        Statement("Emissions, tonnes 1,870 2,480", header=header),
        Statement("Renewable electricity 64% 41%", header=header),
    ]


def test_rows_of_markdown_and_csv_stand_alone() -> None:
    """A line of a Markdown table or of CSV is a statement; the rule below a header is nothing."""
    text = (
        "# Limits\n\n| What | Limit |\n|---|---|\n| Hotel | $210 |\n\nIn CSV:\nid;name;price\n7;Plover;340\n"
    )
    assert statements(text) == [
        Statement("| What | Limit |", "# Limits", "| What | Limit |"),
        Statement("| Hotel | $210 |", "# Limits", "| What | Limit |"),
        Statement("id;name;price", "In CSV:", "id;name;price"),
        Statement("7;Plover;340", "In CSV:", "id;name;price"),
    ]


def test_a_question_is_the_heading_of_its_answer() -> None:
    """In a FAQ the question is context and never an answer."""
    assert statements("What does it cost?\n\nA sonde costs $340. A probe $95.") == [
        Statement("A sonde costs $340.", "What does it cost?"),
        Statement("A probe $95.", "What does it cost?"),
    ]


def test_list_items_are_apart() -> None:
    """Each item of a list is a statement of its own."""
    assert statements("Before you sail:\n- charge the battery.\n- close the lid.\n") == [
        Statement("- charge the battery.", "Before you sail:"),
        Statement("- close the lid.", "Before you sail:"),
    ]


@given(st.text(alphabet=st.sampled_from("abAB1 .,;!?|-#\n\t$%()\"'2")))
def test_every_statement_is_in_the_text(text: str) -> None:
    """Text, heading and header are found in the text word by word, whatever it is made of."""
    flat = " ".join(text.split())
    for statement in statements(text):
        assert statement.text
        assert statement.text in flat
        assert statement.heading in flat
        assert (statement.header or "") in flat


@pytest.mark.parametrize(
    "line", ["Opening hours are from 9 to 17", "Tides: twice a day", "- charge it", "Ann sails"]
)
def test_a_last_line_without_a_full_stop_is_a_statement(line: str) -> None:
    """It is the heading of nothing, be it the only line or not."""
    assert statements(line) == [Statement(line)]
    assert statements(f"# Visits\n\nWe are on the quay.\n\n{line}\n")[-1] == Statement(line, "# Visits")


@pytest.mark.parametrize("line", ["# Visits", "In CSV:", "如下：", "What does it cost?", "多少钱？"])
def test_a_last_line_that_announces_what_is_not_there_is_none(line: str) -> None:
    """A heading by its mark, a lead-in or a question, at which the chunk was cut."""
    assert statements(f"We are on the quay.\n\n{line}") == [Statement("We are on the quay.")]


def test_a_line_that_ends_with_an_ideographic_mark_is_a_sentence() -> None:
    """A short one is no heading; a question is one, as in other scripts."""
    assert statements("珊瑚长得慢。\n\n「好！」\n\n多少钱？\n\n三百元。\n") == [
        Statement("珊瑚长得慢。"),
        Statement("「好！」"),
        Statement("三百元。", "多少钱？"),
    ]


def test_scripts_without_spaces_have_sentences_too() -> None:
    """An ideographic full stop ends a sentence, with the quotation marks behind it."""
    assert list(sentences("珊瑚长得慢。他说：「好！」再见！？好。")) == [
        "珊瑚长得慢。",
        "他说：「好！」",
        "再见！？",
        "好。",
    ]
