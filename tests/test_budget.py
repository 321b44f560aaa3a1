"""Budgets: a run ends before it goes past its cap, with all that it did saved, and the next one goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.adapters.reasoning import Reply
from ragctl.cost import Prices
from ragctl.datasets import Question
from ragctl.errors import ConfigError, Refused, ServiceError
from ragctl.records import Answer, Usage
from ragctl.spending import EvalBill, IngestBill, Rate, embedding_rate
from tests.cli import Ended, experiment, ragctl, write_docs
from tests.experiments import experiment as loaded
from tests.servers.bedrock import BedrockServer, Manner

DOCUMENTS = 40
WORDS = 200  # of a document
PRICE = 1_000_000.0  # a million tokens: a token costs a dollar, so that sums are easy to read
BEDROCK = {"kind": "bedrock", "model": "amazon.titan-embed-text-v2:0", "dimension": 256}


@dataclass(frozen=True)
class Place:
    """An experiment whose texts are embedded at a price."""

    config: Path
    bedrock: BedrockServer

    def run(self, command: str, *arguments: object) -> Ended:
        env = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": self.bedrock.url,
        }
        return ragctl(command, self.config, *arguments, env=env)

    def ingest(self, cap: float | None) -> Ended:
        caps = ("--set", f"budget.ingest_usd={cap}") if cap is not None else ()
        return self.run("ingest", "--json", *caps)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    texts = {f"{i:02d}.md": " ".join(f"w{i}x{n}" for n in range(WORDS)) for i in range(DOCUMENTS)}
    write_docs(tmp_path, texts)
    config = experiment(
        tmp_path,
        embedding=BEDROCK,
        prices={"embedding": PRICE, "input": PRICE, "output": PRICE},
        ingest={"workers": 1, "embed_concurrency": 2},
    )
    with BedrockServer() as bedrock:
        yield Place(config, bedrock)
    assert (bedrock.unexpected, bedrock.broken) == ([], [])


# --- ingest ----------------------------------------------------------------------------------------------


def test_an_ingest_within_its_budget_tells_what_it_cost(place: Place) -> None:
    """Tokens that the service counted times the price; nothing is charged for an embedded store."""
    done = place.ingest(None)
    assert done.status == 0, done.err
    assert done.json["cost"] == {
        "embedding_usd": pytest.approx(done.json["tokens"]),
        "puts_usd": 0.0,
        "usd": pytest.approx(done.json["tokens"]),
        "cap_usd": None,
        "cap_met": False,
    }
    record = json.loads(Path(done.json["run"]).read_text())
    assert record["cost"] == done.json["cost"]


def test_an_ingest_stops_at_its_cap_and_later_goes_on(place: Place) -> None:
    """Exit 6 with whole documents saved, never above the cap, and run after run to the end; nothing is paid twice."""
    whole = place.ingest(None).json
    assert whole["documents"]["added"] == DOCUMENTS
    for made in ("state", "store"):
        (place.config.parent / made).rename(place.config.parent / f"other-{made}")
    texts = len(place.bedrock.requests)
    place.bedrock.requests.clear()
    cap, added, spent = 0.4 * whole["tokens"], 0, 0.0
    for _ in range(DOCUMENTS):
        done = place.ingest(cap)
        assert done.status in (0, 6), done.err
        assert done.json["cost"]["usd"] <= cap
        assert done.json["documents"]["added"] > 0
        added += done.json["documents"]["added"]
        spent += done.json["cost"]["usd"]
        assert done.json["cost"]["cap_met"] == (done.status == 6)
        if done.status == 0:
            break
        assert "budget.ingest_usd is reached" in done.err
        assert json.loads(Path(done.json["run"]).read_text())["status"] == "interrupted"
    assert added == DOCUMENTS
    assert spent == pytest.approx(whole["cost"]["usd"])
    assert len(place.bedrock.requests) == texts
    assert place.run("verify", "--json").json["clean"]


def test_a_cap_below_one_document_does_nothing(place: Place) -> None:
    """Nothing is asked of the model: no run of this budget could bear any of them, so each has failed."""
    done = place.ingest(0.5)
    assert done.status == 3
    assert done.json["documents"]["added"] == 0
    assert done.json["cost"]["usd"] == 0
    assert place.bedrock.requests == []


def test_the_cap_of_an_ingest_is_one_for_all_indexes_of_the_command(place: Place) -> None:
    """The second gets what the first has left over, and a plan says the same; run after run both are filled."""
    indexes = {"fine": {"chunking": {"size": 100}}, "coarse": {"chunking": {"size": 5_000}}}
    options = ("--json", "--set", f"indexes={json.dumps(indexes)}")
    first = place.run("ingest", *options, "--index", "fine").json["cost"]["usd"]
    for made in ("state", "store"):
        (place.config.parent / made).rename(place.config.parent / f"other-{made}")
    cap = 1.5 * first  # enough for either
    capped = (*options, "--set", f"budget.ingest_usd={cap}")
    assert place.run("plan", *capped).json["budget"]["enough"] is False
    done = place.run("ingest", *capped)
    assert done.status == 6
    assert "budget.ingest_usd is reached: the command stopped before it would have gone past it" in done.err
    fine, coarse = (done.json["indexes"][f"test-{name}"] for name in indexes)
    assert (fine["documents"]["added"], fine["cost"]["usd"]) == (DOCUMENTS, pytest.approx(first))
    assert 0 < coarse["documents"]["added"] < DOCUMENTS
    assert fine["cost"]["usd"] + coarse["cost"]["usd"] <= cap
    assert place.run("ingest", *capped).status == 0


def test_a_document_dearer_than_the_cap_keeps_no_other_out(place: Place) -> None:
    """It fails by itself, run after run, and the others get in."""
    (place.config.parent / "docs" / "00.md").write_text(" ".join(f"v{n}" for n in range(50 * WORDS)))
    for added in (DOCUMENTS - 1, 0):
        done = place.ingest(45.0 * WORDS)
        assert (done.status, done.json["documents"]["added"]) == (3, added), done.err
        (failure,) = done.json["failures"]
        assert failure["document"] == "docs/00.md"
        assert failure["error"] == "costs more by itself than budget.ingest_usd allows a command"


def test_a_cap_without_a_price_cannot_be_kept(place: Place) -> None:
    """Exit 2 before anything is listed: an unknown price is not taken for 0."""
    done = place.run("ingest", "--set", "budget.ingest_usd=1", "--set", "prices.embedding=null")
    assert done.status == 2
    assert "budget.ingest_usd cannot be kept: no price is known for bedrock: set prices.embedding" in done.err


# --- eval ------------------------------------------------------------------------------------------------

QUESTION = Question("q", "Why?")


def answering(usage: Usage) -> Callable[[Question], Answer]:
    return lambda question: Answer(question.question, "a", (), (), {}, usage)


def failing(error: Exception) -> Callable[[Question], Answer]:
    def ask(_: Question) -> Answer:
        raise error

    return ask


def golden(folder: Path) -> Path:
    rows = [
        {
            "id": f"q{i}",
            "question": f"What does w{i}x7 stand beside?",
            "answer": f"w{i}x8",
            "evidence": [{"document": f"docs/{i:02d}.md", "quote": f"w{i}x7 w{i}x8"}],
        }
        for i in range(12)
    ]
    path = folder / "golden.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_cap_of_an_eval_is_one_for_all_indexes_of_the_command() -> None:
    """What the first index cost is spent for the second, and is not told as its own."""
    rates = Rate(1.0, ""), Rate(2.0, ""), Rate(0.0, "")
    first = EvalBill(*rates, cap=10.0)
    for _ in range(2):
        first.limited(answering(Usage(2, 1)))(QUESTION)
    second = EvalBill(*rates, cap=10.0, before=first)
    with pytest.raises(Refused, match=r"2 questions cost \$8.0000"):
        second.limited(answering(Usage(2, 1)))(QUESTION)
    assert second.to_json() == {"usd": 0.0, "cap_usd": 10.0, "cap_met": True}


def test_tokens_of_a_prompt_cache_are_paid_for() -> None:
    """One that is read counts as any other, one that is written as a quarter more: the bill is never too low."""
    bill = EvalBill(Rate(1.0, ""), Rate(2.0, ""), Rate(0.0, ""))
    bill.limited(answering(Usage(2, 1, cache_read_tokens=10, cache_write_tokens=8)))(QUESTION)
    assert bill.to_json()["usd"] == 2 + 2 + 10 + 10


def test_an_answer_that_failed_is_paid_for_where_the_service_counted_its_tokens() -> None:
    """A model that thinks until its tokens run out has charged them; one that cannot be reached has not."""
    bill = EvalBill(Rate(1.0, ""), Rate(2.0, ""), Rate(0.0, ""))
    for usage in (Usage(5, 100), None):
        error = ServiceError("no answer")
        error.usage = usage
        with pytest.raises(ServiceError):
            bill.limited(failing(error))(QUESTION)
    assert (bill.to_json()["usd"], bill.asked) == (205.0, 1)


def test_an_answer_without_text_tells_the_tokens_that_it_took() -> None:
    """The adapters' error carries what the service reported."""
    with pytest.raises(ServiceError) as ended:
        Reply().finish("model", stop_reason="max_tokens", usage=Usage(5, 100))
    assert ended.value.usage == Usage(5, 100)


