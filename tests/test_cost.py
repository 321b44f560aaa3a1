"""cost.py: prices with their source and date, and unknown ones that stay unknown."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from ragctl import cost
from ragctl.adapters import aws
from ragctl.cost import GIB, Price, Prices
from ragctl.errors import NotFound, StateError
from ragctl.state import LocalState
from tests.deployments import Region, environment, region_in


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Region]:
    """A region whose instances have prices."""
    with region_in(tmp_path / "state") as region:
        for name, value in environment(region.control.url, region.runtime.url).items():
            monkeypatch.setenv(name, value)
        region.control.prices |= {"ml.g5.xlarge": 1.408, "ml.g5.2xlarge": 1.515, "ml.m5.large": 0.115}
        yield region
        aws.forget()


def test_an_instance_is_unknown_until_it_is_fetched() -> None:
    """Unknown is None, and is shown as unknown, never as free."""
    assert Prices().instance("ml.g5.2xlarge", "eu-west-1") is None
    assert cost.per_hour(None) == "price unknown"


def test_fetched_prices_are_kept_with_source_and_date(region: Region) -> None:
    """For the region of the experiment, over as many pages as there are."""
    state = LocalState(region.state)
    assert cost.refresh(region.experiment(), state) == 3
    today = datetime.now(UTC).date()
    assert cost.load(state).instance("ml.g5.2xlarge", "eu-west-1") == Price(
        1.515, "AWS Price List API", today
    )
    assert cost.load(state).instance("ml.g5.2xlarge", "us-east-1") is None
    assert cost.load(state).instance("ml.p5.48xlarge", "eu-west-1") is None


def test_another_region_is_added(region: Region) -> None:
    """Prices of one region do not take the place of another's."""
    state = LocalState(region.state)
    cost.refresh(region.experiment(aws={"region": "us-east-1"}), state)
    region.control.prices["ml.g5.2xlarge"] = 1.7
    cost.refresh(region.experiment(), state)
    prices = cost.load(state)
    found = [prices.instance("ml.g5.2xlarge", name) for name in ("us-east-1", "eu-west-1")]
    assert [price.usd for price in found if price] == [1.515, 1.7]


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{}",
        "[]",
        '{"schema": "ragctl.prices/2", "regions": {}}',
        '{"schema": "ragctl.prices/1", "regions": {"r": {}}}',
        '{"schema": "ragctl.prices/1", "regions": {"r": {"read": "2026-11-20", "instances": {"ml.a": "dear"}}}}',
        '{"schema": "ragctl.prices/1", "regions": {"r": {"read": "2026-11-20", "instances": []}}}',
    ],
)
def test_damaged_prices_are_told(tmp_path: Path, damaged: str) -> None:
    """A wrong price is worse than none."""
    (tmp_path / cost.NAME).write_text(damaged)
    with pytest.raises(StateError, match="is damaged, or written by another version") as caught:
        cost.load(LocalState(tmp_path))
    assert caught.value.hint == "fetch it again: ragctl prices refresh CONFIG"


def test_damaged_prices_are_fetched_again(region: Region) -> None:
    """What the hint says works."""
    region.state.mkdir()
    (region.state / cost.NAME).write_text("not JSON")
    state = LocalState(region.state)
    cost.refresh(region.experiment(), state)
    assert cost.load(state).instance("ml.m5.large", "eu-west-1") is not None
    assert json.loads((region.state / cost.NAME).read_text())["schema"] == "ragctl.prices/1"


def test_no_price_at_all_replaces_none(region: Region) -> None:
    """A list without an instance is no list: it is refused, and what was fetched before stays, on a dry run as well."""
    state = LocalState(region.state)
    cost.refresh(region.experiment(), state)
    before = (region.state / cost.NAME).read_bytes()
    region.control.prices = {}
    for dry_run in (True, False):
        with pytest.raises(NotFound, match="lists no instances of endpoints in eu-west-1") as caught:
            cost.refresh(region.experiment(), state, dry_run=dry_run)
        assert "aws.region" in str(caught.value.hint)
    assert (region.state / cost.NAME).read_bytes() == before


def test_s3_vectors_where_the_price_is_known() -> None:
    """Two regions have one in the table; elsewhere it is unknown."""
    prices = Prices().s3vectors("us-east-1")
    assert prices is not None
    assert (prices.read, prices.source) == (date(2026, 10, 4), "https://aws.amazon.com/s3/pricing/")
    assert Prices().s3vectors("eu-west-1") is None


def test_the_example_of_aws_comes_out() -> None:
    """10 million vectors of 6.17 KB, a sixth of them rewritten, 1 million queries over 40 indexes: $11.38 a month."""
    prices = Prices().s3vectors("us-east-1")
    assert prices is not None
    size = 6.17 * 1024
    total = round(10_000_000 * size)
    storage = prices.storage(total)
    puts = prices.puts([round(total / 6)])
    queries = prices.queries(1_000_000, vectors=250_000, vector_bytes=5.17 * 1024)
    assert storage == pytest.approx(3.53, abs=0.01)
    assert puts == pytest.approx(1.97, abs=0.01)
    assert storage + puts + queries == pytest.approx(11.38, abs=0.05)


def test_a_small_put_counts_as_a_large_one() -> None:
    """128 KB is the least that a request is charged for."""
    prices = Prices().s3vectors("us-west-2")
    assert prices is not None
    assert prices.puts([1]) == prices.puts([128 * 1024]) == pytest.approx(128 * 1024 / GIB * 0.20)
    assert prices.puts([128 * 1024 + 1]) > prices.puts([1])
    assert prices.puts([]) == 0


def test_a_price_for_people() -> None:
    """By the hour and the day, and a price with where it comes from."""
    assert cost.per_hour(1.515 * 2) == "$3.03 an hour, $72.72 a day"
    assert str(Price(1.515, "AWS Price List API", date(2026, 11, 20))) == (
        "$1.515 (AWS Price List API, 2026-11-20)"
    )
