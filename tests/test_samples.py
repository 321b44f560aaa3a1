"""The sample corpus is what samples/README.md says, and its golden questions can be answered from it."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pypdfium2
import pytest

SAMPLES = Path(__file__).parent.parent / "samples"
CORPUS = SAMPLES / "corpus"
SOURCES = SAMPLES / "sources"

FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())
PDFS = [path for path in FILES if path.suffix == ".pdf"]
GOLDEN: list[dict[str, Any]] = [
    json.loads(line) for line in (SAMPLES / "golden.jsonl").read_text(encoding="utf-8").splitlines()
]
EVIDENCE = [
    pytest.param(evidence, id=f"{question['id']}-{number}")
    for question in GOLDEN
    for number, evidence in enumerate(question["evidence"])
]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ID_FIELDS = {".csv": "sku", ".tsv": "sku", ".jsonl": "id"}
TEXT_FIELDS = ("name", "description", "note", "title", "body")  # as samples/README.md names them
FIGURE = re.compile(r"(?<![A-Za-z\d])\d+(?:[.,]\d+)*")


class TextOfHtml(HTMLParser):
    """Collects the pieces of text between the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def squeezed(text: str) -> str:
    """The text with each run of white space as one space."""
    return " ".join(text.split())


@cache
def pages(path: Path) -> list[str]:
    """The text of each page of a PDF, as pypdfium2 extracts it."""
    with pypdfium2.PdfDocument(path) as document:
        return [squeezed(page.get_textpage().get_text_range()) for page in document]


def text_of(path: Path) -> str:
    """The text of a whole file that is no record file."""
    if path.suffix == ".pdf":
        return " ".join(pages(path))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        parser = TextOfHtml()
        parser.feed(text)
        text = " ".join(parser.parts)
    return squeezed(text)


@cache
def records(path: Path) -> list[dict[str, str]]:
    """The records of a CSV, TSV or JSON-lines file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(text.splitlines(), delimiter=DELIMITERS[path.suffix]))


def passages(evidence: Mapping[str, Any]) -> list[str]:
    """The texts in which a quote may stand: a page, a file, or each text field of a record."""
    name, _, record_id = str(evidence["document"]).removeprefix("papers/").partition("#")
    path = CORPUS / name
    if record_id:
        (record,) = [row for row in records(path) if row[ID_FIELDS[path.suffix]] == record_id]
        return [squeezed(record[field]) for field in TEXT_FIELDS if field in record]
    if "page" in evidence:
        return [pages(path)[evidence["page"] - 1]]
    return [text_of(path)]


def tagged(tag: str) -> list[dict[str, Any]]:
    """The golden questions that carry a tag."""
    return [question for question in GOLDEN if tag in question["tags"]]


def year_of(evidence: Mapping[str, Any]) -> int:
    """The year in the path of an evidence's document, papers/<domain>/<year>/..."""
    return int(str(evidence["document"]).split("/")[2])


def test_corpus_has_the_promised_variety() -> None:
    """At least 15 files in 5 formats, each below a domain and a year."""
    assert len(FILES) >= 15
    assert len({path.suffix for path in FILES}) >= 5
    assert all(re.fullmatch(r"[a-z]+/20\d\d/[^/]+", path.relative_to(CORPUS).as_posix()) for path in FILES)


def test_readme_counts_the_files() -> None:
    """The number of files in the README is the number of files."""
    assert f"is {len(FILES)} files" in (SAMPLES / "README.md").read_text(encoding="utf-8")


def test_pdfs_are_long_and_titled() -> None:
    """At least three PDFs of eight pages or more, each with a title in its properties."""
    assert len(PDFS) >= 3
    for path in PDFS:
        assert len(pages(path)) >= 8, path
        with pypdfium2.PdfDocument(path) as document:
            assert document.get_metadata_dict()["Title"], path


