"""Globs and path patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl.errors import ConfigError
from ragctl.globs import compile_glob, compile_globs, compile_path_pattern, names_a_type

SEGMENT = st.text("abc.-", min_size=1, max_size=4).filter(lambda name: not name.startswith("."))


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("**/*", "a.md", True),
        ("**/*", "a/b/c.md", True),
        ("*.md", "a.md", True),
        ("*.md", "a/b.md", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "ab", False),
        ("a/**", "a/x/y.md", True),
        ("a/", "a/x/y.md", True),
        ("a/**", "a", False),
        ("a/a/x", "a/a/x", True),
        ("a/a/x", "a/x", False),
        ("./a.md", "a.md", True),
        ("report-?.txt", "report-1.txt", True),
        ("report-?.txt", "report-10.txt", False),
        ("[a-c]*.txt", "bee.txt", True),
        ("[!a-c]*.txt", "bee.txt", False),
        ("[!a]", "/", False),
        ("a+(b).md", "a+(b).md", True),
        ("[", "[", True),
        ("caf\u00e9.md", "caf\u00e9.md", True),
        ("cafe\u0301.md", "caf\u00e9.md", True),
        ("A.md", "a.md", False),
    ],
)
def test_globs_match_as_in_a_shell_with_globstar(glob: str, path: str, *, matches: bool) -> None:
    """Wildcards stay in their segment, `**` spans folders."""
    assert bool(compile_glob(glob).fullmatch(path)) is matches


@pytest.mark.parametrize("path", [".git/config.md", "a/.hidden.md", "~$report.md", "a/.b/c.md"])
def test_wildcards_pass_over_hidden_names(path: str) -> None:
    """Dot files and the owner files of Office are nobody's documents, unless named."""
    assert not compile_glob("**/*").fullmatch(path)
    assert compile_glob("**/*", hidden=True).fullmatch(path)


def test_a_hidden_name_that_is_spelt_out_matches() -> None:
    """`.github/*.md` is asked for by name."""
    assert compile_glob(".github/*.md").fullmatch(".github/a.md")


def test_an_exclude_takes_all_that_lies_below() -> None:
    """`drafts` excludes the folder with its contents, not its namesakes."""
    excluded = compile_globs(["drafts", "**/old"], hidden=True, below=True)
    assert [
        path
        for path in ("drafts/a.md", "a/old/b/c.md", "drafts2/a.md", "a/drafts/b.md")
        if excluded.fullmatch(path)
    ] == [
        "drafts/a.md",
        "a/old/b/c.md",
    ]


def test_no_globs_match_nothing() -> None:
    """An empty exclude excludes nothing."""
    assert not compile_globs([], below=True).fullmatch("a")


@pytest.mark.parametrize("glob", ["", "/etc/*", "../*", "a/../b"])
def test_a_glob_that_cannot_match_is_refused(glob: str) -> None:
    """A mistake is said, not answered with an empty corpus."""
    with pytest.raises(ConfigError, match="matches nothing: a glob is relative to the source's path"):
        compile_glob(glob)


def test_a_backward_range_is_refused() -> None:
    """The words of the regular expression engine, with the glob."""
    with pytest.raises(ConfigError, match=r"'\[z-a\]' is not a valid glob"):
        compile_glob("[z-a]")


def test_which_globs_ask_for_a_type() -> None:
    """Only those whose last segment is more than a wildcard."""
    globs = ["**/*", "docs/**", "docs/", "*", "*.log", "LICENSE", "**/README*"]
    assert [glob for glob in globs if names_a_type(glob)] == ["*.log", "LICENSE", "**/README*"]


@given(st.lists(SEGMENT, min_size=1, max_size=5))
def test_a_path_matches_itself_and_everything(segments: list[str]) -> None:
    """Whatever the names: the path as a glob, `**/*`, and `**` for any of its folders."""
    path = "/".join(segments)
    assert compile_glob(path).fullmatch(path)
    assert compile_glob("**/*").fullmatch(path)
    assert compile_glob("/".join(["**", segments[-1]])).fullmatch(path)
    assert not compile_glob("*/" + path).fullmatch(path)


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{customer}/{year}/*.pdf", "acme/2024/a.pdf", {"customer": "acme", "year": 2024}),
        ("{customer}/{year}/*.pdf", "acme/2024/q1/a.pdf", None),
        ("{customer}/**/*.pdf", "acme/2024/q1/a.pdf", {"customer": "acme"}),
        ("reports/{year}-{kind}.md", "reports/2024-annual.md", {"year": 2024, "kind": "annual"}),
        ("{year}-report.md", "2024-report.txt", None),
        ("{id}.txt", "1234567890123456.txt", {"id": "1234567890123456"}),
        ("*.txt", "a.txt", {}),
    ],
)
def test_placeholders_take_their_part_of_the_path(
    pattern: str, path: str, found: dict[str, object] | None
) -> None:
    """A placeholder is a segment or a part of one; digits become a number that any store can keep."""
    assert compile_path_pattern(pattern).metadata(path) == found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{text}/*", "ragctl writes 'text' itself"),
        ("{a}/{a}.md", "a placeholder is used twice"),
        ("{}/x", r"\{\} is not a metadata key"),
        ("{a b}/x", "is not a metadata key"),
        ("{a/x", "a brace has no partner"),
        ("{a}/[z-a]*.md", "is not a valid path pattern: bad character range z-a"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, message: str) -> None:
    """Each mistake in its words."""
    with pytest.raises(ConfigError, match=message):
        compile_path_pattern(pattern)
