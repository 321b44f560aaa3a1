"""Limits: what a record may be, and in which words a refusal names what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ragctl.adapters.base import IndexSpec
from ragctl.errors import ConfigError, RecordRefused
from ragctl.limits import check_record, check_spec, metadata_size
from ragctl.records import NON_FILTERABLE, VectorRecord


def record(key: str = "k", vector: Any = (3.0, 4.0), /, **metadata: Any) -> VectorRecord:
    return VectorRecord(key, np.array(vector, dtype=np.float32), metadata)


def check(candidate: VectorRecord, metric: str = "cosine") -> None:
    check_record(candidate, dimension=2, metric=metric, non_filterable=NON_FILTERABLE)


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        ({}, 4),
        ({"": ""}, 4 + 8),
        ({"a": "xyz"}, 4 + 8 + 1 + 3),
        ({"é": "😀"}, 4 + 8 + 2 + 4),
        ({"n": 1}, 4 + 8 + 1 + 4),
        ({"n": 1.5}, 4 + 8 + 1 + 4),
        ({"b": True}, 4 + 8 + 1),
        ({"l": ["ab", "c"]}, 4 + 8 + 1 + (4 + 2) + (4 + 1)),
        ({"l": [1, 2]}, 4 + 8 + 1 + (4 + 4) * 2),
    ],
)
def test_metadata_size(metadata: dict[str, Any], size: int) -> None:
    """The size is the service's own, which is not the length of the JSON."""
    assert metadata_size(metadata) == size


def test_a_record_at_every_limit_passes() -> None:
    """The bounds themselves are allowed: key bytes, whole and filterable metadata, number of keys."""
    check(record("é" * 512))
    check(record(text="x" * (40_960 - 4 - 8 - 4)))
    check(record(a="x" * (2_048 - 4 - 8 - 1)))
    check(record(**{f"k{number:02}": True for number in range(50)}))
    check(record(n=2**53, text="a\nb\x00\u2028😀", l=[1, 2.5], s=["a", "a"], e=""))


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (record(""), "key : the key has 0 bytes, 1 to 1,024 are allowed"),
        (record("é" * 513), f"key {'é' * 77}...: the key has 1,026 bytes, 1 to 1,024 are allowed"),
        (record("\ud800"), "key \\ud800: the key holds half of a character (a lone surrogate)"),
        (record("k", [1]), "key k: the vector has 1 numbers, the index takes 2"),
        (record("k", [[1, 2]]), "key k: the vector has 2 numbers, the index takes 2"),
        (record("k", [1, np.nan]), "key k: the vector holds NaN or infinity"),
        (record("k", [1, np.inf]), "key k: the vector holds NaN or infinity"),
        (
            record("k", [0, 0]),
            "key k: the vector is zero in 32-bit numbers, so it has no direction for metric cosine",
        ),
        (
            record("k", [1e-30, 0]),
            "key k: the vector is zero in 32-bit numbers, so it has no direction for metric cosine",
        ),
        (
            record("k", [1e30, 0]),
            "key k: the vector is too long in 32-bit numbers, so it has no direction for metric cosine",
        ),
        (
            record(document="m/a.pdf", text="x" * 41_000),
            "document m/a.pdf, key k: its metadata and text take 41,039 bytes, at most 40,960 are allowed",
        ),
        (
            record(document="m/a.pdf", tags="x" * 2_048),
            "document m/a.pdf, key k: its filterable metadata take 2,087 bytes, at most 2,048 are allowed",
        ),
        (
            record(**{f"k{number}": 1 for number in range(51)}),
            "key k: 51 metadata keys, at most 50 are allowed",
        ),
        (
            record(**{"x" * 1_025: 1}),
            'key k: metadata "' + "x" * 80 + '": a key is a string of at most 1,024 characters',
        ),
        (
            record(**{"\ud800": 1}),
            'key k: metadata "\\ud800": holds half of a character (a lone surrogate)',
        ),
        (
            record(a=None),
            'key k: metadata "a": a value is a string, number, boolean, or a list of strings or numbers, not null',
        ),
        (
            record(a={"b": 1}),
            'key k: metadata "a": a value is a string, number, boolean, or a list of strings or numbers, not dict',
        ),
        (
            record(a=[True]),
            'key k: metadata "a": a value is a string, number, boolean, or a list of strings or numbers, not bool',
        ),
        (record(a=[]), 'key k: metadata "a": an empty list is refused; leave the key out'),
        (record(a=["x", 1]), 'key k: metadata "a": a list holds only strings or only numbers'),
        (record(a=[1, "x"]), 'key k: metadata "a": a list holds only strings or only numbers'),
        (record(a="\udfff"), 'key k: metadata "a": holds half of a character (a lone surrogate)'),
        (record(a=["\udfff"]), 'key k: metadata "a": holds half of a character (a lone surrogate)'),
        (record(a=float("nan")), 'key k: metadata "a": NaN and infinity are not numbers to a store'),
        (record(a=[2**60]), 'key k: metadata "a": an integer beyond 2**53 is not kept exactly; use text'),
        (
            record(a=[], document="\ud800"),
            'document \\ud800, key k: metadata "a": an empty list is refused; leave the key out',
        ),
    ],
)
def test_a_refusal_names_document_key_and_figures(candidate: VectorRecord, words: str) -> None:
    """Each limit refuses one record, in words that somebody can act on, and never shows a value."""
    with pytest.raises(RecordRefused) as caught:
        check(candidate)
    assert caught.value.message == words


def test_a_refused_size_names_the_largest_key() -> None:
    """The hint of an oversized record says which key to look at; the document is known to the caller."""
    with pytest.raises(RecordRefused) as caught:
        check(record(document="m/a.pdf", tags="x" * 3_000, year=2024))
    assert caught.value.document == "m/a.pdf"
    assert caught.value.hint == 'the largest is "tags" with 3,012 bytes; name it in store.non_filterable'


def test_euclidean_takes_any_finite_vector() -> None:
    """A zero vector has a place although it has no direction."""
    check(record("k", [0, 0]), metric="euclidean")
    check(record("k", [1e30, 0]), metric="euclidean")
    with pytest.raises(RecordRefused, match="NaN or infinity"):
        check(record("k", [np.inf, 0]), metric="euclidean")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (IndexSpec(0, "cosine", "e"), "dimension 0: an index takes 1 to 4,096"),
        (IndexSpec(4_097, "cosine", "e"), "dimension 4097: an index takes 1 to 4,096"),
        (
            IndexSpec(2, "cosine", "e", non_filterable=tuple("abcdefghijk")),
            "11 non-filterable keys, at most 10 are allowed",
        ),
        (
            IndexSpec(2, "cosine", "e", non_filterable=("x" * 64,)),
            "non-filterable key of 64 characters: a name takes 1 to 63",
        ),
    ],
)
def test_an_impossible_index_is_refused(spec: IndexSpec, words: str) -> None:
    """What the service would refuse to create is refused on every store."""
    with pytest.raises(ConfigError) as caught:
        check_spec(spec)
    assert caught.value.message == words
