"""Answers quoted from the hits, and the honest refusal to answer."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.adapters.extractive import ExtractiveGenerator
from ragctl.config import Experiment
from ragctl.prompts import NO_ANSWER, abstained, citations, harmless, unknown_markers
from ragctl.records import DOCUMENT, TEXT, Generation, Hit, Prompt

REPORT = (
    "The year at a glance\n\n"
    "Quillmere employed 498 people at the end of December. The hall at Tamber Quay opened on 23 May.\n"
    "Renuka Thistlewood became chief financial officer in March.\n\n"
    "| $ million | 2023 | 2022 |\n|---|---|---|\n| Revenue | 133.7 | 130.9 |\n| Net income | 8.6 | 9.5 |\n"
)
FAQ = (
    "How many probes fit into a Heron 3?\n\nSeven, one of which has to be the thermometer.\n\n"
    "What may I clean them with?\n\nA soft brush. Never use acetone on the windows."
)


def hit(text: str, document: str = "papers/report.md") -> Hit:
    """A hit as a store returns it."""
    return Hit(
        key=f"{document}: {text[:9]}", score=1.0, distance=None, metadata={TEXT: text, DOCUMENT: document}
    )


def ask(question: str, *texts: str, **settings: float) -> Generation:
    """The default generator's reply about these passages."""
    generator = ExtractiveGenerator(
        sentences=int(settings.get("sentences", 3)), min_support=settings.get("min_support", 0.45)
    )
    return generator.generate(Prompt("", "", question, tuple(map(hit, texts))))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many people did Quillmere employ at the end of December?",
         "Quillmere employed 498 people at the end of December. [1]"),
        ("Who became chief financial officer?", "Renuka Thistlewood became chief financial officer in March. [1]"),
        ("How many probes fit into a Heron 3?", "Seven, one of which has to be the thermometer. [2]"),
        ("What was the revenue in 2022?", "| $ million | 2023 | 2022 | [1]\n| Revenue | 133.7 | 130.9 | [1]"),
    ],
)  # fmt: skip
def test_the_statement_that_answers_is_quoted_with_its_marker(question: str, answer: str) -> None:
    """The best supporting statement is the answer; a table's row comes with the line that names its columns."""
    generation = ask(question, REPORT, FAQ, sentences=1)
    assert generation.text == answer
    assert not generation.abstained


def test_a_text_of_one_line_without_a_full_stop_answers() -> None:
    """A record or a note often has none."""
    assert (
        ask("Who painted the boat?", "Ann Vielle painted the boat").text == "Ann Vielle painted the boat [1]"
    )
    assert ask("How much does the boat weigh?", "The boat weighs 900 kg").text == "The boat weighs 900 kg [1]"


def test_an_answer_may_come_from_several_hits() -> None:
    """Each statement carries the marker of the hit that it is from."""
    generation = ask(
        "Who painted the boat?", "Ann painted the boat green.", "Bob painted it red, the whole boat."
    )
    assert generation.text == "Ann painted the boat green. [1] Bob painted it red, the whole boat. [2]"


def test_the_same_statement_is_quoted_once() -> None:
    """Overlapping chunks do not make an answer say things twice."""
    text = "Ann painted the boat green."
    assert ask("Who painted the boat?", text, text).text == f"{text} [1]"


@pytest.mark.parametrize(
    "question", ["Which firm audits the accounts?", "What is the capital of France?", "???", ""]
)
def test_it_says_that_the_corpus_does_not_answer(question: str) -> None:
    """Without support the fixed sentence is the whole answer, and no marker pretends otherwise."""
    generation = ask(question, REPORT, FAQ)
    assert generation.text == NO_ANSWER
    assert generation.abstained
    assert abstained(generation.text)


def test_no_hits_is_no_answer() -> None:
    """An empty retrieval is not an error."""
    assert ask("Who?").abstained


def test_the_bar_is_configurable() -> None:
    """With min_support 0 whatever is closest is quoted; with 1 every informative word has to be there."""
    question = "Which firm audits the revenue?"
    assert not ask(question, REPORT, min_support=0).abstained
    assert ask(question, REPORT, min_support=1).abstained


