"""The experiment's indexes: which there are, what they must be like; never used when they were made otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragctl.adapters import open_store
from ragctl.adapters.base import IndexInfo, IndexSpec
from ragctl.errors import ConfigError, NotFound, Refused
from ragctl.records import NON_FILTERABLE

if TYPE_CHECKING:
    from ragctl.adapters.base import Embedder, VectorStore
    from ragctl.adapters.s3vectors import S3VectorsStore
    from ragctl.config import Experiment

OTHER_INDEX = "name another index in store.index, or remove this one: ragctl teardown CONFIG --index"


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that exists, and what became of it. action: "created", "kept", "deleted", "absent" ..."""

    type: str
    name: str
    action: str
    status: str = ""


def named(experiment: Experiment, name: str | None = None) -> list[Experiment]:
    """An experiment for each index under `indexes`, or for that of this name alone; one without `indexes` is its own.

    Raises ConfigError when there is no index of this name.
    """
    known = list(experiment.indexes)
    if name is not None and name not in known:
        if not known:
            raise ConfigError("this experiment has one index, without a name", hint="leave the name out")
        raise ConfigError(f"there is no index {name} in this experiment", hint=f"known: {', '.join(known)}")
    if not known:
        return [experiment]
    return [_alone(experiment, each) for each in known if name in (None, each)]


def only(experiment: Experiment, name: str | None) -> Experiment:
    """The experiment over one index. Raises ConfigError where there are several and none is named."""
    one, *more = named(experiment, name)
    if more:
        names = list(experiment.indexes)
        raise ConfigError(
            f"this experiment has several indexes: {', '.join(names)}", hint=f"say which: --index {names[0]}"
        )
    return one


def _alone(experiment: Experiment, name: str) -> Experiment:
    store = experiment.store
    own: dict[str, object] = {
        "store": store.model_copy(update={"index": f"{store.index}-{name}"}),
        "chunking": experiment.indexes[name].chunking,
        "indexes": {},
    }
    return experiment.model_copy(update=own)


def spec_of(experiment: Experiment, embedder: Embedder) -> IndexSpec:
    """What the experiment's index must be like."""
    store = experiment.store
    return IndexSpec(
        dimension=embedder.dimension,
        metric=store.metric,
        embedder=embedder.identity,
        non_filterable=tuple(dict.fromkeys((*NON_FILTERABLE, *store.non_filterable))),
        text_search=store.text_search,
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


def upgrade(experiment: Experiment, store: S3VectorsStore, embedder: Embedder, *, dry_run: bool) -> Resource:
    """Turn the index, and the bucket that it is made in, to what text search needs; make it where it is absent.

    Raises Refused, before anything is changed, when it differs in what no upgrade can change.
    """
    spec = spec_of(experiment, embedder)
    info = store.describe()
    if info is not None:
        refuse_other_settings(info, replace(spec, text_search=spec.text_search and info.text_search))
    steps = store.upgrade(spec, dry_run=dry_run)
    if dry_run:
        action = "would create" if info is None else "would upgrade" if steps else "kept"
    else:
        action = "created" if store.create(spec) else "upgraded" if steps else "kept"
    return Resource("index", experiment.store.index, action, "; ".join(steps) or _about(spec))


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


def exists(experiment: Experiment) -> bool:
    """Whether the experiment's one index is there."""
    with closing(open_store(experiment)) as store:
        return store.describe() is not None


def _about(spec: IndexSpec) -> str:
    return f"{spec.dimension} dimensions, {spec.metric}, {spec.embedder}"
