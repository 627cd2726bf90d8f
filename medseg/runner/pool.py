"""Many cases over a few processes, where one bad case, or one dead process, costs that case only.

A pool of our own over pipes, because ``ProcessPoolExecutor`` breaks as a whole when one worker is killed. Workers are
spawned (never forked: torch and BLAS hold threads), take one case at a time, are watched by their sentinel, and die
with this process, however it dies.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, TypeVar

from medseg.errors import EnvironmentFault
from medseg.runner.resources import available_cores, default_processes
from medseg.runner.transfer import receive
from medseg.runner.worker import Kind, Reply, call, work

__all__ = ["Outcome", "default_processes", "run_cases"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
StartMethod = Literal["spawn", "forkserver"]

_GRACE_SECONDS = 1.0
_MAX_FALSE_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[R]):
    """What became of one case.

    Attributes:
        case_id: as given.
        kind: "ok"; "refused" (the task raised a MedsegError); "failed" (any other exception); "died" (its process was
            killed, twice); "timeout" (it took longer than allowed and was killed).
        value: the task's result, None unless ``kind`` is "ok".
        error: one line for the user, None if "ok". A foreign exception gives its type only, for its text may hold
            anything; the traceback goes to the log at debug level.
        exit_code: the MedsegError's own (5 means that the machine is at fault and going on makes little sense), 1 for
            the other faults, 0 if "ok".
        seconds: from hand-out to result, of the last try.
    """

    case_id: str
    kind: Kind
    seconds: float
    value: R | None = None
    error: str | None = None
    exit_code: int = 0


def run_cases(
    task: Callable[[T], R],
    items: Sequence[tuple[str, T]],
    *,
    processes: int,
    timeout_seconds: float | None = None,
    start: StartMethod = "spawn",
) -> Iterator[Outcome[R]]:
    """Runs ``task`` on every item and yields an outcome for each, as they end.

    Never raises for a case: a MedsegError, a bug, a killed process or a hang is that case's outcome. A case whose
    process died is tried once more, at the end and alone, for another case's memory may have been the reason.
    At most one case per process is in flight; closing the iterator early stops the workers. Iterate in one thread, and
    in one that lives on: the kernel kills workers when the thread that started them ends.

    Args:
        task: a picklable function (of an importable module, or a partial of one) of one picklable value.
        items: pairs of case id and value. None gives no outcome.
        processes: workers at most; 1 or less runs the cases in this process, one after another, unless there is a
            time limit, which takes a process that can be killed.
        timeout_seconds: longest time for one case.
        start: "spawn" is a fresh interpreter for each worker; "forkserver" forks them from one process that has imported
            what ``set_forkserver_preload`` named, which pays where every worker would import much.

    Raises:
        EnvironmentFault: no worker can be started.
    """
    if processes <= 1 and timeout_seconds is None:
        yield from (outcome_of(case_id, *_timed_in_process(task, item)) for case_id, item in items)
        return
    pool = _Pool(task, min(max(1, processes), len(items)), timeout_seconds, start)
    try:
        yield from pool.run(items)
    finally:
        pool.close()


def _timed_in_process(task: Callable[[T], R], item: T) -> tuple[Reply, float]:
    began = time.monotonic()
    return call(task, item), time.monotonic() - began


def outcome_of(case_id: str, reply: Reply, seconds: float) -> Outcome[Any]:
    """A worker's reply as the case's outcome; what it logged is logged here."""
    for name, level, message in reply.records:
        logging.getLogger(name).log(level, "%s: %s", case_id, message)
    if reply.trace:
        logger.debug("%s: %s", case_id, reply.trace)
    error = reply.error
    if error is not None and reply.kind != "refused":
        error = f"{case_id}: {error}"
    return Outcome(
        case_id=case_id,
        kind=reply.kind,
        seconds=seconds,
        value=reply.value,
        error=error,
        exit_code=reply.exit_code,
    )


@dataclass
class Job:
    """One case, and how often it was handed out."""

    case_id: str
    item: Any
    tries: int = 0


RunCases = Callable[[Callable[[Any], Any], Sequence[tuple[str, Any]]], Iterator[Outcome[Any]]]
"""What runs a task on items, here or on a cluster: `run_cases` with its processes given, or `Cluster.run_cases`."""


@contextlib.contextmanager
def _unknown_main() -> Iterator[None]:
    """Hides the running script from a process that is being started, which would run it again, guarded or not."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class WorkerProcess:
    """One process, its pipe and the case it has."""

    def __init__(self, context: BaseContext, payload: bytes, threads: int, *, direct_child: bool) -> None:
        self.pipe, theirs = context.Pipe()
        terms = {
            "direct_child": direct_child,
            "threads": threads,
            "level": logging.getLogger("medseg").getEffectiveLevel(),
        }
        # Process is an attribute of every concrete context; the typed base has none.
        self.process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=work, args=(theirs, os.getpid()), kwargs=terms, daemon=True
        )
        with _unknown_main():
            self.process.start()
        theirs.close()
        self.ready = False
        self.job: Job | None = None
        self.since = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead already: its sentinel says so next
            self.pipe.send_bytes(payload)

    def give(self, job: Job) -> None:
        """Hands it a case."""
        job.tries += 1
        self.job, self.since = job, time.monotonic()
        self.pipe.send(job.item)

    def has_sent(self) -> bool:
        """Whether something of it waits in the pipe; a dead worker's closed pipe counts."""
        try:
            return self.pipe.poll()
        except OSError:
            return True

    def reply(self) -> Reply | None:
        """What it sent, or None if it is dead."""
        try:
            return receive(self.pipe) if self.pipe.poll() else None
        except (EOFError, OSError):
            return None

    def stop(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Ends it: at once if it has a case, else as soon as it sees its pipe closed."""
        self.pipe.close()
        if self.job is not None or not self.ready:
            self.process.terminate()
        self.process.join(grace_seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.process.close()


class _Pool(Generic[T, R]):
    def __init__(
        self,
        task: Callable[[T], R],
        processes: int,
        timeout_seconds: float | None,
        start: Literal["spawn", "forkserver"],
    ) -> None:
        self._context = multiprocessing.get_context(start)
        self._direct_child = start == "spawn"
        self._payload = pickle.dumps(task)
        self._processes = processes
        self._timeout_seconds = timeout_seconds
        self._workers: list[WorkerProcess] = []
        self._waiting: deque[Job] = deque()
        self._again: deque[Job] = deque()
        self._false_starts = 0

    def run(self, items: Sequence[tuple[str, T]]) -> Iterator[Outcome[R]]:
        self._waiting.extend(Job(case_id, item) for case_id, item in items)
        left = len(self._waiting)
        while left:
            self._hand_out()
            for outcome in self._collect():
                left -= 1
                yield outcome

    def close(self) -> None:
        for worker in self._workers:
            if worker.job is not None or not worker.ready:
                worker.process.terminate()  # all at once, then wait for each
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def _hand_out(self) -> None:
        busy = sum(worker.job is not None for worker in self._workers)
        wanted = busy + len(self._waiting) if self._waiting else 1
        while len(self._workers) < min(self._processes, wanted):
            threads = max(1, available_cores() // self._processes)
            self._workers.append(WorkerProcess(self._context, self._payload, threads, direct_child=self._direct_child))
        for worker in self._workers:
            if worker.ready and worker.job is None and self._waiting:
                self._give(worker, self._waiting.popleft())
                busy += 1
            elif worker.ready and worker.job is None and self._again and not busy:
                self._give(worker, self._again.popleft())
                busy += 1

    def _give(self, worker: WorkerProcess, job: Job) -> None:
        # One that died idle shows by its sentinel next; the case has then used up this try.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.give(job)

    def _collect(self) -> Iterator[Outcome[R]]:
        """Waits for the next event and yields the outcomes that it settles; none where it was a start or a retry."""
        watched: list[Any] = [thing for w in self._workers for thing in (w.pipe, w.process.sentinel)]
        fired = set(connection.wait(watched, timeout=self._seconds_to_deadline()))
        for worker in tuple(self._workers):
            # Asked again, since the caller may have taken long over an earlier outcome of this round.
            if worker.pipe in fired or worker.process.sentinel in fired or worker.has_sent():
                reply = worker.reply()
                outcome = self._settle(worker, reply) if reply is not None else self._bury(worker)
            elif self._overdue(worker):
                outcome = self._give_up(worker)
            else:
                continue
            if outcome is not None:
                self._hand_out()  # before the caller takes its time with this one
                yield outcome

    def _seconds_to_deadline(self) -> float | None:
        if self._timeout_seconds is None:
            return None
        since = [worker.since for worker in self._workers if worker.job is not None]
        return max(0.0, min(since) + self._timeout_seconds - time.monotonic()) if since else None

    def _overdue(self, worker: WorkerProcess) -> bool:
        limit = self._timeout_seconds
        return limit is not None and worker.job is not None and time.monotonic() - worker.since >= limit

    def _settle(self, worker: WorkerProcess, reply: Reply) -> Outcome[R] | None:
        job, worker.job = worker.job, None
        if job is not None:
            return outcome_of(job.case_id, reply, time.monotonic() - worker.since)
        if reply.kind != "ok":
            logger.debug("worker: %s", reply.trace)
            raise RuntimeError(f"a worker process can't load the task: {reply.error}")
        worker.ready, self._false_starts = True, 0
        return None

    def _bury(self, worker: WorkerProcess) -> Outcome[R] | None:
        job, seconds = worker.job, time.monotonic() - worker.since
        worker.process.join(_GRACE_SECONDS)
        code = worker.process.exitcode
        self._drop(worker)
        if job is None:
            self._false_starts += not worker.ready
            if self._false_starts >= _MAX_FALSE_STARTS:
                raise EnvironmentFault(
                    f"worker processes end before they begin (exit code {code}), expected them to start; "
                    "check free memory and the limit on processes"
                )
            return None
        if job.tries < 2:
            logger.warning("%s: its worker was killed; it is tried once more at the end, alone", job.case_id)
            self._again.append(job)
            return None
        reply = Reply("died", error=f"worker killed twice ({cause_of(code)}); give it more memory", exit_code=1)
        return outcome_of(job.case_id, reply, seconds)

    def _give_up(self, worker: WorkerProcess) -> Outcome[R]:
        assert worker.job is not None
        job, seconds = worker.job, time.monotonic() - worker.since
        self._drop(worker)
        limit = f"took longer than {self._timeout_seconds:g} s and was stopped; raise the limit or look at the file"
        return outcome_of(job.case_id, Reply("timeout", error=limit, exit_code=1), seconds)

    def _drop(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        worker.stop()


def cause_of(exit_code: int | None) -> str:
    """Why a process ended, in a word or two."""
    if exit_code == -signal.SIGKILL:
        return "out of memory?"
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
