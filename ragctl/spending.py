"""What a run pays for as it goes, and the cap that it must not go past.

Money is paid by the token, for a model behind an API, and by the byte, for puts into S3 Vectors. What runs on this
machine is free. An endpoint is paid by the hour, whatever is asked of it: that is `plan`'s to say, and deploying's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from ragctl.errors import ConfigError, RagctlError, Refused
from ragctl.limits import metadata_size

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.cost import Prices, S3VectorsPrices
    from ragctl.datasets import Question
    from ragctl.records import Answer, Metadata, Usage, VectorRecord
    from ragctl.state import State

MILLION: Final = 1_000_000
LOCAL: Final = frozenset({"hashing", "fastembed", "extractive"})
# Tokens that a byte of text is taken for until the service has said how many it counts: English has about 0.25.
GUESS: Final = 0.5
# What a token that a service keeps in its cache of prompts costs at the most, in tokens that are read. One that it reads
# from there costs less than one; how much less no setting says, so it counts as one, and the bill is never too low.
CACHE_WRITE: Final = 1.25


@dataclass(frozen=True, slots=True)
class Rate:
    """What a unit costs. `usd`: None where it is unknown, 0 where nothing is charged; `why` speaks for it."""

    usd: float | None
    why: str


FREE: Final = Rate(0.0, "free: local")


def embedding_rate(experiment: Experiment) -> Rate:
    """Of a token to embed."""
    return _model_rate(experiment, "embedding", "embedding")


def generation_rates(experiment: Experiment) -> tuple[Rate, Rate]:
    """Of a token that a generator reads, and of one that it writes."""
    return _model_rate(experiment, "generation", "input"), _model_rate(experiment, "generation", "output")


def reranking_rate(experiment: Experiment) -> Rate:
    """Of one question whose hits are reranked."""
    section = experiment.reranking
    if section is None:
        return Rate(0.0, "no reranking")
    rate = _model_rate(experiment, "reranking", "reranking")
    return Rate(None if rate.usd is None else rate.usd * (MILLION / 1_000), rate.why)


def _model_rate(experiment: Experiment, role: str, price: str) -> Rate:
    kind = getattr(experiment, role).kind
    if kind in LOCAL:
        return FREE
    if kind == "sagemaker":
        return Rate(0.0, "paid by the hour of its endpoint")
    usd: float | None = getattr(experiment.prices, price)
    if usd is None:
        return Rate(None, f"no price is known for {kind}: set prices.{price}")
    return Rate(usd / MILLION, f"prices.{price} of the experiment")


def vector_prices(experiment: Experiment, prices: Prices) -> S3VectorsPrices | None:
    """What the experiment's vector store charges; None where it is local, or where no price is known."""
    if experiment.store.kind != "s3vectors":
        return None
    from ragctl.adapters.aws import region

    return prices.s3vectors(region(experiment))


def stored_size(dimension: int, key: str, metadata: Metadata) -> int:
    """Logical bytes of a record, by which S3 Vectors charges: 4 a dimension, the key, all metadata (AWS S3 pricing)."""
    return 4 * dimension + len(key.encode()) + metadata_size(metadata)


# --- ingest ----------------------------------------------------------------------------------------------


class IngestBill:
    """What an ingest has paid for, and has committed itself to. Used by one thread."""

    def __init__(
        self,
        token: Rate = FREE,
        puts: S3VectorsPrices | None = None,
        *,
        cap: float | None = None,
        before: float = 0.0,
    ) -> None:
        """`puts` None: nothing is charged for them, or no price is known and there is no cap. `before`: dollars of the
        cap that the command has spent on other indexes.
        """
        self.cap = cap
        self._before = before
        self.has_put_price = True
        self._token, self._puts = token, puts
        # Tokens that were reported, and the bytes of text that they were counted in
        self._tokens = self._text = 0
        self._untold = 0  # bytes of text whose tokens the service did not report
        self._put_usd = 0.0
        self._owed_text = self._owed_puts = 0
        self.is_spent = False  # set when the run takes no more documents, because the cap does not bear it

    @classmethod
    def of(cls, experiment: Experiment, state: State, *, before: float = 0.0) -> Self:
        """The bill of an experiment. ConfigError when it has a cap and not all prices are known."""
        from ragctl import cost

        prices = cost.load(state) if experiment.store.kind == "s3vectors" else cost.Prices()
        cap = experiment.budget.ingest_usd if experiment.budget else None
        bill = cls(embedding_rate(experiment), vector_prices(experiment, prices), cap=cap, before=before)
        bill.has_put_price = bill._puts is not None or experiment.store.kind != "s3vectors"
        if cap is not None:
            _require("budget.ingest_usd", [bill._token])
            if not bill.has_put_price:
                raise ConfigError(
                    "budget.ingest_usd cannot be kept: no price of S3 Vectors is known in this region"
                )
        return bill

    @property
    def counts_puts(self) -> bool:
        """Whether puts cost something, so that their sizes matter."""
        return self._puts is not None

    def promise(self, text: int, stored: int) -> bool:
        """Take on a document of so many bytes to embed and to store; False, and nothing taken, above the cap."""
        if self.cap is not None and self._projected(text, stored) > self.cap:
            return False
        self._owed_text += text
        self._owed_puts += stored
        return True

    def bears(self, text: int, stored: int) -> bool:
        """Whether the cap bears a document of so many bytes if it is the only one of a command."""
        return self.cap is None or self._cost(text * self._tokens_per_byte, stored) <= self.cap

    def release(self, text: int, stored: int) -> None:
        """What was promised is paid for by now, or was not needed."""
        self._owed_text -= text
        self._owed_puts -= stored

    def embedded(self, text: int, tokens: int) -> None:
        """A call embedded so many bytes; tokens 0: the service did not say."""
        if tokens:
            self._tokens += tokens
            self._text += text
        else:
            self._untold += text

    def put(self, records: Sequence[VectorRecord]) -> None:
        """One put request."""
        if self._puts is not None:
            sizes = (stored_size(record.vector.size, record.key, record.metadata) for record in records)
            self._put_usd += self._puts.puts([sum(sizes)])

    @property
    def of_cap(self) -> float:
        """Dollars of the cap that are spent, also before; what no service counted is guessed. 0 without a cap."""
        return 0.0 if self.cap is None else self._projected(0, 0)

    @property
    def embedding_usd(self) -> float | None:
        """None: the price or the number of tokens is unknown."""
        if self._token.usd is None or (self._token.usd and self._untold):
            return None
        return self._tokens * self._token.usd

    @property
    def put_usd(self) -> float | None:
        """None: the price is unknown."""
        return self._put_usd if self.has_put_price else None

    def to_json(self) -> dict[str, Any]:
        """Costs in US dollars; null where unknown."""
        parts = self.embedding_usd, self.put_usd
        known = [part for part in parts if part is not None]
        return {
            "embedding_usd": parts[0],
            "puts_usd": parts[1],
            "usd": sum(known) if len(known) == len(parts) else None,
            "cap_usd": self.cap,
            "cap_met": self.is_spent,
        }

    def _projected(self, text: int, stored: int) -> float:
        tokens = self._tokens + (self._untold + self._owed_text + text) * self._tokens_per_byte
        return self._before + self._cost(tokens, self._owed_puts + stored) + self._put_usd

    @property
    def _tokens_per_byte(self) -> float:
        return self._tokens / self._text if self._text else GUESS

    def _cost(self, tokens: float, stored: int) -> float:
        assert self._token.usd is not None
        puts = self._puts.puts([stored]) if self._puts is not None and stored else 0.0
        return tokens * self._token.usd + puts


