"""One writer per output folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from medseg.durable.processes import started_ticks
from medseg.errors import EnvironmentFault, LockedError

_BEAT_SECONDS = 30.0
_STOPPED_SECONDS = 600.0


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class FolderLock:
    """Holds ``<folder>/.lock`` while one process writes the folder.

    The lock is a file made with ``O_EXCL`` and holds host, process id, its start and the time, so it works on file systems
    without ``flock``. A lock whose process is dead (same host) is taken over; one of another host never is, because its
    process can't be seen from here, unless it was beating and has stopped.

    Args:
        folder: to lock.
        name: of the lock file, where several processes share a folder and each has a lock of its own.
        beating: touch the file every half minute, so that another host may take it over ten minutes after the last touch: for
            work in which a second writer would do no harm, such as a process that was only asleep. Both times are the file
            system's, so the hosts' clocks need not agree.

    Raises (on enter):
        LockedError: a live process, or one of another host, holds it.
        EnvironmentFault: the folder can't be written.
    """

    def __init__(self, folder: Path, name: str = ".lock", *, beating: bool = False) -> None:
        self.path = folder / name
        self._beating = beating
        self._ended = threading.Event()

    def _temporary(self, mark: str) -> Path:
        return self.path.with_name(f".tmp-{mark}-{os.getpid()}-{self.path.name.lstrip('.')}")

    def _mine(self) -> dict[str, object]:
        pid = os.getpid()
        return {
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": pid,
            "started": started_ticks(pid),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "beating": self._beating,
        }

    def __enter__(self) -> Self:
        content = json.dumps(self._mine()).encode()
        # The content is there from the first moment: written elsewhere, then linked, which fails if the name is taken.
        private = self._temporary(socket.gethostname().replace("-", "")[:20])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            private.write_bytes(content)
            for _ in range(5):
                try:
                    os.link(private, self.path)
                except FileExistsError:
                    self._take_over_if_stale()
                else:
                    self._ended.clear()
                    if self._beating:
                        threading.Thread(target=self._beat, name="lock", daemon=True).start()
                    return self
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise EnvironmentFault(
                f"{self.path.parent.name}: can't be locked for writing ({reason}); check the folder's permissions and disk"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                private.unlink(missing_ok=True)
        raise LockedError(f"{self.path.parent.name}: is locked by another process; wait for it to end")

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _has_stopped_beating(self, last_beat: float) -> bool:
        now = self._temporary("now")
        now.touch()  # by the file system's own clock
        seconds = now.stat().st_mtime - last_beat
        now.unlink(missing_ok=True)
        return seconds > _STOPPED_SECONDS

    def refuse_if_held(self) -> None:
        """Raises LockedError where a process holds this lock; removes it where that process is dead."""
        self._take_over_if_stale()

    def _take_over_if_stale(self) -> None:
        try:
            before = self.path.stat()
            holder = json.loads(self.path.read_bytes())
            host, pid = str(holder["host"]), int(holder["pid"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            host, pid, holder = socket.gethostname(), -1, {}
        same_host = host == socket.gethostname()
        alive = pid > 0 and holder.get("boot") == _boot_id() and started_ticks(pid) == holder.get("started") != ""
        stopped = not same_host and holder.get("beating") is True and self._has_stopped_beating(before.st_mtime)
        if alive if same_host else not stopped:
            raise LockedError(
                f"{self.path.parent.name}: is being written by process {pid} on host {host} since {holder.get('since')}; "
                f"wait for it, or remove {self.path.name} in that folder if that process is gone"
            )
        # Renamed first, so that of two processes that both found it stale only one removes it, and never a fresh lock.
        aside = self._temporary("stale")
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == before.st_ino:
                self.path.rename(aside)
                aside.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with contextlib.suppress(OSError, ValueError):
            holder = json.loads(self.path.read_bytes())
            if (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid()):
                self.path.unlink()
