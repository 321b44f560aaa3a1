"""Whether an index and its ledger belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ragctl.errors import Refused

if TYPE_CHECKING:
    from ragctl.adapters.base import IndexInfo, VectorStore
    from ragctl.manifest import Ledger

REBUILD: Final = "if state: names the right place, make the ledger anew: ragctl ledger rebuild CONFIG"


def refuse_lost_ledger(ledger: Ledger, store: VectorStore, info: IndexInfo | None) -> None:
    """Raise Refused when the index holds chunks and the ledger was never filled: it is lost, or is another one's."""
    if info is not None and ledger.meta("created") is None and next(store.keys(), None) is not None:
        raise Refused(
            f"index {info.name} holds chunks, but there is no whole ledger of it ({ledger.place})",
            hint=REBUILD,
        )
