"""Tasks for worker processes: they must lie in a module that a fresh process can import."""

import os
import signal
import time
from pathlib import Path

from medseg.errors import ScanError


def double(value: int) -> int:
    return 2 * value


def misbehave(item: tuple[str, int]) -> int:
    what, value = item
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        time.sleep(600)
    elif what == "raise":
        raise ValueError("text that may quote a header")
    elif what == "refuse":
        raise ScanError("scan_7: has 0 slices, expected at least 1; export it again")
    elif what == "disk":
        raise OSError(28, "No space left on device", "/home/somebody/scan")
    return value


def kill_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def sleep_seconds(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def process_facts(_: object) -> tuple[int, str]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def unpicklable(_: object) -> object:
    return lambda: None


def log_a_warning(_: object) -> None:
    import logging

    logging.getLogger("medseg.somewhere").warning("spacing is %s", "odd")


def big(count: int) -> bytes:
    return b"x" * count


def leave_temporary(folder: Path) -> None:
    from medseg.durable import atomic_path

    with atomic_path(folder / "out.txt") as temporary:
        temporary.write_text("half")
        time.sleep(600)


def wait_or_make(item: tuple[str, Path]) -> None:
    what, marker = item
    if what == "make":
        marker.touch()
    while not marker.exists():
        time.sleep(0.01)
    if what == "wait":
        time.sleep(0.5)


def decode(item: tuple[str, int]) -> object:
    """A decoder: a large array, or what a broken file does to it."""
    import numpy as np

    what, value = item
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    misbehave(item)
    return np.full((200, 200, 10), value, np.float32)
