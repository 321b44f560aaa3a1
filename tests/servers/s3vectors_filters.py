"""Metadata filters as strict as S3 Vectors: what it refuses, what it counts, what it matches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CONSTRAINTS = 100

Predicate = Callable[[Mapping[str, Any]], bool]
# A condition, ready to be asked, and how many of the query's constraints it uses up.
Compiled = tuple[Predicate, int]


class InvalidFilter(Exception):
    """A filter the service refuses."""


@dataclass(frozen=True)
class FilterRules:
    """What a filter is judged by: the mode of the query, the index's keys, and the unsettled missing-key rule."""

    enhanced: bool
    non_filterable: frozenset[str] = frozenset()
    missing_ne_matches: bool = False


def compile_filter(document: Any, rules: FilterRules) -> Predicate:
    """Turn a filter into a predicate over a vector's metadata; raises `InvalidFilter` as the service would."""
    predicate, constraints = _filter(document, rules)
    if rules.enhanced and constraints > MAX_CONSTRAINTS:
        message = f"the filter has {constraints} constraints, the maximum is {MAX_CONSTRAINTS}"
        raise InvalidFilter(f"Invalid filter: {message}")
    return predicate


def _filter(document: Any, rules: FilterRules) -> Compiled:
    if not isinstance(document, dict) or len(document) != 1:
        raise InvalidFilter("Invalid filter: each filter must be an object with exactly one key")
    ((key, operand),) = document.items()
    if key in ("$and", "$or"):
        return _combination(key, operand, rules)
    if key.startswith("$"):
        raise InvalidFilter(f"Invalid filter: unknown operator {key}")
    if key in rules.non_filterable:
        raise InvalidFilter("Invalid use of non-filterable metadata in filter")
    return _field(key, operand if isinstance(operand, dict) else {"$eq": operand}, rules)


def _combination(word: str, operand: Any, rules: FilterRules) -> Compiled:
    if not isinstance(operand, list) or not operand:
        raise InvalidFilter(f"Invalid filter: {word} takes a non-empty array of filters")
    parts = [_filter(part, rules) for part in operand]
    predicates, constraints = [part for part, _ in parts], sum(count for _, count in parts)
    if word == "$and":
        return lambda metadata: all(part(metadata) for part in predicates), constraints
    return lambda metadata: any(part(metadata) for part in predicates), constraints


def _field(key: str, conditions: dict[str, Any], rules: FilterRules) -> Compiled:
    """Compile the conditions on one key; only ranges are documented to stand several in one object."""
    if not conditions or (len(conditions) > 1 and not conditions.keys() <= _RANGES.keys()):
        raise InvalidFilter(f"Invalid filter: one operator, or several ranges, expected for key '{key}'")
    parts = [_condition(key, word, operand, rules) for word, operand in conditions.items()]
    predicates = [part for part, _ in parts]
    return lambda metadata: all(part(metadata) for part in predicates), sum(count for _, count in parts)


def _condition(key: str, word: str, operand: Any, rules: FilterRules) -> Compiled:
    if word not in _OPERANDS:
        raise InvalidFilter(f"Invalid filter: unknown operator {word} for key '{key}'")
    if not _OPERANDS[word](operand):
        raise InvalidFilter(f"Invalid filter: wrong operand of {word} for key '{key}'")
    if word == "$startsWith" and not rules.enhanced:
        raise InvalidFilter("Invalid filter: $startsWith requires the ENHANCED query mode")
    if word == "$exists":
        return lambda metadata: (key in metadata) is operand, 1
    constraints = len(operand) if word in ("$in", "$nin") else 1
    if word in _NEGATIONS:
        matches, missing = _ELEMENTS[_NEGATIONS[word]], rules.missing_ne_matches
        return (
            lambda metadata: not _any(matches, metadata[key], operand) if key in metadata else missing,
            constraints,
        )
    matches = _ELEMENTS[word]
    return lambda metadata: key in metadata and _any(matches, metadata[key], operand), constraints


def _any(matches: Callable[[Any, Any], bool], value: Any, operand: Any) -> bool:
    """Ask each element of an array, or the value itself."""
    return any(matches(element, operand) for element in (value if isinstance(value, list) else [value]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_primitive(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_list_of_primitives(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_primitive, value))


def _same(left: Any, right: Any) -> bool:
    """Say whether two primitives are equal; true is not 1."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


_RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda element, bound: _is_number(element) and element > bound,
    "$gte": lambda element, bound: _is_number(element) and element >= bound,
    "$lt": lambda element, bound: _is_number(element) and element < bound,
    "$lte": lambda element, bound: _is_number(element) and element <= bound,
}
_ELEMENTS: dict[str, Callable[[Any, Any], bool]] = {
    **_RANGES,
    "$eq": _same,
    "$in": lambda element, wanted: any(_same(element, one) for one in wanted),
    "$startsWith": lambda element, prefix: isinstance(element, str) and element.startswith(prefix),
}
_NEGATIONS = {"$ne": "$eq", "$nin": "$in"}
_OPERANDS: dict[str, Callable[[Any], bool]] = {
    "$eq": _is_primitive,
    "$ne": _is_primitive,
    **dict.fromkeys(_RANGES, _is_number),
    "$in": _is_list_of_primitives,
    "$nin": _is_list_of_primitives,
    "$exists": lambda operand: isinstance(operand, bool),
    "$startsWith": lambda operand: isinstance(operand, str),
}
