"""Folds as processes of their own: the same command with another fold, watched, stopped and resumed together.

A fold's process is exactly what ``medseg train --set data.fold=K`` starts, so it keeps its own state, lock and record, and
may as well be started by hand. A signal that this process gets is handed on once; if this process is killed, the kernel
asks its children to save and end.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from medseg.crossvalidation.candidates import folds_of
from medseg.errors import UsageError
from medseg.inference.runs import latest_run
from medseg.manifest import load_manifest

_LOG = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_SIGNALLED = 128
_OWN_FLAGS = ("--fold", "--parallel")
_UNREGISTERED = ("--set", "tracking.registered_model=null")
COMMAND = (sys.executable, "-m", "medseg.cli.main")


@dataclass(frozen=True, kw_only=True)
class ChildRun:
    """One command to start.

    Attributes:
        name: for messages, e.g. "fold_0".
        arguments: after ``medseg``.
    """

    name: str
    arguments: tuple[str, ...]


@dataclass
class _Running:
    run: ChildRun
    process: subprocess.Popen[bytes]
    slot: int
    output: ExitStack = field(default_factory=ExitStack)


def parse_folds(text: str, known: Sequence[int]) -> tuple[int, ...]:
    """The folds that ``--fold`` names: ``all``, or numbers with commas.

    Args:
        text: as given.
        known: the manifest's folds, sorted.

    Raises:
        UsageError: no number, a fold that the manifest does not have, or one named twice.
    """
    if text == "all":
        if len(known) < 2:
            raise UsageError(
                f"--fold: is all, but the manifest has {len(known)} folds, expected at least 2; split it first"
            )
        return tuple(known)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--fold: is {text!r}, expected all, a number, or numbers with commas such as 0,2")
    folds = [int(part) for part in parts]
    strange = sorted(set(folds) - set(known))
    if strange:
        listed = ", ".join(map(str, known)) or "none"
        raise UsageError(f"--fold: names fold {strange[0]}, the manifest's folds are {listed}; change one")
    if len(set(folds)) < len(folds):
        raise UsageError(f"--fold: is {text!r}, expected each fold once")
    return tuple(folds)


def fold_run(arguments: Sequence[str], fold: int) -> ChildRun:
    """The command of one fold: ``medseg train`` with ``arguments``, less the flags that concern several folds.

    No fold's model is registered: no set of cases compares them with one another, and `medseg crossval` registers all of them
    as one.
    """
    kept: list[str] = []
    skip_next = False
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        if skip_next or flag in _OWN_FLAGS:
            skip_next = not skip_next and "=" not in argument
            continue
        kept.append(argument)
    return ChildRun(name=f"fold_{fold}", arguments=("train", *kept, *_UNREGISTERED, "--set", f"data.fold={fold}"))


def run_children(
    runs: Sequence[ChildRun],
    *,
    parallel: int = 1,
    asked_to_stop: Callable[[], int | None] = lambda: None,
    logs: Path | None = None,
    devices: Sequence[str] = (),
) -> int:
    """Starts ``runs``, at most ``parallel`` at a time, and waits for them.

    After one has failed, no other is started; those that run are waited for. What is done stays done: the same command
    again goes on with every fold where it stopped.

    Args:
        runs: in the order in which they are started.
        parallel: processes at a time; each is given its share of the cores unless ``OMP_NUM_THREADS`` says otherwise.
        asked_to_stop: the signal to hand on, once there is one.
        logs: folder for what the processes print, a file each; None lets them print here.
        devices: taken in turn by the processes that run side by side; empty leaves ``--device`` as it is.

    Returns:
        0 when all ended well; otherwise the first other exit code (5 for a process that was killed).
    """
    waiting, running = deque(runs), list[_Running]()
    free = list(range(max(1, parallel)))
    code, handed_on = 0, False
    try:
        while waiting or running:
            signum = asked_to_stop()
            if signum is not None and not handed_on:
                handed_on = True
                for one in running:
                    one.process.send_signal(signum)
            while waiting and free and not code and signum is None:
                running.append(_start(waiting.popleft(), free.pop(0), parallel, logs, devices))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                free.insert(0, one.slot)
                one.output.close()
                code = code or _code_of(one)
            if (code or signum is not None) and not running:
                return code
            time.sleep(_POLL_SECONDS)
    finally:
        for one in running:  # only where this process itself is on its way out
            one.process.terminate()
            one.output.close()
    return code


def _start(run: ChildRun, slot: int, parallel: int, logs: Path | None, devices: Sequence[str]) -> _Running:
    arguments = run.arguments + (("--device", devices[slot % len(devices)]) if devices else ())
    environment = dict(os.environ)
    if parallel > 1:
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // parallel)))
    output, stream = ExitStack(), None
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        stream = output.enter_context((logs / f"{run.name}.txt").open("ab"))
    _LOG.info("%s: starts", run.name)
    process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
        [*COMMAND, *arguments],
        env=environment,
        stdout=stream,
        stderr=subprocess.STDOUT if stream else None,
        start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on once
        preexec_fn=partial(_end_with, os.getpid(), ctypes.CDLL(None, use_errno=True)),  # noqa: PLW1509 - no threads here
    )
    return _Running(run, process, slot, output)


def _end_with(parent: int, libc: ctypes.CDLL) -> None:
    """In the child, before it becomes its command: the kernel asks it to save and end when the parent is gone."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(_SIGNALLED + signal.SIGTERM)


