"""``medseg export``: a trained model for other programs, with a certificate of how near it is to ``medseg infer``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.exchange.export import Checks
    from medseg.exchange.parity import Certificate

_PARTLY = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Exports a model; 0, or 4 where an export is further from infer than it may be."""
    purpose = "Export a trained model: MONAI bundle, ONNX, 8 bits, container."
    return run_verb("export", argv, body=_export, add_arguments=_arguments, description=purpose, needs_config=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="MONAI bundle")
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="model folder with ONNX networks, for onnxruntime")
    parser.add_argument("--int8", type=Path, metavar="DIR", help="the same with convolutions in 8 bits")
    parser.add_argument("--container", type=Path, metavar="DIR", help="build context of a container")
    checks = parser.add_argument_group("the certificate (parity.json)")
    known = "the config's held-out cases, else synthetic ones"
    checks.add_argument(
        "--cases", nargs="+", type=Path, default=[], metavar="INPUT", help=f"scans to compare on [{known}]"
    )
    checks.add_argument("--most-cases", type=int, default=10, metavar="N", help="the first so many [%(default)s]")
    container = parser.add_argument_group("the container")
    container.add_argument("--wheels", type=Path, metavar="DIR", help="folder of wheels that goes into it")
    container.add_argument("--cuda", action="store_true", help="for CUDA instead of a CPU")
    container.add_argument("--inputs", default="", metavar="A,B", help="sockets of the channels, in their order")
    container.add_argument("--output-name", default="segmentation", metavar="NAME", help="output socket [%(default)s]")


def _export(context: Context) -> int:
    args = context.args
    targets = [path for path in (args.bundle, args.onnx, args.int8, args.container) if path is not None]
    if not targets:
        raise UsageError("export: names no target; add --bundle, --onnx, --int8 or --container DIR")
    if args.most_cases < 1:
        raise UsageError(f"--most-cases: is {args.most_cases}, expected 1 or more")
    from medseg.exchange.export import (
        export_bundle,
        export_container,
        export_networks,
        named_checks,
        refuse_same_folders,
    )
    from medseg.inference.model import load_models

    refuse_same_folders(args.model, targets)
    plan = load_models(args.model)[0].plan
    checks = named_checks(args.cases, plan=plan, most=args.most_cases, data_root=args.data_root)
    if not args.cases and context.config is not None:
        checks = _held_out(context)
    passed = True
    if args.bundle is not None:
        passed &= _told(args.bundle, export_bundle(args.model, args.bundle, checks=checks))
    for target, int8 in ((args.onnx, False), (args.int8, True)):
        if target is not None:
            passed &= _told(target, export_networks(args.model, target, int8=int8, checks=checks))
    if args.container is not None:
        from medseg.exchange.challenge import Settings

        inputs = tuple(name for name in args.inputs.split(",") if name)
        settings = Settings(output=args.output_name, inputs=inputs, device="cuda" if args.cuda else "cpu")
        new = export_container(args.model, args.container, settings=settings, wheels=args.wheels)
        sys.stdout.write(
            f"{args.container}: {'build context written; see its README.md' if new else 'is there already'}\n"
        )
    return 0 if passed else _PARTLY


def _held_out(context: Context) -> Checks:
    """The held-out cases of the config's fold, with their labels."""
    from medseg.exchange.export import Checks, manifest_checks
    from medseg.manifest import load_manifest

    assert context.manifest_path is not None
    manifest, fold = load_manifest(context.manifest_path), context.experiment.data.fold
    if fold is None:
        return Checks()
    cases = manifest.fold_cases(fold)[1][: context.args.most_cases]
    return manifest_checks(manifest, cases, data_root=context.data_root)


def _told(target: Path, certificate: Certificate | None) -> bool:
    if certificate is None:
        sys.stdout.write(f"{target}: is there already\n")
        return True
    sys.stdout.write(f"{target}: {certificate.sentence()}\n")
    if not certificate.passed:
        sys.stderr.write(f"{target}: differs more than it may, see parity.json in it; do not use it\n")
    return certificate.passed


if __name__ == "__main__":
    sys.exit(main())
