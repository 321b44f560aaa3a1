"""Experiment files: what is accepted, and the exact words about what is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from ragctl.backends import LocalStore
from ragctl.config import Experiment
from ragctl.errors import ConfigError
from ragctl.loading import PATHS, load, masked

Write = Callable[..., Path]

MINIMAL = """\
name: x
sources: [{kind: local, name: docs, path: docs}]
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "experiment.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert caught.value.exit_status == 2
    return caught.value.message


def test_relative_paths_are_meant_from_the_file(write: Write, tmp_path: Path) -> None:
    """The same file means the same places from wherever ragctl is started."""
    experiment = load(write(MINIMAL, "deep/x.yaml"))
    source = experiment.sources[0]
    assert source.kind == "local"
    assert source.path == tmp_path / "deep" / "docs"


def test_places_that_nobody_names_are_beside_the_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cron job and a shell that start in other folders mean the same index; a base file lends it no folder."""
    write(MINIMAL, "base/base.yaml")
    write("extends: ../base/base.yaml\nstore: {index: mine}\n", "deep/x.yaml")
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path, tmp_path / "elsewhere", tmp_path / "deep"):
        monkeypatch.chdir(folder)
        experiment = load(Path(os.path.relpath(tmp_path / "deep" / "x.yaml")))
        assert isinstance(experiment.store, LocalStore)
        assert (experiment.store.index, experiment.store.path, experiment.state, experiment.runs) == (
            "mine",
            tmp_path / "deep" / ".ragctl" / "store",
            str(tmp_path / "deep" / ".ragctl" / "state"),
            tmp_path / "deep" / "runs",
        )


def test_places_that_are_named_stay_as_they_are(write: Write, tmp_path: Path) -> None:
    """A bucket, a place that --set gives, and a store that has no folder."""
    path = write(MINIMAL + "state: s3://bucket/prefix\nstore: {kind: s3vectors, bucket: vectors}\n")
    experiment = load(path, ["runs=here"])
    assert (experiment.state, experiment.runs) == ("s3://bucket/prefix", Path.cwd() / "here")
    assert experiment.store.kind == "s3vectors"
    assert load(path, ["store.kind=local"]).store == LocalStore(
        path=tmp_path / ".ragctl" / "store", index="x-index"
    )


def test_paths_of_the_extended_file_are_meant_from_that_file(write: Write, tmp_path: Path) -> None:
    """A base file in another folder keeps naming what lies beside it."""
    write(MINIMAL + "runs: here\n", "base/base.yaml")
    experiment = load(write("extends: base/base.yaml\nname: y\nstate: there\n", "top.yaml"))
    assert (experiment.name, experiment.runs, experiment.state) == (
        "y",
        tmp_path / "base" / "here",
        str(tmp_path / "there"),
    )


def test_every_path_setting_is_resolved() -> None:
    """A new setting that holds a path cannot be forgotten in the table of paths."""
    found = {tuple("*" if step == "*" else step for step in where) for where in _path_fields(Experiment)}
    assert found <= set(PATHS)


def _path_fields(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        for where in _paths_in(field.annotation):
            yield (name, *where)


def _paths_in(annotation: Any) -> Iterator[tuple[str, ...]]:
    if annotation is Path:
        yield ()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _path_fields(annotation)
    else:
        many = getattr(annotation, "__origin__", None) in (tuple, dict)
        for argument in get_args(annotation):
            for where in _paths_in(argument):
                yield ("*", *where) if many else where


def test_all_faults_come_at_once_with_their_paths(write: Write) -> None:
    """One round of mending is enough."""
    path = write(
        """\
name: x
sources:
  - {kind: local, name: a, path: p, metdata: 1}
  - {kind: loca, name: b}
  - {name: c}
