"""The peak of this process's memory while a case was in work."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


class PeakMemory:
    """The most resident memory of this process while each of several overlapping cases was in work.

    Linux keeps one such peak a process; it is read and reset whenever a case begins or ends, and counted for all that were in
    work meanwhile. A case's figure so includes its neighbours in the pipeline: it is what the machine needed at that time.
    Where the kernel can't reset it (other systems), the figure is the peak since the process began.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peaks: dict[int, int] = {}

    def begin(self, turn: int) -> None:
        """A case begins."""
        with self._lock:
            self._lap()
            self._peaks[turn] = 0

    def end(self, turn: int) -> int:
        """A case ends; its peak in bytes, 0 where the system does not tell."""
        with self._lock:
            self._lap()
            return self._peaks.pop(turn, 0)

    def _lap(self) -> None:
        peak = peak_resident_bytes()
        for turn, former in self._peaks.items():
            self._peaks[turn] = max(former, peak)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    """The most resident memory of this process since its peak was reset last; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def resident_bytes() -> int:
    """This process's resident memory now; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
