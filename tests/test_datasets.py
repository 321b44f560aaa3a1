"""Data sets: what a golden JSONL and a BEIR folder or zip mean, and how their faults are told."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest

from ragctl.config import BeirSet, GoldenSet
from ragctl.datasets import Evidence, Question, load_questions
from ragctl.errors import ConfigError


def golden(folder: Path, *lines: str, tenant: str | None = None) -> GoldenSet:
    path = folder / "golden.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return GoldenSet(kind="golden", path=path, tenant=tenant)


def row(**fields: object) -> str:
    return json.dumps({"id": "q1", "question": "How many?", "answer": "5", **fields})


def refusal(dataset: GoldenSet | BeirSet) -> str:
    with pytest.raises(ConfigError) as caught:
        load_questions(dataset)
    return caught.value.message


# --- golden sets -----------------------------------------------------------------------------------------


def test_a_golden_row_becomes_a_question(tmp_path: Path) -> None:
    """Every field of the schema arrives; the filter is normalised as for a query."""
    line = row(
        aliases=["five"],
        evidence=[{"document": "papers/a.pdf", "quote": "There are 5.", "page": 3}],
        filter={"year": 2023, "kind": "report"},
        tags=["numeric"],
        tenant="acme",
    )
    assert load_questions(golden(tmp_path, line)) == (
        Question(
            id="q1",
            question="How many?",
            answer="5",
            aliases=("five",),
            evidence=(Evidence("papers/a.pdf", "There are 5.", 3),),
            filter={"$and": [{"year": {"$eq": 2023}}, {"kind": {"$eq": "report"}}]},
            tags=("numeric",),
            tenant="acme",
        ),
    )


def test_null_answer_without_evidence_is_unanswerable(tmp_path: Path) -> None:
    """A null answer alone does not do it: evidence without a reference answer is a question for retrieval."""
    evidence = [{"document": "a", "quote": "b"}]
    first, second = load_questions(
        golden(tmp_path, row(answer=None), row(id="q2", answer=None, evidence=evidence))
    )
    assert (first.answerable, second.answerable) == (False, True)


def test_the_data_sets_tenant_is_the_default(tmp_path: Path) -> None:
    """A question's own tenant wins over the data set's."""
    questions = load_questions(golden(tmp_path, row(), row(id="q2", tenant="b"), tenant="a"))
    assert [question.tenant for question in questions] == ["a", "b"]


def test_document_ids_are_compared_in_nfc(tmp_path: Path) -> None:
    """An editor that writes a decomposed umlaut means the same document."""
    line = row(evidence=[{"document": "papers/Bu\u0308cher.pdf", "quote": "b"}])
    assert load_questions(golden(tmp_path, line))[0].documents == {"papers/B\u00fccher.pdf"}


def test_blank_lines_and_a_byte_order_mark_are_no_fault(tmp_path: Path) -> None:
    """What editors leave behind does not stop an evaluation."""
    assert len(load_questions(golden(tmp_path, "\ufeff" + row(), "", "   "))) == 1


def test_all_faults_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    """One run shows everything that is to be mended, and quotes nobody's text."""
    message = refusal(
        golden(
            tmp_path,
            row(),
            "{",
            row(id="q3", colour="red"),
            json.dumps({"id": "q4", "question": " "}),
            row(id="q5", evidence=[{"document": "a", "quote": "…", "page": 0, "pge": 1}]),
            row(id="q6", evidence=[{"document": "a", "quote": "…"}]),
            row(id="q7", answer=None, aliases=["five"]),
            row(id="q8", filter={"year": {"$gtee": 2023}}),
            row(id="q1"),
        )
    )
    assert message == (
        f"{tmp_path / 'golden.jsonl'} is not a valid data set\n"
        "  line 2: not valid JSON: EOF while parsing an object at line 2 column 0\n"
        "  line 3: colour: unknown key; known: id, question, answer, aliases, evidence, filter, tags, tenant\n"
        "  line 4: question: must not be blank\n"
        "  line 4: answer: required; null says that there is none\n"
        "  line 5: evidence.0.page: must be greater than or equal to 1\n"
        "  line 5: evidence.0.pge: unknown key; known: document, quote, page\n"
        "  line 6: evidence.0.quote: has neither a word nor a number\n"
        "  line 7: aliases: there is no answer that they could be other words for\n"
        "  line 8: filter.year.$gtee: unknown operator; did you mean $gte? "
        "Known: $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $startsWith, $exists, $and, $or\n"
        "  line 9: id 'q1' is on line 1 already"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n", "no questions"), (b"\xff\xfe", "cannot be read"), (None, "no such file")],
    ids=["empty", "not UTF-8", "missing"],
)
def test_a_file_that_is_no_golden_set(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Nothing to ask is an error: a gate over no question would pass."""
    path = tmp_path / "golden.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert message in refusal(GoldenSet(kind="golden", path=path))


# --- BEIR ------------------------------------------------------------------------------------------------

QUERIES = '{"_id": "1", "text": "one?"}\n{"_id": "2", "text": "two?", "metadata": {}}\n{"_id": "3", "text": "three?"}\n'
QRELS = "query-id\tcorpus-id\tscore\n3\td1\t1\n1\td1\t2\n1\td2\t0\n"


def beir(folder: Path, files: dict[str, str], split: str = "test") -> BeirSet:
    for name, text in {"corpus.jsonl": "", "queries.jsonl": QUERIES, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return BeirSet(kind="beir", path=folder, split=split, source="facts", tenant="t")


def zipped(folder: Path, below: str) -> BeirSet:
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (("corpus.jsonl", ""), ("queries.jsonl", QUERIES), ("qrels/test.tsv", QRELS)):
            archive.writestr(below + name, text)
    return BeirSet(kind="beir", path=path, source="facts", tenant="t")


def expected(below: str) -> tuple[Question, ...]:
    """Query 2 is not judged and so not asked; the order is that of the queries."""
    corpus = f"facts/{below}corpus.jsonl#"
    return (
        Question("1", "one?", relevant={f"{corpus}d1": 2, f"{corpus}d2": 0}, tenant="t"),
        Question("3", "three?", relevant={f"{corpus}d1": 1}, tenant="t"),
    )


@pytest.mark.parametrize("below", ["", "scifact/"])
def test_a_beir_zip(tmp_path: Path, below: str) -> None:
    """Ids are those under which the record reader ingests the same zip as a source."""
    assert load_questions(zipped(tmp_path, below)) == expected(below)


def test_a_beir_folder_around_the_data_set(tmp_path: Path) -> None:
    """A folder that holds the unpacked folder works like the zip of it."""
    beir(tmp_path / "scifact", {"qrels/test.tsv": QRELS})
    dataset = BeirSet(kind="beir", path=tmp_path, source="facts", tenant="t")
    assert load_questions(dataset) == expected("scifact/")


def test_a_header_in_the_judgements_is_optional(tmp_path: Path) -> None:
    """Without one the first line is a judgement like any other, and not lost."""
    dataset = beir(tmp_path, {"qrels/test.tsv": QRELS.partition("\n")[2]})
    assert load_questions(dataset) == expected("")


def test_what_should_be_found_leaves_out_grade_0(tmp_path: Path) -> None:
    """A document judged irrelevant is none that anybody misses."""
    first, _ = load_questions(beir(tmp_path, {"qrels/test.tsv": QRELS}))
    assert first.documents == {"facts/corpus.jsonl#d1"}


def test_an_unknown_split_names_the_known_ones(tmp_path: Path) -> None:
    """A misspelt split is a matter of one look."""
    with pytest.raises(ConfigError, match=re.escape("no qrels/tset.tsv")) as caught:
        load_questions(beir(tmp_path, {"qrels/test.tsv": QRELS, "qrels/train.tsv": QRELS}, split="tset"))
    assert caught.value.hint == "splits: test, train"


def test_faults_of_a_beir_set_are_told_at_once(tmp_path: Path) -> None:
    """Judgements of unknown queries would silently shrink the set."""
    queries = QUERIES + '{"_id": "1", "text": "again?"}\n[]\n'
    qrels = "1\td1\tx1\n1\td1\n1\td1\t1\n1\td1\t1\n1\td1\t2\n9\td1\t1\n"
    message = refusal(beir(tmp_path, {"queries.jsonl": queries, "qrels/test.tsv": qrels}))
    assert message.splitlines()[1:] == [
        "  qrels/test.tsv line 1: must be query id, document id and a whole number, with tabs between",
        "  qrels/test.tsv line 2: must be query id, document id and a whole number, with tabs between",
        "  qrels/test.tsv line 5: document 'd1' has another grade already",
        "  queries.jsonl line 4: query '1' is given twice",
        '  queries.jsonl line 5: must be an object with "_id" and "text"',
        "  qrels/test.tsv line 6: query '9' is not in queries.jsonl",
    ]


def test_a_place_without_a_corpus_is_no_beir_set(tmp_path: Path) -> None:
    """The hint says what a BEIR data set looks like; a missing path and a broken zip are told apart."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    messages = [
        refusal(BeirSet(kind="beir", path=tmp_path / name, source="facts"))
        for name in ("empty", "broken.zip", "absent.zip")
    ]
    assert messages == [
        f"{tmp_path / 'empty'}: no corpus.jsonl, at the top or one folder down",
        f"{tmp_path / 'broken.zip'}: neither a folder nor a zip that can be read: File is not a zip file",
        f"{tmp_path / 'absent.zip'}: no such file or folder",
    ]
