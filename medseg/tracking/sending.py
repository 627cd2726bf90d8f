"""Sending all spools of a work folder, one sender at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from medseg.durable import write_json
from medseg.errors import MedsegError
from medseg.tracking.abandoned import end_abandoned
from medseg.tracking.address import TRACKING_NAME, StoreAddress, read_sent
from medseg.tracking.pending import spool_ends
from medseg.tracking.process import STATUS_NAME
from medseg.tracking.replay import Replay
from medseg.tracking.spool import FORMAT, read_records
from medseg.tracking.store import Store, StoreAwayError

_log = logging.getLogger(__name__)

_FAILURES_BEFORE_PASSING = 5


class Sender:
    """Sends everything below ``<work>/tracking``.

    Args:
        work: the work folder.
        address: the store.
        connect: makes the store; called when there is something to send, and again after a failure.
    """

    def __init__(self, work: Path, address: StoreAddress, connect: Callable[[], Store]) -> None:
        self._work = work
        self._tracking = work / TRACKING_NAME
        self._address = address
        self._connect = connect
        self._store: Store | None = None
        self._replays: dict[Path, Replay] = {}
        self._begun: dict[Path, tuple[int, bool]] = {}
        self._failures: dict[tuple[Path, int], int] = {}
        self._lock_file: int | None = None
        self._noted: str | None = None
        self.reason = ""

    def acquire(self) -> bool:
        """Takes the work folder's sender lock if it is free; a file system without such locks has no lock.

        On taking it, runs whose process is gone are ended (KILLED).
        """
        if self._lock_file is not None:
            return True
        self._tracking.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._tracking / ".sender.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            _log.info("this file system has no locks; senders are not kept apart")
        self._lock_file = descriptor
        self._replays.clear()
        end_abandoned(self._tracking)
        return True

    def release(self) -> None:
        """Lets another sender have the lock."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def send(self) -> int:
        """Sends all there is, the earliest run first.

        Returns:
            how many records were sent.

        Raises:
            StoreAwayError: the store can't be had; ``reason`` says why.
        """
        count = 0
        for folder, end in sorted(spool_ends(self._work).items(), key=lambda item: self._place_in_order(item[0])):
            try:
                count += self._send_one(folder, end)
            except StoreAwayError as error:
                self.reason = str(error)
                self._after_failure(folder)
                self._store = None
                self._replays.clear()
                raise
        self.reason = ""
        return count

    def _send_one(self, folder: Path, end: int) -> int:
        replay = self._replays.get(folder)
        if replay is None:
            if self.sent(folder) == end:
                return 0
            if self._store is None:
                self._store = self._connect()
            replay = self._replays[folder] = Replay(self._store, self._address, work=self._work, folder=folder)
        try:
            return replay.send()
        except OSError as error:  # a full disk here, not the store's fault, and as likely to pass
            raise StoreAwayError(f"the work folder: {error.strerror or type(error).__name__}") from error

    def _place_in_order(self, folder: Path) -> tuple[int, bool]:
        """When the run began, and whether it lies below another run, which has to be known first."""
        if folder not in self._begun:
            first = next(read_records(folder), None)
            if first is None or first.kind != "start":
                return 0, False
            self._begun[folder] = (int(first.fields["ms"]), bool(first.fields["parent"]["spooled"]))
        return self._begun[folder]

    def _after_failure(self, folder: Path) -> None:
        """Passes over a record that fails again and again while the store itself answers."""
        replay = self._replays.get(folder)
        if replay is None or self._store is None:
            return
        place = (folder, replay.offset)
        self._failures[place] = self._failures.get(place, 0) + 1
        if self._failures[place] < _FAILURES_BEFORE_PASSING:
            return
        with contextlib.suppress(StoreAwayError):
            self._store.ping()
            replay.refuse_next()

    def sent(self, folder: Path) -> int:
        """Bytes of a spool that the store has, by the note on disk."""
        return read_sent(folder, self._address).offset

    def has_sent(self, ends: Mapping[Path, int]) -> bool:
        """Whether the store has every spool up to these sizes, whoever sent it."""
        return all(self.sent(folder) >= end for folder, end in ends.items())

    def note(self) -> None:
        """Leaves the reason of a failure where the stage finds it."""
        if self.reason == self._noted:
            return
        with contextlib.suppress(MedsegError, OSError):
            write_json(self._tracking / STATUS_NAME, {"format": FORMAT, "reason": self.reason})
            self._noted = self.reason
