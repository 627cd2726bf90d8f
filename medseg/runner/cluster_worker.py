"""What runs on a cluster's workers and on its scheduler."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import multiprocessing
import platform
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from medseg.errors import EnvironmentFault
from medseg.runner.worker import Records, Reply, call

T = TypeVar("T")
R = TypeVar("R")

MARK = ".cluster-"
_PACKAGES = ("medseg", "numpy", "scipy", "torch")
_SEEN_SECONDS = 10.0
_PATIENCE = 5
_ONE_CASE = threading.Lock()
"""A worker of many threads gives them all to one case: its model and its libraries are not made for two at once."""


@functools.cache
def versions() -> Mapping[str, str]:
    """What has to be alike wherever cases of one run are done."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def do_case(
    task: Callable[[T], R], item: T, *, mark: Path, expected: Mapping[str, str], level: int
) -> tuple[str, Reply]:
    """One case on this worker.

    Args:
        task: of the item; whatever it raises becomes the reply.
        item: the case.
        mark: a file in the folder that the command writes.
        expected: versions where the command runs.
        level: of logging there.

    Returns:
        This worker's address, and what became of the case.

    Raises:
        EnvironmentFault: this worker must not do cases of that command.
    """
    _refuse_other_place(mark)
    if dict(expected) != dict(versions()):
        names = sorted(n for n in {*expected, *versions()} if expected.get(n) != versions().get(n))
        wanted = ", ".join(f"{n} {versions().get(n)} (here {expected.get(n)})" for n in names)
        raise EnvironmentFault(f"cluster: a worker has {wanted}, expected the same as here; install it there")
    with _ONE_CASE, _recording(level) as records:
        _settle_process()
        return worker_address(), replace(call(task, item), records=records.take())


def _refuse_other_place(mark: Path) -> None:
    until = time.monotonic() + _SEEN_SECONDS
    while not mark.exists():  # a network file system may show it a moment later
        if time.monotonic() > until:
            # The run may have ended, too, and nobody wants this case any more.
            raise EnvironmentFault(
                f"cluster: a worker does not see {mark.parent.name}, expected the same folder under the same path; "
                "work on a file system that all machines share"
            )
        time.sleep(0.2)


@contextlib.contextmanager
def _recording(level: int) -> Any:
    """What medseg logs meanwhile, for the command to log."""
    logger, records = logging.getLogger("medseg"), Records()
    before = logger.level, logger.propagate
    logger.addHandler(records)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(records)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _settle_process() -> None:
    """Once per worker: its own threads for torch, and leave to start a reader's process."""
    # Dask starts workers as daemons, which may have no children; ours end with the worker by the kernel's word.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # noqa: SLF001
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != worker_threads():
        torch.set_num_threads(worker_threads())


def worker_threads() -> int:
    """Threads of the Dask worker that this is called on."""
    from distributed import get_worker

    return max(1, int(get_worker().state.nthreads))


def worker_address() -> str:
    """Of the Dask worker that this is called on."""
    from distributed import get_worker

    return str(get_worker().address)


async def remove_silent_workers(seconds: float, answered: Collection[str], dask_scheduler: Any = None) -> list[str]:
    """Runs on the scheduler: takes workers out that were not heard of for so long, so that others get their cases.

    Dask does so itself after five minutes (``worker-ttl``), and then counts their cases as suspects. Dead processes it sees at
    once, by their connection; this is for frozen ones and for machines that went away.

    Args:
        seconds: of silence.
        answered: addresses of workers that have ended a case of this run. Others get five times as long: a worker that imports
            torch from a slow disk says nothing for that time.
        dask_scheduler: given by Dask.

    Returns:
        Their names.
    """
    name = "expected" if "expected" in inspect.signature(dask_scheduler.remove_worker).parameters else "safe"
    removed = []
    for address, worker in list(dask_scheduler.workers.items()):
        if time.time() - worker.last_seen > seconds * (1 if address in answered else _PATIENCE):
            await dask_scheduler.remove_worker(address, stimulus_id=f"medseg-{time.time()}", **{name: True})
            removed.append(str(worker.name))
    return removed
