"""What the sender hears from its parent, and what it does when the parent is gone.

The parent writes lines to the sender's standard input: ``watch KEY`` (note its environment and sample the parent for
that run), ``close`` (send
the rest and end). The end of that input without ``close`` means the parent was killed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

from medseg.tracking.environment import add_environment
from medseg.tracking.sampling import Sampler

ORPHAN_SECONDS = 5.0
"""How long a sender goes on when its parent is gone."""
_LOOK_SECONDS = 0.5


class Control:
    """Listens in threads of its own, so that a call stuck in MLflow can't keep an orphaned sender alive.

    Args:
        parent: process id of the stage.
        tracking: ``<work>/tracking``.
    """

    def __init__(self, parent: int, tracking: Path) -> None:
        self.closing = False
        self.orphaned = False
        self._parent = parent
        self._tracking = tracking
        self._wake = threading.Event()
        self._sampler = Sampler(parent, tracking)

    def start(self) -> None:
        """Starts listening and watching."""
        for target in (self._listen, self._watch_parent):
            threading.Thread(target=target, daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Waits, or less if the parent says something or is gone."""
        self._wake.wait(seconds)
        self._wake.clear()

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            word, _, argument = line.decode(errors="replace").strip().partition(" ")
            if word == "watch":
                with contextlib.suppress(Exception):  # an artifact less
                    add_environment(self._tracking / argument)
                self._sampler.key = argument
            elif word == "close":
                self._sampler.key = None
                self.closing = True
                self._wake.set()
        self.orphaned = self.orphaned or not self.closing

    def _watch_parent(self) -> None:
        while os.getppid() == self._parent and not self.orphaned:
            self._sampler.sample_if_due()
            time.sleep(_LOOK_SECONDS)
        self._sampler.key = None
        self.orphaned = True
        self._wake.set()
        time.sleep(ORPHAN_SECONDS)
        os._exit(0)  # whatever hangs: the records are on disk
