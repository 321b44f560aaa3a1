"""The record of a run, the page, and the table."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ragctl import report
from ragctl.errors import MissingExtra, StateError
from ragctl.evaluate import Evaluated, evaluate
from ragctl.records import Answer
from ragctl.report import Run, page, render_table, require_jinja, worst, write_page
from tests.evaluations import QUESTIONS, ask, evaluated, hit, section

CONFIG = {"name": "apples", "store": {"kind": "local"}}
VOID = {"meta", "br"}


def saved(run: Run) -> dict[str, object]:
    record: dict[str, object] = json.loads(run.path.read_text(encoding="utf-8"))
    return record


class Page(HTMLParser):
    """The elements of a page, its text, and whether every element is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f"{data} "


# --- run.json --------------------------------------------------------------------------------------------


def test_a_run_says_running_from_the_start(tmp_path: Path) -> None:
    """A run that was killed leaves more than nothing; the folder's name sorts by time and says the command."""
    run = Run.begin("ingest", CONFIG, tmp_path / "runs")
    record = saved(run)
    assert re.fullmatch(r"\d{8}T\d{6}Z-ingest-[0-9a-f]{6}", run.id)
    assert run.path == tmp_path / "runs" / run.id / "run.json"
    assert [record[key] for key in ("schema", "id", "command", "status", "config")] == [
        "ragctl.run/1",
        run.id,
        "ingest",
        "running",
        CONFIG,
    ]


def test_a_finished_run_holds_the_payload_beside_the_head(tmp_path: Path) -> None:
    """One flat record: what ran, with what, how it ended, what it did."""
    run = Run.begin("eval", CONFIG, tmp_path)
    run.finish("failed", {"counts": {"documents": 3}, "failures": []})
    record = saved(run)
    assert list(record) == [
        "schema", "id", "command", "started", "process", "versions", "config", "status", "ended", "seconds", "counts",
        "failures",
    ]  # fmt: skip
    assert (record["status"], record["counts"]) == ("failed", {"documents": 3})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(record["ended"]))


def test_a_payload_may_not_hide_the_head(tmp_path: Path) -> None:
    """A command whose payload has a `status` of its own is told, not trusted."""
    run = Run.begin("eval", CONFIG, tmp_path)
    with pytest.raises(ValueError, match="the run record has these keys already: status"):
        run.finish("done", {"status": "fine"})
    assert saved(run)["status"] == "running"


def test_the_record_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full, the old record stays, and nothing half-written beside it."""
    run = Run.begin("eval", CONFIG, tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateError, match=r"run\.json: cannot be written: No space left on device"):
        run.finish("done", {})
    assert saved(run)["status"] == "running"
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]


def test_a_runs_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Said before any work is done, with what to change."""
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StateError, match="cannot make a folder for the run: Not a directory") as caught:
        Run.begin("eval", CONFIG, tmp_path / "runs")
    assert caught.value.hint == "name a folder that can be written under `runs:` in the experiment"


def test_file_names_that_are_no_unicode_do_not_cost_the_record(tmp_path: Path) -> None:
    """Linux allows any bytes; Python hands them on as lone surrogates."""
    run = Run.begin("ingest", CONFIG, tmp_path)
    run.finish("done", {"failures": [{"document": "docs/caf\udce9.txt"}]})
    assert "caf" in str(saved(run)["failures"])