store: {kind: s3vectors, indx: 3}
chunking: {overlap: 600, size: 512}
retrieval: {top_k: 0}
"""
    )
    assert message(path) == (
        f"{path} is not a valid experiment\n"
        "  sources.0.metdata: unknown key; did you mean metadata?\n"
        "  sources.1.kind: unknown kind 'loca'; known: local, s3\n"
        "  sources.2.kind: required\n"
        "  chunking: overlap (600) must be smaller than size (512)\n"
        "  store.bucket: required\n"
        "  store.indx: unknown key; did you mean index?\n"
        "  retrieval.top_k: must be greater than or equal to 1"
    )


@pytest.mark.parametrize("word", ["yes", "on", "true", "off"])
def test_a_boolean_is_no_number(write: Write, word: str) -> None:
    """Chunks of one character, where somebody meant something else; what may be true or false still may."""
    path = write(f"chunking: {{size: {word}}}\nstore: {{kind: local, text_search: {word}}}\n")
    value = "false" if word == "off" else "true"
    assert f"\n  chunking: size: {value} is no value for it; YAML reads yes and on as true" in message(path)
    assert "text_search" not in message(path)


def test_broken_yaml_names_line_and_column(write: Write) -> None:
    """A syntax error says where it is."""
    path = write("name: x\nsources: [\n  {kind: local\n")
    assert message(path).startswith(f"{path} line 4, column 1: not valid YAML: ")


def test_a_key_given_twice_is_refused(write: Write) -> None:
    """The plain loader would silently keep the last."""
    path = write(MINIMAL + "runs: a\nruns: b\n")
    assert message(path) == f"{path} line 4, column 1: not valid YAML: key 'runs' is given twice"


@pytest.mark.parametrize(("text", "kind"), [("", "empty"), ("- a\n", "a list"), ("words\n", "a text")])
def test_a_file_that_is_no_mapping(write: Write, text: str, kind: str) -> None:
    """What is not an experiment at all is said plainly."""
    path = write(text)
    assert message(path) == f"{path}: an experiment is a mapping of sections, this is {kind}"


def test_a_missing_file(tmp_path: Path) -> None:
    """The path is named."""
    assert message(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"


def test_environment_variables(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """${NAME} and ${NAME:-default} are filled in; $$ is a dollar sign."""
    monkeypatch.setenv("DOCS", "/srv/docs")
    text = 'name: x\nsources: [{kind: local, name: docs, path: "${DOCS}", metadata: {a: "${NO:-b}", c: "$$1"}}]\n'
    source = load(write(text)).sources[0]
    assert source.kind == "local"
    assert (source.path, source.metadata) == (Path("/srv/docs"), {"a": "b", "c": "$1"})


def test_an_unset_variable_is_a_fault_with_its_path(write: Write) -> None:
    """An empty text in its place would be a wrong setting."""
    path = write(MINIMAL + 'runs: "${NOWHERE}"\n')
    assert message(path).endswith(
        "  runs: the environment variable NOWHERE is not set; set it, or give a default: ${NOWHERE:-default}"
    )


def test_extends_merges_and_another_kind_replaces(write: Write) -> None:
    """Settings of the old kind do not leak into a section of another kind."""
    write(
        MINIMAL
        + "chunking: {kind: recursive, size: 100, overlap: 10}\nembedding: {kind: hashing, dimension: 64}\n",
        "base.yaml",
    )
    experiment = load(
        write(
            "extends: base.yaml\nchunking: {size: 50}\n"
            "embedding: {kind: openai, base_url: 'http://127.0.0.1/v1', model: m}\n"
        )
    )
    assert (experiment.chunking.size, experiment.chunking.overlap) == (50, 10)
    assert experiment.embedding.kind == "openai"


def test_only_one_file_can_be_extended(write: Write) -> None:
    """Anything else under `extends` is a fault, not nothing."""
    assert "extends: must be the path of one file" in message(write(MINIMAL + "extends: [a.yaml]\n"))


def test_a_fault_in_an_override_does_not_show_its_value(write: Write) -> None:
    """It may be a secret."""
    assert "hunter2" not in message(write(MINIMAL), "name.api_key=hunter2")


def test_a_circle_of_extends_is_named(write: Write) -> None:
    """It ends, and says by which way."""
    write("extends: b.yaml\n", "a.yaml")
    path = write("extends: a.yaml\n", "b.yaml")
    assert "extends itself, by way of b.yaml -> a.yaml -> b.yaml" in message(path)


def test_set_overrides_single_settings(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Values are YAML, lists are reached by number, and relative paths are meant from the shell's folder."""
    path = write(MINIMAL, "deep/x.yaml")
    monkeypatch.chdir(tmp_path)
    experiment = load(
        path, ["retrieval.top_k=3", "sources.0.name=other", "runs=out", "store.metric=euclidean"]
    )
    assert (experiment.retrieval.top_k, experiment.sources[0].name) == (3, "other")
    assert (experiment.runs, experiment.store.metric) == (tmp_path / "out", "euclidean")


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("tracking.uri=sqlite:///m.db", lambda e: e.tracking.uri.removeprefix("sqlite:///")),
        ("tracking={uri: 'sqlite:///m.db'}", lambda e: e.tracking.uri.removeprefix("sqlite:///")),
        ("store={kind: local, path: m.db}", lambda e: e.store.path),
        ("sources.0={kind: local, name: docs, path: m.db}", lambda e: e.sources[0].path),
        ("sources=[{kind: local, name: docs, path: m.db}]", lambda e: e.sources[0].path),
        ("cache.path=m.db", lambda e: e.cache.path),
    ],
)
def test_every_place_of_an_override_is_meant_from_here(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    override: str,
    place: Callable[[Any], object],
) -> None:
    """Absolute then, also where a whole section is set; the same in a file is meant from the file."""
    path = write(MINIMAL, "deep/x.yaml")
    monkeypatch.chdir(tmp_path)
    experiment = load(path, [override])
    monkeypatch.chdir("/")
    assert str(place(experiment)) == str(tmp_path / "m.db")


