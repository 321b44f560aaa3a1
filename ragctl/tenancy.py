"""Tenants: whose a document is, and, where each has an index of its own, which index that is.

A tenant is named by one metadata key. Its value comes from the config, the path or a field of a record, never from
what a document says of itself, and is compared letter by letter; the number 42 and the text "42" are one tenant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ragctl.errors import StateError
from ragctl.records import RESERVED, short_hash
from ragctl.state import Conflict

if TYPE_CHECKING:
    from ragctl.config import Experiment, Source
    from ragctl.state import State

SELF_MADE: Final = frozenset({"title", "page_count"})  # metadata that a document gives itself
MAX_INDEX: Final = 63  # characters of an index name (S3 Vectors, CreateIndex)
MAX_BASE: Final = 40  # of store.index: leaves room for two dots, a hash of 20 and a letter of the tenant
SCHEMA: Final = "ragctl.tenants/1"

_PLAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")


def tenant_of(metadata: Mapping[str, object], key: str) -> str | None:
    """The tenant that metadata name under `key`; None where they name none, or something that is no name."""
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    return text if text.strip() else None


def fault(metadata: Mapping[str, object], key: str, *, required: bool) -> str | None:
    """Why a document with these metadata must not get in; None where it may."""
    if tenant_of(metadata, key) is not None:
        return None
    if metadata.get(key) not in (None, ""):
        return f"its {key} names no tenant: a tenant is a text or a whole number"
    return f"has no {key}, which tenancy.key requires of every document" if required else None


# --- settings --------------------------------------------------------------------------------------------


def has_index_each(experiment: Experiment) -> bool:
    """Whether every tenant has an index of its own."""
    return experiment.tenancy is not None and experiment.tenancy.layout == "index"


def setting_faults(experiment: Experiment) -> Iterator[str]:
    """What is wrong with the settings of an experiment that has tenants; each with its path."""
    tenancy = experiment.tenancy
    if tenancy is None:
        return
    key = tenancy.key
    if not _KEY.fullmatch(key):
        yield f"tenancy.key: {key!r} is no metadata key: a letter, then letters, digits, _ . -"
    if key in RESERVED | SELF_MADE:
        yield f"tenancy.key: {key} is not yours to give: ragctl or the document itself writes it"
    if key in experiment.store.non_filterable:
        yield f"store.non_filterable: {key} must stay filterable, because tenancy.key keeps tenants apart by it"
    if tenancy.layout == "index" and not tenancy.required:
        yield "tenancy.required: must be true where each tenant has an index"
    if tenancy.layout == "index" and len(experiment.store.index) > MAX_BASE:
        yield f"store.index: at most {MAX_BASE} characters where each tenant has an index: its name follows"
    for source in experiment.sources:
        yield from _source_faults(source, key, known_early=tenancy.layout == "index")


def _source_faults(source: Source, key: str, *, known_early: bool) -> Iterator[str]:
    """`known_early`: the tenant must be known before a file is opened."""
    where = f"sources.{source.name}"
    by_config = key in source.metadata
    by_path = f"{{{key}}}" in (source.path_metadata or "")
    by_record = any(key in rules.metadata for rules in source.records)
    if by_config and tenant_of(source.metadata, key) is None:
        yield f"{where}.metadata.{key}: names no tenant: a tenant is a text or a whole number"
    if by_config + by_path + by_record > 1:
        yield (
            f"{where}: {key} must come from one place, so that no document can choose its tenant: "
            "metadata, path_metadata or records.metadata"
        )
    elif known_early and not (by_config or by_path):
        yield (
            f"{where}: {key} must come from metadata or path_metadata where each tenant has an index: "
            "a file must be routed before it is opened"
        )


# --- an index for each -----------------------------------------------------------------------------------


def index_name(base: str, tenant: str) -> str:
    """The index of a tenant: "docs.acme"; where the name has to be changed for it, a hash keeps tenants apart.

    A plain name has no dot and a changed one ends in a dot and 80 bits of hash, so the two never meet.
    """
    plain = f"{base}.{tenant}"
    if _PLAIN.fullmatch(tenant) and len(plain) <= MAX_INDEX:
        return plain
    tail = short_hash(tenant)
    room = MAX_INDEX - len(base) - len(tail) - 2
    readable = re.sub(r"[^a-z0-9]+", "-", tenant.lower())[:room].strip("-")
    return f"{base}.{readable or 't'}.{tail}"


def of_tenant(experiment: Experiment, tenant: str) -> Experiment:
    """The experiment over one tenant's index alone; its queries are filtered all the same."""
    assert experiment.tenancy is not None
    store = experiment.store
    own = store.model_copy(update={"index": index_name(store.index, tenant)})
    one = experiment.tenancy.model_copy(update={"layout": "filter"})
    return experiment.model_copy(update={"store": own, "tenancy": one})


def per_index(experiment: Experiment, state: State) -> list[Experiment]:
    """An experiment for each index that this one has: itself, or one for each tenant that it has had documents of."""
    if not has_index_each(experiment):
        return [experiment]
    return [of_tenant(experiment, tenant) for tenant in Registry(experiment, state).tenants()]


@dataclass(frozen=True, slots=True)
class Registry:
    """The tenants that have, or are about to have, an index: entered before it is made, so that none is forgotten."""

    experiment: Experiment
    state: State

    @property
    def name(self) -> str:
        """The file in the state location."""
        return f"{self.experiment.store.index}/tenants.json"

    def tenants(self) -> list[str]:
        """Every tenant, sorted. StateError when the file is damaged."""
        return self._read()[0]

    def add(self, tenants: list[str]) -> list[str]:
        """Enter tenants; all that are known then, sorted."""
        while True:
            known, version = self._read()
            union = sorted({*known, *tenants})
            if union == known:
                return known
            data = json.dumps({"schema": SCHEMA, "tenants": union}).encode()
            try:
                self.state.write(self.name, data, expect=version)
            except Conflict:
                continue
            return union

    def remove(self) -> None:
        """Forget all of them: their indexes are gone."""
        self.state.delete(self.name)

    def _read(self) -> tuple[list[str], str | None]:
        found = self.state.read(self.name)
        if found is None:
            return [], None
        try:
            document = json.loads(found.data)
            if document["schema"] != SCHEMA:
                raise StateError(f"{self.state.place}/{self.name}: written by another version of ragctl")
            return [str(tenant) for tenant in document["tenants"]], found.version
        except (ValueError, TypeError, KeyError) as error:
            raise StateError(
                f"{self.state.place}/{self.name}: is damaged",
                hint="remove the file; the next ingest enters every tenant that has documents",
            ) from error
