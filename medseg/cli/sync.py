"""``medseg sync``: sends what the tracker missed, and ends the runs of killed processes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medseg.cli.entry import Context, run_verb
from medseg.errors import EnvironmentFault, InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Sends the records of a work folder; 0 when the store has them all, 5 when it can't be had."""
    return run_verb(
        "sync",
        argv,
        body=_sync,
        add_arguments=_add_arguments,
        description=(
            "Send to MLflow what it missed while it was away: to $MLFLOW_TRACKING_URI where that is set, "
            "else to the work folder's own database. Sending twice changes nothing."
        ),
        needs_config=False,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="how long to try at most [%(default)s]"
    )


def _sync(context: Context) -> int:
    from medseg.tracking.address import TRACKING_NAME, mlflow_is_installed, store_address
    from medseg.tracking.pending import count_pending
    from medseg.tracking.process import send_now

    if not (context.work / TRACKING_NAME).is_dir():
        raise InputError(f"{context.work.name}: has no tracking records; give the work folder with --work DIR")
    if not mlflow_is_installed():
        raise EnvironmentFault("tracking: mlflow is not installed; pip install mlflow, then sync again")
    store = store_address(context.work)
    before = count_pending(context.work, store)
    reason = send_now(context.work, wait_seconds=context.args.wait)
    left = count_pending(context.work, store)
    if left.records:
        why = reason or "time ran out"
        raise EnvironmentFault(
            f"tracking: {left.records} records of {_runs(left.runs)} still wait ({why}); sync again later"
        )
    refused = left.refused - before.refused
    sys.stdout.write(f"sync: {before.records} records of {_runs(before.runs)} sent to the {store.kind}\n")
    if refused:
        sys.stdout.write(f"sync: {refused} of them were refused by it for good; tracking/sender.log has the reasons\n")
    return 0


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
