"""``medseg report``: makes the report of scores again, from what ``evaluate`` wrote and the masks.

    medseg report --config configs/hippocampus.yaml --data-root DATA
    medseg report scores --predictions masks --references labels
    medseg report scores

The last form has no masks at hand: tables and figures, no slices and no kinds of failure.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.report.content import ReportInputs

_WITHOUT_CONFIG = ("predictions", "references", "scans", "model")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb; returns its exit code."""
    return run_verb(
        "report",
        argv,
        body=_report,
        add_arguments=_arguments,
        description="Make report.html and report.md of a folder of scores again; see docs/report.md.",
        needs_config=False,
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scores", type=Path, nargs="?", metavar="SCORES", help="folder with metrics.json and cases.csv")
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="the masks that were scored")
    parser.add_argument("--references", type=Path, metavar="DIR", help="the masks they were scored against")
    parser.add_argument(
        "--scans", type=Path, metavar="DIR", help="scans named after the cases, to be shown in the report"
    )
    parser.add_argument("--model", type=Path, action="append", metavar="DIR", help="model folder that made the masks")


def _report(context: Context) -> int:
    from medseg.report.stage import make_report

    for inputs in _folders(context) if context.config is None else _experiment(context):
        found = make_report(inputs, again=True)
        sys.stdout.write(f"{found.html} ({found.html.stat().st_size / 1e6:.1f} MB), {found.markdown.name}\n")
    return 0


def _folders(context: Context) -> list[ReportInputs]:
    from medseg.report.experiment import folder_inputs, scored_folders

    args = context.args
    if args.scores is None:
        raise UsageError("report: expected a folder of scores, or --config FILE; see medseg report --help")
    if (args.predictions is None) != (args.references is None):
        raise UsageError("report: --predictions and --references belong together; give both or neither")
    if args.scans is not None and args.predictions is None:
        raise UsageError("report: --scans needs --predictions and --references, whose cases they are of")
    cases = None
    if args.predictions is not None:
        cases = scored_folders(args.scores, predictions=args.predictions, references=args.references)
    return [folder_inputs(args.scores, cases, scans=args.scans, models=args.model or ())]


def _experiment(context: Context) -> list[ReportInputs]:
    from medseg.evaluation.experiment import as_scored

    evaluate = importlib.import_module("medseg.pipelines.evaluate")
    args = context.args
    if given := [f"--{flag}" for flag in _WITHOUT_CONFIG if flag != "predictions" and getattr(args, flag) is not None]:
        raise UsageError(f"report: has --config and {', '.join(given)}, expected one or the other; see --set")
    args.output = None
    sets = evaluate.config_sets(context)
    if args.scores is not None:
        name = args.scores.resolve().name
        sets = {args.scores: next((cases for folder, cases in sets.items() if folder.name == name), None)}
        if sets[args.scores] is None:
            raise UsageError(f"report: {args.scores.name} is no set of this config; leave it out for all of them")
    return [evaluate.report_inputs(context, folder, as_scored(cases, folder)) for folder, cases in sets.items()]


if __name__ == "__main__":
    sys.exit(main())
