"""What is in the store goes into the ledger, and what the ledger no longer has goes from the store."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragctl.manifest import DocumentRow, Failure, FileRow
    from ragctl.under_way import Counts, Services

SETTLE_DOCUMENTS = 5_000  # documents that one save of the ledger takes at most ...
# ... and how many are saved after a second, so that little is left for the end.
SOME_DOCUMENTS, SOME_S = 500, 1.0


class Settling:
    """Rows that wait to be saved, and keys that wait to be deleted. Owned by one thread."""

    def __init__(self, services: Services, counts: Counts) -> None:
        self._s = services
        self._counts = counts
        self._gone: list[str] = []  # keys to delete once the ledger that no longer has them is published
        self._saved = monotonic()
        self._clear()

    def _clear(self) -> None:
        self._documents: list[DocumentRow] = []
        self._files: list[FileRow] = []
        self._failures: list[Failure] = []
        self._failing: dict[str, set[str]] = {}  # files worked through, with their documents that failed

    @property
    def is_due(self) -> bool:
        """Whether it is time to save: a while has passed, or there is much."""
        waiting, since = len(self._documents) + len(self._files), monotonic() - self._saved
        some = waiting >= SOME_DOCUMENTS and since > SOME_S
        return some or waiting >= SETTLE_DOCUMENTS or since > self._s.experiment.ingest.checkpoint_s

    def document(self, row: DocumentRow) -> None:
        """A document is in the store, whole."""
        self._documents.append(row)

    def file(self, row: FileRow, failed: set[str] | None = None) -> None:
        """A file is worked through; `failed`: its documents that failed, None where none was looked at."""
        self._files.append(row)
        if failed is not None:
            self._failing[row.id] = failed

    def failure(self, failure: Failure) -> None:
        """A document has failed."""
        self._failures.append(failure)

    def save(self) -> None:
        """Save the ledger, then delete from the store what no document has any more."""
        self._saved = monotonic()
        if not (self._documents or self._files or self._failures):
            return
        self._gone += self._s.ledger.settle(self._documents, self._files, self._failures, self._failing)
        self._clear()
        if self._s.ledger.publish():
            gone, self._gone = self._gone, []
            self._counts.removed += delete_keys(self._s, gone)


def delete_keys(services: Services, keys: list[str]) -> int:
    """Delete loose keys from the store, and then from the ledger; how many."""
    size = services.store.limits.delete_keys
    for first in range(0, len(keys), size):
        services.lease.check()
        batch = keys[first : first + size]
        services.store.delete(batch)
        services.ledger.deleted(batch)
    return len(keys)