def test_versions_name_the_commit_and_whether_the_tree_was_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a repository; outside of one there is none, and no error."""
    monkeypatch.chdir(tmp_path)
    report.versions.cache_clear()
    assert report.versions()["git"] is None
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.com")
    (tmp_path / "a").write_text("1")
    for arguments in (("init", "-q"), ("add", "a"), ("commit", "-qm", "a")):
        subprocess.run((*git, *arguments), check=True)
    report.versions.cache_clear()
    clean = report.versions()["git"]
    (tmp_path / "a").write_text("2")
    report.versions.cache_clear()
    dirty = report.versions()["git"]
    report.versions.cache_clear()
    assert isinstance(clean, dict)
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"])
    assert (clean["dirty"], dirty) == (False, {**clean, "dirty": True})


def test_versions_name_what_may_explain_a_difference() -> None:
    """ragctl, Python and the installed packages that shape results; absent ones are left out."""
    versions = report.versions()
    packages = versions["packages"]
    assert isinstance(packages, dict)
    assert {"ragctl", "python", "platform"} < versions.keys()
    assert {"lancedb", "numpy", "pydantic"} < packages.keys()
    assert None not in packages.values()


# --- the page --------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    """Gate, scores with intervals, latencies, tags, the worst questions with hits, and the experiment."""
    run = Run.begin("eval", CONFIG, tmp_path)
    path = write_page(evaluated({"R@1": ">= 0.9", "token_f1": ">= 0.5"}), run, CONFIG)
    words = re.sub(r"\s+", " ", Page(path.read_text(encoding="utf-8")).words)
    assert path == run.folder / "report.html"
    for part in (
        f"evaluation {run.id}",
        "4 questions, 1 failed. Gate: fail",
        "R@1 >= 0.9 fail 0.5 [0, 1]",
        "token_f1 >= 0.5 pass",
        "R@1 0.500 0.000 to 1.000 2 1",
        "latency_generate_p95 0.700",
        "fruit 0.750 (2) 0.500 (2)",
        "broken Which figs? failed",
        "query: ServiceError: the model is down",
        "some green pears [2]",
        "We sell green pears.",
        "name: apples",
    ):
        assert part in words


def test_the_page_needs_nothing_but_itself() -> None:
    """No script, no image, no font, no link: it opens from a CI artefact, and tells nobody that it was opened."""
    html = page(evaluated(), "run", CONFIG)
    elements = Page(html).elements
    assert not {tag for tag, _ in elements} & {"script", "img", "link", "iframe", "a", "object"}
    assert not re.search(r"https?://|url\(|@import", html)
    assert all(
        not name.startswith("on") and name not in ("src", "href") for _, attrs in elements for name in attrs
    )


HOSTILE = st.text(max_size=40).map(
    lambda text: f"<script>alert(1)</script>{text}\"'><img src=x onerror=y>{{{{7*7}}}}"
)


@given(HOSTILE)
def test_documents_and_answers_are_shown_and_never_obeyed(hostile: str) -> None:
    """Whatever stands in a question, an answer, a document id or a chunk arrives as text."""
    question = replace(QUESTIONS[1], id=hostile, question=hostile, tags=(hostile,))

    def hostile_answer(_: object) -> Answer:
        return Answer(hostile, hostile, citations=(), hits=(hit(hostile, hostile),), timings={})

    html = page(evaluate([question], hostile_answer, section(metrics=["R@1"])), hostile, {"name": hostile})
    parsed = Page(html)
    assert not {tag for tag, _ in parsed.elements} & {"script", "img"}
    assert parsed.words.count("<script>alert(1)</script>") >= 7
    assert "{{7*7}}" in parsed.words


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be found before the evaluation is paid for."""
    monkeypatch.setattr("ragctl.report.find_spec", lambda _: None)
    with pytest.raises(MissingExtra) as caught:
        require_jinja()
    assert caught.value.hint == 'install it with: pip install "ragctl[eval]"'


def test_failed_questions_come_first_and_perfect_ones_not_at_all() -> None:
    """The list is where to look for what to mend."""
    assert [row.question.id for row in worst(evaluated())] == ["broken", "second"]


def test_an_empty_gate_and_no_tags_leave_no_empty_sections() -> None:
    """A retrieval-only evaluation has a shorter page."""
    bare = [replace(QUESTIONS[0], tags=())]
    words = Page(page(evaluate(bare, ask, section(metrics=["R@1"])), "run", CONFIG)).words
    assert "There is no gate." in words
    assert "By tag" not in words
    assert "Worst questions" not in words


# --- the table -------------------------------------------------------------------------------------------


def table(result: Evaluated) -> list[str]:
    console = Console(file=StringIO(), width=120, no_color=True)
    console.print(render_table(result))
    assert isinstance(console.file, StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_table_says_value_interval_counts_and_verdict() -> None:
    """One line per metric; a rule stands beside its metric."""
    lines = table(evaluated({"R@1": ">= 0.9", "latency_generate_p95": "<= 1"}))
    assert lines[0] == "metric value 95 % interval scored unscored gate"
    assert "R@1 0.500 0.000 to 1.000 2 1 >= 0.9 fail" in lines
    assert "latency_generate_p95 0.700 0.700 to 0.700 3 1 <= 1 pass" in lines


def test_a_rule_on_a_metric_that_did_not_come_up_has_its_line() -> None:
    """Otherwise nobody would see why the gate cannot tell."""
    only_found = evaluate(QUESTIONS[:1], ask, section(metrics=["R@1"], gate={"abstention_recall": ">= 0.8"}))
    assert table(only_found)[-1] == "abstention_recall - 0 0 >= 0.8 cannot-tell"
