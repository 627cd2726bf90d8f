"""Several processes on one output folder: each takes every n-th case, holds a lock of its own, and reports for itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from medseg.durable import FolderLock
from medseg.errors import UsageError

T = TypeVar("T")

_ARRAY = "SLURM_ARRAY_TASK"
_LOCK = ".lock"


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            last = f"{self.count - 1}/{self.count}" if self.count > 0 else "0/1"
            raise UsageError(
                f"--shard: is {self.index}/{self.count}, expected i/n with i from 0 to n - 1; the last of these is {last}"
            )

    @property
    def label(self) -> str:
        """For file names: ``3-of-8``."""
        return f"{self.index}-of-{self.count}"

    def part(self, things: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th of them, from ``index`` on: the parts of all shards are all things, each once."""
        return things[self.index :: self.count]


def shard_of(text: str | None, environment: Mapping[str, str]) -> Shard | None:
    """What ``--shard`` asks for.

    Args:
        text: ``i/n`` (0-based), ``auto``, or None.
        environment: of the process. ``auto`` takes a SLURM array's task (``SLURM_ARRAY_TASK_ID`` counted from
            ``SLURM_ARRAY_TASK_MIN`` in steps of ``SLURM_ARRAY_TASK_STEP``, of ``SLURM_ARRAY_TASK_COUNT``) or torchrun's
            ``RANK`` of ``WORLD_SIZE``; where both are set, ranks within tasks.

    Returns:
        None where nothing is to be split.

    Raises:
        UsageError: it is neither, or ``auto`` finds no such variables.
    """
    if text is None:
        return None
    if text != "auto":
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise UsageError(f"--shard: is {text!r}, expected i/n with i from 0 to n - 1, such as 0/4, or auto")
        return Shard(int(match[1]), int(match[2]))
    task, rank = _array_task(environment), _rank(environment)
    if task is None and rank is None:
        raise UsageError(
            f"--shard: is auto, expected {_ARRAY}_ID and {_ARRAY}_COUNT, or RANK and WORLD_SIZE to be set; "
            "start it in a SLURM array or by torchrun, or name the shard, such as 0/4"
        )
    outer, inner = task or Shard(0, 1), rank or Shard(0, 1)
    return Shard(outer.index * inner.count + inner.index, outer.count * inner.count)


def _array_task(environment: Mapping[str, str]) -> Shard | None:
    values = {name: environment.get(f"{_ARRAY}_{name}") for name in ("ID", "COUNT", "MIN", "STEP")}
    number, count = _whole(values["ID"]), _whole(values["COUNT"])
    if number is None or count is None:
        return None
    first, step = _whole(values["MIN"]) or 0, _whole(values["STEP"]) or 1
    index, rest = divmod(number - first, step)
    if rest or not 0 <= index < count:
        raise UsageError(
            f"--shard: is auto in task {number} of an array of {count} from {first} in steps of {step}, expected an array "
            "without gaps, such as --array=0-7; change it, or name the shard"
        )
    return Shard(index, count)


def _rank(environment: Mapping[str, str]) -> Shard | None:
    rank, size = _whole(environment.get("RANK")), _whole(environment.get("WORLD_SIZE"))
    return None if rank is None or size is None else Shard(rank, size)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


@contextmanager
def folder_lock(output: Path, shard: Shard | None) -> Iterator[None]:
    """Holds the lock of a whole folder, or of a shard of it; the other shards of the same split may hold theirs meanwhile.

    Raises:
        LockedError: the whole folder, this shard, or a split into another number of shards is in work.
        EnvironmentFault: the folder can't be written.
    """
    name = _LOCK if shard is None else f"{_LOCK}-{shard.label}"
    with FolderLock(output, name=name, beating=True):
        # Taken first, then looked around: of two that start at once at least one sees the other.
        for path in sorted(output.glob(f"{_LOCK}*")):
            if path.name != name and not _may_share(path.name, shard):
                FolderLock(output, name=path.name).refuse_if_held()
        yield


def _may_share(name: str, shard: Shard | None) -> bool:
    return shard is not None and re.fullmatch(rf"{re.escape(_LOCK)}-\d+-of-{shard.count}", name) is not None
