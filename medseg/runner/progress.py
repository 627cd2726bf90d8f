"""How far a stage is: a bar with the time left on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger(__name__)

_LINE_SECONDS = 5.0


class CaseProgress:
    """Counts cases of a stage; a context manager.

    Args:
        what: the stage's word, e.g. "evaluate".
        total: cases in all.
        done: cases that were done before, which say nothing about the speed.
    """

    def __init__(self, what: str, total: int, *, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self._first_done, self._free = done, 0
        self._first_at: float | None = None
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        self._last_line = time.monotonic()
        if sys.stderr.isatty():
            self._start_bar()
        return self

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        left = TextColumn("{task.fields[left]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), left)
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._row = self._bar.add_task(self.what, total=self.total, completed=self.done, left="")
        self._bar.start()

    def advance(self, count: int = 1, *, free: bool = False) -> None:
        """Counts ``count`` more cases as done; ``free`` ones took no work and say nothing about the speed."""
        self.done += count
        if free:
            self._free += count
        elif self._first_at is None:
            self._free, self._first_done, self._first_at = 0, self.done, time.monotonic()
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, advance=count, left=self._time_left().lstrip(", "))
        elif time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            logger.info("%s: %d of %d%s", self.what, self.done, self.total, self._time_left())

    def _time_left(self) -> str:
        # From the first finished case on: before it lies the workers' start, which is paid once.
        worked = self.done - self._first_done - self._free
        if worked <= 0 or self.done >= self.total or self._first_at is None:
            return ""
        seconds = (time.monotonic() - self._first_at) / worked * (self.total - self.done)
        return f", about {plain_duration(seconds)} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class StepProgress:
    """A bar with the time left for a loop of steps, on a terminal only; a context manager.

    Args:
        what: the stage's word, e.g. "train".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._cases: CaseProgress | None = None

    def __enter__(self) -> Self:
        return self

    def reach(self, step: int, steps: int) -> None:
        """``step`` of ``steps`` are done; the first call starts the bar there."""
        if not sys.stderr.isatty():
            return
        if self._cases is None:
            self._cases = CaseProgress(self.what, steps, done=step).__enter__()
        else:
            self._cases.advance(step - self._cases.done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cases is not None:
            self._cases.__exit__(kind, error, trace)


def plain_duration(seconds: float) -> str:
    """A duration as people say it: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
