"""Whose an index is: of the experiment that fills it. Others may query it, and be measured on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ragctl.config import index_of
from ragctl.errors import Refused

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.manifest import Ledger
    from ragctl.state import State

FORMER: Final = "default"  # the index of every experiment that named none, before each had its own


def refuse_any_shared(experiment: Experiment, state: State) -> None:
    """As `refuse_shared`, of every index that the experiment has so far."""
    from ragctl.indexes import named
    from ragctl.ingest import reading_ledger
    from ragctl.tenancy import per_index

    for one in (part for index in named(experiment) for part in per_index(index, state)):
        with reading_ledger(state, one.store.index) as ledger:
            refuse_shared(one, ledger, state)


def refuse_shared(experiment: Experiment, ledger: Ledger, state: State) -> None:
    """Raise Refused before an ingest that mixes the documents of two experiments, or puts all of one a second time.

    `ledger` is that of the experiment's one index.
    """
    owner, index = ledger.meta("experiment"), experiment.store.index
    if owner not in (None, experiment.name):
        raise Refused(
            f"index {index} is filled by experiment {owner}: an ingest of {experiment.name} would replace and "
            "remove its documents",
            hint="name another index in store.index, or query and eval it as it is; if the experiment has only "
            "changed its name: ragctl ledger rebuild CONFIG",
        )
    if ledger.meta("created") is None:
        _refuse_second(experiment, state)


def _refuse_second(experiment: Experiment, state: State) -> None:
    """Refuse to fill a first index beside the one that this experiment has filled under the former name."""
    from ragctl.ingest import reading_ledger

    index, own = experiment.store.index, index_of(experiment.name)
    if not index.startswith(own):
        return
    former = FORMER + index.removeprefix(own)
    if former == index:
        return
    with reading_ledger(state, former) as ledger:
        filled = ledger.meta("created") is not None and ledger.meta("experiment") in (None, experiment.name)
    if filled:
        raise Refused(
            f"this experiment is in index {former}; without store.index its index is {index} now, and everything "
            "would be embedded again",
            hint=f"keep it: store.index: {FORMER}; or remove it first: "
            f"ragctl teardown CONFIG --index --set store.index={FORMER}",
        )