def _code_of(one: _Running) -> int:
    code = one.process.returncode
    if code < 0:
        _LOG.error("%s: its process was killed by signal %d; the same command goes on with it", one.run.name, -code)
        return 5
    _LOG.log(logging.INFO if code == 0 else logging.WARNING, "%s: ended with exit code %d", one.run.name, code)
    return code


def train_folds(
    arguments: Sequence[str],
    *,
    manifest: Path,
    work: Path,
    folds: str,
    parallel: int = 1,
    device: str | None = None,
    asked_to_stop: Callable[[], int | None] = lambda: None,
) -> int:
    """What ``medseg train --fold all`` (or ``--fold 0,2``) does: a process per fold, then ``medseg crossval`` in one more.

    Where folds are left that nobody trained yet, it ends without the last.

    Args:
        arguments: as ``medseg train`` was given them.
        manifest: with the folds.
        work: the work folder.
        folds: value of ``--fold``.
        parallel: folds at a time.
        device: value of ``--device``.
        asked_to_stop: the signal to hand on, once there is one.

    Returns:
        An exit code of the command.

    Raises:
        UsageError: the folds are not the manifest's, or this is one process of several that train together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--fold: is given under torchrun, expected one process; train folds one by one (data.fold=K) there"
        )
    known = list(folds_of(load_manifest(manifest)))
    code = run_children(
        [fold_run(arguments, fold) for fold in parse_folds(folds, known)],
        parallel=parallel,
        asked_to_stop=asked_to_stop,
        logs=work / "logs" if parallel > 1 else None,
        devices=free_devices(device) if parallel > 1 else (),
    )
    if code or asked_to_stop() is not None:
        return code
    lacking = [fold for fold in known if not (latest_run(work, fold) / "model" / "model.json").is_file()]
    if lacking:
        listed = ", ".join(map(str, lacking))
        _LOG.info("folds still to be trained: %s; --fold all trains them and then scores all of them together", listed)
        return 0
    return run_children([crossval_run(arguments)], asked_to_stop=asked_to_stop)


def crossval_run(arguments: Sequence[str]) -> ChildRun:
    """``medseg crossval`` with those of the train verb's arguments that it has too."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    valued = ("--config", "--data-root", "--work", "--device")
    for flag in valued:
        parser.add_argument(flag, dest=flag)
    parser.add_argument("--set", dest="--set", action="append", default=[])
    switches = ("--allow-outside", "--verbose", "--debug")
    for flag in switches:
        parser.add_argument(flag, dest=flag, action="store_true")
    given = vars(parser.parse_known_args(arguments)[0])
    kept = [text for flag in valued if given[flag] is not None for text in (flag, given[flag])]
    kept += [text for override in given["--set"] for text in ("--set", override)]
    kept += [flag for flag in switches if given[flag]]
    return ChildRun(name="crossval", arguments=("crossval", *kept))


def free_devices(asked_for: str | None) -> tuple[str, ...]:
    """Devices that processes side by side take in turn: all GPUs where there are several and none was named, else none."""
    if asked_for not in (None, "cuda"):
        return ()
    import torch

    count = torch.cuda.device_count()
    return tuple(f"cuda:{number}" for number in range(count)) if count > 1 else ()
