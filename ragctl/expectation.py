"""What kind of thing an English question asks for: an amount of money, a share, a time, a name ... or nothing told."""

from __future__ import annotations

import re
from collections.abc import Callable

_SPELLED = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
    "|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand"
)
_NUMBER = rf"(?:\d[\d.,]*|{_SPELLED})"
_UNIT = (
    r"(seconds?|minutes?|hours?|days?|weeks?|months?|years?|(?:kilo|centi|milli)?met(?:re|er)s?|kilograms?"
    r"|kilomet(?:re|er)s?|miles|feet|tonnes?|tons|lit(?:re|er)s?|degrees?|volts?|watts?)"
)
_PRICED = (
    "costs?|price|salary|wages?|fee|charge|allowance|dividend|revenue|turnover|debt|income|profit|expenses?|spend"
    "|spent|fine|rent|bonus"
)
# What makes a "how much", which may be about weight, time or water, one about money
_PAID = rf"{_PRICED}|cash|money|pay|pays|paid|earns?|earned|owes?|owed|sells?|sold|buy|bought|worth|claim|reimbursed"
_AUXILIARY = "did|does|do|was|were|is|are|has|have|had|may|can|could|must|should|will|would"
_DATED = "January|February|March|April|May|June|July|August|September|October|November|December"
# Words with which sentences open, in capitals for no other reason.
_OPENING = (
    "After|All|Although|An|And|As|At|Because|Before|Both|But|By|Each|Every|For|From|Had|He|Her|His|How|If|In|It|Its"
    "|Later|Many|More|Most|My|No|Nobody|Not|Now|Of|On|One|Only|Or|Other|Our|Over|She|Since|So|Some|Such|That|The|Their"
    "|Then|There|These|They|This|Those|Three|Through|To|Two|Under|Until|Up|We|What|When|Where|Which|While|With|You|Your"
)
_CAPITALISED = rf"(?!(?:{_DATED}|{_OPENING})\b)[A-ZÀ-Þ][\w'’-]+"


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# (what a question looks like, what an answer to it holds); the first that fits counts.
_TIME = (
    _words(r"\bwhat time\b|\btime of (?:the )?day\b"),
    _words(r"\b\d{1,2}[:.]\d\d\b|\bnoon\b|\bmidnight\b|\d ?[ap]\.?m\b"),
)
_SHARE = (
    _words(r"\bwhat (?:share|proportion|percentage|fraction)\b|\bper ?cent\b|\binterest rate\b"),
    _words(r"%|\bper ?cent\b|\b(?:third|half|quarter|fifth|tenth)s?\b"),
)
_MONEY = (
    _words(
        rf"\bhow much (?:\w+ )?(?:cash|money|{_PRICED})\b"
        r"|\bhow much (?:is|are|was|were) (?:the|an?|one|it|they|this|that|these|those)\b"
        rf"|\bhow much (?:{_AUXILIARY})\b.*\b(?:{_PAID})\b"
        r"|\bhow many (?:million |billion )?(?:dollars|euros)\b"
        rf"|\bwhat\b(?:\W+\w+){{0,5}}?\W+(?:{_PRICED})\b"
    ),
    _words(r"[$€£¥]|\b(?:dollars?|euros?|cents?|pounds?)\b"),
)
_FULL_NAME = (
    _words(r"\bname of\b|\b(?:which|what) (?:firm|company|person|employee|supplier|bank|stock exchange)\b"),
    # Two words in capitals: a sentence begins with one, and a date has one.
    re.compile(rf"\b{_CAPITALISED} (?:[A-ZÀ-Þ]\. )?{_CAPITALISED}"),
)
_NAME = (_words(r"\bwho(?:se|m)?\b"), re.compile(rf"\b{_CAPITALISED}"))
_COUNT = (
    _words(
        r"\bhow (?:many|much|long|old|often|far|large|big|high|tall|fast|deep|wide|heavy|late|early)\b"
        r"|\bwhen\b|\b(?:what|which) (?:year|date|day|month|number|age)\b"
    ),
    _words(rf"\b{_NUMBER}\b"),
)
_KINDS = (_TIME, _SHARE, _MONEY, _FULL_NAME, _NAME, _COUNT)
_COUNTED = _words(rf"\b(?:how many|in) {_UNIT}\b")
_GIVEN = re.compile(r"[$€£¥]?\d[\d.,]*\d|\d|\b[A-ZÀ-Þ][\w'’-]+")


def expectation(question: str) -> Callable[[str], bool]:
    """A test of whether a text holds the kind of thing that the question asks for, and does not itself give.

    True for any text where the question does not tell, as in other languages.
    """
    answer = _answer(question)
    if answer is None:
        return lambda _: True
    given = set(_GIVEN.findall(question))
    return lambda text: bool(answer.search(_without(text, given)))


def _answer(question: str) -> re.Pattern[str] | None:
    unit = _COUNTED.search(question)
    if unit:
        return _words(rf"\b{_NUMBER}[ -](?:\w+ )?{unit[1].rstrip('s')}")
    return next((answer for asks, answer in _KINDS if asks.search(question)), None)


def _without(text: str, given: set[str]) -> str:
    return _GIVEN.sub(lambda match: " " if match[0] in given else match[0], text)
