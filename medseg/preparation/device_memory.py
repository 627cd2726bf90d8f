"""How much memory the device has that will train: what patch and batch are fitted to where the config leaves it open."""

from __future__ import annotations

import contextlib
from pathlib import Path

_SHARE_OF_MAIN_MEMORY = 0.75
"""On a CPU the rest is for the system, the loader and the page cache."""


def device_memory_gb(wanted: str | None) -> float:
    """Memory of a device in 10^9 bytes; on a CPU three quarters of what the machine, or its container, has.

    Args:
        wanted: "cpu", "cuda" or "cuda:N"; None is CUDA where there is one.
    """
    # Asking torch takes a second: only where a driver is loaded.
    if wanted is None and not Path("/proc/driver/nvidia").exists():
        wanted = "cpu"
    if wanted is None or wanted.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return float(torch.cuda.get_device_properties(torch.device(wanted or "cuda")).total_memory) / 1e9
    return _SHARE_OF_MAIN_MEMORY * main_memory_bytes() / 1e9


def main_memory_bytes() -> int:
    """Of the machine, or of the container where that has less."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(fields["MemTotal"].split()[0]) * 1024
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or another layout of control groups
            total = min(total, int(Path(limit).read_text()))
    return total
