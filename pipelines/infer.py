"""Write masks for scans with a trained model.

    medseg infer --config configs/hippocampus.yaml --data-root DATA
    medseg infer scan.nii.gz --model work/hippocampus/runs/fold_0/model --output masks
    medseg infer SCANS --model MODEL_A --model MODEL_B --output masks

SCANS is a file, a folder (searched all the way down; DICOM slices in one folder are one scan), a .txt list or a manifest.
The same command again writes what is missing and keeps what is there.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.inference.cases import InferCase
    from medseg.inference.engine import Engine
    from medseg.inference.report import CaseReport

_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    purpose = "Write masks for scans with a trained model."
    return run_verb("infer", argv, body=_infer, add_arguments=_arguments, description=purpose, needs_config=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="scan, folder, .txt list or manifest")
    parser.add_argument("--model", action="append", type=Path, metavar="DIR", help="model folder; several are averaged")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the masks of INPUT")


def _infer(context: Context) -> int:
    from medseg.inference.report import exit_code

    engine, jobs = _request(context)
    return exit_code([report for folder, cases in jobs.items() for report in _predict(context, engine, cases, folder)])


def _request(context: Context) -> tuple[Engine, Mapping[Path, Sequence[InferCase]]]:
    """The models, and the cases by the folder their masks go to; nothing is written yet."""
    args, config = context.args, context.config
    if bool(args.inputs) != bool(args.output) or (config is None and not (args.inputs and args.model)):
        raise UsageError("infer: expected INPUT --model DIR --output DIR, or --config FILE; see medseg infer --help")
    from medseg.inference.cases import find_cases
    from medseg.inference.engine import Engine
    from medseg.inference.experiment import experiment_cases, experiment_models, own_section
    from medseg.inference.model import load_model
    from medseg.manifest import load_manifest
    from medseg.networks.precision import choose_device

    jobs: dict[Path, Sequence[InferCase]] = {}
    folders = args.model or ()
    if config is not None:
        fold = config.data.fold
        folders = folders or experiment_models(config.infer, work=context.work, fold=fold)
        if not args.inputs:
            assert context.manifest_path is not None
            manifest, outside = load_manifest(context.manifest_path), args.allow_outside
            found = experiment_cases(
                config.infer, manifest, fold=fold, data_root=context.data_root, allow_outside=outside
            )
            jobs = {context.work / "predictions" / name: cases for name, cases in found.items()}
    device = choose_device(context.device)
    models = [load_model(folder, device=device) for folder in folders]
    engine = Engine(models, config.infer if config is not None else own_section(models[0]), device=device)
    if args.inputs:
        jobs[args.output] = find_cases(
            args.inputs,
            channels=engine.plan.channels,
            data_root=args.data_root,
            allow_outside=args.allow_outside,
            leave_out=args.output,
        )
    return engine, jobs


def _predict(context: Context, engine: Engine, cases: Sequence[InferCase], folder: Path) -> list[CaseReport]:
    from medseg.durable import FolderLock
    from medseg.inference.report import ReportFile
    from medseg.inference.stage import run_infer
    from medseg.runner.progress import CaseProgress
    from medseg.tracking.record import write_stage_record
    from medseg.tracking.tracker import open_tracker

    started, reports, config = time.monotonic(), [], context.config
    plain = config.plain() if config is not None else {"infer": engine.section.model_dump(mode="json")}
    with ExitStack() as stack:
        stack.enter_context(FolderLock(folder))
        run = None
        if config is not None:
            tracker = open_tracker(config.tracking, work=context.work, experiment=config.name, config=plain)
            name, resume_file = f"infer {folder.name}", folder / "tracking.json"
            run = stack.enter_context(stack.enter_context(tracker).run("infer", name, resume_file=resume_file))
        report_file = stack.enter_context(ReportFile(folder, [case.id for case in cases]))
        progress = stack.enter_context(CaseProgress("infer", len(cases)))
        for report in stack.enter_context(closing(run_infer(engine, cases, output=folder))):
            report_file.add(report)
            reports.append(report)
            progress.advance()
            if report.reason is not None:
                _LOG.warning("%s: %s", report.status, report.reason)
        counts = Counter(report.status for report in reports)
        if run is not None:
            run.log_metrics({f"cases_{status}": float(count) for status, count in counts.items()}, step=0)
            run.log_table([report.row() for report in reports], "cases")
        write_stage_record(
            folder,
            stage="infer",
            config=plain,
            inputs={f"model {number}": model.sha256 for number, model in enumerate(engine.models)},
            seconds=time.monotonic() - started,
        )
    words = ", ".join(f"{counts[status]} {status}" for status in ("ok", "kept", "refused", "failed") if counts[status])
    sys.stdout.write(f"{folder}: {words} of {len(cases)} cases\n")
    return reports


if __name__ == "__main__":
    sys.exit(main())
