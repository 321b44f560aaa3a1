"""The AWS Price List API: what an hour of an instance behind a real-time endpoint costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ragctl.adapters.aws import aws_errors, client

if TYPE_CHECKING:
    from ragctl.config import Experiment


def endpoint_prices(experiment: Experiment, region: str) -> Iterator[tuple[str, float]]:
    """Instance types of a region with their price in US dollars an hour, on demand."""
    filters = [
        {"Type": "TERM_MATCH", "Field": "regionCode", "Value": region},
        # Notebooks, training and processing on the same instance have prices of their own.
        {"Type": "TERM_MATCH", "Field": "platoinstancetype", "Value": "Hosting"},
    ]
    pricing = client("pricing", experiment, region_name=_api_region(region))
    with aws_errors("pricing:GetProducts", f"SageMaker instances in {region}"):
        pages = pricing.get_paginator("get_products").paginate(ServiceCode="AmazonSageMaker", Filters=filters)
        for page in pages:
            for text in page["PriceList"]:
                yield from _read(json.loads(text))


def _read(product: dict[str, Any]) -> Iterator[tuple[str, float]]:
    name = product["product"]["attributes"].get("instanceName")
    for term in product["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            usd = float(dimension["pricePerUnit"].get("USD") or 0)
            if name and usd > 0 and dimension["unit"].lower() in ("hrs", "hours", "hour"):
                yield name, usd


def _api_region(region: str) -> str:
    """The API is in three regions only (AWS Billing user guide, "Price List Query API endpoints")."""
    return {"eu": "eu-central-1", "ap": "ap-south-1"}.get(region.partition("-")[0], "us-east-1")
