"""What a plan costs, line by line, with where each price is from; and how long it takes at the limits that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Final

from ragctl.sampling import ZERO, Amount
from ragctl.spending import embedding_rate, vector_prices

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.cost import Prices, S3VectorsPrices
    from ragctl.deploy_plan import Step
    from ragctl.forecast import Forecast

QUERIES: Final = 1_000  # that the price of queries is told for
ONCE: Final = "once"
LOCAL: Final = "free: local"


@dataclass(frozen=True, slots=True)
class Line:
    """What one thing costs in US dollars, `per` what. `usd` None: unknown; `why` says why, or where it is from."""

    item: str
    per: str  # "once", "month", "hour", "1,000 queries"
    usd: Amount | None
    why: str
    read: date | None = None  # when the price was read

    def to_json(self) -> dict[str, Any]:
        usd = self.usd
        return {
            "item": self.item,
            "per": self.per,
            "usd": None if usd is None else usd.value,
            "low": None if usd is None else usd.low,
            "high": None if usd is None else usd.high,
            "source": self.why,
            "read": self.read.isoformat() if self.read else None,
        }


def lines(
    experiment: Experiment,
    forecasts: Sequence[Forecast],
    prices: Prices,
    steps: Iterable[Step],
    *,
    embed_rate: float | None,
) -> list[Line]:
    """Every line of what ingest, the index and the endpoints cost. `embed_rate`: texts a second, None unknown."""
    return [
        _embedding(experiment, forecasts),
        *_store(experiment, forecasts, vector_prices(experiment, prices)),
        *_endpoints(steps, forecasts, embed_rate),
    ]


def once(lines: Iterable[Line]) -> Amount | None:
    """What is paid once; None when a part of it is unknown."""
    total = ZERO
    for line in lines:
        if line.per == ONCE:
            if line.usd is None:
                return None
            total += line.usd
    return total


def minutes(forecasts: Sequence[Forecast], embed_rate: float | None) -> dict[str, float | None]:
    """Minutes that embedding and putting take at least; None where nothing is known that would bound them."""
    texts = sum(forecast.figures.chunks["embedded"].value for forecast in forecasts)
    limits = {forecast.vectors_per_second for forecast in forecasts} - {None}
    written = sum(forecast.figures.chunks["written"].value for forecast in forecasts)
    return {
        "embedding": None if embed_rate is None else texts / embed_rate / 60,
        "put": written / min(filter(None, limits)) / 60 if limits else None,
    }


def _embedding(experiment: Experiment, forecasts: Sequence[Forecast]) -> Line:
    rate = embedding_rate(experiment)
    if rate.usd is None:
        return Line("embedding", ONCE, None, rate.why)
    tokens = sum((forecast.figures.tokens for forecast in forecasts), ZERO)
    return Line("embedding", ONCE, tokens.times(rate.usd), rate.why)


# --- the vector store ------------------------------------------------------------------------------------


def _store(
    experiment: Experiment, forecasts: Sequence[Forecast], prices: S3VectorsPrices | None
) -> Iterator[Line]:
    items = (("puts", ONCE), ("storage", "month"), ("queries", f"{QUERIES:,} queries"))
    if experiment.store.kind == "local":
        yield from (Line(item, per, ZERO, LOCAL) for item, per in items)
        return
    why = _why_unknown(forecasts, prices)
    if prices is None or why is not None:
        yield from (Line(item, per, None, why or "") for item, per in items)
    else:
        amounts = (_puts, _storage, _queries)
        for (item, per), amount in zip(items, amounts, strict=True):
            yield Line(item, per, amount(forecasts, prices), prices.source, prices.read)
    if experiment.retrieval.mode != "vector":
        yield Line("text search", f"{QUERIES:,} queries", None, "no price of it is published")


def _why_unknown(forecasts: Sequence[Forecast], prices: S3VectorsPrices | None) -> str | None:
    if prices is None:
        return "no price of S3 Vectors is known in this region"
    if any(forecast.dimension is None for forecast in forecasts):
        return "the length of a vector is not known yet"
    return None


def _puts(forecasts: Sequence[Forecast], prices: S3VectorsPrices) -> Amount:
    parts = (Amount(*map(_requests(prices), forecast.figures.puts)) for forecast in forecasts)
    return sum(parts, ZERO)


def _requests(prices: S3VectorsPrices) -> Callable[[Iterable[float]], float]:
    return lambda requests: prices.puts(map(round, requests))


def _storage(forecasts: Sequence[Forecast], prices: S3VectorsPrices) -> Amount:
    stored = sum((forecast.figures.stored for forecast in forecasts), ZERO)
    return stored.times(prices.storage(1))


def _queries(forecasts: Sequence[Forecast], prices: S3VectorsPrices) -> Amount:
    """A query asks one index, and any of them as likely as the others."""
    parts = (_queries_of(forecast, prices) for forecast in forecasts)
    return sum(parts, ZERO).times(1 / max(1, len(forecasts)))


def _queries_of(forecast: Forecast, prices: S3VectorsPrices) -> Amount:
    total, each = forecast.figures.chunks["total"], forecast.figures.queried
    ends = ((total.value, each.value), (total.low, each.low), (total.high, each.high))
    return Amount(*(prices.queries(QUERIES, vectors=round(n), vector_bytes=size) for n, size in ends))


# --- endpoints -------------------------------------------------------------------------------------------


def _endpoints(
    steps: Iterable[Step], forecasts: Sequence[Forecast], embed_rate: float | None
) -> Iterator[Line]:
    for step in steps:
        item, price = f"endpoint {step.endpoint}", step.price
        if price is None or step.usd_per_hour is None:
            kind = step.instance_type or "its instances"
            why = f"no price of {kind} is known: ragctl prices refresh CONFIG"
            yield Line(item, "hour", None, why)
            continue
        hourly = Amount.exact(step.usd_per_hour)
        yield Line(item, "hour", hourly, price.source, price.read)
        embedding = minutes(forecasts, embed_rate)["embedding"]
        if step.role == "embedding" and embedding is not None:
            yield Line(
                f"{item} while it embeds", ONCE, hourly.times(embedding / 60), price.source, price.read
            )