# --- eval ------------------------------------------------------------------------------------------------


class EvalBill:
    """What an evaluation has paid for; asked from several threads."""

    def __init__(
        self,
        read: Rate,
        written: Rate,
        reranked: Rate,
        *,
        cap: float | None = None,
        before: EvalBill | None = None,
    ) -> None:
        """`before`: of the indexes that the same command has evaluated; it counts into the cap, and is closed."""
        self.cap = cap
        self._rates = (read, written, reranked)
        self._asked_before = before.asked if before else 0
        self._usd_before = before.of_cap if before else 0.0
        self._lock = threading.Lock()
        self._usd = 0.0
        self._asked = self._under_way = 0
        self.is_spent = False  # some question was not asked, because the cap does not bear it

    @classmethod
    def of(cls, experiment: Experiment, before: EvalBill | None = None) -> Self:
        """The bill of an experiment. ConfigError when it has a cap and not all prices are known."""
        read, written = generation_rates(experiment)
        if experiment.evaluation is None or not experiment.evaluation.answers:
            read = written = Rate(0.0, "no answers are asked for")
        embedding = embedding_rate(experiment)
        # An answer's usage does not tell the question's own tokens, which are few, from the generator's.
        dearer = max((read, embedding), key=lambda rate: float("inf") if rate.usd is None else rate.usd)
        cap = experiment.budget.eval_usd if experiment.budget else None
        bill = cls(dearer, written, reranking_rate(experiment), cap=cap, before=before)
        if cap is not None:
            _require("budget.eval_usd", bill._rates)
        return bill

    def limited(self, ask: Callable[[Question], Answer]) -> Callable[[Question], Answer]:
        """`ask`, paid for; raises Refused instead of asking what would cost more than the cap."""

        def asked(question: Question) -> Answer:
            self._begin()
            usage: Usage | None = None
            try:
                answer = ask(question)
            except RagctlError as error:
                usage = error.usage
                raise
            else:
                usage = answer.usage
                return answer
            finally:
                self._end(usage)

        return asked

    @property
    def asked(self) -> int:
        """Questions that were paid for, also before."""
        return self._asked_before + self._asked

    @property
    def of_cap(self) -> float:
        """Dollars of the cap that are spent, also before."""
        return self._usd_before + self._usd

    def to_json(self) -> dict[str, Any]:
        """Costs in US dollars; null where unknown."""
        known = all(rate.usd is not None for rate in self._rates)
        return {"usd": self._usd if known else None, "cap_usd": self.cap, "cap_met": self.is_spent}

    def _begin(self) -> None:
        with self._lock:
            spent, mean = self.of_cap, self.of_cap / self.asked if self.asked else 0.0
            if self.cap is not None and spent + (self._under_way + 1) * mean > self.cap:
                self.is_spent = True
                raise Refused(
                    f"budget.eval_usd is reached: {self.asked:,} questions cost ${spent:.4f}, the next one would "
                    f"go past ${self.cap:g}",
                    hint="raise budget.eval_usd, or ask fewer questions",
                )
            self._under_way += 1

    def _end(self, usage: Usage | None) -> None:
        with self._lock:
            self._under_way -= 1
            if usage is None:
                return
            read, written, reranked = (rate.usd or 0.0 for rate in self._rates)
            tokens = usage.input_tokens + usage.cache_read_tokens + CACHE_WRITE * usage.cache_write_tokens
            cost = tokens * read + usage.output_tokens * written + reranked
            self._usd += cost
            self._asked += cost > 0  # one that failed for nothing must not make the others seem cheap


def _require(setting: str, rates: Sequence[Rate]) -> None:
    unknown = list(dict.fromkeys(rate.why for rate in rates if rate.usd is None))
    if unknown:
        raise ConfigError(f"{setting} cannot be kept: {'; '.join(unknown)}")