def test_a_tracking_file_is_beside_the_experiment_that_names_it(write: Write, tmp_path: Path) -> None:
    """An address without a file is a fault, not the folder."""
    tracking = load(write(MINIMAL + "tracking: {uri: 'sqlite:///m.db'}\n", "deep/x.yaml")).tracking
    assert tracking is not None
    assert tracking.uri == f"sqlite:///{tmp_path / 'deep' / 'm.db'}"
    assert "tracking.uri: string should match pattern" in message(write(MINIMAL), "tracking.uri=sqlite:///")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("retrieval.top_k", "--set retrieval.top_k: write section.key=value"),
        ("sources.7.name=a", "--set sources.7.name: there is no sources.7"),
        ("retrieval.topk=3", "retrieval.topk: unknown key; did you mean top_k?"),
        ("name.a=3", "--set name.a: name is not a section"),
        ("extends=other.yaml", "--set extends: a file says itself what it extends"),
    ],
)
def test_set_faults(write: Write, override: str, words: str) -> None:
    """A mistyped override is never ignored."""
    assert words in message(write(MINIMAL), override)


def test_secrets_are_masked(write: Write) -> None:
    """Neither a key nor a password in a URL is shown."""
    path = write(
        MINIMAL
        + "parsing: {pdf_passwords: [hunter2]}\n"
        + "embedding: {kind: openai, base_url: 'http://127.0.0.1/v1', model: m, api_key: sk-123}\n"
        + "tracking: {uri: 'http://me:s3cret@127.0.0.1/v1'}\n"
    )
    shown = str(masked(load(path)))
    assert "hunter2" not in shown
    assert "s3cret" not in shown
    assert "sk-123" not in shown
    assert "http://me:**********@127.0.0.1/v1" in shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host/v1?key=s3cret&v=2", "http://host/v1?key=**********&v=**********"),
        (
            "postgresql://me:s3cret@host/db?password=s3cret",
            "postgresql://me:**********@host/db?password=**********",
        ),
        ("https://host/?flag", "https://host/?flag"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://[::1", "**********"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(write: Write, address: str, shown: str) -> None:
    """A key or token often stands in the query; the names there are shown, the values are not."""
    path = write(f"name: x\nsources: [{{kind: local, name: d, path: p, metadata: {{from: '{address}'}}}}]\n")
    assert masked(load(path))["sources"][0]["metadata"]["from"] == shown


@pytest.mark.parametrize("section", ["embedding", "generation"])
@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("foo", "foo is not an address such as http://127.0.0.1:8080/v1"),
        ("localhost:8080/v1", "localhost:8080/v1 is not an address such as http://127.0.0.1:8080/v1"),
        ("ftp://host/v1", "ftp://host/v1 is not an address such as http://127.0.0.1:8080/v1"),
        ("http://", "http:// is not an address such as http://127.0.0.1:8080/v1"),
        ("http://user:sesame@host/v1", "holds a user or password; a key goes into api_key"),
        (
            "http://host/v1?key=sesame",
            'goes on behind a "?" or "#"; end it before; a key goes into api_key',
        ),
        ("http://[::1/v1", "not an address"),
    ],
)
def test_a_wrong_address_is_found_as_the_file_is_read(
    write: Write, section: str, address: str, fault: str
) -> None:
    """Before an ingest has begun; a password in it is not repeated."""
    said = message(write(MINIMAL + f"{section}: {{kind: openai, model: m, base_url: '{address}'}}\n"))
    assert said.endswith(f"\n  {section}.base_url: {fault}")
    assert "sesame" not in said


def test_a_tracking_server_has_no_query(write: Write) -> None:
    """MLflow repeats the address in its errors, so no token may stand there."""
    said = message(write(MINIMAL), "tracking.uri=http://host/?token=s3cret")
    assert "tracking.uri: string should match pattern" in said
    assert "s3cret" not in said


def test_reserved_metadata_keys_are_refused(write: Write) -> None:
    """A document's own "text" would overwrite the chunk's."""
    path = write("name: x\nsources: [{kind: local, name: d, path: p, metadata: {text: a}}]\n")
    assert "sources.0.metadata: text: ragctl writes this key itself, use another name" in message(path)


def test_two_sources_of_one_name_are_refused(write: Write) -> None:
    """Their documents would come under the same ids."""
    path = write("name: x\nsources: [{kind: local, name: d, path: p}, {kind: local, name: d, path: q}]\n")
    assert "sources: name used twice: d" in message(path)
