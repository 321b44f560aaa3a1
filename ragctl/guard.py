"""What keeps a run from emptying an index because a share was not mounted or a prefix was misspelt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragctl.errors import Refused

if TYPE_CHECKING:
    from ragctl.config import Experiment

GONE = "documents are gone from the sources"
MEANT = "check the sources; if it is meant: ragctl ingest CONFIG --max-delete 1.0"


class DeleteGuard:
    """Refuses to remove more documents than one run may, counted over all the indexes that it works on."""

    def __init__(self, experiment: Experiment, max_delete: float | None) -> None:
        """`max_delete` is a share from 0 to 1; None: what the experiment says."""
        self.share = max_delete if max_delete is not None else experiment.ingest.max_delete
        self._indexes: dict[str, tuple[int, int, int]] = {}

    def expect(self, index: str, deleted: int, total: int, *, emptied: int = 0) -> None:
        """`deleted` of the `total` documents of an index are to go, and `emptied` are there but have no text any more;
        replaces what was expected of the index before.
        """
        self._indexes[index] = deleted, emptied, total

    def check(self, what: str = GONE, hint: str = MEANT) -> None:
        """Raise Refused when that is too much; `what` says why they are to go."""
        gone, emptied, total = map(sum, zip((0, 0, 0), *self._indexes.values(), strict=True))
        deleted = gone + emptied
        if total and deleted > self.share * total:
            raise Refused(
                f"{deleted} of {total} {what}{' or have no text any more' if emptied else ''}, more than the "
                f"{self.share:.0%} that one run may remove; nothing was removed",
                hint=hint,
            )
