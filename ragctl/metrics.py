"""Scores of one question: rank metrics by ir_measures, answer metrics without a judge.

A rank metric is named as ir_measures prints it, and the name is its definition. What is ranked:

- BEIR questions: documents, each where its best hit stands; grades as judged.
- Golden questions: the hits, judged by the evidence they hold (`evidence.py`). A hit is worth something for evidence
  that no hit before it held; one that only repeats is not relevant, so overlapping chunks gain nothing. P, RR and
  Success look at hits: is this one relevant? nDCG, R and AP look at evidence: how much of it do the first k hits
  hold, and how early? For them a hit that brings several items counts as that many places in a row.

A question without hits scores 0. Metrics that do not apply to a question are absent from its scores: rank metrics
where there is nothing to find, answer metrics where there is no reference.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ragctl.errors import ConfigError, MissingExtra
from ragctl.evidence import held
from ragctl.prompts import without_markers

if TYPE_CHECKING:
    from ragctl.datasets import Question
    from ragctl.records import Answer, Hit

RANK_FORMS = ("nDCG@k", "R@k", "P@k", "RR", "RR@k", "AP", "AP@k", "Success@k")
ANSWER_METRICS = (
    "exact_match",
    "token_f1",
    "rouge_l",
    "answered_rate",  # answerable questions that got an answer
    "abstention_recall",  # unanswerable questions on which the answer abstains
    "abstention_precision",  # abstentions that were right
)
STAGES = ("embed", "search", "rerank", "generate")
PERCENTILES = (50, 95, 99)
# Hits to look at for RR and AP without a cut-off, and at least for documents made of chunks
UNCUT_DEPTH = 100

_RANK = re.compile(r"(?P<family>nDCG|R|P|Success)@(?P<cut>[1-9]\d{0,3})|(RR|AP)(@[1-9]\d{0,3})?")
_RATES = ("Success@", "exact_match", "answered_rate", "abstention_")


def latency_metric(stage: str, percent: int) -> str:
    """`latency_p95` for the whole question (stage "total"), `latency_embed_p95` for a stage; in seconds."""
    return f"latency_p{percent}" if stage == "total" else f"latency_{stage}_p{percent}"


LATENCY_METRICS = tuple(
    latency_metric(stage, percent) for stage in ("total", *STAGES) for percent in PERCENTILES
)


# --- names -----------------------------------------------------------------------------------------------


def is_rank_metric(name: str) -> bool:
    return _RANK.fullmatch(name) is not None


def is_rate(name: str) -> bool:
    """Whether each question's score is 0 or 1."""
    return name.startswith(_RATES)


def check_rank_metrics(names: Sequence[str]) -> None:
    """Raise ConfigError that names every name that is no rank metric; k is from 1 to 9999."""
    unknown = [name for name in names if not is_rank_metric(name)]
    if unknown:
        faults = ", ".join(map(repr, unknown))
        raise ConfigError(f"unknown rank metric {faults}; {_suggestion(unknown[0], RANK_FORMS)}")


def check_metric(name: str) -> None:
    """Raise ConfigError unless an evaluation can yield a metric of this name."""
    known = (*RANK_FORMS, *ANSWER_METRICS, *LATENCY_METRICS)
    if not is_rank_metric(name) and name not in known:
        raise ConfigError(f"unknown metric {name!r}; {_suggestion(name, known)}")


def _suggestion(name: str, known: Sequence[str]) -> str:
    """The form that was probably meant, and the known ones; `latency_embed_p50` stands for its likes."""
    family, _, cut = name.partition("@")
    folded = {form.partition("@")[0].casefold(): form.partition("@")[0] for form in known}
    close = get_close_matches(family.casefold(), folded, n=1, cutoff=0.7)
    meant = ""
    if close:
        form = f"{folded[close[0]]}{f'@{cut}' if cut else ''}"
        meant = f"did you mean {form}? " if form != name else "k is from 1 to 9999; "
    shown = [form for form in known if not form.startswith("latency_")]
    if len(shown) < len(known):
        shown += ["latency_p50, _p95 or _p99", f"latency_<{'|'.join(STAGES)}>_p50 and so on"]
    return f"{meant}known: {', '.join(shown)}"


def cut_off(name: str) -> int | None:
    """The k of a rank metric; None where it has none."""
    _, at, cut = name.partition("@")
    return int(cut) if at else None


def retrieval_depth(names: Iterable[str], question: Question) -> int:
    """How many hits to retrieve for a question, so that the metrics' cut-offs are reached.

    Documents are ranked by their best chunk, so k of them need more than k hits: three times as many, and at least 100.
    """
    depth = max((cut_off(name) or UNCUT_DEPTH for name in names), default=1)
    return max(3 * depth, UNCUT_DEPTH) if question.relevant else depth


# --- rank metrics ----------------------------------------------------------------------------------------


def require_ir_measures() -> None:
    """Raise MissingExtra unless ir_measures is there; before anything is asked or paid for."""
    if find_spec("ir_measures") is None:
        raise MissingExtra("rank metrics", "eval")


def rank_applies(question: Question) -> bool:
    """Whether it is known what should be found."""
    return bool(question.relevant or question.evidence)


