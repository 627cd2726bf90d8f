"""What a run ran in, as the artifact ``environment.txt``: interpreter, commit, and every installed package.

The sender writes it (it is the same interpreter), so that no stage pays the tenth of a second that it takes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import secrets
import time
from pathlib import Path

from medseg.durable import sha256_bytes
from medseg.tracking.record import code_commit, code_sha256
from medseg.tracking.spool import SPOOL_NAME

ARTIFACT = "environment.txt"


def environment_text() -> str:
    """``name==version`` of every package, sorted, below a few lines on Python and the code; no path, host or user."""
    packages = set()
    for found in importlib.metadata.distributions():
        with contextlib.suppress(Exception):  # what an interrupted removal left has no metadata
            if found.metadata["Name"] and found.version:
                packages.add(f"{found.metadata['Name']}=={found.version}")
    head = (
        f"# python {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"# medseg commit {code_commit() or 'unknown'}",
        f"# medseg code sha256 {code_sha256()}",
    )
    return "\n".join([*head, *sorted(packages, key=str.lower)]) + "\n"


def add_environment(folder: Path) -> None:
    """Appends it to the spool of a run, as the sender does.

    Raises:
        OSError: the spool can't be written.
    """
    data = environment_text().encode()
    blob = folder / "blobs" / f"{sha256_bytes(data)}.txt"
    if blob.exists():  # the stage was started again in the same environment
        return
    blob.parent.mkdir(exist_ok=True)
    temporary = blob.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
    temporary.write_bytes(data)
    temporary.replace(blob)
    record = {"kind": "file", "ms": time.time_ns() // 1_000_000, "name": ARTIFACT, "blob": blob.name}
    descriptor = os.open(folder / SPOOL_NAME, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, json.dumps(record).encode() + b"\n")  # one call, so lines of two processes don't mix
    finally:
        os.close(descriptor)
