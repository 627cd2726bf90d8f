"""What every verb has in common: flags, the checked config, logging, signals and exit codes.

Exit codes: 0 all done or nothing left to do; 1 our own fault; 2 usage or config; 3 input refused, nothing done; 4 some cases
failed or were skipped, the rest is done; 5 environment; 6 another process works on this output; 130 after SIGINT, 143 after
SIGTERM or SIGUSR1, state saved.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from medseg.config import Config, load_config
from medseg.errors import MedsegError, UsageError
from medseg.runner.resources import keep_freed_memory, leave_quickly

_LOG = logging.getLogger(__name__)


class Stopped(BaseException):
    """A signal asks this process to end; like KeyboardInterrupt, no ``except Exception`` may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 130 if signum == signal.SIGINT else 143


@dataclass
class StopRequest:
    """Whether a signal asked for an orderly end. The loop that was promised one looks here after each step."""

    signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM or SIGUSR1, 0 if none came."""
        return Stopped(self.signum).exit_code if self.signum is not None else 0


@dataclass(frozen=True)
class Context:
    """What a verb is given: the checked config and where to work.

    Attributes:
        args: all parsed flags, the verb's own among them.
        config: None only where the verb can do without and none was given.
        work: folder for everything this experiment writes.
        data_root: where a manifest's relative paths start.
        manifest_path: the config's manifest.
        device: "cpu", "cuda" or "cuda:1", as asked for; None lets the stage choose.
        started: ``time.monotonic()`` when the verb began, which a budget in minutes counts from.
        stop: set by the first SIGINT, SIGTERM or SIGUSR1 where the verb is graceful.
    """

    args: argparse.Namespace
    config: Config | None = None
    work: Path = Path("work")
    data_root: Path = Path()
    manifest_path: Path | None = None
    device: str | None = None
    started: float = field(default_factory=time.monotonic)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def experiment(self) -> Config:
        """The config.

        Raises:
            UsageError: none was given.
        """
        if self.config is None:
            raise UsageError("no config was given; add --config FILE")
        return self.config


def run_verb(
    verb: str,
    argv: Sequence[str] | None,
    *,
    body: Callable[[Context], int],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    description: str | None = None,
    needs_config: bool = True,
    graceful: bool = False,
) -> int:
    """Parses, checks the config, sets up logging and signals, runs ``body`` and turns what happens into an exit code.

    Args:
        verb: the name after ``medseg``.
        argv: arguments after the verb; None takes those of the process.
        body: does the work; returns an exit code.
        add_arguments: adds the verb's own flags.
        description: first line of ``--help``.
        needs_config: refuse to start without ``--config``.
        graceful: the body polls ``context.stop``; a first signal only sets it, a second one ends the process at once.

    Returns:
        The exit code. Errors are printed on stderr, one line a fault; a traceback only for our own faults or ``--debug``.
    """
    # OpenMP's threads spin while they wait, unless told before torch is loaded not to. With another process on the cores a
    # thread that spins keeps the one it waits for from running: a forward pass took 31 s in place of 0.65 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A few microseconds of spinning before they sleep are worth 5 to 10 % of a step of a small network.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    keep_freed_memory()
    leave_quickly()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what a terminal's encoding can't show
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _parse(verb, argv, add_arguments, description, needs_config)
    try:
        context = _context(args)
        with _Signals(context.stop, graceful=graceful):
            _set_up_logging(context, verb)
            code = body(context)
            return context.stop.exit_code or code
    except MedsegError as error:
        return _report(error, debug=args.debug)
    except Stopped as stopped:
        sys.stderr.write(f"{verb}: stopped; run the same command again to go on\n")
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except Exception:  # noqa: BLE001 - the last line of defence, logged with its traceback
        # The root logger's handlers carry the privacy filter; a bare traceback would print paths.
        _LOG.exception("%s: a fault of medseg itself; please report it with these lines", verb)
        return 1


def _parse(
    verb: str,
    argv: Sequence[str] | None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None,
    description: str | None,
    needs_config: bool,
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"medseg {verb}", description=description, allow_abbrev=False)
    group = parser.add_argument_group("common flags")
    group.add_argument("--config", type=Path, required=needs_config, metavar="FILE", help="experiment (YAML)")
    group.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="change a value of the config"
    )
    group.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where the manifest's paths start [its own folder]"
    )
    group.add_argument("--work", type=Path, metavar="DIR", help="where results go [work/<config name>]")
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N [cuda where there is one]")
    group.add_argument("--fresh", action="store_true", help="start a new run folder; nothing is deleted")
    group.add_argument("--allow-changed", action="store_true", help="go on although config, data or code changed")
    group.add_argument("--allow-outside", action="store_true", help="allow manifest paths outside the data root")
    group.add_argument("--verbose", action="store_true", help="more lines in the log")
    group.add_argument("--debug", action="store_true", help="tracebacks for refused input too")
    if add_arguments is not None:
        add_arguments(parser)
    return parser.parse_args(argv)


def _context(args: argparse.Namespace) -> Context:
    if args.config is None:
        if args.overrides:
            raise UsageError("--set needs --config FILE")
        work = args.work or getattr(args, "output", None) or Path("work")
        return Context(args=args, work=work, data_root=args.data_root or Path(), device=args.device)
    config = load_config(args.config, args.overrides)
    manifest_path = args.config.parent / config.data.manifest
    return Context(
        args=args,
        config=config,
        work=args.work or Path("work") / config.name,
        data_root=args.data_root or manifest_path.parent,
        manifest_path=manifest_path,
        device=args.device,
    )


def _set_up_logging(context: Context, verb: str) -> None:
    from medseg.tracking.logs import set_up_logging

    log_file = context.work / "logs" / f"{verb}.log" if context.config is not None else None
    set_up_logging(log_file, verbose=context.args.verbose)


def _report(error: MedsegError, *, debug: bool) -> int:
    if debug:
        _LOG.error("refused", exc_info=error)
    sys.stderr.write(f"{error}\n")
    return error.exit_code


class _Signals:
    """Handlers for the time of one verb; the former ones come back afterwards."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, stop: StopRequest, *, graceful: bool) -> None:
        self._stop, self._graceful = stop, graceful

    def __enter__(self) -> None:
        try:
            self._former = {signum: signal.signal(signum, self._handle) for signum in self._SIGNALS}
        except ValueError:  # not the main thread (a test, a notebook): signals stay as they are
            self._former = {}

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self._stop:
            os._exit(Stopped(signum).exit_code)
        self._stop.signum = signum
        if not self._graceful:
            raise Stopped(signum)
