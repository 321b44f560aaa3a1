"""What an evaluation asks: golden sets as JSONL, and BEIR folders or zips.

A golden set has one object per line:

    {"id": "r-12", "question": "...", "answer": "..." or null, "aliases": ["..."],
     "evidence": [{"document": "<document id>", "quote": "...", "page": 3}],
     "filter": {...}, "tags": ["..."], "tenant": "..."}

`id`, `question` and `answer` must be there, so that an answer somebody forgot is not taken for a question without
one. A question is unanswerable when its answer is null and it has no evidence.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ragctl.config import BeirSet, Dataset, GoldenSet
from ragctl.errors import ConfigError, FilterError
from ragctl.evidence import words
from ragctl.filters import normalise


@dataclass(frozen=True, slots=True)
class Evidence:
    """Words of the corpus that support an answer, quoted from a document."""

    document: str  # the document id, or a record file's id to mean whichever of its records holds the quote
    quote: str
    page: int | None = None  # on which the quote starts, from 1


@dataclass(frozen=True, slots=True)
class Question:
    """One question and what is known about its answer; a BEIR query has `relevant` instead of evidence."""

    id: str
    question: str
    answer: str | None = None
    aliases: tuple[str, ...] = ()  # other right answers
    evidence: tuple[Evidence, ...] = ()
    relevant: Mapping[str, int] = field(default_factory=dict)  # document id -> grade, above 0 is relevant
    filter: Mapping[str, object] | None = None  # normalised
    tags: tuple[str, ...] = ()
    tenant: str | None = None

    @property
    def answerable(self) -> bool:
        return self.answer is not None or bool(self.evidence or self.relevant)

    @property
    def documents(self) -> frozenset[str]:
        """The ids of the documents that should be found; one that is not in the index is worth a warning."""
        judged = {document for document, grade in self.relevant.items() if grade > 0}
        return frozenset(judged | {evidence.document for evidence in self.evidence})


def load_questions(dataset: Dataset) -> tuple[Question, ...]:
    """The questions of a data set, in the order of its file.

    Raises ConfigError with every fault and its line, also when there is no question at all.
    """
    questions = _golden(dataset) if isinstance(dataset, GoldenSet) else _beir(dataset)
    if not questions:
        raise ConfigError(f"{dataset.path}: no questions")
    return questions


class _Faults:
    """Faults of a data set, gathered so that one run shows them all."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._found: list[str] = []

    def add(self, file: str, line: int, what: str) -> None:
        self._found.append(f"{file} line {line}: {what}".lstrip())

    def raise_any(self) -> None:
        if self._found:
            lines = "".join(f"\n  {fault}" for fault in self._found)
            raise ConfigError(f"{self._place} is not a valid data set{lines}")


def _lines(file: Traversable) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, from 1."""
    try:
        with file.open(encoding="utf-8-sig") as text:
            yield from ((number, line) for number, line in enumerate(text, 1) if line.strip())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error


# --- golden sets -----------------------------------------------------------------------------------------

_Text = Annotated[str, StringConstraints(pattern=r"\S")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _EvidenceRow(_Strict):
    document: _Text
    quote: _Text
    page: int | None = Field(None, ge=1)


class _Row(_Strict):
    id: _Text
    question: _Text
    answer: _Text | None
    aliases: tuple[_Text, ...] = ()
    evidence: tuple[_EvidenceRow, ...] = ()
    filter: dict[str, Any] | None = None
    tags: tuple[_Text, ...] = ()
    tenant: _Text | None = None


GOLDEN_KEYS = frozenset(_Row.model_fields)  # of a line of a golden set


def _golden(dataset: GoldenSet) -> tuple[Question, ...]:
    faults = _Faults(str(dataset.path))
    lines: dict[str, int] = {}  # id -> line
    questions = []
    for number, line in _lines(dataset.path):
        try:
            row = _Row.model_validate_json(line)
        except ValidationError as error:
            for what in _described(error):
                faults.add("", number, what)
            continue
        for what in _row_faults(row):
            faults.add("", number, what)
        if row.id in lines:
            faults.add("", number, f"id {row.id!r} is on line {lines[row.id]} already")
        lines.setdefault(row.id, number)
        questions.append(_question(row, number, dataset.tenant, faults))
    faults.raise_any()
    return tuple(questions)


def _described(error: ValidationError) -> Iterator[str]:
    """Each fault with its path; without the input, which may be anybody's text."""
    for detail in error.errors(include_input=False, include_url=False, include_context=False):
        path = ".".join(str(step) for step in detail["loc"])
        match detail["type"]:
            case "extra_forbidden":
                yield f"{path}: unknown key; known: {', '.join(_known(detail['loc']))}"
            case "missing":
                yield f"{path}: required" + ("; null says that there is none" if path == "answer" else "")
            case "string_pattern_mismatch":
                yield f"{path}: must not be blank"
            case "json_invalid":
                yield f"not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}"
            case _:
                yield f"{path}: {detail['msg'].replace('Input should', 'must')}".removeprefix(": ")


