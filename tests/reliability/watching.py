"""Seeing what a process does from outside: the files it begins, and the processes it leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import struct
import time
from pathlib import Path
from typing import Self

MARKER = "MEDSEG_TEST_MARKER"
"""Environment variable that a command is started with; all processes it starts inherit it."""
TEMPORARY = ".tmp-"
_IN_CREATE, _IN_ISDIR = 0x100, 0x40000000
_EVENT = struct.Struct("iIII")


class Temporaries:
    """Tells at once when a temporary file appears anywhere below a folder (inotify); a context manager.

    Folders named in ``leave_out`` and locks are not looked at.
    """

    def __init__(self, root: Path, *, leave_out: tuple[str, ...] = ()) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._leave_out = leave_out
        self._folders: dict[int, Path] = {}
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        root.mkdir(parents=True, exist_ok=True)
        self._watch(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _watch(self, folder: Path) -> int:
        """Watches a folder and those in it; how many temporaries were in it already."""
        if folder.name in self._leave_out:
            return 0
        number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _IN_CREATE)
        self._folders[number] = folder
        seen = 0
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(folder)):
                seen += self._watch(Path(entry.path)) if entry.is_dir() else _is_temporary(entry.name)
        return seen

    def wait(self, seconds: float) -> int:
        """How many appeared, as soon as one does; 0 after that time."""
        if not select.select([self._descriptor], [], [], max(0.0, seconds))[0]:
            return 0
        data, seen = os.read(self._descriptor, 1 << 16), 0
        while data:
            number, mask, _, length = _EVENT.unpack_from(data)
            name = os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
            data = data[_EVENT.size + length :]
            if mask & _IN_ISDIR and number in self._folders:
                seen += self._watch(self._folders[number] / name)
            else:
                seen += _is_temporary(name)
        return seen


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY) and not name.endswith("-lock")


def marked_processes(marker: str, *, running: str = "") -> list[int]:
    """Ids of the live processes that were started under ``marker`` and have ``running`` in their command line."""
    wanted, found = f"{MARKER}={marker}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # zombies and processes that end meanwhile have no environment
            ours = wanted in (folder / "environ").read_bytes().split(b"\0")
            if ours and running.encode() in (folder / "cmdline").read_bytes().replace(b"\0", b" "):
                found.append(int(folder.name))
    return found


def seconds_until_gone(marker: str, *, at_most: float) -> float | None:
    """How long it takes until no marked process is left; None if one is left after ``at_most`` seconds."""
    began = time.monotonic()
    while marked_processes(marker):
        if time.monotonic() - began > at_most:
            return None
        time.sleep(0.05)
    return time.monotonic() - began


def end_marked(marker: str) -> list[str]:
    """Kills the marked processes that are left and gives their command lines."""
    found = []
    for pid in marked_processes(marker):
        with contextlib.suppress(OSError):
            found.append((Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:160])
            os.kill(pid, signal.SIGKILL)
    return found
