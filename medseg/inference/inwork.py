"""Which cases were in work when a run was killed: they go last when it is started again.

A scan that brings a whole run down (the kernel kills the process for its memory, say) would do so at every start and keep all
scans after it from their masks. Nothing is decided from this note but an order, and a kill has many innocent neighbours, so a
case is never given up for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from medseg.inference.cases import InferCase
from medseg.inference.shards import Shard

_LOG = logging.getLogger(__name__)


class InWork:
    """The note of a run; a context manager. It is not flushed to the disk: a kill leaves it, and power loss may take it.

    Args:
        output: folder of the masks.
        shard: whose note it is.
    """

    def __init__(self, output: Path, shard: Shard | None) -> None:
        self._path = output / (".in-work" if shard is None else f".in-work-{shard.label}")
        self._before: frozenset[str] = frozenset()
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def last(self, cases: Sequence[InferCase]) -> Sequence[InferCase]:
        """The cases, those that were in work when the run before was killed at the end; from now on this run's are noted.

        Call it when the folder is locked.
        """
        self._before = _read(self._path)
        self._stream = self._path.open("w", encoding="utf-8")
        suspects = [case for case in cases if case.id in self._before]
        if suspects:
            _LOG.info("%d cases were in work when the run before was killed; they go last", len(suspects))
        return [*(case for case in cases if case.id not in self._before), *suspects]

    def begun(self, case_id: str) -> None:
        """A case is begun."""
        self._note("+", case_id)

    def ended(self, case_id: str) -> None:
        """A case is through."""
        self._note("-", case_id)

    def _note(self, sign: str, case_id: str) -> None:
        if self._stream is not None:
            self._stream.write(f"{sign}{case_id}\n")
            self._stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            self._path.unlink(missing_ok=True)


def _read(path: Path) -> frozenset[str]:
    """Cases that were begun and not ended; a line that a kill cut counts for nothing."""
    if not path.is_file():
        return frozenset()
    open_cases: set[str] = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if line.endswith("\n") and line.startswith("+"):
            open_cases.add(line[1:-1])
        elif line.endswith("\n"):
            open_cases.discard(line[1:-1])
    return frozenset(open_cases)
