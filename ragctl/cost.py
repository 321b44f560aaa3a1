"""What things cost, with the source and date of every price. An unknown price is None, never 0.

Prices come from the table in the package and, over it, from what `refresh` fetched into the state location.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import yaml

from ragctl.errors import NotFound, ServiceError, StateError

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.state import State

log = logging.getLogger("ragctl.cost")

NAME: Final = "prices.json"
SCHEMA: Final = "ragctl.prices/1"
API: Final = "AWS Price List API"
GIB: Final = 2**30  # AWS's own S3 Vectors example only comes out with it
TIB: Final = 2**40


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for one unit, and where that was said."""

    usd: float
    source: str
    read: date

    def __str__(self) -> str:
        return f"${self.usd:g} ({self.source}, {self.read.isoformat()})"


@dataclass(frozen=True, slots=True)
class S3VectorsPrices:
    """Amazon S3 Vectors in one region. Sizes in bytes, results in US dollars."""

    source: str
    read: date
    storage_gb_month: float
    put_gb: float
    put_min_bytes: int
    queries_1000: float
    processed_tb: tuple[tuple[int | None, float], ...]  # (vectors up to which it applies, price)

    def storage(self, size: int) -> float:
        """Of a month. `size`: vectors (4 bytes a dimension), keys and all metadata."""
        return size / GIB * self.storage_gb_month

    def puts(self, requests: Iterable[int]) -> float:
        """Of put requests, given the logical size of each; a small one counts as `put_min_bytes`."""
        return sum(max(size, self.put_min_bytes) for size in requests) / GIB * self.put_gb

    def queries(self, count: int, *, vectors: int, vector_bytes: float) -> float:
        """Of vector queries over an index, without what they return.

        Every query is charged for all vectors of the index: `vector_bytes` is the mean of vector, key and
        filterable metadata.
        """
        processed = sum(
            (min(vectors, upper or vectors) - lower) * vector_bytes / TIB * usd
            for lower, upper, usd in self._tiers()
            if vectors > lower
        )
        return count * (self.queries_1000 / 1_000 + processed)

    def _tiers(self) -> Iterator[tuple[int, int | None, float]]:
        lower = 0
        for upper, usd in self.processed_tb:
            yield lower, upper, usd
            lower = upper or lower


class Prices:
    """The table in the package, with what was fetched over it."""

    def __init__(self, fetched: Mapping[str, Any] | None = None) -> None:
        """Take what `fetch` gave, or nothing."""
        self._fetched = fetched or {}

    def instance(self, instance_type: str, region: str) -> Price | None:
        """One instance of a real-time endpoint for an hour; None: unknown."""
        return self.instances(region).get(instance_type)

    def instances(self, region: str) -> dict[str, Price]:
        """Every instance type of a region whose price is known."""
        found = self._fetched.get(region, {})
        return {
            name: Price(float(usd), API, date.fromisoformat(found["read"]))
            for name, usd in found.get("instances", {}).items()
        }

    def s3vectors(self, region: str) -> S3VectorsPrices | None:
        """Amazon S3 Vectors; None: unknown in this region."""
        table = dict(_table()["s3vectors"])
        if region not in table.pop("regions"):
            return None
        tiers = tuple((tier["vectors"], tier["usd"]) for tier in table.pop("processed_tb"))
        return S3VectorsPrices(**table, processed_tb=tiers)


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = yaml.safe_load((files("ragctl") / "data" / "prices.yaml").read_text("utf-8"))
    return table


def load(state: State) -> Prices:
    """The prices, with those of the state location. StateError when they are damaged."""
    found = state.read(NAME)
    if found is None:
        return Prices()
    try:
        regions = _read(found.data)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StateError(
            f"{state.place}/{NAME}: is damaged, or written by another version of ragctl",
            hint="fetch it again: ragctl prices refresh CONFIG",
        ) from error
    return Prices(regions)


def at_hand(state: State) -> Prices:
    """As `load`, for what must be done without them as well: what cannot be read is unknown, and a warning."""
    try:
        return load(state)
    except ServiceError as error:
        log.warning("prices are unknown: %s", error)
        return Prices()


def _read(data: bytes) -> dict[str, Any]:
    """The regions of a file of prices; whatever would not do as one is raised here, not where it is used."""
    document = json.loads(data)
    if document["schema"] != SCHEMA:
        raise ValueError(document["schema"])
    for fetched in document["regions"].values():
        date.fromisoformat(fetched["read"])
        for usd in fetched["instances"].values():
            float(usd)
    regions: dict[str, Any] = document["regions"]
    return regions


def refresh(experiment: Experiment, state: State, *, dry_run: bool = False) -> int:
    """Fetch the prices of the region's instances from AWS into the state location; how many there are.

    A dry run fetches them and keeps nothing. Raises NotFound, and keeps what is there, when AWS lists none.
    """
    from ragctl.adapters.aws import region
    from ragctl.adapters.pricing import endpoint_prices

    name = region(experiment)
    instances = dict(endpoint_prices(experiment, name))
    if not instances:
        raise NotFound(
            f"the {API} lists no instances of endpoints in {name}; the prices that were known are kept",
            hint="see whether aws.region is one that has SageMaker endpoints, and try again later",
        )
    if dry_run:
        return len(instances)
    found = state.read(NAME)
    try:
        regions = _read(found.data) if found else {}
    except (ValueError, LookupError, TypeError, AttributeError):  # what it held can be fetched again
        regions = {}
    regions[name] = {"read": datetime.now(UTC).date().isoformat(), "instances": instances}
    state.overwrite(NAME, (json.dumps({"schema": SCHEMA, "regions": regions}, indent=1) + "\n").encode())
    return len(instances)


def per_hour(usd: float | None) -> str:
    """For people: "$1.52 an hour, $36.36 a day", or "price unknown"."""
    return "price unknown" if usd is None else f"${usd:,.2f} an hour, ${24 * usd:,.2f} a day"
