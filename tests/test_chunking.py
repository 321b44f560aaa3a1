"""Chunks are exact spans: nothing of a document is lost, moved, or longer than asked."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ragctl import chunking
from ragctl.chunking import split
from ragctl.config import Chunking
from ragctl.errors import ConfigError, MissingExtra
from ragctl.records import Chunk, Document, Page, Section

KINDS = get_args(Chunking.model_fields["kind"].annotation)
PIECES = (
    "word", "a", "longer-than-most-words", "Dr. A. Smith.", "It costs 3.5.", "Why?", "「好。」", "珊瑚", "e\u0301",
    "👩\u200d🔬", "👍🏽", "\u0301", "\ud83d\ude00", " ", "  ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", "\u00a0",
    "# One\n", "\n## Two\n", "\n### Three\n\n", "Four\n====\n", "```\n# no heading\n```\n", "...", "x" * 70,
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Any text, with pages and sections that begin anywhere."""
    text = draw(TEXTS)
    places = st.lists(st.integers(0, max(0, len(text) - 1)), unique=True, max_size=5).map(sorted)
    pages, sections = draw(places), draw(places)
    return Document(
        "notes/a",
        text,
        "hash",
        pages=tuple(Page(n, a, b) for n, (a, b) in enumerate(pairwise([*pages, len(text)]), 1)),
        sections=tuple(
            Section(draw(st.integers(1, 3)), "", a, b) for a, b in pairwise([*sections, len(text)])
        ),
    )