def _known(location: tuple[int | str, ...]) -> Iterable[str]:
    return (_EvidenceRow if location[0] == "evidence" else _Row).model_fields


def _row_faults(row: _Row) -> Iterator[str]:
    if row.answer is None and row.aliases:
        yield "aliases: there is no answer that they could be other words for"
    for i, evidence in enumerate(row.evidence):
        if not words(evidence.quote):
            yield f"evidence.{i}.quote: has neither a word nor a number"


def _question(row: _Row, number: int, tenant: str | None, faults: _Faults) -> Question:
    try:
        condition = normalise(row.filter) if row.filter is not None else None
    except FilterError as error:
        faults.add("", number, error.message)
        condition = None
    return Question(
        id=row.id,
        question=row.question,
        answer=row.answer,
        aliases=row.aliases,
        # Ids of documents are in NFC, whatever the editor wrote.
        evidence=tuple(Evidence(normalize("NFC", e.document), e.quote, e.page) for e in row.evidence),
        filter=condition,
        tags=row.tags,
        tenant=row.tenant or tenant,
    )


# --- BEIR ------------------------------------------------------------------------------------------------


def _beir(dataset: BeirSet) -> tuple[Question, ...]:
    """Only judged queries are asked, as everybody does who reports BEIR figures."""
    root, below = _beir_root(dataset.path)
    faults = _Faults(str(dataset.path))
    judged = _qrels(root, dataset.split, faults)
    texts = _queries(root, faults)
    for query, (number, _) in judged.items():
        if query not in texts:
            faults.add(f"qrels/{dataset.split}.tsv", number, f"query {query!r} is not in queries.jsonl")
    faults.raise_any()
    prefix = f"{dataset.source}/{below}corpus.jsonl#"
    return tuple(
        Question(
            id=query,
            question=text,
            relevant={prefix + document: grade for document, grade in judged[query][1].items()},
            tenant=dataset.tenant,
        )
        for query, text in texts.items()
        if query in judged
    )


def _beir_root(path: Path) -> tuple[Traversable, str]:
    """The folder that holds corpus.jsonl, and its path below `path`: "" or "<name>/"."""
    top = _opened(path)
    if (top / "corpus.jsonl").is_file():
        return top, ""
    found = [folder for folder in top.iterdir() if folder.is_dir() and (folder / "corpus.jsonl").is_file()]
    if len(found) != 1:
        what = (
            "several folders with a corpus.jsonl"
            if found
            else "no corpus.jsonl, at the top or one folder down"
        )
        raise ConfigError(
            f"{path}: {what}", hint="a BEIR data set has corpus.jsonl, queries.jsonl and qrels/"
        )
    return found[0], f"{found[0].name}/"


def _opened(path: Path) -> Traversable:
    if path.is_dir():
        return path
    try:
        # Closed when the last path of it is gone; a zipfile.Path has no close of its own.
        return zipfile.Path(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file or folder") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: neither a folder nor a zip that can be read: {error}") from error


def _qrels(root: Traversable, split: str, faults: _Faults) -> dict[str, tuple[int, dict[str, int]]]:
    """Query id -> (line of its first judgement, document id -> grade). A header line is optional."""
    name = f"qrels/{split}.tsv"
    file = root / "qrels" / f"{split}.tsv"
    if not file.is_file():
        raise ConfigError(f"{root}: no {name}", hint=f"splits: {', '.join(_splits(root)) or 'none'}")
    judged: dict[str, tuple[int, dict[str, int]]] = {}
    for position, (number, line) in enumerate(_lines(file)):
        fields = next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE))
        grade = _grade(fields[2]) if len(fields) == 3 else None
        if grade is None:
            is_header = position == 0 and not any(character.isdecimal() for character in line)
            if not is_header:
                faults.add(
                    name, number, "must be query id, document id and a whole number, with tabs between"
                )
            continue
        _, grades = judged.setdefault(fields[0], (number, {}))
        if grades.setdefault(fields[1], grade) != grade:
            faults.add(name, number, f"document {fields[1]!r} has another grade already")
    return judged


def _grade(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _splits(root: Traversable) -> list[str]:
    folder = root / "qrels"
    if not folder.is_dir():
        return []
    return sorted(file.name.removesuffix(".tsv") for file in folder.iterdir() if file.name.endswith(".tsv"))


def _queries(root: Traversable, faults: _Faults) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in _lines(root / "queries.jsonl"):
        try:
            row = json.loads(line)
            query, text = row["_id"], row["text"]
        except (ValueError, KeyError, TypeError):
            query = text = None
        if not (isinstance(query, str) and isinstance(text, str) and text.strip()):
            faults.add("queries.jsonl", number, 'must be an object with "_id" and "text"')
        elif query in texts:
            faults.add("queries.jsonl", number, f"query {query!r} is given twice")
        else:
            texts[query] = text
    return texts