@pytest.mark.parametrize("path", PDFS, ids=lambda path: path.relative_to(CORPUS).as_posix())
def test_every_pdf_page_has_its_own_clean_text(path: Path) -> None:
    """Each page holds a page's worth of printable text, ends with its number and repeats no paragraph."""
    for number, text in enumerate(pages(path), start=1):
        assert len(text.split()) > 200, number
        assert text.isprintable(), number
        assert text.endswith(f"Page {number}"), number
    paragraphs = [sentence for text in pages(path) for sentence in text.split(". ") if len(sentence) > 60]
    assert len(paragraphs) == len(set(paragraphs))


def test_committed_pdfs_are_what_the_script_makes(tmp_path: Path) -> None:
    """Typesetting the sources again gives the committed PDFs, byte for byte."""
    subprocess.run([sys.executable, SAMPLES / "make_pdfs.py", "--out", tmp_path], check=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.pdf"))
    assert made == [path.relative_to(CORPUS) for path in PDFS]
    assert [name for name in made if (tmp_path / name).read_bytes() != (CORPUS / name).read_bytes()] == []


def test_record_ids_are_unique_and_every_record_has_text() -> None:
    """In each record file no id occurs twice and no text field is empty."""
    for path in FILES:
        if path.suffix not in ID_FIELDS:
            continue
        ids = Counter(row[ID_FIELDS[path.suffix]] for row in records(path))
        assert max(ids.values()) == 1, path
        assert all(row[field] for row in records(path) for field in TEXT_FIELDS if field in row), path


def test_golden_set_has_the_promised_questions() -> None:
    """Sixty questions with different ids and wordings, enough of each kind."""
    assert len(GOLDEN) == 60
    assert len({question["id"] for question in GOLDEN}) == 60
    assert len({question["question"] for question in GOLDEN}) == 60
    assert len(tagged("numeric")) >= 10
    assert len(tagged("cross-document")) >= 8
    assert len(tagged("year-filtered")) >= 10
    assert len(tagged("unanswerable")) >= 8
    assert tagged("table")
    assert tagged("record")


def test_only_unanswerable_questions_lack_answer_and_evidence() -> None:
    """An answer, evidence and the tag `unanswerable` go together."""
    for question in GOLDEN:
        answerable = "unanswerable" not in question["tags"]
        assert (question["answer"] is not None) == answerable, question["id"]
        assert bool(question["evidence"]) == answerable, question["id"]


def test_filters_and_evidence_agree() -> None:
    """The tag `year-filtered` means a filter on the year, and the evidence is of that year."""
    for question in GOLDEN:
        assert ("filter" in question) == ("year-filtered" in question["tags"]), question["id"]
        if "filter" in question:
            assert {year_of(evidence) for evidence in question["evidence"]} <= {question["filter"]["year"]}


def test_cross_document_questions_cite_several_documents() -> None:
    """A question tagged `cross-document` has evidence in at least two documents."""
    for question in tagged("cross-document"):
        assert len({evidence["document"] for evidence in question["evidence"]}) >= 2, question["id"]


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_quote_stands_in_its_document(evidence: dict[str, Any]) -> None:
    """Each quote is found where the evidence says, on the page that it names."""
    assert any(squeezed(evidence["quote"]) in passage for passage in passages(evidence))


def test_evidence_in_a_pdf_names_its_page() -> None:
    """A quote from a PDF has a page; a quote from anything else has none."""
    for question in GOLDEN:
        for evidence in question["evidence"]:
            assert ("page" in evidence) == evidence["document"].endswith(".pdf"), question["id"]


@pytest.mark.parametrize("question", tagged("numeric"), ids=lambda question: question["id"])
def test_figures_of_a_numeric_answer_are_quoted(question: dict[str, Any]) -> None:
    """Every figure of the answer, or the answer itself when it is in words, is in the evidence."""
    quoted = " ".join(evidence["quote"] for evidence in question["evidence"])
    figures = FIGURE.findall(question["answer"])
    assert set(figures) <= set(FIGURE.findall(quoted))
    assert figures or question["answer"] in quoted
