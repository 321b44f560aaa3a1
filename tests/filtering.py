"""Random metadata and filters that meet: few keys and values, among them hostile ones, so that conditions hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

KEYS = [
    "year",
    "a.b",
    "",
    "ключ",
    '"quoted"',
    "it's",
    "'; DROP TABLE t; --",
    "back\\slash",
    "line\nbreak",
    "%_",
    "x" * 1_024,
]
STRINGS = [
    "",
    "a",
    "ab",
    "A",
    "é",
    "'",
    '"',
    "\\",
    "\n",
    "a\nb",
    "%",
    "_",
    "1",
    "true",
    "#",
    ":",
    "[",
    "\x00",
    "😀",
]
NUMBERS = [0, -0.0, 1, 1.0, -1, 0.5, 2, 1e300, -1e300, 5e-324, 2**53, -(2**53), 2**53 - 1, 3.0000000000000004]

keys = st.sampled_from(KEYS)
strings = st.sampled_from(STRINGS) | st.text(max_size=3)
numbers = st.sampled_from(NUMBERS) | st.floats(allow_nan=False, allow_infinity=False)
primitives = strings | numbers | st.booleans()
metadata: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    keys,
    primitives | st.lists(strings, min_size=1, max_size=3) | st.lists(numbers, min_size=1, max_size=3),
    max_size=5,
)

_OPERANDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["$eq", "$ne"], primitives),
    **dict.fromkeys(["$gt", "$gte", "$lt", "$lte"], numbers),
    **dict.fromkeys(["$in", "$nin"], st.lists(primitives, min_size=1, max_size=3)),
    "$exists": st.booleans(),
    "$startsWith": strings,
}
_operators = st.lists(st.sampled_from(sorted(_OPERANDS)), min_size=1, max_size=2, unique=True)
_conditions = primitives | _operators.flatmap(
    lambda words: st.fixed_dictionaries({word: _OPERANDS[word] for word in words})
)
filters: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(keys, _conditions, min_size=1, max_size=2),
    lambda inner: st.sampled_from(["$and", "$or"]).flatmap(
        lambda word: st.fixed_dictionaries({word: st.lists(inner, min_size=1, max_size=2)})
    ),
    max_leaves=4,
)
