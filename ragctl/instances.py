"""The instances behind an endpoint: its config says of which type they are, the endpoint itself how many run now.

An endpoint that scales by itself has other counts than those with which it was made, and it is what runs that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragctl.cost import Price

_LISTS = ("ProductionVariants", "ShadowProductionVariants")  # both are paid for


@dataclass(frozen=True, slots=True)
class Variant:
    """Instances of one kind. `count` and `instance_type` are None where what was described does not tell them."""

    name: str
    count: int | None = None
    instance_type: str | None = None

    def __str__(self) -> str:
        return f"{self.count or 0} x {self.instance_type}"


def variants(described: Mapping[str, Any]) -> tuple[Variant, ...]:
    """The variants of an endpoint or endpoint config, by its description; none of anything else."""
    return tuple(
        Variant(variant["VariantName"], _count(variant), variant.get("InstanceType"))
        for name in _LISTS
        for variant in described.get(name) or ()
    )


def _count(variant: Mapping[str, Any]) -> int | None:
    """Of an endpoint: those that run or are asked for, for one pays until the last of them is gone."""
    counts = [variant[key] for key in ("CurrentInstanceCount", "DesiredInstanceCount") if key in variant]
    return max(counts) if counts else variant.get("InitialInstanceCount")


def running(endpoint: Iterable[Variant], config: Iterable[Variant]) -> tuple[Variant, ...]:
    """The variants of a config with the counts of its endpoint; one that is being created does not tell any yet."""
    counts = {variant.name: variant.count for variant in endpoint if variant.count is not None}
    return tuple(
        replace(variant, count=counts.get(variant.name, variant.count))
        for variant in config
        if variant.instance_type is not None  # a serverless one has none
    )


def usd_per_hour(behind: Sequence[Variant], price: Callable[[str], Price | None]) -> float | None:
    """US dollars for all of them; None where there is nothing to reckon with, or a price is unknown."""
    if not behind:
        return None
    total = 0.0
    for variant in behind:
        if not variant.count:
            continue
        found = price(variant.instance_type or "")
        if found is None:
            return None
        total += found.usd * variant.count
    return total
