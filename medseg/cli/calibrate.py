"""``medseg calibrate``: expected Dice for a model, from masks of scans that it did not see and their references."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.entry import Context, run_verb
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.evaluation.matching import CasePaths

_GROUPS = 10
"""Left out in turn where there are no folds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb; returns its exit code."""
    return run_verb(
        "calibrate",
        argv,
        body=_calibrate,
        add_arguments=_arguments,
        description="Put into a model folder what tells the Dice of its masks without their truth.",
        needs_config=False,
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder; gets quality.json")
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="DIR", help="its masks of scans that it was not trained on"
    )
    parser.add_argument(
        "--references", type=Path, required=True, metavar="DIR", help="the true masks, of the same names"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for scores and figures")
    parser.add_argument(
        "--coverage", type=float, default=0.9, metavar="P", help="share of masks to lie above the bound [0.9]"
    )


def _calibrate(context: Context) -> int:
    from medseg.crossvalidation.judged import calibrate, judged_cases
    from medseg.durable import FolderLock
    from medseg.evaluation import run_evaluate
    from medseg.evaluation.experiment import folder_set

    args = context.args
    if not 0 < args.coverage < 1:
        raise UsageError(f"--coverage: is {args.coverage:g}, expected a number between 0 and 1")
    info = _info(args.model)
    labels = ",".join(f"{name}={'+'.join(map(str, own))}" for name, own in list(info["labels"].items())[1:])
    cases = folder_set(
        "calibration", predictions=args.predictions, references=args.references, labels=labels,
        ignore=None, tolerance=None, empty=None,
    )  # fmt: skip
    _refuse_strangers(cases.pairs, args.model, info)
    with FolderLock(args.output):
        report = run_evaluate(cases, output=args.output / "scores")
        groups = {case: number % _GROUPS for number, case in enumerate(sorted(report.scores.rows))}
        judged = judged_cases(cases.pairs, groups, scores=report.scores, drawn=report.scores)
        names, count = cases.protocol.class_names, len(report.scores.rows)
        found = calibrate(args.model, judged, names, args.output, expected=count, coverage=args.coverage)
    if not found:
        raise UsageError(
            f"{args.predictions.name}: {len(judged)} of {count} masks tell how sure the network was, expected half of them "
            "and 8 of a class; make them with medseg infer and infer.quality=true"
        )
    sys.stdout.write(
        f"{args.model}: calibrated on {found['cases']} masks; of masks left out {found['coverage']['found']:.1%} lie above a "
        f"bound that promises {args.coverage:.0%}\n"
    )
    return 0


def _info(model: Path) -> Mapping[str, Any]:
    from medseg.durable import read_json

    path = model / "model.json"
    info = read_json(path) if path.is_file() else None
    if not isinstance(info, dict) or info.get("kind") != "medseg model":
        raise UsageError(f"--model: {model.name} is no model folder; check the path")
    return info


def _refuse_strangers(pairs: Sequence[CasePaths], model: Path, info: Mapping[str, Any]) -> None:
    """Raises UsageError where a mask's sidecar names another model."""
    from medseg.durable import sha256_file
    from medseg.runner.sidecar import read_sidecar

    members = info.get("members")
    own = " ".join(one["sha256"] for one in members) if members else sha256_file(model / "model.json")
    for pair in pairs:
        sidecar = None if pair.prediction is None else read_sidecar(pair.prediction)
        made_by = None if sidecar is None else sidecar.origin.settings.get("models")
        if made_by is not None and made_by != own:
            raise UsageError(
                f"{pair.case_id}: was segmented by another model than {model.name}; make its mask anew with this one"
            )


if __name__ == "__main__":
    sys.exit(main())
