"""A worker process of the pool: its safeguards, its loop, and what it sends back."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

from medseg.errors import MedsegError
from medseg.runner.resources import quick_imports
from medseg.runner.transfer import send

T = TypeVar("T")
R = TypeVar("R")
Kind = Literal["ok", "refused", "failed", "died", "timeout"]

_PR_SET_PDEATHSIG = 1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Reply:
    """What a worker sends back: its result or fault, and the log records made on the way."""

    kind: Kind
    value: Any = None
    error: str | None = None
    exit_code: int = 0
    trace: str = ""
    records: tuple[tuple[str, int, str], ...] = ()


def call(task: Callable[[T], R], item: T) -> Reply:
    """Runs the task on one case and turns whatever it raises into that case's reply."""
    try:
        return Reply("ok", value=task(item))
    except MedsegError as error:
        return Reply("refused", error=str(error), exit_code=error.exit_code, trace=traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - the border of one case: whatever it is, the others go on
        return Reply("failed", error=_described(error), exit_code=1, trace=traceback.format_exc())


def _described(error: Exception) -> str:
    # An OSError's strerror is the system's own text; str(error) would add the path, and other texts may quote headers.
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return f"stopped by {type(error).__name__}{reason}; --debug shows where"


class Records(logging.Handler):
    """Keeps what a case logs, for the parent to log under its own settings."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        self.kept.append((record.name, record.levelno, record.getMessage()))

    def take(self) -> tuple[tuple[str, int, str], ...]:
        """(logger, level, text) of each so far, which are let go."""
        kept, self.kept = tuple(self.kept), []
        return kept


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when the thread that started it ends; leaves at once if it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def end_with_process(pid: int) -> None:
    """Has a thread kill this process when process ``pid``, which need not be its parent, is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)

    def watch() -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch", daemon=True).start()


def _leave(_signal: int, _frame: object) -> None:
    sys.exit(143)  # as an exception, so that temporaries are removed on the way out


def work(pipe: Connection, command_pid: int, *, direct_child: bool, threads: int, level: int) -> None:
    """A worker's life: first the safeguards, only then the task's imports, then one case after another."""
    if direct_child:
        die_with_parent(command_pid)
    else:  # the parent is a fork server, which lives on as long as one of its workers does
        end_with_process(command_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _leave)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    records = Records()
    logging.basicConfig(handlers=[records], level=level)
    logging.captureWarnings(True)
    try:
        with quick_imports():
            task = pipe.recv()
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - reported to the parent, which raises
        send(pipe, Reply("failed", error=_described(error), trace=traceback.format_exc()))
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    send(pipe, Reply("ok"))
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        reply = call(task, item)
        _send(pipe, replace(reply, records=records.take()))


def _send(pipe: Connection, reply: Reply) -> None:
    try:
        send(pipe, reply)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        send(pipe, Reply("failed", error=_described(error), exit_code=1, trace=traceback.format_exc()))
