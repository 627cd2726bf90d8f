"""A bound in bytes on what lies in a queue."""

from __future__ import annotations

import threading

from medseg.errors import MedsegError


class BudgetClosed(MedsegError):
    """The queue is being shut down; nobody waits for this case any more."""


class ByteBudget:
    """Bytes that cases may hold at a time. Cases are let in by their turn, so that an early one never starves.

    What is bigger than the whole bound is let in alone: slow, but never a standstill.

    Args:
        limit_bytes: of all that is held.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._held: dict[int, int] = {}
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """What is held now."""
        return sum(self._held.values())

    def enter(self, turn: int) -> None:
        """Queues up; later turns wait for this one until it calls :meth:`take` or :meth:`leave`."""
        with self._changed:
            self._waiting.add(turn)

    def take(self, turn: int, size_bytes: int) -> None:
        """Waits for its turn and for room, and takes it.

        Raises:
            BudgetClosed: the budget was closed meanwhile.
        """
        with self._changed:
            self._waiting.add(turn)
            self._changed.wait_for(lambda: self._closed or self._has_room(turn, size_bytes))
            if self._closed:
                raise BudgetClosed("queue: is closed, expected it open; run again")
            self._waiting.discard(turn)
            self._held[turn] = size_bytes
            self._changed.notify_all()

    def correct(self, turn: int, size_bytes: int) -> None:
        """Replaces the estimate that was taken by what it turned out to be."""
        with self._changed:
            if turn in self._held:
                self._held[turn] = size_bytes
            self._changed.notify_all()

    def leave(self, turn: int) -> None:
        """Gives back what the turn holds, or its place in the queue; may be called twice."""
        with self._changed:
            self._waiting.discard(turn)
            self._held.pop(turn, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Sends everyone who waits away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, turn: int, size_bytes: int) -> bool:
        if turn != min(self._waiting):
            return False
        return not self._held or self.held_bytes + size_bytes <= self.limit_bytes
