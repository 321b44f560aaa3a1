"""Filters: what is refused and in which words, the one form that stores get, and what a filter means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from ragctl.errors import FilterError
from ragctl.filters import combine, constraints, leaves, matches, normalise, refuse_non_filterable

from .filtering import filters
from .filtering import metadata as random_metadata

KNOWN = "Known: $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $startsWith, $exists, $and, $or"


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"year": {"$gtee": 1}}, f"filter.year.$gtee: unknown operator; did you mean $gte? {KNOWN}"),
        ({"year": {"$regex": "x"}}, f"filter.year.$regex: unknown operator. {KNOWN}"),
        ({"$adn": []}, f"filter.$adn: unknown operator; did you mean $and? {KNOWN}"),
        ({"g": {"x": 1}}, f"filter.g.x: unknown operator. {KNOWN}"),
        ({"$gte": 1}, 'filter.$gte: stands below a key, as in {"year": {"$gte": ...}}'),
        ({"g": {"$and": []}}, "filter.g.$and: combines whole conditions and cannot stand below a key"),
        ({"g": {}}, "filter.g: has no operator"),
        ({}, "filter: is empty"),
        ([], 'filter: takes an object such as {"year": 2024}, not an empty list'),
        ({"$and": {}}, "filter.$and: takes a list of at least one filter, not an object"),
        ({"$or": []}, "filter.$or: takes a list of at least one filter, not an empty list"),
        ({"$or": [{"a": 1}, {}]}, "filter.$or[1]: is empty"),
        ({"$or": [{"a": 1}, 7]}, 'filter.$or[1]: takes an object such as {"year": 2024}, not a number'),
        ({"a": None}, 'filter.a: null is not a value; ask for a missing key with {"$exists": false}'),
        ({"a": [1]}, "filter.a: takes one value, not a list; for any of several use $in"),
        ({"a": {"$eq": {1}}}, "filter.a.$eq: takes a string, number or boolean, not a set"),
        ({"a": {"$gt": "2024"}}, "filter.a.$gt: takes a number, not a string"),
        ({"a": {"$gt": True}}, "filter.a.$gt: takes a number, not a boolean"),
        ({"a": {"$lt": float("nan")}}, "filter.a.$lt: takes a finite number"),
        ({"a": float("inf")}, "filter.a: takes a finite number"),
        ({"a": 2**53 + 1}, "filter.a: an integer beyond 2**53 is not kept exactly; use a string"),
        ({"a": {"$in": []}}, "filter.a.$in: takes a list of at least one value, not an empty list"),
        (
            {"a": {"$nin": [1, None]}},
            'filter.a.$nin[1]: null is not a value; ask for a missing key with {"$exists": false}',
        ),
        ({"a": {"$exists": 1}}, "filter.a.$exists: takes true or false, not a number"),
        ({"a": {"$startsWith": 1}}, "filter.a.$startsWith: takes a string, not a number"),
        ({"a": "\ud800"}, "filter.a: holds half of a character (a lone surrogate)"),
        ({"\ud800": 1}, "filter: holds half of a character (a lone surrogate)"),
        ({1: 1}, "filter: a key must be a string, not a number"),
        ({"a": {"$in": list(range(101))}}, "filter: 101 constraints, at most 100 are allowed"),
    ],
)
def test_a_fault_is_named_with_its_path(condition: Any, words: str) -> None:
    """Whatever the service would refuse, or silently match nothing with, is refused here, saying where."""
    with pytest.raises(FilterError) as caught:
        normalise(condition)
    assert caught.value.message == words
    assert caught.value.exit_status == 2


def test_an_empty_filter_says_what_to_do() -> None:
    """The hint of an empty filter is to leave it out."""
    with pytest.raises(FilterError) as caught:
        normalise({})
    assert caught.value.hint == "leave the filter out to search everything"


def test_nesting_is_bounded() -> None:
    """A hostile filter of a thousand levels ends in a message, not in a crash."""
    condition: dict[str, Any] = {"a": 1}
    for _ in range(1_000):
        condition = {"$or": [condition]}
    with pytest.raises(FilterError, match=r"nested deeper than 10 levels"):
        normalise(condition)


def test_the_one_form() -> None:
    """Several keys and operators become a flat $and, bare values $eq, and negations carry their guard."""
    condition = {
        "a": 1,
        "b": {"$gte": 2, "$lt": 5},
        "$and": [{"c": {"$ne": "x"}}, {"$or": [{"d": True, "e": "y"}]}],
    }
    assert normalise(condition) == {
        "$and": [
            {"a": {"$eq": 1}},
            {"b": {"$gte": 2}},
            {"b": {"$lt": 5}},
            {"c": {"$exists": True}},
            {"c": {"$ne": "x"}},
            {"$or": [{"$and": [{"d": {"$eq": True}}, {"e": {"$eq": "y"}}]}]},
        ]
    }


def test_one_and_true_stay_apart() -> None:
    """Conditions that Python takes for equal are not merged."""
    assert normalise({"$and": [{"a": 1}, {"a": True}]}) == {"$and": [{"a": {"$eq": 1}}, {"a": {"$eq": True}}]}


def test_every_value_counts_one_constraint() -> None:
    """$in counts its values, a negation its guard as well, and 100 in all is still allowed."""
    assert constraints(normalise({"a": {"$in": [1, 2, 3]}})) == 3
    assert constraints(normalise({"a": {"$ne": 1}})) == 2
    assert constraints(normalise({"a": {"$in": list(range(100))}})) == 100


@given(filters)
def test_normalising_twice_changes_nothing(condition: dict[str, Any]) -> None:
    """The normal form is its own normal form, down to the types."""
    once = normalise(condition)
    assert json.dumps(normalise(once)) == json.dumps(once)


@given(filters)
def test_the_normal_form_has_one_key_and_operator_per_object(condition: dict[str, Any]) -> None:
    """Every object of the normal form has exactly one key, as the service demands."""
    for key, word, _ in leaves(normalise(condition)):
        assert not key.startswith("$")
        assert word.startswith("$")


@given(filters, random_metadata)
def test_normalising_keeps_the_meaning(condition: dict[str, Any], metadata: dict[str, Any]) -> None:
    """A filter and its normal form match the same metadata."""
    assert matches(normalise(condition), metadata) == matches(condition, metadata)


@pytest.mark.parametrize(
    ("condition", "metadata", "expected"),
    [
        ({"n": 1}, {"n": 1.0}, True),
        ({"n": 1}, {"n": True}, False),
        ({"n": True}, {"n": 1}, False),
        ({"n": "1"}, {"n": 1}, False),
        ({"n": {"$eq": "a"}}, {"n": ["b", "a"]}, True),
        ({"n": {"$ne": "a"}}, {"n": ["b", "a"]}, False),
        ({"n": {"$ne": "a"}}, {"n": ["b"]}, True),
        ({"n": {"$ne": "a"}}, {"n": 1}, True),
        ({"n": {"$ne": "a"}}, {}, False),
        ({"n": {"$nin": ["a"]}}, {}, False),
        ({"n": {"$nin": ["a", 2]}}, {"n": 2}, False),
        ({"n": {"$in": ["a", 2]}}, {"n": [1, 2]}, True),
        ({"n": {"$gt": 1}}, {"n": 2}, True),
        ({"n": {"$gt": 1}}, {"n": 1}, False),
        ({"n": {"$gte": 1}}, {"n": True}, False),
        ({"n": {"$gte": 1}}, {"n": [5]}, False),
        ({"n": {"$gte": 1}}, {"n": "5"}, False),
        ({"n": {"$gte": 1, "$lte": 2}}, {"n": 2}, True),
        ({"n": {"$startsWith": "ab"}}, {"n": "abc"}, True),
        ({"n": {"$startsWith": "ab"}}, {"n": ["abc"]}, False),
        ({"n": {"$startsWith": "AB"}}, {"n": "abc"}, False),
        ({"n": {"$exists": True}}, {"n": ""}, True),
        ({"n": {"$exists": False}}, {"m": 1}, True),
        ({"a.b": 1}, {"a.b": 1}, True),
        ({"n": 1, "m": 2}, {"n": 1}, False),
        ({"$or": [{"n": 1}, {"m": 2}]}, {"m": 2}, True),
    ],
)
def test_meaning(condition: dict[str, Any], metadata: dict[str, Any], expected: bool) -> None:
    """Equality looks into arrays, ranges do not, and a condition on a missing key never matches."""
    assert matches(condition, metadata) is expected
    assert matches(normalise(condition), metadata) is expected


def test_combining_asks_for_all() -> None:
    """The filters that are given must all hold; none given is no filter."""
    assert combine(None, None) is None
    assert combine(None, {"a": 1}) == {"a": {"$eq": 1}}
    assert combine({"a": 1}, None, {"$or": [{"b": 2}, {"c": 3}]}) == {
        "$and": [{"a": {"$eq": 1}}, {"$or": [{"b": {"$eq": 2}}, {"c": {"$eq": 3}}]}]
    }


def test_combining_bounds_the_whole() -> None:
    """Two filters that are each allowed can be too much together."""
    with pytest.raises(FilterError, match="filter: 120 constraints, at most 100 are allowed"):
        combine({"a": {"$in": list(range(60))}}, {"b": {"$in": list(range(60))}})


def test_a_key_that_is_only_shown_cannot_be_asked_for() -> None:
    """A filter on a non-filterable key names the key, wherever it stands."""
    condition = normalise({"$or": [{"a": 1}, {"text": {"$startsWith": "x"}}]})
    with pytest.raises(FilterError) as caught:
        refuse_non_filterable(condition, ("text", "end"))
    assert caught.value.message == "filter.text: the index does not filter by this key"
    assert caught.value.hint == "keys that are only shown: end, text"
