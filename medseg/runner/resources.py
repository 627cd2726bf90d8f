"""What this process may use of the machine."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 1 << 30


def available_cores() -> int:
    """Cores this process may use: affinity, and the control group's quota where there is one; at least 1."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no quota, or another layout of control groups
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def available_memory_bytes() -> int:
    """Memory that can still be taken: what the machine has free, and what the control group's limit leaves."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or another layout of control groups
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)


def total_memory_bytes() -> int:
    """All memory that this process could ever have: the machine's, or its control group's limit."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(fields["MemTotal"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or another layout of control groups
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def default_processes(memory_per_case_bytes: int) -> int:
    """How many cases to run at once: one per core, as long as they fit into 80 % of the free memory; at least 1."""
    if memory_per_case_bytes <= 0:
        return available_cores()
    return max(1, min(available_cores(), int(0.8 * available_memory_bytes()) // memory_per_case_bytes))


def keep_freed_memory() -> None:
    """Has glibc keep what a program frees, up to 1 GiB a block, for its next allocations; does nothing with another C library.

    A training step allocates and frees the same feature maps again and again. glibc maps each block above 128 KiB anew, and the
    kernel clears its pages: on two cores a tenth of a small network's step went into page faults. The threshold rises by itself
    once larger blocks were freed, so the pace of a run would also change after its first validation.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, _KEPT_BYTES)


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """A block of heavy imports, within which Python does not look for garbage.

    Loading torch makes a million objects that stay, and the collector would go through them again and again: a tenth of the
    processor time of a short command.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def leave_quickly() -> None:
    """Has the interpreter end without a last search for garbage among the objects of all modules; once is enough.

    Everything that is promised for the end (``atexit``, finalizers, flushed files) still happens. Where torch was loaded the
    search takes a third of a second of processor time.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
