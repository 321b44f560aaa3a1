"""Answers apart from reasoning, however a stream cuts them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.adapters.reasoning import Reply, opens_itself
from ragctl.errors import ServiceError
from ragctl.records import Usage

TEXT = st.text(alphabet=st.sampled_from("ab </thinkünk>\n"), max_size=12).filter(lambda t: "think>" not in t)


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces, cut at these places."""
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(TEXT, TEXT, st.lists(st.integers(0, 200), max_size=8), st.booleans(), st.booleans())
def test_cuts_change_nothing(
    thought: str, said: str, places: list[int], opened: bool, starts_in_reasoning: bool
) -> None:
    """Tags cut anywhere are found, with the opening tag or without, and what was shown is the answer."""
    said = f"x{said}"
    starts_in_reasoning = starts_in_reasoning or not opened
    shown: list[str] = []
    reply = Reply(shown.append, starts_in_reasoning=starts_in_reasoning)
    for piece in cut(f"{'<think>' if opened else ''}{thought}</think>{said}", places):
        reply.add(piece)
    generation = reply.finish("model m")
    assert generation.text == said.strip()
    assert generation.reasoning == thought.strip()
    assert "".join(shown).strip() == generation.text


@given(TEXT.filter(str.strip), st.lists(st.integers(0, 200), max_size=5), st.booleans())
def test_answer_without_reasoning_is_all_shown(
    said: str, places: list[int], starts_in_reasoning: bool
) -> None:
    """A model that does not reason this time is heard all the same."""
    shown: list[str] = []
    reply = Reply(shown.append, starts_in_reasoning=starts_in_reasoning)
    for piece in cut(said, places):
        reply.add(piece)
    assert reply.finish("model m").text == said.strip()
    assert "".join(shown).strip() == said.strip()


def test_answer_is_shown_as_it_arrives() -> None:
    """Nothing but the possible beginning of a tag is held back."""
    shown: list[str] = []
    reply = Reply(shown.append)
    reply.add("a <b <th")
    assert shown == ["a <b "]
    reply.add("e")
    assert shown == ["a <b ", "<the"]


def test_several_thoughts_are_all_kept_apart() -> None:
    """Some models think again between the parts of an answer."""
    reply = Reply()
    reply.add("<think>one</think>A<think>two</think>B")
    generation = reply.finish("model m", stop_reason="stop", usage=Usage(1, 2))
    assert (generation.text, generation.reasoning) == ("AB", "onetwo")
    assert (generation.stop_reason, generation.usage) == ("stop", Usage(1, 2))


def test_unexpected_closing_tag_makes_all_before_it_reasoning() -> None:
    """A template that opened the tag itself is recognised at the closing one, though it was shown by then."""
    reply = Reply()
    reply.add("hmm</think>yes")
    generation = reply.finish("model m")
    assert (generation.text, generation.reasoning) == ("yes", "hmm")


def test_reasoning_in_a_field_of_its_own() -> None:
    """What the service calls reasoning is never part of the answer."""
    shown: list[str] = []
    reply = Reply(shown.append, starts_in_reasoning=True)
    reply.add_reasoning("hmm")
    reply.add("yes")
    generation = reply.finish("model m")
    assert (generation.text, generation.reasoning, shown) == ("yes", "hmm", ["yes"])


@pytest.mark.parametrize("starts_in_reasoning", [False, True])
def test_tokens_that_run_out_in_the_reasoning(starts_in_reasoning: bool) -> None:
    """An unclosed thought is no answer, and the hint says what to change."""
    reply = Reply(starts_in_reasoning=starts_in_reasoning)
    reply.add("still thinking" if starts_in_reasoning else "<think>still thinking")
    with pytest.raises(ServiceError) as caught:
        reply.finish("endpoint e", stop_reason="length")
    assert str(caught.value) == (
        "endpoint e: no answer, the tokens ran out while the model was reasoning (stop reason: length)"
    )
    assert caught.value.hint == "raise generation.max_tokens"


@pytest.mark.parametrize("said", ["", " \n", "<think>x</think>  "])
def test_empty_answer_is_an_error(said: str) -> None:
    """Saying nothing is not an answer."""
    reply = Reply()
    reply.add(said)
    with pytest.raises(ServiceError, match=r"^model m: the answer is empty \(stop reason: stop\)$"):
        reply.finish("model m", stop_reason="stop")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("deepseek-llm-r1-distill-qwen-7b", True),
        ("DeepSeek-R1", True),
        ("Qwen/QwQ-32B", True),
        ("qwen3-4b-thinking-2507", True),
        ("meta-textgeneration-llama-3-1-8b", False),
        ("deepseek-v3", False),
    ],
)
def test_models_that_open_their_reasoning_themselves(model: str, expected: bool) -> None:
    """Told by the model's name; the text before the closing tag is then held back from listeners."""
    assert opens_itself(model) is expected
