"""Two experiments in one folder: each has its own index, and one that is named by both is filled by one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ragctl.config import index_of
from tests.cli import Ended, in_process, write_docs
from tests.experiments import experiment as in_memory

FORMER = ("--set", "store.index=default")


def config(folder: Path, name: str, **sections: object) -> Path:
    """An experiment over `folder/docs/<name>`, which shares all places with the others in the folder."""
    source = {"kind": "local", "name": "docs", "path": f"docs/{name}"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "sources": [source], "ingest": {"workers": 1}, **sections}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_docs(tmp_path, {"fruit/a.md": "Apples are red.\n", "tools/a.md": "Hammers are heavy.\n"})
    return tmp_path


def found(config: Path, *options: str) -> str:
    ended = in_process("query", config, "what is it like", "--retrieve-only", *options)
    assert ended.status == 0, ended.err
    return ended.out


def refused(ended: Ended) -> str:
    assert (ended.status, ended.out) == (6, ""), ended.err
    return ended.err


def test_an_index_for_each_that_names_none(folder: Path) -> None:
    """The same source name and file name in both: neither takes the place of the other's document."""
    fruit, tools = config(folder, "fruit"), config(folder, "tools")
    for path in (fruit, tools):
        assert in_process("ingest", path).status == 0
    assert "Apples" in found(fruit)
    assert "Apples" not in found(tools)
    assert "Hammers" in found(tools)


@pytest.mark.parametrize(
    ("name", "index"),
    [("papers", "papers"), ("x", "x-index"), ("a-", "a-index"), ("papers--", "papers"), ("p" * 63, "p" * 63)],
)
def test_the_name_of_the_index_is_one_that_every_store_takes(name: str, index: str) -> None:
    """Three characters at least, and no hyphen at the end."""
    assert index_of(name) == index
    assert in_memory(name=name).store.index == index
    assert in_memory(name=name, store={"kind": "s3vectors", "bucket": "library"}).store.index == index
    assert in_memory(name=name, store={"metric": "euclidean"}).store.index == index


def test_an_index_that_is_named_stays_as_it_is() -> None:
    """A setting wins over the default."""
    assert in_memory(store={"index": "mine"}).store.index == "mine"


@pytest.mark.parametrize(
    "command",
    [("ingest",), ("ingest", "--dry-run"), ("plan",), ("verify", "--full"), ("verify", "--repair")],
)
def test_the_index_of_another_experiment_is_not_filled(folder: Path, command: tuple[str, ...]) -> None:
    """Both name it: whichever way, nothing of the first is touched, and the second may query it."""
    fruit, tools = (config(folder, name, store={"index": "shared"}) for name in ("fruit", "tools"))
    assert in_process("ingest", fruit).status == 0
    said = refused(in_process(command[0], tools, *command[1:]))
    assert "index shared is filled by experiment fruit" in said
    assert "name another index in store.index" in said
    assert "Apples" in found(fruit)
    assert "Apples" in found(tools)


def test_an_experiment_that_has_only_changed_its_name(folder: Path) -> None:
    """The way out that the refusal names keeps what is there, and the index is the renamed one's from then on."""
    path = config(folder, "fruit", store={"index": "kept"})
    assert in_process("ingest", path).status == 0
    renamed = ("--set", "name=apples")
    assert "ragctl ledger rebuild CONFIG" in refused(in_process("ingest", path, *renamed))
    assert in_process("ledger", "rebuild", path, *renamed).status == 0
    again = in_process("ingest", path, "--json", *renamed)
    assert (again.status, again.json["chunks"]["total"], again.json["chunks"]["deleted"]) == (0, 1, 0)
    assert "is filled by experiment apples" in refused(in_process("ingest", path))


@pytest.mark.parametrize("sections", [{}, {"indexes": {"fine": {"chunking": {"size": 50}}}}])
def test_what_stands_in_an_index_of_the_former_name_is_not_embedded_again(
    folder: Path, sections: dict[str, object]
) -> None:
    """An experiment that named no index was in `default`: it says what to do, and another one is not kept."""
    fruit, tools = config(folder, "fruit", **sections), config(folder, "tools", **sections)
    assert in_process("ingest", fruit, *FORMER).status == 0
    for dry in ((), ("--dry-run",)):
        said = refused(in_process("ingest", fruit, *dry))
        assert "this experiment is in index default" in said
        assert "keep it: store.index: default" in said
    assert in_process("ingest", tools).status == 0
    assert in_process("ingest", fruit, *FORMER).status == 0
    assert in_process("teardown", fruit, "--index", "--yes", *FORMER).status == 0
    assert in_process("ingest", fruit).status == 0
