"""How far the workers may be ahead of what is put into the store."""

from __future__ import annotations

import threading

MESSAGES_AHEAD = 4  # messages of workers that may wait to be digested


class Room:
    """Holds the workers back while much has been parsed and not yet put.

    A worker waits in `enter` before it hands a message over. All else is for the one thread that digests them.
    """

    def __init__(self, size: int) -> None:
        """`size`: bytes that may have been parsed and not yet put; a message that is begun is finished."""
        self._size = size
        self._taken = 0
        self._places = MESSAGES_AHEAD
        self._kept = 0  # places of digested messages, until there is room
        self._open = False
        self._changed = threading.Condition()

    def enter(self) -> None:
        """Wait for a place for a message."""
        with self._changed:
            self._changed.wait_for(lambda: self._places > 0 or self._open)
            self._places -= 1

    def digested(self) -> None:
        """A message has been taken apart; its place is given back by `let_go_on`."""
        self._kept += 1

    def take(self, size: int) -> None:
        """So many bytes have been parsed."""
        self._taken += size

    def free(self, size: int) -> None:
        """So many bytes are put, or dropped."""
        self._taken -= size

    @property
    def is_full(self) -> bool:
        """Whether some worker is held back until something gets through."""
        return self._kept > 0

    def let_go_on(self) -> None:
        """Give the places back, if there is room."""
        if self._kept and self._taken < self._size:
            with self._changed:
                self._places += self._kept
                self._kept = 0
                self._changed.notify_all()

    def open(self) -> None:
        """Hold nobody back any more."""
        with self._changed:
            self._open = True
            self._changed.notify_all()
