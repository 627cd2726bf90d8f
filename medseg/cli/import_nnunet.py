"""``medseg import-nnunet``: a trained nnU-Net v2 model as a medseg model folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.cli.entry import Context, run_verb

_PURPOSE = "Turn a trained nnU-Net v2 model into a model folder for medseg infer."


def main(argv: Sequence[str] | None = None) -> int:
    """Imports; 0 when the model folder is written."""
    return run_verb(
        "import-nnunet", argv, body=_import, add_arguments=_arguments, description=_PURPOSE, needs_config=False
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="FOLDER|ZIP", help="what nnUNetv2_train wrote, or its exported zip"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="model folder to write")
    parser.add_argument("--configuration", metavar="NAME", help="2d, 3d_fullres ..., where FOLDER holds several")
    parser.add_argument("--fold", action="append", default=[], metavar="K", help="several are averaged [all numbered]")
    parser.add_argument("--checkpoint", choices=("final", "best"), default="final", help="which of a fold's [final]")
    parser.add_argument(
        "--accumulate", choices=("fp32", "fp16"), default="fp32",
        help="the model's infer.accumulate; fp16: voxel for voxel as nnU-Net, slower [fp32]",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bf16"), default="float32",
        help="the model's infer.precision; auto is faster where the hardware has bf16 [float32]",
    )  # fmt: skip
    parser.add_argument(
        "--postprocessing",
        type=Path,
        metavar="FILE",
        help="nnU-Net's postprocessing.json, to be part of the model [none]",
    )
    parser.add_argument(
        "--licence", type=Path, metavar="FILE", help="text of the weights' licence, to be part of the model"
    )
    parser.add_argument(
        "--any-trainer", action="store_true", help="trust that an unknown trainer class builds nnU-Net's network"
    )


def _import(context: Context) -> int:
    from medseg.exchange.nnunet import import_nnunet

    args = context.args
    done = import_nnunet(
        args.source,
        args.output,
        configuration=args.configuration,
        folds=args.fold,
        checkpoint=args.checkpoint,
        accumulate=args.accumulate,
        precision=args.precision,
        postprocessing=args.postprocessing,
        any_trainer=args.any_trainer,
        licence=args.licence,
    )
    folds = f"fold {done.folds[0]}" if len(done.folds) == 1 else f"folds {', '.join(done.folds)}"
    stage = f", behind {done.previous}" if done.previous else ""
    sys.stdout.write(
        f"{args.output}: {done.configuration} of nnU-Net, {folds}{stage}, {done.parameters:,} parameters, "
        f"classes {', '.join(done.plan.labels)}\n"
    )
    return 0
