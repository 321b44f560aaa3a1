"""What is left of an experiment beside its indexes and models: files in the state location, and cached embeddings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ragctl import deployment, teardown, tenancy
from ragctl.indexes import Resource, exists
from ragctl.lease import hold
from ragctl.state import lease_name, state_at

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.state import State

FILE: Final = "state file"
CACHE: Final = "embedding cache"
_CACHED: Final = re.compile(r"[0-9a-f]{20}(\.sqlite(-journal)?|/[0-9a-f]{20}\.npz)")  # as cache.py names them


class StatePart:
    """The experiment's files in the state location, as far as what they are about is gone.

    Other experiments may keep their state in the same place, and prices that were fetched are for all of them: what
    is not this experiment's stays.
    """

    def __init__(
        self,
        experiment: Experiment,
        state: State,
        each: Mapping[str, Sequence[Experiment]],
        going: frozenset[str],
        *,
        models_go: bool,
    ) -> None:
        """`each`: by the name of an index that the config names, an experiment for each index that it stands for.

        `going`: the names of the indexes that other parts remove before; `models_go`: the models, too.
        """
        self._experiment = experiment
        self._state = state
        self._each = each
        self._going = going
        self._models_go = models_go

    @property
    def _lease(self) -> str:
        return deployment.lease_name(self._experiment.name)

    def leases(self) -> list[str]:
        """Those whose files are to go."""
        going = [item.name for item in self.plan() if item.action == "delete"]
        return [name for name in going if name == self._lease or _is_lease(name)]

    def plan(self) -> list[Resource]:
        """See `Part`; ledgers, tenants and the record that go with indexes and models are told with those."""
        return [resource for _, files in self._folders(self._going) for resource in files] + self._deployed(
            ahead=self._models_go
        )

    def remove(self, tell: Callable[[str], None]) -> list[Resource]:
        """See `Part`."""
        tell(f"state of {self._experiment.name}: deleting what is about nothing that exists")
        folders = [*self._folders(frozenset()), (self._lease, self._deployed(ahead=False))]
        return [resource for lease, files in folders for resource in self._without(lease, files)]

    def _folders(self, going: frozenset[str]) -> Iterator[tuple[str, list[Resource]]]:
        """The lease and the files of each index."""
        for index, ones in self._all():
            alive = any(one.store.index not in going and exists(one) for one in ones)
            told = bool(ones) and not alive and any(one.store.index in going for one in ones)
            files = [
                Resource(FILE, name, "kept", "its index is there")
                if alive
                else Resource(FILE, name, "delete")
                for name in self._state.names(f"{index}/")
                if not (told and name != lease_name(index))
            ]
            yield lease_name(index), files

    def _all(self) -> Iterator[tuple[str, Sequence[Experiment]]]:
        """Every index of the experiment that may have files, with those whose being there keeps them."""
        for index, ones in self._each.items():
            yield index, ones
            if not tenancy.has_index_each(self._experiment):
                continue
            yield from ((one.store.index, [one]) for one in ones)
            known = {one.store.index for one in ones}
            yield from ((name, ()) for name in self._forgotten(index) if name not in known)

    def _forgotten(self, index: str) -> list[str]:
        """The tenants' indexes of which nothing but a lease is left, and no list that names them.

        A folder that holds anything else may belong to another experiment, whose index has a name that begins so.
        """
        names = self._state.names(f"{index}.")
        files = Counter(name.rpartition("/")[0] for name in names)
        leased = {name.rpartition("/")[0] for name in names if _is_lease(name)}
        return sorted(folder for folder in leased if files[folder] == 1)

    def _deployed(self, *, ahead: bool) -> list[Resource]:
        """The deployment record and its lease, once no model is left."""
        stack = self._experiment.name
        record, _ = deployment.read(self._state, stack)
        files = (self._lease, deployment.record_name(stack))
        names = [name for name in files if self._state.read(name) is not None]
        if record is not None and ahead:
            names.remove(deployment.record_name(stack))
        elif record is not None and teardown.models(self._experiment).found:
            return [Resource(FILE, name, "kept", "models are deployed") for name in names]
        return [Resource(FILE, name, "delete") for name in names]

    def _without(self, lease: str, files: Sequence[Resource]) -> list[Resource]:
        """The files of one lease after their removal; the lease goes last."""
        going = [item.name for item in files if item.action == "delete"]
        if not going:
            return list(files)
        with hold(self._state, lease, "teardown") as held:
            for name in going:
                if name != lease:
                    self._state.delete(name)
            held.remove()
        return [item for item in files if item.action != "delete"] + [
            Resource(FILE, name, "deleted") for name in going
        ]


class CachePart:
    """The embedding cache, which other experiments may use: removed only when it is asked for by name."""

    def __init__(self, experiment: Experiment, *, asked: bool) -> None:
        assert experiment.cache is not None
        self._place = experiment.cache.path
        self._state = state_at(self._place, experiment)
        self._asked = asked

    def leases(self) -> list[str]:
        """None: a cache is added to without one."""
        return []

    def plan(self) -> list[Resource]:
        """See `Part`."""
        files = self._files()
        if not files:
            return [Resource(CACHE, self._place, "absent")]
        if not self._asked:
            return [Resource(CACHE, self._place, "kept", "other experiments may use it; --state removes it")]
        return [Resource(CACHE, self._place, "delete", "its texts are paid for again")]

    def remove(self, tell: Callable[[str], None]) -> list[Resource]:
        """See `Part`."""
        planned = self.plan()
        if planned[0].action != "delete":
            return planned
        tell(f"{CACHE} {self._place}: deleting")
        for name in self._files():
            self._state.delete(name)
        if self._files():
            return [Resource(CACHE, self._place, "left", "somebody is filling it")]
        return [Resource(CACHE, self._place, "deleted")]

    def _files(self) -> list[str]:
        return [name for name in self._state.names("") if _CACHED.fullmatch(name)]


def _is_lease(name: str) -> bool:
    """Whether it is the lease of an index."""
    return name == lease_name(name.rpartition("/")[0])