def test_an_eval_stops_before_it_asks_more(place: Place) -> None:
    """Exit 6; the questions within the cap are answered and in the report, the others are not asked."""
    path = golden(place.config.parent)
    assert place.ingest(None).status == 0
    options = (
        "--json",
        "--set",
        f'evaluation={{"dataset": {{"kind": "golden", "path": "{path}"}}, "concurrency": 1}}',
        "--set",
        'generation={"kind": "bedrock", "model": "us.anthropic.claude-sonnet-4-5-20250929-v1:0"}',
    )
    free = place.run("eval", *options)
    assert free.status in (0, 3), free.err
    each = free.json["cost"]["usd"] / 12
    assert each > 0
    cap = each * 5.5
    done = place.run("eval", *options, "--set", f"budget.eval_usd={cap}")
    assert done.status == 6
    assert "budget.eval_usd is reached" in done.err
    assert 0 < done.json["cost"]["usd"] <= cap
    assert len(done.json["failures"]) in range(5, 9)
    assert {failure["stage"] for failure in done.json["failures"]} == {"query", "not asked"}


def test_an_eval_of_a_model_that_never_answers_stops_at_its_cap_too(place: Place) -> None:
    """It thinks until its tokens run out, which are charged: the first question goes past the cap, and is the last."""
    path = golden(place.config.parent)
    assert place.ingest(None).status == 0
    place.bedrock.manner = Manner(thinks="tags")
    model = {"kind": "bedrock", "model": "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "max_tokens": 1}
    dataset = {"kind": "golden", "path": str(path)}
    ended = place.run(
        "eval",
        *("--set", f"evaluation={json.dumps({'dataset': dataset, 'concurrency': 1})}"),
        *("--set", f"generation={json.dumps(model)}"),
        *("--set", "budget.eval_usd=1"),
    )
    assert (ended.status, "the tokens ran out while the model was reasoning" in ended.err) == (8, True)
    assert sum("messages" in request for request in place.bedrock.requests) == 1


# --- bills -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(20, 5_000), max_size=40), st.floats(0.1, 0.5), st.floats(1, 5_000))
def test_what_is_paid_stays_below_the_cap(texts: list[int], ratio: float, cap: float) -> None:
    """Whatever the tokens in a byte of text turn out to be, up to the guess: but for rounding, never above the cap."""
    bill = IngestBill(Rate(1.0, "a dollar a token"), cap=cap)
    for text in texts:
        if bill.promise(text, 0):
            bill.release(text, 0)
            bill.embedded(text, int(text * ratio))
    assert bill.embedding_usd is not None
    assert bill.embedding_usd <= cap + 1 + 0.05 * cap


def test_tokens_that_a_service_does_not_count_are_unknown() -> None:
    """Not 0; the cap is held by a guess of them."""
    bill = IngestBill(Rate(1.0, "a dollar a token"), cap=100.0)
    assert bill.promise(150, 0)
    bill.release(150, 0)
    bill.embedded(150, 0)
    assert bill.embedding_usd is None
    assert bill.to_json()["usd"] is None
    assert not bill.promise(100, 0)


def test_puts_count_at_least_128_kb() -> None:
    """As S3 Vectors charges: many small puts cost what large ones do."""
    prices = Prices().s3vectors("us-east-1")
    bill = IngestBill(puts=prices, cap=0.00003)
    assert bill.promise(0, 1_000)  # one request of the least size: 0.0000244
    small = IngestBill(puts=prices, cap=0.00002)
    assert not small.promise(0, 1_000)


def test_no_price_of_puts_is_unknown() -> None:
    """A region without prices: a run goes on without a cap, and its cost is unknown."""
    store = {"kind": "s3vectors", "bucket": "papers"}
    uncapped = loaded(store=store, aws={"region": "eu-west-1"}, state="nowhere")
    from ragctl.state import open_state

    bill = IngestBill.of(uncapped, open_state(uncapped))
    assert bill.to_json()["puts_usd"] is None
    capped = loaded(store=store, aws={"region": "eu-west-1"}, state="nowhere", budget={"ingest_usd": 1})
    with pytest.raises(ConfigError, match="no price of S3 Vectors is known in this region"):
        IngestBill.of(capped, open_state(capped))


@pytest.mark.parametrize(
    ("section", "usd", "why"),
    [
        ({"kind": "hashing"}, 0.0, "free: local"),
        ({"kind": "sagemaker", "endpoint": "e"}, 0.0, "paid by the hour of its endpoint"),
        (BEDROCK, None, "no price is known for bedrock: set prices.embedding"),
        (
            {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"},
            None,
            "no price is known for openai: set prices.embedding",
        ),
    ],
)
def test_what_a_token_costs(section: dict[str, Any], usd: float | None, why: str) -> None:
    """Free here, by the hour there, unknown elsewhere."""
    assert embedding_rate(loaded(embedding=section)) == Rate(usd, why)


def test_a_question_more_is_refused_when_the_mean_would_go_past_the_cap() -> None:
    """The first question is always asked; what failed is not paid for."""
    bill = EvalBill(Rate(1.0, ""), Rate(2.0, ""), Rate(0.0, ""), cap=10.0)

    def ask(_: object) -> Answer:
        return Answer("q", "a", (), (), {}, Usage(input_tokens=2, output_tokens=1))

    limited = bill.limited(ask)
    for _ in range(2):
        limited(None)  # type: ignore[arg-type]  # `ask` looks at no question
    assert bill.to_json() == {"usd": 8.0, "cap_usd": 10.0, "cap_met": False}
    with pytest.raises(Refused, match="2 questions cost"):
        limited(None)  # type: ignore[arg-type]  # as above
    assert bill.is_spent
