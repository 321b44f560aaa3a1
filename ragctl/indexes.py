"""The experiment's index: what it must be like, made if absent, and never used when it was made otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragctl.adapters.base import IndexInfo, IndexSpec
from ragctl.errors import NotFound, Refused
from ragctl.records import NON_FILTERABLE

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, VectorStore
    from ragctl.config import Experiment

OTHER_INDEX = "name another index in store.index, or remove this one: ragctl teardown CONFIG --index"


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that exists, and what became of it. action: "created", "kept", "deleted", "absent" ..."""

    type: str
    name: str
    action: str
    status: str = ""


def spec_of(experiment: Experiment, embedder: Embedder) -> IndexSpec:
    """What the experiment's index must be like."""
    store = experiment.store
    return IndexSpec(
        dimension=embedder.dimension,
        metric=store.metric,
        embedder=embedder.identity,
        non_filterable=tuple(dict.fromkeys((*NON_FILTERABLE, *store.non_filterable))),
        text_search=store.text_search if store.kind == "s3vectors" else True,
        language=store.language,
    )


def create(experiment: Experiment, store: VectorStore, embedder: Embedder, *, dry_run: bool) -> Resource:
    """Make the index, or find that it is there and right. Raises Refused when it is there and differs."""
    spec = spec_of(experiment, embedder)
    name = experiment.store.index
    if dry_run:
        info = store.describe()
        if info is None:
            return Resource("index", name, "would create", _about(spec))
        refuse_other_settings(info, spec)
        return Resource("index", name, "kept", _about(spec))
    created = store.create(spec)
    return Resource("index", name, "created" if created else "kept", _about(spec))


def differences(info: IndexInfo, spec: IndexSpec) -> list[str]:
    """Name every setting of an index that is not as asked for; what the index does not say is taken as it is."""
    return [
        f"{what}: the index has {there}, the experiment asks for {here}"
        for what, there, here in (
            ("embedder", info.embedder, spec.embedder),
            ("dimension", info.dimension, spec.dimension),
            ("metric", info.metric, spec.metric),
            ("non-filterable keys", _listed(info.non_filterable), _listed(spec.non_filterable)),
            *(_text_settings(info, spec) if spec.text_search else ()),
        )
        if there not in (None, here)
    ]


def refuse_other_settings(info: IndexInfo, spec: IndexSpec) -> None:
    """Raise Refused when vectors of `spec` do not belong into the index `info`."""
    if found := differences(info, spec):
        raise Refused(
            f"index {info.name} was made with other settings\n  " + "\n  ".join(found), hint=OTHER_INDEX
        )


def _text_settings(info: IndexInfo, spec: IndexSpec) -> Iterator[tuple[str, str, str]]:
    yield "text search", "yes" if info.text_search else "no", "yes"
    if info.text_search:
        yield "language", info.language or "none", spec.language or "none"


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys)) or "none"


def require(store: VectorStore, name: str) -> IndexInfo:
    """What the index is like. Raises NotFound where there is none."""
    info = store.describe()
    if info is None:
        raise NotFound(f"there is no index {name}", hint="make and fill it: ragctl ingest CONFIG")
    return info


def _about(spec: IndexSpec) -> str:
    return f"{spec.dimension} dimensions, {spec.metric}, {spec.embedder}"
