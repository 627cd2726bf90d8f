"""Whether a process of this host, known by a file it left, still lives."""

from __future__ import annotations

import contextlib
from pathlib import Path


def started_ticks(pid: int) -> str:
    """When process ``pid`` started, in the kernel's ticks since boot; empty if it does not live.

    A process id is reused, the pair (id, start) is not. A killed process that nobody has waited for keeps its entry in
    ``/proc``, for ever in a container whose first process reaps nothing: it does not live.
    """
    with contextlib.suppress(OSError, IndexError):
        # Fields 3 and 22 of the line; the name in field 2 may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    return ""
