"""What kind of thing a question asks for, and whether a text holds it."""

import pytest

from ragctl.expectation import expectation


@pytest.mark.parametrize(
    ("question", "held", "missing"),
    [
        ("What time of day did it start?", "It started at 16:20.", "It started in March."),
        ("What share of them left?", "Churn was 7.4%.", "Churn was 740 people."),
        ("At what interest rate was it fixed?", "It was fixed at 5 per cent.", "It was fixed until 2026."),
        ("How much did they pay?", "They paid $9.", "They paid 9 visits."),
        ("What is the monthly charge for it?", "It is 49 dollars.", "It is charged by the month."),
        ("Who opened the hall?", "It was opened by Renuka Thistlewood.", "The hall opened in May 2023."),
        ("Which firm audits it?", "The auditor is Quill Vane.", "The accounts are audited."),
        ("How many weeks does it take?", "It takes three weeks.", "It takes three people."),
        ("To what depth in metres is it rated?", "It is rated to 90 metres.", "It is rated to 9 bar."),
        ("How many people work there?", "447 of us work there.", "Many people work there."),
        ("How much does a Heron 3 weigh?", "It weighs 4.2 kg.", "It is light."),
        ("How much time does it take?", "It takes 40 seconds.", "It takes long."),
        ("How much water did they use to pay the fine?", "They used 900 litres.", "They used much."),
        ("How much memory do they spend on it?", "It takes 64 MiB.", "It takes little."),
        ("How much was emitted?", "1,870 tonnes were emitted.", "Little was emitted."),
        ("How much is a Heron 3?", "It is $340.", "It is 4 kg."),
        ("How much does a box of 20 large batteries cost?", "It is 49 dollars.", "It has 7 kg."),
        ("How much annual rent is due?", "It is €900.", "It is due in 3 days."),
        ("When was it founded?", "It was founded in 1998.", "It was founded by her."),
    ],
)
def test_a_text_holds_what_is_asked_for_or_not(question: str, held: str, missing: str) -> None:
    """An amount, a share, a time, a name or a number is there, or the text is about something else."""
    is_expected = expectation(question)
    assert is_expected(held)
    assert not is_expected(missing)


def test_what_the_question_gives_is_not_its_answer() -> None:
    """A number or name of the question, found again, answers nothing."""
    is_expected = expectation("How many buoys did Corvane Harbour receive in 2023?")
    assert not is_expected("In 2023 Corvane Harbour received buoys.")
    assert is_expected("In 2023 Corvane Harbour received 46 buoys.")
    assert not expectation("Who leads Skerry Acoustics?")("Skerry Acoustics has a new leader.")


@pytest.mark.parametrize("question", ["Why did it sink?", "What is a sonde?", "Wie viele Boote gibt es?", ""])
def test_a_question_that_does_not_tell_accepts_any_text(question: str) -> None:
    """No kind of answer is required where the question names none, or is in another language."""
    assert expectation(question)("Anything at all.")
