"""What a run has to tell the tracker, on disk: one JSON record a line, and larger things beside it by content.

::

    <work>/tracking/<run key>/
        spool.jsonl           append-only; a record is one write() call, so a kill loses nothing logged before it
        blobs/<sha256>.<kind> pictures and tables that records point to
        writer.lock           flock held by the living writer
        sent-<store>.json     how far that store has got it (the sender's)

An append costs some ten microseconds and never waits for a disk: the sender calls fsync before it sends, the writer at
the start and end of a run only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.durable import sha256_bytes

FORMAT = 1
SPOOL_NAME = "spool.jsonl"
_MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True)
class Record:
    """One line of a spool.

    Attributes:
        kind: what it is; ``damaged`` for a line that is no record (a torn write before a crash).
        fields: its content.
        end: offset in bytes just after it.
    """

    kind: str
    fields: Mapping[str, Any]
    end: int


def number(value: Any) -> float | str:
    """A metric's value as JSON holds it: a finite float, or ``"nan"``, ``"inf"``, ``"-inf"``; ``float()`` reads each."""
    result = float(value)
    return result if math.isfinite(result) else str(result)


class SpoolWriter:
    """Appends to the spool of one run.

    Raises (on construction):
        BlockingIOError: a living process writes this spool.
        OSError: the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(self._lock_file)
            self._file = os.open(folder / SPOOL_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError:
            os.close(self._lock_file)
            raise
        self._thread_lock = threading.Lock()
        self._torn = not _ends_with_newline(self._file)

    def append(self, kind: str, **fields: Any) -> None:
        """Writes one record with the time in milliseconds.

        Raises:
            OSError: the disk is full or gone; a half-written line is closed off by the next append.
            TypeError, ValueError: a field is not plain.
        """
        text = json.dumps({"kind": kind, "ms": time.time_ns() // 1_000_000, **fields}, allow_nan=False)
        line = text.encode() + b"\n"
        with self._thread_lock:
            data = b"\n" + line if self._torn else line
            self._torn = True
            if os.write(self._file, data) != len(data):
                raise OSError("short write to the tracking spool")
            self._torn = False

    def put_blob(self, data: bytes, suffix: str) -> str:
        """Keeps ``data`` under its SHA-256 and returns the file's name; the same bytes are kept once."""
        name = f"{sha256_bytes(data)}{suffix}"
        path = self.folder / "blobs" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
            temporary.write_bytes(data)
            temporary.replace(path)
        return name

    def sync(self) -> None:
        """Waits until the disk has it."""
        os.fsync(self._file)

    def close(self) -> None:
        """Ends writing and frees the lock."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        with contextlib.suppress(OSError):
            os.close(self._lock_file)


def _take(descriptor: int) -> None:
    """Takes the lock; BlockingIOError if another process has it. A file system without locks has none to wait for."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _ends_with_newline(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"


def writer_is_alive(folder: Path) -> bool:
    """Whether a process holds the spool in ``folder`` open for writing."""
    try:
        descriptor = os.open(folder / "writer.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        _take(descriptor)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_records(folder: Path, offset: int = 0) -> Iterator[Record]:
    """Yields the whole records from ``offset`` on; a last line without its newline is still being written and left.

    A missing spool gives nothing.
    """
    try:
        stream = (folder / SPOOL_NAME).open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        while line := stream.readline(_MAX_LINE_BYTES):
            if not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
                return
            end = stream.tell()
            if line.strip():
                yield _parse(line, end)


def _parse(line: bytes, end: int) -> Record:
    try:
        fields = json.loads(line)
        return Record(str(fields.pop("kind")), fields, end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Record("damaged", {}, end)


def last_status(folder: Path) -> str | None:
    """How the run of a spool ended last: its status, "RUNNING" where it has not, None where it never began."""
    status = None
    for record in read_records(folder):
        if record.kind == "start":
            status = "RUNNING"
        elif record.kind == "end":
            status = str(record.fields.get("status"))
    return status


def spool_folders(tracking: Path) -> tuple[Path, ...]:
    """Folders of all runs below ``<work>/tracking``, sorted by name; none if it does not exist."""
    return tuple(sorted(path.parent for path in tracking.glob(f"*/{SPOOL_NAME}")))
