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


def test_every_fault_has_its_hint_below_it(tmp_path: Path) -> None:
    """Of several as of one: what to do is said beside what is wrong."""
    write_docs(tmp_path, {"a.md": "Text."})
    (tmp_path / "beir").mkdir()
    beir = {"dataset": {"kind": "beir", "path": "beir", "source": "docs"}}
    tokenizer = {"tokenizer": "docs/a.md", "unit": "tokens"}
    ended = ragctl("config", "check", experiment(tmp_path, chunking=tokenizer, evaluation=beir))
    assert ended.status == 2
    first, *lines = ended.err.splitlines()
    assert first.endswith("experiment.yaml cannot run as it stands")
    assert lines[0].startswith(f"  chunking.tokenizer: {tmp_path}/docs/a.md cannot be read")
    assert lines[1] == "    hint: name the tokenizer.json of the embedding model"
    assert lines[2].startswith(f"  {tmp_path}/beir: ")
    assert lines[3] == "    hint: a BEIR data set has corpus.jsonl, queries.jsonl and qrels/"


def test_a_unit_that_the_kind_does_not_count_in_is_a_fault(tmp_path: Path) -> None:
    """Rather than 500 tokens where 500 characters were asked for."""
    write_docs(tmp_path, {"a.md": "Text."})
    ended = ragctl("config", "check", experiment(tmp_path, chunking={"kind": "tokens", "unit": "characters"}))
    assert ended.status == 2
    assert "  chunking: kind tokens counts in tokens, and unit says characters; leave unit out\n" in ended.err


def test_a_tokenizer_that_is_none_ends_an_ingest_before_it_begins(tmp_path: Path) -> None:
    """It is the experiment that is at fault, and no document."""
    write_docs(tmp_path, {"a.md": "Text."})
    config = experiment(tmp_path, chunking={"tokenizer": "docs/a.md", "unit": "tokens"})
    ended = ragctl("ingest", config)
    assert (ended.status, ended.out) == (2, "")
    assert f"chunking.tokenizer: {tmp_path}/docs/a.md cannot be read" in ended.err


def test_a_key_loses_the_newline_that_a_mounted_secret_ends_in(tmp_path: Path) -> None:
    """Another sign that no header takes is a fault of the experiment, and is not repeated."""
    write_docs(tmp_path, {"a.md": "Text."})
    embedding = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key": "${MARKER}"}
    config = experiment(tmp_path, embedding=embedding)
    for key, status in (("sesame\n", 0), ("ses\name", 2), ("s\u00e9same\u20ac", 2)):
        ended = ragctl("config", "check", config, env={"MARKER": key})
        assert ended.status == status, ended.err
        assert ("holds a character that no HTTP header takes" in ended.err) == (status == 2)
        assert "same" not in ended.out + ended.err


def test_secrets_in_the_environment_of_a_container_are_not_shown(tmp_path: Path) -> None:
    """The others are, for they say how the model runs."""
    write_docs(tmp_path, {"a.md": "Text."})
    env = {"HF_TOKEN": "sesame", "MAX_BATCH_TOKENS": "16384"}
    embedding = {"kind": "sagemaker", "model": "some-model", "dimension": 8}
    config = experiment(tmp_path, embedding=embedding, deployment={"embedding": {"env": env}})
    ended = ragctl("config", "show", config)
    assert ended.status == 0, ended.err
    assert "sesame" not in ended.out
    assert "16384" in ended.out
