"""One function in a process of its own, so that what brings the process down costs one case.

For code that may crash on a broken file: compiled decoders. The process is started with the first call and used for all
that follow; a dead one is seen at once by its sentinel, a hanging one by its time limit, and a new one is started.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from medseg.errors import EnvironmentFault
from medseg.runner.pool import Job, Outcome, WorkerProcess, cause_of, outcome_of
from medseg.runner.worker import Reply

T = TypeVar("T")
R = TypeVar("R")

_START_SECONDS = 120.0


class Isolated(Generic[T, R]):
    """``task`` in one process per thread that calls it. Close it at the end, from any thread.

    The kernel ends a process of ours when the thread that started it ends, so call it from threads that live on.

    Args:
        task: a picklable function (of an importable module) of one picklable value.
        timeout_seconds: longest time for one call; None waits for ever.
        threads: that numeric libraries may use in each process.
    """

    def __init__(self, task: Callable[[T], R], *, timeout_seconds: float | None = None, threads: int = 1) -> None:
        self._payload, self._timeout_seconds, self._threads = pickle.dumps(task), timeout_seconds, threads
        self._context = multiprocessing.get_context("spawn")
        self._mine = threading.local()
        self._all: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._closed = False

    def __call__(self, case_id: str, item: T) -> Outcome[R]:
        """Runs the task on ``item``; never raises for it.

        A call whose process was killed (out of memory, as a rule) is tried once more; one that crashed is not.

        Raises:
            EnvironmentFault: no process can be started.
        """
        outcome, killed = self._tried(case_id, item)
        if killed and not self._closed:
            outcome, _ = self._tried(case_id, item)
        return outcome

    def close(self) -> None:
        """Ends the processes, also in the midst of a call, which then ends as "died"."""
        self._closed = True
        with self._lock:
            for worker in self._all:
                with contextlib.suppress(ValueError):  # closed by its own thread
                    worker.process.kill()

    def _tried(self, case_id: str, item: T) -> tuple[Outcome[R], bool]:
        began = time.monotonic()
        worker = self._worker()
        worker.give(Job(case_id, item))
        reply, in_time = self._answer(worker, self._timeout_seconds)
        if reply is not None:
            worker.job = None
            return outcome_of(case_id, reply, time.monotonic() - began), False
        worker.process.join(1.0)
        code = worker.process.exitcode
        self._drop(worker)
        if not in_time:
            limit = f"took longer than {self._timeout_seconds:g} s to read and was stopped; check the file"
            reply = Reply("timeout", error=limit, exit_code=1)
        else:
            reply = Reply("died", error=f"brought its reader down ({cause_of(code)}); check the file", exit_code=1)
        return outcome_of(case_id, reply, time.monotonic() - began), in_time and code == -signal.SIGKILL

    def _worker(self) -> WorkerProcess:
        worker: WorkerProcess | None = getattr(self._mine, "worker", None)
        if worker is not None and worker.process.exitcode is None:
            return worker
        if worker is not None:
            self._drop(worker)
        with self._lock:
            if self._closed:
                raise EnvironmentFault("reader: is closed, expected it open; run again")
            worker = WorkerProcess(self._context, self._payload, self._threads, direct_child=True)
            self._all.append(worker)
        self._mine.worker = worker
        ready, _ = self._answer(worker, _START_SECONDS)
        if ready is None or ready.kind != "ok":
            self._drop(worker)
            raise EnvironmentFault(
                "reader: its process ends before it begins, expected it to start; check free memory and process limits"
            )
        worker.ready = True
        return worker

    def _answer(self, worker: WorkerProcess, seconds: float | None) -> tuple[Reply | None, bool]:
        """(what it sent, None if it died or said nothing in time; whether it was in time)."""
        watched: list[Any] = [worker.pipe, worker.process.sentinel]
        in_time = bool(connection.wait(watched, timeout=seconds))
        return (worker.reply() if in_time else None), in_time

    def _drop(self, worker: WorkerProcess) -> None:
        with self._lock:
            self._all.remove(worker)
        self._mine.worker = None
        worker.stop()
