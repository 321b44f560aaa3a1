"""The hashing embedder: the same vector everywhere, for any text at all."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ragctl.adapters import hashing
from ragctl.adapters.base import Embedder
from ragctl.adapters.hashing import HashingEmbedder, words_of

TEXTS = st.lists(st.text(max_size=200), max_size=5)


def vectors(*texts: str, dimension: int = 2048) -> NDArray[np.float32]:
    return HashingEmbedder(dimension).embed(texts, "document").vectors


def places(vector: NDArray[np.float32]) -> dict[int, float]:
    return {int(at): round(float(vector[at]), 4) for at in np.flatnonzero(vector)}


def test_the_vector_of_a_text_never_changes() -> None:
    """An index made years ago must still be found: weights sqrt(13) and sqrt(4) for a rare word and a common one."""
    assert places(vectors("Mitochondria generate")[0]) == {
        160: pytest.approx(math.sqrt(13 / 17), abs=1e-4),
        1261: pytest.approx(math.sqrt(4 / 17), abs=1e-4),
    }


def test_repeats_count_less_and_less() -> None:
    """The third occurrence adds less than the second: 3 tf / (tf + 2) is 1, 1.5, 1.8."""
    thrice = vectors("mitochondria mitochondria mitochondria generate")[0]
    assert thrice[160] / thrice[1261] == pytest.approx(1.8 * math.sqrt(13 / 4))


def test_identity_says_dimension_and_version() -> None:
    """Another dimension or version is another embedder, which an index refuses."""
    embedder: Embedder = HashingEmbedder(512)
    assert (embedder.identity, embedder.dimension) == ("hashing/512/v1", 512)


def test_another_hash_seed_makes_the_same_vectors() -> None:
    """Python's own string hashes differ between processes; ours must not."""
    program = (
        "from ragctl.adapters.hashing import HashingEmbedder;"
        "print(HashingEmbedder(64).embed(['Reefs grow slowly; naïve 珊瑚 reefs'], 'query').vectors.tobytes().hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert seen == {vectors("Reefs grow slowly; naïve 珊瑚 reefs", dimension=64).tobytes().hex() + "\n"}


@given(TEXTS)
def test_every_text_has_a_vector_of_length_one(texts: list[str]) -> None:
    """A cosine store refuses zero and NaN, and no text may be lost to that."""
    found = vectors(*texts, dimension=64)
    assert found.shape == (len(texts), 64)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)


@pytest.mark.parametrize("text", ["", " \n\t", "---", "☃ ☃", "\ud800", "to the of and"])
def test_a_text_without_telling_words_has_a_vector(text: str) -> None:
    """Nothing, blanks, signs, a lone surrogate, or only words that every text holds."""
    assert np.linalg.norm(vectors(text)[0]) == pytest.approx(1)


def test_words_that_cancel_leave_a_vector() -> None:
    """Two words on one place with opposite signs add up to nothing, which no store would take."""
    first, second = (places(vectors(word, dimension=2)[0]) for word in ("zork", "plugh"))
    assert (first, second) == ({0: -1.0}, {0: 1.0})
    assert places(vectors("zork plugh", dimension=2)[0]) == {0: 1.0}


@given(st.permutations(["coral", "reef", "reef", "42", "überleben", "grow", "珊"]))
def test_order_does_not_matter(words: list[str]) -> None:
    """A bag of words: any order, bit for bit the same vector."""
    assert (vectors(" ".join(words)) == vectors("coral reef reef 42 überleben grow 珊")).all()


@given(TEXTS, st.text(max_size=100))
def test_company_does_not_matter(texts: list[str], text: str) -> None:
    """A text has the same vector alone as in a batch of others."""
    assert (vectors(*texts, text)[-1] == vectors(text)[0]).all()


def test_a_batch_longer_than_a_block_keeps_its_order() -> None:
    """Work is cut into blocks; each text keeps its own row."""
    texts = [f"reef {n}" for n in range(200)]
    assert (vectors(*texts)[[0, 63, 64, 199]] == vectors(*(texts[n] for n in (0, 63, 64, 199)))).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("indexes", "Index"),
        ("ＦＵＬＬ ﬁlm", "full film"),
        ("Straße", "STRASSE"),
        ("max_batch", "max batch"),
        ("don’t", "don't"),
    ],
)
def test_the_same_word_written_differently(one: str, other: str) -> None:
    """Endings, case, compatibility forms, underscores and quotes make no difference."""
    assert (vectors(one) == vectors(other)).all()


def test_the_question_is_nearest_to_the_passage_that_shares_its_rare_word() -> None:
    """Sharing one telling word beats sharing several that every text holds."""
    question, right, wrong = vectors(
        "which of these is the mitochondria",
        "mitochondria make energy",
        "which of these is the newest of all",
    )
    assert question @ right > question @ wrong


def test_scripts_without_spaces_are_cut_into_characters() -> None:
    """A Chinese sentence is not one long word that nothing else matches."""
    assert words_of("珊瑚は2023年 reef") == ["珊", "瑚", "は", "2023", "年", "reef"]


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_cut_for_ascii_finds_the_same_words(text: str) -> None:
    """Plain text takes a faster way, with the same result as the general one."""
    assert words_of(text) == words_of(text + " é")[:-1]


def test_a_full_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of words is bounded; emptying it in the middle of a text is not to be seen."""
    text = " ".join(f"word{n} coral" for n in range(50))
    before = vectors(text)
    monkeypatch.setattr(hashing, "CACHED_WORDS", 3)
    embedder = HashingEmbedder()
    assert (embedder.embed([text], "document").vectors == before).all()
    assert len(embedder._codes) <= 3


def test_a_word_without_end_is_not_kept() -> None:
    """A file of one long run of letters must not fill the memory with it."""
    embedder = HashingEmbedder(64)
    embedder.embed(["x" * 100_000], "document")
    assert not embedder._codes


def test_the_table_of_words_is_stems_with_classes_in_order() -> None:
    """What the counting script writes: commonest first, each stem once, every class below the rarest."""
    bits = hashing.word_bits()
    assert bits["the"] == 0
    assert "mitochondria" not in bits
    assert all(a <= b for a, b in pairwise(bits.values()))
    assert max(bits.values()) < hashing.RAREST
