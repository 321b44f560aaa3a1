"""A small evaluation whose every figure a reader can work out, for the tests of what is made of it."""

from collections.abc import Mapping

from ragctl.config import Evaluation
from ragctl.datasets import Evidence, Question
from ragctl.errors import ServiceError
from ragctl.evaluate import Evaluated, evaluate
from ragctl.records import DOCUMENT, PAGE, TEXT, Answer, Citation, Hit, Usage

QUESTIONS = (
    Question(
        "found",
        "Which apples?",
        answer="red apples",
        evidence=(Evidence("a", "red apples"),),
        tags=("fruit",),
    ),
    Question(
        "second",
        "Which pears?",
        answer="green pears",
        evidence=(Evidence("b", "green pears", 2),),
        tags=("fruit",),
    ),
    Question("nowhere", "Which plums?", tags=("none",)),
    Question("broken", "Which figs?", answer="figs", evidence=(Evidence("a", "figs"),), tags=("fruit",)),
)


def section(**settings: object) -> Evaluation:
    """The `evaluation` section; its data set is never read."""
    return Evaluation.model_validate({"dataset": {"kind": "golden", "path": "golden.jsonl"}, **settings})


def hit(document: str, text: str, page: int = 1) -> Hit:
    return Hit(f"{document}-{page}", 0.5, None, {TEXT: text, DOCUMENT: document, PAGE: page})


def ask(question: Question) -> Answer:
    """Apples are found at once, pears at the second hit and answered with more words; on plums it abstains."""
    if question.id == "broken":
        raise ServiceError("the model is down")
    text = {
        "found": "Red apples [1].",
        "second": "some green pears [2]",
        "nowhere": "The corpus does not say.",
    }
    return Answer(
        question.question,
        text[question.id],
        citations=(Citation(1, "a-1", "a", 1),),
        hits=(hit("a", "We sell red apples."),),
        cut=(hit("b", "We sell green pears.", 2),),
        timings={"embed": 0.1, "search": 0.2, "generate": 0.7},
        usage=Usage(input_tokens=100, output_tokens=10),
        abstained=question.id == "nowhere",
    )


def evaluated(gate: Mapping[str, str] | None = None) -> Evaluated:
    """Four questions: one found first, one second, one rightly abstained on, one failed."""
    return evaluate(QUESTIONS, ask, section(metrics=["RR@10", "R@1"], gate=dict(gate or {}), min_scored=0.5))