@st.composite
def rules(draw: st.DrawFn) -> Chunking:
    size = draw(st.integers(1, 60))
    overlap = draw(st.sampled_from((0, 0, size // 5, size - 1)))
    kind = draw(st.sampled_from(KINDS))
    unit = draw(st.sampled_from(("tokens",) if kind == "tokens" else ("characters", "tokens")))
    return Chunking(kind=kind, size=size, overlap=overlap, unit=unit)


def cut(text: str, **settings: Any) -> list[str]:
    return [chunk.text for chunk in split(Document("notes/a", text, "hash"), Chunking(**settings))]


def check(document: Document, rule: Chunking, chunks: list[Chunk]) -> None:
    """The promises of `split` that hold for every kind and unit."""
    count = chunking._unit(rule).count
    covered: set[int] = set()
    for chunk in chunks:
        assert chunk.text == document.text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip() != ""
        assert rule.kind == "record" or count(chunk.text) <= rule.size or len(chunk.text) == 1
        covered.update(range(chunk.start, chunk.end))
        before = [page.number for page in document.pages if page.start <= chunk.start]
        assert chunk.page == (before[-1] if before else None)
    assert all(at in covered or char.isspace() for at, char in enumerate(document.text))
    for one, other in pairwise(chunks):
        assert one.start < other.start
        assert one.end < other.end
        assert count(document.text[other.start : one.end]) <= rule.overlap
    assert all(a.end <= b.start for a, b in zip(chunks, chunks[2:], strict=False))


@settings(max_examples=1000)
@given(documents(), rules())
def test_chunks_are_exact_spans_that_cover_the_text(document: Document, rule: Chunking) -> None:
    """For any document and rule: exact, never blank, within size and overlap, in order, nothing lost."""
    chunks = split(document, rule)
    check(document, rule, chunks)
    assert split(document, rule) == chunks


@settings(max_examples=300)
@given(documents(), rules())
def test_a_page_is_never_crossed(document: Document, rule: Chunking) -> None:
    """A citation that names a page must not quote the next one."""
    starts = {page.start for page in document.pages}
    for chunk in split(document, rule.model_copy(update={"kind": "page"})):
        assert not any(chunk.start < start < chunk.end for start in starts)


@settings(max_examples=300)
@given(documents(), rules(), st.sampled_from(["markdown", "html"]))
def test_a_higher_heading_begins_a_chunk(document: Document, rule: Chunking, kind: str) -> None:
    """Text of one chapter is never in a chunk with the next chapter's."""
    rule = rule.model_copy(update={"kind": kind})
    chunks = split(document, rule)
    for before, section in pairwise(document.sections):
        if section.level < before.level:
            assert not any(chunk.start < section.start < chunk.end for chunk in chunks)


# --- the kinds -------------------------------------------------------------------------------------------


def test_recursive_cuts_at_paragraphs_then_lines_then_words() -> None:
    """The largest boundary that gives pieces small enough."""
    text = "First paragraph.\n\nSecond one:\nline one of it\nline two"
    assert cut(text, size=30) == ["First paragraph.", "Second one:\nline one of it", "line two"]
    assert cut(text, size=16)[1:3] == ["Second one:", "line one of it"]


def test_recursive_cuts_a_word_only_when_it_must() -> None:
    """A word longer than a chunk is cut by count; others stay whole."""
    assert cut("ab " + "x" * 12 + " cd", size=5) == ["ab", "xxxx", "xxxxx", "xxx", "cd"]


def test_windows_line_ends_are_paragraphs_too() -> None:
    """A file written on Windows is cut in the same places."""
    text = "First paragraph here.\n\nSecond: a line\nand another line."
    windows = cut(text.replace("\n", "\r\n"), size=40)
    assert [chunk.replace("\r\n", "\n") for chunk in windows] == cut(text, size=40)


def test_characters_cuts_at_its_separator_alone() -> None:
    """What lies between two separators is cut by count when it is too long, never at words."""
    assert cut("one|two three four|five", kind="characters", separator="|", size=8) == [
        "one",
        "|two thr",
        "ee four",
        "|five",
    ]


def test_tokens_counts_words_and_marks() -> None:
    """Without a tokenizer, a word or a punctuation mark is a token."""
    assert cut("One, two. Three four", kind="tokens", size=3) == ["One, two", ". Three four"]


def test_tokens_are_the_unit_of_their_kind() -> None:
    """`kind: tokens` says it; to say so again is no fault, and to say characters is one."""
    text = "one two three four"
    assert Chunking(kind="tokens").unit == "tokens"
    assert cut(text, kind="tokens", size=2) == cut(text, kind="tokens", unit="tokens", size=2)
    with pytest.raises(ValidationError, match="kind tokens counts in tokens, and unit says characters"):
        Chunking(kind="tokens", unit="characters")
    for kind in ("recursive", "sentences"):
        assert Chunking(kind=kind, unit="characters").unit == Chunking(kind=kind).unit == "characters"


def test_a_word_without_end_is_many_tokens() -> None:
    """A line of data must not become one chunk of ten megabytes because it is one word."""
    assert [len(chunk) for chunk in cut("x" * 100, kind="tokens", size=2)] == [64, 36]


def test_sentences_stay_whole() -> None:
    """Abbreviations, initials and decimals end no sentence."""
    text = "Dr. A. Smith paid $3.50 for it. He left! Was it No. 7? Yes."
    assert cut(text, kind="sentences", size=32) == [
        "Dr. A. Smith paid $3.50 for it.",
        "He left! Was it No. 7? Yes.",
    ]


def test_sentences_overlap_whole() -> None:
    """The sentence before is repeated when it fits the overlap, and none of it when it does not."""
    text = "Reefs grow. Corals build. Fish come here. Sharks too. Whales sing. Crabs walk on the sea floor."
    assert cut(text, kind="sentences", size=45, overlap=14) == [
        "Reefs grow. Corals build.",
        "Corals build. Fish come here. Sharks too.",
        "Sharks too. Whales sing.",
        "Whales sing. Crabs walk on the sea floor.",
    ]


def test_record_is_one_chunk() -> None:
    """A record stays whole, whatever its size."""
    assert cut(" one\n\ntwo three ", kind="record", size=3) == ["one\n\ntwo three"]


def test_a_blank_document_has_no_chunks() -> None:
    """White space is not worth a vector."""
    assert [cut(" \n\t\r\n ", kind=kind) for kind in KINDS] == [[]] * len(KINDS)


def test_a_chunk_knows_its_page() -> None:
    """The page on which it starts, and None before the first."""
    text = "cover\nfirst page\nsecond page"
    pages = (Page(1, 6, 17), Page(2, 17, 28))
    chunks = split(Document("a", text, "hash", pages=pages), Chunking(kind="page"))
    assert [(chunk.text, chunk.page) for chunk in chunks] == [
        ("cover", None),
        ("first page", 1),
        ("second page", 2),
    ]


# --- headings --------------------------------------------------------------------------------------------


def test_small_sections_go_together_up_to_a_higher_heading() -> None:
    """Equal and deeper ones fill a chunk; the next chapter begins a new one."""
    text = "# A\n\nabout a\n\n## A1\n\nmore\n\n## A2\n\nmore\n\n# B\n\nabout b"
    assert cut(text, kind="markdown", size=100) == [text[: text.index("# B")].strip(), "# B\n\nabout b"]


def test_a_heading_stays_with_the_first_of_its_text() -> None:
    """A paragraph too long for a chunk is cut, yet its headings do not stand alone."""
    text = "# Reefs\n\n## How they grow\n\n" + "slowly " * 20
    assert (
        cut(text, kind="markdown", size=60)[0] == "# Reefs\n\n## How they grow\n\nslowly slowly slowly slowly"
    )


def test_headings_are_found_where_the_parser_named_none() -> None:
    """A record's text may be Markdown, too; what stands in code is no heading."""
    text = "Intro\n=====\n\ntext\n\n```\n# comment\n```\n\nNext\n----\n\ntext\n\n# Last\n\ntext"
    assert cut(text, kind="markdown", size=1000) == [text[: text.index("# Last")].strip(), "# Last\n\ntext"]


def test_html_is_cut_at_the_sections_of_the_parser() -> None:
    """A page's text has no marks left; its sections say where headings are."""
    text = "Deep\n\nsome\n\nTop\n\nmore"
    sections = (Section(2, "Deep", 0, 12), Section(1, "Top", 12, 21))
    chunks = split(Document("a", text, "hash", sections=sections), Chunking(kind="html"))
    assert [chunk.text for chunk in chunks] == ["Deep\n\nsome", "Top\n\nmore"]


# --- where it is cut -------------------------------------------------------------------------------------


def test_overlap_begins_at_a_word() -> None:
    """The end of the chunk before is repeated, up to the overlap, from the start of a word."""
    text = "alpha beta gamma delta epsilon"
    assert cut(text, size=18, overlap=7) == ["alpha beta", "beta gamma", "gamma delta", "delta epsilon"]


def test_overlap_begins_within_a_word_that_is_longer() -> None:
    """Scripts without spaces have an overlap, too."""
    assert cut("珊瑚长得很慢所以要保护", size=6, overlap=2) == ["珊瑚长得", "长得很慢所以", "所以要保护"]


def test_repeated_text_keeps_its_own_place() -> None:
    """Spans are counted, not searched for: a repeated line is not mistaken for its first occurrence."""
    text = "same line\n" * 50
    chunks = split(Document("a", text, "hash"), Chunking(size=10))
    assert [chunk.start for chunk in chunks] == list(range(0, 500, 10))


@pytest.mark.parametrize("whole", ["e\u0301", "👩\u200d🔬", "👍🏽", "\ud83d\ude00"])
def test_a_character_is_not_parted_from_its_marks(whole: str) -> None:
    """Accents, joined emoji, skin tones and undecoded surrogate pairs are not cut needlessly."""
    for size in range(len(whole), len(whole) + 4):
        assert all(len(chunk) % len(whole) == 0 for chunk in cut(whole * 30, size=size))


@pytest.mark.parametrize(
    "text", ["x" * 300_000, "a " * 150_000, "\n" * 300_000 + "x", "." * 300_000, "e.g. A " * 40_000]
)
@pytest.mark.parametrize("kind", ["recursive", "sentences", "markdown"])
def test_one_long_line_is_cut_whole(text: str, kind: Any) -> None:
    """Texts that make naive splitters quadratic: no separators, only separators, only marks."""
    rule = Chunking(kind=kind, size=10_000, overlap=100)
    document = Document("a", text, "hash")
    check(document, rule, split(document, rule))


# --- tokenizers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer like those of GPT: more than one token for a character, and one that truncates."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        ["some words and longer words, a heading and 3.5 of Dr. Smith"] * 5, trainer
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def words_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that knows two words, like BERT's in that a word it does not know is one token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "reef": 1, "fish": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@settings(max_examples=300)
@given(document=documents(), rule=rules())
def test_a_models_tokens_are_counted(bytes_tokenizer: Path, document: Document, rule: Chunking) -> None:
    """The same promises hold in the tokens of a model, which depend on what stands around them."""
    valid = document.text.encode("utf-8", "replace").decode()
    document = Document(document.id, valid, "hash", pages=document.pages, sections=document.sections)
    rule = rule.model_copy(update={"unit": "tokens", "tokenizer": bytes_tokenizer})
    check(document, rule, split(document, rule))


def test_a_tokenizers_own_truncation_is_not_ours(bytes_tokenizer: Path) -> None:
    """tokenizer.json may say to cut a text at 4 tokens; a chunk of 1,000 tokens is no longer one then."""
    assert len(cut("word " * 400, kind="tokens", size=100, tokenizer=bytes_tokenizer)) > 3


def test_an_unknown_word_without_end_is_many_tokens(words_tokenizer: Path) -> None:
    """The tokenizer makes one token of it; the chunk is bounded all the same."""
    chunks = cut("reef " + "x" * 200, kind="tokens", size=3, tokenizer=words_tokenizer)
    assert max(map(len, chunks)) <= 96


def test_a_missing_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    """The message names the setting and the file."""
    with pytest.raises(ConfigError, match=r"chunking\.tokenizer: .*none\.json cannot be read"):
        cut("text", unit="tokens", tokenizer=tmp_path / "none.json")


def test_the_tokenizers_package_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the message says what to install."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra) as caught:
        cut("text", unit="tokens", tokenizer=tmp_path / "other.json")
    assert caught.value.hint == 'install it with: pip install "ragctl[tokens]"'


def test_the_library_is_imported_for_long_texts_alone() -> None:
    """Its import takes longer than most commands."""
    program = (
        "import sys; from ragctl.chunking import split; from ragctl.config import Chunking;"
        "from ragctl.records import Document;"
        "split(Document('a', 'short', 'hash'), Chunking());"
        "print([name for name in sys.modules if name.startswith(('langchain', 'tokenizers', 'numpy'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
