"""A ledger that lives in a bucket, for machines that do not last.

The run works on a copy and publishes it whole, by a write that is conditional on nobody else having published: at the
start, about once a minute, and at the end. Between two publications every put is announced beforehand by a small journal
file that names its keys. A run that dies leaves journal files; the next one reads them, so it knows every key that
may be in the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from ragctl.errors import LeaseLost, StateError
from ragctl.manifest import Ledger, fence_seen
from ragctl.state import Conflict

if TYPE_CHECKING:
    from ragctl.lease import Lease
    from ragctl.state import State

PUBLISH_EVERY_S = 60.0
SHARE = 0.05  # of the time, at most, goes into publishing: a large ledger is published less often


class RemoteLedger(Ledger):
    """See the module. `name` is the ledger's file in the state location, `path` that of the local copy.

    `anew`: the ledger is empty, and what is in the bucket, journal and all, stays as it is until this one is published
    in its place. Raises StateError for a damaged journal, without which nobody knows what may be in the store.
    """

    def __init__(self, state: State, name: str, path: Path, lease: Lease, *, anew: bool = False) -> None:
        self._state = state
        self._name = name
        self._journal = f"{name}.journal/"
        found = state.read(name)
        self._version = found.version if found else None
        if found:
            path.write_bytes(found.data)
        fence = lease.fence_above(fence_seen(path))
        if anew:
            path.unlink(missing_ok=True)
        super().__init__(path, fence=fence, place=f"{state.place.rstrip('/')}/{name}")
        self._announced: list[str] = []
        self._published = monotonic()
        self._took_s = 0.0
        if anew:
            self._announced = state.names(self._journal)
        else:
            self._take_journal()
            self.publish(force=True)

    def declare(self, rewritten: Iterable[str], added: Iterable[str], keys: Iterable[str]) -> None:
        declared = {"documents": [*rewritten, *added], "keys": list(keys)}
        super().declare(declared["documents"], (), declared["keys"])
        name = f"{self._journal}{self._fence:08d}-{len(self._announced):08d}.json"
        self._state.overwrite(name, json.dumps(declared).encode())
        self._announced.append(name)

    def publish(self, *, force: bool = False) -> bool:
        """Put the ledger into the bucket if it is time; False when it is not. Raises LeaseLost."""
        start = monotonic()
        if not force and start - self._published < max(PUBLISH_EVERY_S, self._took_s / SHARE):
            return False
        try:
            self._version = self._state.write(self._name, self.path.read_bytes(), expect=self._version)
        except Conflict as error:
            raise LeaseLost(
                "another run took over this index while this one was paused",
                hint="what is saved is consistent; run the command again",
            ) from error
        for name in self._announced:
            self._state.delete(name)
        self._announced = []
        self._published = monotonic()
        self._took_s = self._published - start
        return True

    def _take_journal(self) -> None:
        """Take over what a run that died announced: its keys are loose, its documents not done.

        A run may die after it published and before it removed its journal: what documents vouch for is not loose.
        """
        for name in self._state.names(self._journal):
            found = self._state.read(name)
            if found is not None:
                documents, keys = self._announcement(name, found.data)
                rows = [self.document(document_id) for document_id in documents]
                vouched = {key for row in rows if row is not None for key in row.keys}
                super().declare(documents, (), [key for key in keys if key not in vouched])
                self._announced.append(name)

    def _announcement(self, name: str, data: bytes) -> tuple[list[str], list[str]]:
        """The documents and keys that a file of the journal names."""
        try:
            declared = json.loads(data)
            documents, keys = list(declared["documents"]), list(declared["keys"])
        except (ValueError, TypeError, KeyError):
            pass
        else:
            if all(isinstance(text, str) for text in (*documents, *keys)):
                return documents, keys
        raise StateError(
            f"{self._state.place.rstrip('/')}/{name}: is damaged: what a run that died put into the index is not known",
            hint="make the ledger anew from the index: ragctl ledger rebuild CONFIG",
        )
