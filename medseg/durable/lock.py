"""One writer per output folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from medseg.durable.processes import started_ticks
from medseg.errors import EnvironmentFault, LockedError


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class FolderLock:
    """Holds ``<folder>/.lock`` while one process writes the folder.

    The lock is a file made with ``O_EXCL`` and holds host, process id, its start and the time, so it works on file systems
    without ``flock``. A lock whose process is dead (same host) is taken over; one of another host never is, because its
    process can't be seen from here.

    Raises (on enter):
        LockedError: a live process, or one of another host, holds it.
        EnvironmentFault: the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"

    def _mine(self) -> dict[str, object]:
        pid = os.getpid()
        return {
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": pid,
            "started": started_ticks(pid),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def __enter__(self) -> Self:
        content = json.dumps(self._mine()).encode()
        # The content is there from the first moment: written elsewhere, then linked, which fails if the name is taken.
        private = self.path.with_name(f".tmp-{socket.gethostname().replace('-', '')[:20]}-{os.getpid()}-lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            private.write_bytes(content)
            for _ in range(5):
                try:
                    os.link(private, self.path)
                except FileExistsError:
                    self._take_over_if_stale()
                else:
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
        if not same_host or alive:
            raise LockedError(
                f"{self.path.parent.name}: is being written by process {pid} on host {host} since {holder.get('since')}; "
                f"wait for it, or remove {self.path.name} in that folder if that process is gone"
            )
        # Renamed first, so that of two processes that both found it stale only one removes it, and never a fresh lock.
        aside = self.path.with_name(f".tmp-stale-{os.getpid()}-lock")
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == before.st_ino:
                self.path.rename(aside)
                aside.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self.path.read_bytes())["pid"] == os.getpid():
                self.path.unlink()
