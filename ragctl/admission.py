"""Which documents the budget of a run bears, and what they still owe of what was promised for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ragctl.spending import stored_size
from ragctl.under_way import metadata_of

if TYPE_CHECKING:
    from ragctl.embedding import Outcome
    from ragctl.records import Chunk
    from ragctl.spending import IngestBill
    from ragctl.under_way import OpenDocument, Services


class Admission:
    """Documents in the order in which they came; without a cap each is admitted at once. Owned by one thread."""

    def __init__(self, services: Services, bill: IngestBill) -> None:
        self._s = services
        self._bill = bill
        self._waiting: deque[OpenDocument] = deque()

    def __bool__(self) -> bool:
        """Whether some document waits."""
        return bool(self._waiting)

    def offer(self, document: OpenDocument) -> None:
        """Have a document wait for its admission."""
        self._waiting.append(document)

    def admitted(self) -> Iterator[OpenDocument]:
        """The documents that the budget bears now. What is under way may turn out cheaper than was thought, so one
        that it does not bear is asked for again.
        """
        while self._waiting and (self._bill.cap is None or self._affords(self._waiting[0])):
            yield self._waiting.popleft()

    def too_dear(self) -> OpenDocument | None:
        """The next document, taken from those that wait, if no run of this budget could ever bear it."""
        first = self._waiting[0]
        if self._bill.bears(first.owed_text, first.owed_stored):
            return None
        first.owed_text = first.owed_stored = 0  # nothing was promised
        return self._waiting.popleft()

    def turn_away(self) -> list[OpenDocument]:
        """The documents that wait, which nothing will come of; the budget is spent."""
        turned_away = list(self._waiting)
        self._waiting.clear()
        self._bill.is_spent = True
        return turned_away

    def paid(self, outcome: Outcome, tokens: int) -> None:
        """Put texts that have their vectors on the bill, with the tokens that the service reports for them."""
        size = 0
        for wanted, _ in outcome.vectors:
            text = len(wanted.text.encode("utf-8", "replace"))
            size += text
            paid = min(text, wanted.document.owed_text)
            wanted.document.owed_text -= paid
            self._bill.release(paid, 0)
        if size:
            self._bill.embedded(size, tokens)

    def closed(self, document: OpenDocument) -> None:
        """Nothing more comes of a document: what it still owes is free for others."""
        self._bill.release(document.owed_text, document.owed_stored)

    def _affords(self, document: OpenDocument) -> bool:
        """Whether the cap of the bill bears the document, as a whole: a part of one would be paid for in vain."""
        cut = document.cut
        known = document.known
        chunks = list(zip(cut.keys, cut.chunks, strict=True))
        text = sum(len(chunk.text.encode("utf-8", "replace")) for key, chunk in chunks if key not in known)
        stored = sum(self._stored_size(document, key, chunk) for key, chunk in chunks)
        document.owed_text, document.owed_stored = text, stored
        return self._bill.promise(text, stored)

    def _stored_size(self, document: OpenDocument, key: str, chunk: Chunk) -> int:
        if not self._bill.counts_puts:
            return 0
        try:
            metadata = metadata_of(self._s.experiment, document.cut, chunk)
            return stored_size(self._s.embedder.dimension, key, metadata)
        except ValueError:  # metadata that no store takes: the document fails when its turn comes
            return 0