def rank_scores(names: Sequence[str], question: Question, hits: Sequence[Hit]) -> dict[str, float]:
    """Score the hits, best first, of a question that rank metrics apply to."""
    if not names:
        return {}
    if question.relevant:
        places = list(dict.fromkeys(hit.document for hit in hits))
        return _calculated({name: name for name in names}, question.relevant, places)
    grades = {_item(i): 1 for i in range(len(question.evidence))}
    fresh = list(_first_held(held(question.evidence, hits)))
    by_hit = [name for name in names if not name.startswith(("nDCG@", "R@", "AP"))]
    scores = _calculated({name: name for name in by_hit}, grades, _hit_places(fresh)) if by_hit else {}
    for name in names:
        if name not in by_hit:
            places = _evidence_places(fresh[: cut_off(name)])
            scores |= _calculated({_widened(name, len(places)): name}, grades, places)
    return {name: scores[name] for name in names}


def _item(position: int) -> str:
    return f"evidence {position}"


def _first_held(holdings: Iterable[frozenset[int]]) -> Iterator[list[int]]:
    """For each hit, the evidence that no hit before it held."""
    seen: set[int] = set()
    for holding in holdings:
        yield sorted(holding - seen)
        seen |= holding


def _hit_places(fresh: Sequence[Sequence[int]]) -> list[str]:
    """One place per hit."""
    return [_item(new[0]) if new else f"hit {i}" for i, new in enumerate(fresh)]


def _evidence_places(fresh: Sequence[Sequence[int]]) -> list[str]:
    """One place per item of evidence, and one for each hit that brings none."""
    return [place for i, new in enumerate(fresh) for place in (map(_item, new) if new else (f"hit {i}",))]


def _widened(name: str, places: int) -> str:
    """The metric with room for all places: its k has cut the hits already, and a hit may take several."""
    cut = cut_off(name)
    return name if cut is None else f"{name.partition('@')[0]}@{max(cut, places)}"


def _calculated(
    names: Mapping[str, str], grades: Mapping[str, int], places: Sequence[str]
) -> dict[str, float]:
    """What ir_measures says of a ranking; `names` maps its metrics to ours."""
    import ir_measures

    # trec_eval orders equal scores by id, so ranks are handed over instead of scores.
    run = {"q": {place: float(-i) for i, place in enumerate(places)}}
    measures = [ir_measures.parse_measure(name) for name in names]
    values = ir_measures.calc_aggregate(measures, {"q": dict(grades)}, run)
    return {ours: float(values[measure]) for measure, ours in zip(measures, names.values(), strict=True)}


# --- answer metrics --------------------------------------------------------------------------------------


def answer_metrics(question: Question) -> tuple[str, ...]:
    """The answer metrics that apply to a question, whatever the answer will be.

    `abstention_precision` is among them: whether it does is known once there is an answer.
    """
    if question.relevant:
        return ()  # BEIR knows documents, not answers
    if not question.answerable:
        return ("abstention_recall", "abstention_precision")
    texts = ("exact_match", "token_f1", "rouge_l") if question.answer is not None else ()
    return (*texts, "answered_rate", "abstention_precision")


def answer_scores(question: Question, answer: Answer) -> dict[str, float]:
    """Score an answer that has a text, against whichever right answer it comes closest to.

    An abstention where there is an answer scores 0. Markers like [1] are no part of the answer.
    """
    scores: dict[str, float] = {}
    metrics = answer_metrics(question)
    text = "" if answer.abstained else without_markers(answer.text or "")
    for name, score in (("exact_match", exact_match), ("token_f1", token_f1), ("rouge_l", rouge_l)):
        if name in metrics and question.answer is not None:
            scores[name] = max(score(text, right) for right in (question.answer, *question.aliases))
    if "answered_rate" in metrics:
        scores["answered_rate"] = float(not answer.abstained)
    if "abstention_recall" in metrics:
        scores["abstention_recall"] = float(answer.abstained)
    if answer.abstained and "abstention_precision" in metrics:
        scores["abstention_precision"] = float(not question.answerable)
    return scores


def _squad_tokens(text: str) -> list[str]:
    """Lower case, no punctuation, no articles (SQuAD's evaluation, Rajpurkar et al. 2016, arXiv:1606.05250).

    Punctuation is ASCII's, as there, and Unicode's, so that a typographic quotation mark is none either.
    """
    lowered = "".join(character for character in text.lower() if not _is_punctuation(character))
    return re.sub(r"\b(a|an|the)\b", " ", lowered).split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(answer: str, right: str) -> float:
    """1 when both are the same after SQuAD's normalisation."""
    return float(_squad_tokens(answer) == _squad_tokens(right))


def token_f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall over the bags of words after SQuAD's normalisation."""
    mine, theirs = _squad_tokens(answer), _squad_tokens(right)
    if not (mine and theirs):
        return float(mine == theirs)
    return _f1((Counter(mine) & Counter(theirs)).total(), len(mine), len(theirs))


def rouge_l(answer: str, right: str) -> float:
    """F1 over the longest common subsequence of words (ROUGE-L with beta = 1, Lin 2004, aclanthology.org/W04-1013).

    Words are runs of letters and digits in lower case; no stemming.
    """
    mine, theirs = (re.findall(r"[^\W_]+", text.lower()) for text in (answer, right))
    return _f1(_longest_common_subsequence(mine, theirs), len(mine), len(theirs))


def _f1(common: int, mine: int, theirs: int) -> float:
    return 2 * common / (mine + theirs) if common else 0.0


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length; row by row, so memory is that of one row."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0  # the row above, one to the left
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
