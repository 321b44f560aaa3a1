"""config check: what cannot run is found before anything is made or paid for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import experiment, ragctl, write_docs

BEIR = {"dataset": {"kind": "beir", "path": ".", "source": "paperz"}}


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        (
            {"chunking": {"tokenizer": "docs/a.md", "unit": "tokens"}},
            "chunking.tokenizer: {folder}/docs/a.md cannot be read",
        ),
        (
            {"store": {"kind": "local", "text_search": False}},
            "retrieval.mode: hybrid needs a text index, and store.text_search is false",
        ),
        ({"evaluation": BEIR}, "evaluation.dataset.source: there is no source paperz; known: docs"),
        (
            {"sources": [{"kind": "local", "name": "docs", "path": "docs", "path_metadata": "{a/*"}]},
            "a brace has no partner",
        ),
    ],
)
def test_what_cannot_run_is_no_valid_experiment(
    tmp_path: Path, sections: dict[str, object], fault: str
) -> None:
    """Exit 2, and the fault in words."""
    write_docs(tmp_path, {"a.md": "Text."})
    ended = ragctl("config", "check", experiment(tmp_path, **sections))
    assert ended.status == 2, ended.out
    assert fault.format(folder=tmp_path) in ended.err


def test_a_tokenizer_that_is_none_ends_an_ingest_before_it_begins(tmp_path: Path) -> None:
    """It is the experiment that is at fault, and no document."""
    write_docs(tmp_path, {"a.md": "Text."})
    config = experiment(tmp_path, chunking={"tokenizer": "docs/a.md", "unit": "tokens"})
    ended = ragctl("ingest", config)
    assert (ended.status, ended.out) == (2, "")
    assert f"chunking.tokenizer: {tmp_path}/docs/a.md cannot be read" in ended.err
