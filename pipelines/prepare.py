"""Check the scans, plan, and write the prepared data.

    medseg prepare --config configs/hippocampus.yaml --data-root DATA
    medseg prepare --config configs/hippocampus.yaml --data-root DATA --check-only

The same command again does what is missing. A plan that is there is kept when cases come or go, until --replan.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.runner.cluster_flags import add_cluster_flags, open_cluster

if TYPE_CHECKING:
    from medseg.preparation.stage import PrepareReport
    from medseg.tracking.run import TrackedRun

_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    purpose = "Check the scans, plan, and write the prepared data."
    return run_verb("prepare", argv, body=_prepare, add_arguments=_arguments, description=purpose)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check-only", action="store_true", help="report faults of all cases and stop")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad cases out (prepare.on_bad_case: skip)")
    parser.add_argument("--replan", action="store_true", help="make the plan anew from the cases as they are now")
    parser.add_argument("--repair", action="store_true", help="read the whole store and write damaged cases again")
    parser.add_argument("--processes", type=int, metavar="N", help="cases at a time [by cores and free memory]")
    add_cluster_flags(parser)


def _prepare(context: Context) -> int:
    from medseg.cli.review import prepare_note
    from medseg.crossvalidation.previous import previous_stage
    from medseg.manifest import load_manifest
    from medseg.preparation.report import show_checks, summary
    from medseg.preparation.stage import run_prepare
    from medseg.tracking.record import write_stage_record
    from medseg.tracking.tracker import open_tracker

    config, args, started = context.experiment, context.args, time.monotonic()
    assert context.manifest_path is not None
    manifest, folder = load_manifest(context.manifest_path).with_series(config.data.series), context.work / "prepared"
    section = config.prepare.model_copy(update={"on_bad_case": "skip"}) if args.skip_bad else config.prepare
    with (
        open_cluster(args) as cluster,
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run("prepare", "prepare", resume_file=context.work / "prepare-tracking.json") as run,
    ):
        report = run_prepare(
            section,
            manifest,
            data_root=context.data_root if cluster is None else context.data_root.absolute(),
            output=folder if cluster is None else folder.absolute(),
            allow_outside=args.allow_outside,
            replan=args.replan,
            check_only=args.check_only,
            verify=args.repair,
            device=context.device,
            processes=args.processes,
            show=show_checks,
            previous=previous_stage(section, manifest, config_folder=args.config.parent.absolute()),
            run=None if cluster is None else cluster.on(folder.absolute()),
        )
        sys.stdout.write(summary(report) + "\n")
        if report.plan is not None:
            config_now = config.model_copy(update={"prepare": section}).plain()
            inputs = {"manifest": manifest.sha256, "prepared": report.sha256}
            seconds = time.monotonic() - started
            write_stage_record(folder, stage="prepare", config=config_now, inputs=inputs, seconds=seconds)
            if report.read or report.written or report.failed or not run.finished_before:
                _track(run, report, manifest.name, seconds)
                run.log_note(prepare_note(context, manifest.name, summary(report), report.sha256))
                run.log_file(folder / "plan.yaml")
    return report.exit_code


def _track(run: TrackedRun, report: PrepareReport, name: str, seconds: float) -> None:
    counts = {"cases": report.case_count, "bad_cases": len(report.checks.bad_cases), "seconds": seconds}
    run.log_metrics({key: float(value) for key, value in counts.items()}, step=0)
    run.log_dataset(name, report.sha256, [{"case": case_id, "key": key} for case_id, key in report.keys.items()])
    run.log_table([finding.row() for finding in report.checks.findings], "checks")


if __name__ == "__main__":
    sys.exit(main())