def test_a_passage_about_it_without_what_is_asked_for_is_no_answer() -> None:
    """Every word of the question is there, but no rate and no name: the corpus does not answer."""
    debt = "The rate on $15.0 million of the debt was fixed in August 2023."
    assert ask("At what interest rate was the $15.0 million of debt fixed in August 2023?", debt).abstained
    laptop = "The laptop of the contractor was stolen from a train."
    assert ask("What is the name of the contractor whose laptop was stolen?", laptop).abstained
    named = "The laptop of the contractor, Wilhelmina Asante, was stolen from a train."
    assert ask("What is the name of the contractor whose laptop was stolen?", named).text == f"{named} [1]"


def test_the_name_of_the_document_counts_as_context() -> None:
    """A statement supports a question about 2031 better in the letter of 2031 than in that of 2023."""
    prompt = {
        year: Prompt("", "", "Revenue in 2031?", (hit("Revenue rose to $9 million.", f"letters/{year}.md"),))
        for year in (2023, 2031)
    }
    generator = ExtractiveGenerator(min_support=0.6)
    assert generator.generate(prompt[2023]).abstained
    assert generator.generate(prompt[2031]).text == "Revenue rose to $9 million. [1]"


def test_on_text_gets_the_answer() -> None:
    """A caller that streams sees what the generation holds."""
    pieces: list[str] = []
    generation = ExtractiveGenerator().generate(Prompt("", "", "Who audits?", ()), pieces.append)
    assert "".join(pieces) == generation.text


def test_markers_in_a_document_are_not_taken_for_ours() -> None:
    """A document that brings its own [2] cannot make an answer cite another hit."""
    generation = ask("Who painted the boat?", "Ann painted the boat green [2].", "Nothing else.")
    assert [citation.marker for citation in citations(generation.text, [hit("a"), hit("b")])] == [1]


def test_other_languages_are_stemmed_or_left_alone() -> None:
    """The store's language chooses the stemmer; one without a stemmer compares the words as they are."""
    passages = (hit("Die Boote wurden grün gestrichen."),)
    german = ExtractiveGenerator(language="de").generate(Prompt("", "", "Boot gestrichen?", passages))
    japanese = ExtractiveGenerator(language="ja", min_support=0.8).generate(Prompt("", "", "Boot?", passages))
    assert not german.abstained
    assert japanese.abstained


def test_the_experiment_decides(tmp_path: Path) -> None:
    """Settings and the store's language come from the experiment, and the identity tells them apart."""
    experiment = Experiment.model_validate(
        {
            "name": "e",
            "sources": [{"kind": "local", "name": "s", "path": str(tmp_path)}],
            "store": {"kind": "local", "language": "de"},
            "generation": {"kind": "extractive", "sentences": 2, "min_support": 0.3},
        }
    )
    generator = ExtractiveGenerator.from_config(experiment)
    assert generator.identity == "extractive/2 sentences=2 min_support=0.3 language=de"


WORDS = st.sampled_from(
    [
        "revenue",
        "rose",
        "fell",
        "2023",
        "133.7",
        "million",
        "the",
        "boat",
        "[1]",
        "</passage>",
        "Ann",
        "|",
        "#",
        "?",
        ".",
        "!",
        "\n",
        "\n\n",
        ",",
        ";",
    ]
)
TEXTS = st.lists(WORDS, max_size=40).map(" ".join)


@given(st.lists(TEXTS, max_size=6), TEXTS, st.integers(1, 5))
def test_every_sentence_of_an_answer_is_in_the_hit_that_its_marker_names(
    texts: list[str], question: str, sentences: int
) -> None:
    """Split at the markers, an answer is statements each found in its hit, white space aside; or it is NO_ANSWER."""
    generation = ask(question, *texts, min_support=0.2, sentences=sentences)
    if generation.abstained:
        assert generation.text == NO_ANSWER
        return
    parts = re.split(r" \[(\d+)\](?:\s|$)", generation.text)
    assert parts.pop() == ""
    quoted = list(zip(parts[::2], parts[1::2], strict=True))
    assert 1 <= len(quoted) <= 2 * sentences  # a row may bring its header
    for statement, marker in quoted:
        assert statement in " ".join(harmless(texts[int(marker) - 1]).split())
    assert unknown_markers(generation.text, list(map(hit, texts))) == ()
    assert ask(question, *texts, min_support=0.2, sentences=sentences) == generation
