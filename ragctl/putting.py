"""Records on their way into the store: batches by count and bytes, each as full as it gets."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragctl.adapters.base import VectorStore
    from ragctl.records import VectorRecord
    from ragctl.under_way import OpenDocument

PATIENCE_S = 30.0  # records wait so long at most for their put to fill up

Batch = list[tuple["OpenDocument", "VectorRecord"]]


class PutQueue:
    """Owned by one thread."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._records: deque[tuple[OpenDocument, VectorRecord, int]] = deque()  # with the bytes of each
        self._bytes = 0
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def has_full(self) -> bool:
        """Whether there is enough for a whole batch."""
        limits = self._store.limits
        return len(self._records) >= limits.put_records or self._bytes >= limits.put_bytes

    @property
    def is_late(self) -> bool:
        """Whether records have waited long enough for others."""
        return bool(self._records) and monotonic() - self._since > PATIENCE_S

    def add(self, document: OpenDocument, record: VectorRecord) -> None:
        """Take a record that has passed the store's `check`."""
        if not self._records:
            self._since = monotonic()
        size = self._store.encoded_size(record)
        self._records.append((document, record, size))
        self._bytes += size

    def take(self) -> tuple[Batch, Batch]:
        """The next batch, within the store's limits; and records before it whose document has failed meanwhile."""
        limits = self._store.limits
        batch: Batch = []
        dropped: Batch = []
        size = 0
        while self._records and len(batch) < limits.put_records:
            document, record, taken = self._records[0]
            size += taken
            if batch and size > limits.put_bytes:
                break
            self._records.popleft()
            self._bytes -= taken
            (dropped if document.failed else batch).append((document, record))
        self._since = monotonic()
        return batch, dropped
