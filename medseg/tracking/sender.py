"""The process that replays the spools of a work folder into MLflow; started by the tracker, ``-m medseg.tracking.sender``.

One sender at a time works on a work folder, so a sqlite store has one writer however many folds train; the others wait
for its lock and take over when it ends. It is polite (niced, one thread), belongs to its parent's process group, and ends
by itself a few seconds after its parent is gone, even while MLflow is stuck in a call: what it has not sent stays on
disk, and sending something twice changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.tracking.address import TRACKING_NAME, store_address
from medseg.tracking.control import Control
from medseg.tracking.mlflow_store import MlflowStore
from medseg.tracking.pending import spool_ends
from medseg.tracking.privacy import PrivacyFilter, show_folder
from medseg.tracking.process import set_environment
from medseg.tracking.sending import Sender
from medseg.tracking.store import StoreAwayError

_log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
CLOSING_POLL_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
_NICENESS = 10
_LAST_ATTEMPTS = 3
"""Failures in a row after which a closing sender gives up."""
_LOG_BYTES = 1 << 20


def serve(sender: Sender, control: Control, work: Path) -> None:
    """Sends until told to close and everything is sent, or until the parent is gone."""
    failures = 0
    while True:
        closing, orphaned = control.closing, control.orphaned
        ends = spool_ends(work)
        holds = sender.acquire()
        if holds:
            try:
                sender.send()
                failures = 0
            except StoreAwayError as error:
                failures += 1
                if failures == 1:
                    _log.warning("not sent: %s", error)
            sender.note()
        if (closing or orphaned) and (sender.has_sent(ends) or failures >= _LAST_ATTEMPTS):
            return
        control.wait(_pause(closing=closing, failures=failures))


def _pause(*, closing: bool, failures: int) -> float:
    if closing:
        return 1.0 if failures else CLOSING_POLL_SECONDS
    return min(POLL_SECONDS * (1 << failures), LONGEST_PAUSE_SECONDS)


def _set_up_log(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(PrivacyFilter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("medseg").setLevel(logging.INFO)
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sender; its standard input carries the parent's words (``control.py``)."""
    parser = argparse.ArgumentParser(prog="medseg.tracking.sender")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args(argv)
    if os.getppid() != args.parent:  # killed while this process was starting: the next command sends its records
        return 0
    # The signals that end the stage reach the whole group; the stage then says what is to be sent, and ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    set_environment()
    tracking = args.work / TRACKING_NAME
    tracking.mkdir(parents=True, exist_ok=True)
    show_folder(args.work, "<work>")
    _set_up_log(tracking / "sender.log")
    control = Control(args.parent, tracking)
    control.start()
    address = store_address(args.work)
    sender = Sender(args.work, address, functools.partial(MlflowStore, address, work=args.work))
    try:
        serve(sender, control, args.work)
    except Exception:  # noqa: BLE001 - its last words
        _log.exception("the sender ends; what it has not sent stays on disk")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
