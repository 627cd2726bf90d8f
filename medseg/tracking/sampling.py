"""Memory and processor use of a stage, sampled from outside it, so that the stage pays nothing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from medseg.tracking.spool import SPOOL_NAME, read_records

SAMPLE_SECONDS = 15.0


class Sampler:
    """Adds ``system/...`` metrics of a process to its run's spool; without psutil it does nothing.

    The step is seconds since the run first began, so a resumed run's curve goes on.

    Args:
        pid: the process.
        tracking: ``<work>/tracking``.
    """

    def __init__(self, pid: int, tracking: Path) -> None:
        self.key: str | None = None
        self._pid = pid
        self._tracking = tracking
        self._due = time.monotonic() + SAMPLE_SECONDS
        self._last: tuple[float, float] | None = None

    def sample_if_due(self) -> None:
        """Takes a sample if a run is watched and the last one is old enough."""
        key = self.key
        if key is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + SAMPLE_SECONDS
        with contextlib.suppress(Exception):  # a number less in a chart
            values = self._measure()
            if values:
                _append(self._tracking / key, values)

    def _measure(self) -> dict[str, float]:
        import psutil  # type: ignore[import-untyped, unused-ignore]

        stage = psutil.Process(self._pid)
        workers = [child for child in stage.children(recursive=True) if child.pid != os.getpid()]
        seconds = memory = 0.0
        for process in (stage, *workers):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds += times.user + times.system
                memory += process.memory_info().rss if process is not stage else 0
        now = time.monotonic()
        last, self._last = self._last, (now, seconds)
        result = {
            "system/memory_gb": stage.memory_info().rss / 1e9,
            "system/workers_memory_gb": memory / 1e9,
            "system/machine_memory_percent": float(psutil.virtual_memory().percent),
        }
        if last and now > last[0]:
            result["system/cpu_percent"] = max(0.0, 100 * (seconds - last[1]) / (now - last[0]))
        return result


def _append(folder: Path, values: dict[str, float]) -> None:
    first = next(read_records(folder), None)
    if first is None:
        return
    ms = time.time_ns() // 1_000_000
    record = {"kind": "metrics", "ms": ms, "values": values, "step": max(0, (ms - int(first.fields["ms"])) // 1000)}
    descriptor = os.open(folder / SPOOL_NAME, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, json.dumps(record).encode() + b"\n")  # one call, so lines of two processes don't mix
    finally:
        os.close(descriptor)
