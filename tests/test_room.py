"""Workers wait while much has been parsed and not yet put."""

from __future__ import annotations

import threading

from ragctl.room import MESSAGES_AHEAD, Room


class Workers:
    """More threads than any experiment may ask for, each with one message to hand over."""

    def __init__(self, room: Room, count: int = 100) -> None:
        self.count = count
        self.entered = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self._run, args=(room,), daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _run(self, room: Room) -> None:
        room.enter()
        self.entered.release()

    def enter(self, count: int) -> None:
        """Wait until so many have come in, and see that no more do."""
        for _ in range(count):
            assert self.entered.acquire(timeout=10)
        assert not self.entered.acquire(timeout=0.05)


def test_a_few_messages_wait_and_no_more() -> None:
    """Whatever their size: what is in them is not known before they are digested."""
    workers = Workers(Room(1_000))
    workers.enter(MESSAGES_AHEAD)


def test_what_is_digested_gives_its_place_back_when_there_is_room() -> None:
    """Too many bytes hold the workers back, until enough of them are put."""
    room = Room(1_000)
    workers = Workers(room)
    workers.enter(MESSAGES_AHEAD)
    room.digested()
    room.take(999)
    room.let_go_on()
    workers.enter(1)
    room.digested()
    room.take(1)
    room.let_go_on()
    workers.enter(0)
    assert room.is_full
    room.free(1)
    room.let_go_on()
    workers.enter(1)
    assert not room.is_full


def test_everybody_goes_when_it_is_opened() -> None:
    """At the end of a run no thread is left waiting, however many there are."""
    room = Room(1)
    room.take(2)
    workers = Workers(room)
    workers.enter(MESSAGES_AHEAD)
    room.open()
    for thread in workers.threads:
        thread.join(10)
        assert not thread.is_alive()
