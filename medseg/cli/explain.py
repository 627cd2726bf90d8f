"""``medseg explain``: maps of what a model's mask of a scan rests on.

    medseg explain scan.nii.gz --model MODEL --output maps
    medseg explain SCANS --model MODEL --output maps --class tumour --method both --sanity

SCANS is what ``medseg infer`` takes. The same command again makes what is missing and keeps what is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.explain.case import ExplainOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb; returns its exit code."""
    return run_verb(
        "explain",
        argv,
        body=_explain,
        add_arguments=_arguments,
        description="Write maps of what a model's masks rest on: Grad-CAM and occlusion.",
        needs_config=False,
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="SCAN", help="scan, folder, .txt list or manifest, as infer takes them"
    )
    parser.add_argument(
        "--model", action="append", type=Path, required=True, metavar="DIR", help="model folder; several are averaged"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the maps")
    parser.add_argument(
        "--class", action="append", default=[], dest="classes", metavar="NAME", help="may be repeated [every class]"
    )
    parser.add_argument("--method", choices=("gradcam", "occlusion", "both"), default="gradcam", help="[gradcam]")
    parser.add_argument(
        "--region", default="predicted", metavar="MASK",
        help="where the class is to be explained: a label map on the scan's grid, a folder of them by case, or predicted: "
        "the model's own mask of the class [predicted]",
    )  # fmt: skip
    parser.add_argument(
        "--region-values", metavar="V,...", help="values of MASK that are the region [all that are not 0]"
    )
    parser.add_argument("--layer", metavar="NAME", help="of Grad-CAM [the deepest stage of the encoder]")
    parser.add_argument("--box", type=_positive, metavar="MM", help="side of an occluded box [a sixth of the patch]")
    parser.add_argument("--stride", type=_positive, metavar="MM", help="from box to box [half a box]")
    parser.add_argument(
        "--fill", choices=("mean", "lowest"), default="mean", help="what an occluded box shows, of each channel [mean]"
    )
    parser.add_argument(
        "--sanity", action="store_true", help="compare each map with that of shuffled weights, which should differ"
    )
    parser.add_argument("--png", action="store_true", help="write pictures too; they show the scan, maybe a face")
    parser.add_argument("--overwrite", action="store_true", help="make every map anew")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text}, expected a number above 0")
    return value


def _options(args: argparse.Namespace) -> ExplainOptions:
    from medseg.explain.case import METHODS, ExplainOptions

    region = None if args.region == "predicted" else Path(args.region)
    if region is not None and not region.exists():
        raise UsageError(f"{args.region}: no such file or folder; check --region")
    if args.region_values and region is None:
        raise UsageError("--region-values: needs --region MASK")
    try:
        values = tuple(int(value) for value in (args.region_values or "").split(",") if value)
    except ValueError as error:
        raise UsageError(f"--region-values: is {args.region_values}, expected whole numbers with commas") from error
    return ExplainOptions(
        classes=tuple(dict.fromkeys(args.classes)),
        methods=METHODS if args.method == "both" else (args.method,),
        layer=args.layer,
        region=region,
        region_values=values,
        box_mm=args.box,
        stride_mm=args.stride,
        fill=args.fill,
        sanity=args.sanity,
        png=args.png,
        overwrite=args.overwrite,
    )


def _explain(context: Context) -> int:
    args, options = context.args, _options(context.args)
    from medseg.explain.stage import exit_code, explain_folder
    from medseg.inference.cases import find_cases
    from medseg.inference.ensemble import build_engine
    from medseg.inference.experiment import own_section
    from medseg.inference.model import load_models
    from medseg.networks.precision import choose_device

    device = choose_device(context.device)
    models = [model for folder in args.model for model in load_models(folder, device=device)]
    section = own_section(models[0]) if context.config is None else context.config.infer
    maker = build_engine(models, section, device=device)
    cases = find_cases(
        args.inputs, channels=maker.plan.channels, data_root=args.data_root, allow_outside=args.allow_outside,
        leave_out=args.output, series=section.series,
    )  # fmt: skip
    reports = explain_folder(maker, cases, output=args.output, options=options)
    rows = [row for report in reports for row in report.rows]
    counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "kept", "empty")}
    failed = sum(report.reason is not None for report in reports)
    more = f", {counts['empty']} regions empty" if counts["empty"] else ""
    more += f", {failed} cases failed" if failed else ""
    made = f"{counts['ok']} maps made, {counts['kept']} kept of {len(reports)} cases"
    sys.stdout.write(f"{args.output}: {made}{more}; see explain.csv there\n")
    return exit_code(reports)


if __name__ == "__main__":
    sys.exit(main())
