"""Metadata filters in the grammar of S3 Vectors, validated before any store is asked.

A person may write several keys in one object, and several operators below one key; both mean `$and`. Stores
get the one form that `normalise` gives: one key and one operator per object, `$and` spelt out and flat, a bare
value as `$eq`. What the service leaves open is said outright: a condition on a missing key never matches, so
`$ne` and `$nin` travel with an `$exists` beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard, cast

from ragctl.errors import FilterError

MAX_CONSTRAINTS = 100  # values compared in one filter (S3 Vectors user guide, metadata filtering)
MAX_DEPTH = 10  # of $and and $or inside one another; the service states none, people need two or three
EXACT_INTEGER = 2**53  # beyond it a number that travels as JSON may arrive as its neighbour

Filter = dict[str, object]  # exactly one key, as `normalise` gives it


def normalise(condition: Mapping[str, object]) -> Filter:
    """Validate a filter and return its one form; normalising that again changes nothing.

    Raises FilterError with the path of the fault, for example `filter.year.$gtee: unknown operator`.
    """
    return _bounded(_conjuncts(condition, "filter", 0))


def combine(*conditions: Mapping[str, object] | None) -> Filter | None:
    """Return the filter that asks for all of the given ones, normalised; None where none is given."""
    given = [condition for condition in conditions if condition is not None]
    if not given:
        return None
    return _bounded([part for condition in given for part in _conjuncts(condition, "filter", 0)])


def matches(condition: Mapping[str, object], metadata: Mapping[str, object]) -> bool:
    """Say whether metadata satisfy a valid filter: the meaning that every store must reproduce.

    Equality and membership look at each element of an array; ranges and `$startsWith` never match an array.
    1 equals 1.0, and neither equals true.
    """
    return all(_holds(key, operand, metadata) for key, operand in condition.items())


def refuse_non_filterable(condition: Mapping[str, object], non_filterable: Collection[str]) -> None:
    """Raise FilterError when a normalised filter asks for a key that the index does not filter by."""
    for key, _, _ in leaves(condition):
        if key in non_filterable:
            raise FilterError(
                f"filter.{key}: the index does not filter by this key",
                hint=f"keys that are only shown: {', '.join(sorted(non_filterable))}",
            )


def leaves(condition: Mapping[str, object]) -> Iterator[tuple[str, str, Any]]:
    """Yield (key, operator, operand) of every comparison in a normalised filter."""
    ((key, operand),) = condition.items()
    if key in _COMBINATIONS:
        for part in cast("list[Filter]", operand):
            yield from leaves(part)
    else:
        ((word, value),) = cast("Filter", operand).items()
        yield key, word, value


def constraints(condition: Mapping[str, object]) -> int:
    """Count the values that a normalised filter compares: three for `$in` with three, one for `$exists`."""
    return sum(len(value) if isinstance(value, list) else 1 for _, _, value in leaves(condition))


# --- meaning ---------------------------------------------------------------------------------------------


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether a value is a number; a boolean is none, although Python says so."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(left: object, right: object) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _any_equals(value: object, wanted: object) -> bool:
    elements = value if isinstance(value, list) else [value]
    return any(_same(element, wanted) for element in elements)


def _any_in(value: object, wanted: object) -> bool:
    return isinstance(wanted, list | tuple) and any(_any_equals(value, one) for one in wanted)


def _range(compare: Callable[[float, float], bool]) -> Callable[[object, object], bool]:
    def within(value: object, bound: object) -> bool:
        return is_number(value) and compare(value, cast("float", bound))

    return within


_TESTS: dict[str, Callable[[object, object], bool]] = {
    "$eq": _any_equals,
    "$ne": lambda value, wanted: not _any_equals(value, wanted),
    "$gt": _range(lambda value, bound: value > bound),
    "$gte": _range(lambda value, bound: value >= bound),
    "$lt": _range(lambda value, bound: value < bound),
    "$lte": _range(lambda value, bound: value <= bound),
    "$in": _any_in,
    "$nin": lambda value, wanted: not _any_in(value, wanted),
    "$startsWith": lambda value, prefix: isinstance(value, str) and value.startswith(str(prefix)),
}
_COMBINATIONS: dict[str, Callable[[Iterable[object]], bool]] = {"$and": all, "$or": any}
_GUARDED = frozenset({"$ne", "$nin"})
_OPERATORS = (*_TESTS, "$exists")
_KNOWN = (*_OPERATORS, *_COMBINATIONS)


def _holds(key: str, operand: object, metadata: Mapping[str, object]) -> bool:
    if key in _COMBINATIONS:
        assert isinstance(operand, list | tuple)
        return _COMBINATIONS[key](matches(part, metadata) for part in operand)
    conditions = operand if isinstance(operand, Mapping) else {"$eq": operand}
    return all(_passes(key, word, value, metadata) for word, value in conditions.items())


def _passes(key: str, word: str, value: object, metadata: Mapping[str, object]) -> bool:
    if word == "$exists":
        return (key in metadata) is value
    return key in metadata and _TESTS[word](metadata[key], value)


# --- validation ------------------------------------------------------------------------------------------


def _bounded(parts: list[Filter]) -> Filter:
    whole = _joined(parts)
    count = constraints(whole)
    if count > MAX_CONSTRAINTS:
        raise FilterError(
            f"filter: {count} constraints, at most {MAX_CONSTRAINTS} are allowed",
            hint="each value of $in and $nin counts one; filter by a key that groups the values",
        )
    return whole


def _joined(parts: list[Filter]) -> Filter:
    """Join conjuncts, each kept once. By their JSON: to Python, 1 and true would be the same."""
    once = list({json.dumps(part): part for part in parts}.values())
    return once[0] if len(once) == 1 else {"$and": once}


def _conjuncts(condition: object, path: str, depth: int) -> list[Filter]:
    """Cut a filter into conditions of one key and one operator, or one `$or`, that must all hold."""
    if not isinstance(condition, Mapping):
        raise FilterError(f'{path}: takes an object such as {{"year": 2024}}, not {_kind(condition)}')
    if not condition:
        raise FilterError(f"{path}: is empty", hint="leave the filter out to search everything")
    if depth > MAX_DEPTH:
        raise FilterError(f"{path}: $and and $or are nested deeper than {MAX_DEPTH} levels")
    return [part for key, operand in condition.items() for part in _entry(key, operand, path, depth)]


def _entry(key: object, operand: object, path: str, depth: int) -> list[Filter]:
    if not isinstance(key, str):
        raise FilterError(f"{path}: a key must be a string, not {_kind(key)}")
    _refuse_surrogates(key, path)
    path = f"{path}.{key}"
    if key in _COMBINATIONS:
        branches = _branches(operand, path, depth)
        if key == "$or":
            return [{"$or": [_joined(branch) for branch in branches]}]
        return [part for branch in branches for part in branch]
    if key.startswith("$"):
        raise _misplaced(key, path)
    return _field(key, operand, path)


def _branches(operand: object, path: str, depth: int) -> list[list[Filter]]:
    if not isinstance(operand, list | tuple) or not operand:
        raise FilterError(f"{path}: takes a list of at least one filter, not {_kind(operand)}")
    return [_conjuncts(part, f"{path}[{number}]", depth + 1) for number, part in enumerate(operand)]


def _field(key: str, operand: object, path: str) -> list[Filter]:
    if not isinstance(operand, Mapping):
        _check_primitive(operand, path)
        return [{key: {"$eq": operand}}]
    if not operand:
        raise FilterError(f"{path}: has no operator", hint=f"known operators: {', '.join(_OPERATORS)}")
    return [
        part for word, value in operand.items() for part in _condition(key, word, value, f"{path}.{word}")
    ]


def _condition(key: str, word: object, value: object, path: str) -> list[Filter]:
    if word not in _OPERATORS:
        raise _unknown_operator(word, path)
    assert isinstance(word, str)
    _OPERANDS[word](value, path)
    part: Filter = {key: {word: list(value) if isinstance(value, list | tuple) else value}}
    return [{key: {"$exists": True}}, part] if word in _GUARDED else [part]


def _misplaced(word: str, path: str) -> FilterError:
    if word in _OPERATORS:
        return FilterError(f'{path}: stands below a key, as in {{"year": {{"{word}": ...}}}}')
    return _unknown_operator(word, path)


def _unknown_operator(word: object, path: str) -> FilterError:
    if word in _COMBINATIONS:
        return FilterError(f"{path}: combines whole conditions and cannot stand below a key")
    close = get_close_matches(str(word), _KNOWN, n=1, cutoff=0.7)
    guess = f"; did you mean {close[0]}?" if close else "."
    return FilterError(f"{path}: unknown operator{guess} Known: {', '.join(_KNOWN)}")


# --- operands --------------------------------------------------------------------------------------------


def _check_primitive(value: object, path: str) -> None:
    if value is None:
        raise FilterError(f'{path}: null is not a value; ask for a missing key with {{"$exists": false}}')
    if isinstance(value, list | tuple):
        raise FilterError(f"{path}: takes one value, not a list; for any of several use $in")
    if isinstance(value, str):
        _refuse_surrogates(value, path)
    elif is_number(value):
        _check_number(value, path)
    elif not isinstance(value, bool):
        raise FilterError(f"{path}: takes a string, number or boolean, not {_kind(value)}")


def _check_number(value: object, path: str) -> None:
    if not is_number(value):
        raise FilterError(f"{path}: takes a number, not {_kind(value)}")
    if isinstance(value, int) and abs(value) > EXACT_INTEGER:
        raise FilterError(f"{path}: an integer beyond 2**53 is not kept exactly; use a string")
    if not math.isfinite(value):
        raise FilterError(f"{path}: takes a finite number")


def _check_members(value: object, path: str) -> None:
    if not isinstance(value, list | tuple) or not value:
        raise FilterError(f"{path}: takes a list of at least one value, not {_kind(value)}")
    for number, member in enumerate(value):
        _check_primitive(member, f"{path}[{number}]")


def _check_boolean(value: object, path: str) -> None:
    if not isinstance(value, bool):
        raise FilterError(f"{path}: takes true or false, not {_kind(value)}")


def _check_string(value: object, path: str) -> None:
    if not isinstance(value, str):
        raise FilterError(f"{path}: takes a string, not {_kind(value)}")
    _refuse_surrogates(value, path)


def _refuse_surrogates(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FilterError(f"{path}: holds half of a character (a lone surrogate)") from None


_OPERANDS: dict[str, Callable[[object, str], None]] = {
    "$eq": _check_primitive,
    "$ne": _check_primitive,
    **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), _check_number),
    "$in": _check_members,
    "$nin": _check_members,
    "$exists": _check_boolean,
    "$startsWith": _check_string,
}


def _kind(value: object) -> str:
    """Name a value's type; the value itself may be private."""
    names = {type(None): "null", bool: "a boolean", str: "a string", dict: "an object"}
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return "a number" if is_number(value) else names.get(type(value), f"a {type(value).__name__}")
