"""Write masks for scans with a trained model.

    medseg infer --config configs/hippocampus.yaml --data-root DATA
    medseg infer scan.nii.gz --model work/hippocampus/runs/fold_0/model --output masks
    medseg infer SCANS --model MODEL_A --model MODEL_B --output masks
    medseg infer SCANS --model MODEL --output masks --dry-run
    medseg infer SCANS --model MODEL --output masks --shard 0/4

SCANS is a file, a folder (searched all the way down; DICOM slices in one folder are one scan), a .txt list or a manifest.
The same command again writes what is missing and keeps what is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.errors import UsageError
from medseg.inference.flags import (
    add_run_flags,
    asked_fields,
    device_name,
    given_path,
    memory_bytes,
    refuse_file,
    run_options,
)
from medseg.runner.cluster_flags import open_cluster
from medseg.runner.resources import quick_imports

if TYPE_CHECKING:
    from medseg.inference.cases import InferCase
    from medseg.inference.ensemble import MaskMaker
    from medseg.inference.report import CaseReport
    from medseg.inference.stage import RunOptions
    from medseg.runner.cluster import Cluster

_PURPOSE = "Write masks for scans with a trained model."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    return run_verb("infer", argv, body=_infer, add_arguments=_arguments, description=_PURPOSE, needs_config=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="*", type=given_path, metavar="INPUT", help="scan, folder, .txt list or manifest"
    )
    parser.add_argument(
        "--model", action="append", metavar="DIR", help="model folder, or models:/NAME@champion; several are averaged"
    )
    parser.add_argument(
        "--tracker", metavar="URI", help="MLflow that models:/ names are of [MLFLOW_TRACKING_URI, else that of --work]"
    )
    parser.add_argument("--output", type=given_path, metavar="DIR", help="folder for the masks of INPUT")
    parser.add_argument(
        "--backend", choices=("torch", "onnxruntime"), help="what runs the network [what --model holds]"
    )
    add_run_flags(parser)


def _infer(context: Context) -> int:
    args, alone = context.args, context.config is None
    if bool(args.inputs) != bool(args.output) or (alone and not (args.inputs and args.model)):
        raise UsageError("infer: expected INPUT --model DIR --output DIR, or --config FILE; see medseg infer --help")
    from medseg.inference.report import exit_code

    if args.output is not None:
        refuse_file(args.output)
    args.model = [_folder_of(name, context) for name in args.model or ()]  # once: an alias may move meanwhile
    jobs = {} if args.inputs else _experiment_jobs(context)
    engine = _engine(context)
    options = run_options(args, engine.section)
    jobs = jobs or _named_jobs(args, engine)
    if args.dry_run:
        return _foretell(engine, jobs, options)
    with open_cluster(args) as cluster:
        reports = [
            report
            for folder, cases in jobs.items()
            for report in _predict(context, engine, cases, folder, options, cluster)
        ]
    return exit_code(reports)


def _foretell(engine: MaskMaker, jobs: Mapping[Path, Sequence[InferCase]], options: RunOptions) -> int:
    from medseg.inference.forecast import forecast

    for folder, cases in jobs.items():
        sys.stdout.write(f"{folder}: {forecast(engine, cases, output=folder, options=options).text()}\n")
    return 0


def _model_folders(context: Context) -> Sequence[Path]:
    from medseg.inference.experiment import experiment_models
    from medseg.inference.onnx_network import backend_folder

    config, folders = context.config, list(context.args.model or ())
    if config is not None and not folders:
        folders = list(experiment_models(config.infer, work=context.work, fold=config.data.fold))
    return [backend_folder(folder, context.args.backend) for folder in folders]


def _folder_of(name: str, context: Context) -> Path:
    from medseg.tracking.fetching import is_registered_name, model_folder

    if not is_registered_name(name):
        return Path(name)
    asked = context.args.work is None and context.config is None
    # Masks alone leave no work folder; the copy is kept beside them, where no scan is looked for.
    work = context.args.output / ".models" if asked else context.work
    return model_folder(name, work=work, tracker=context.args.tracker)


def _engine(context: Context) -> MaskMaker:
    with quick_imports():
        from medseg.inference.ensemble import build_engine
        from medseg.inference.experiment import own_section, refuse_trained_on
        from medseg.inference.model import load_models
        from medseg.networks.precision import choose_device

    config, device = context.config, choose_device(device_name(context.device, context.args.shard))
    models = [model for folder in _model_folders(context) for model in load_models(folder, device=device)]
    if config is not None and not context.args.inputs:
        refuse_trained_on(models, config.infer, fold=config.data.fold)
    section = config.infer if config is not None else own_section(models[0])
    section = section.model_copy(update=asked_fields(context.args))
    scratch = None if context.args.dry_run else context.args.output
    return build_engine(models, section, device=device, memory_bytes=memory_bytes(context.args), scratch=scratch)


def _experiment_jobs(context: Context) -> Mapping[Path, Sequence[InferCase]]:
    """Cases by the folder their masks go to, as the config asks; nothing is written yet."""
    from medseg.inference.experiment import experiment_cases, experiment_models
    from medseg.manifest import load_manifest

    data, section = context.experiment.data, context.experiment.infer
    experiment_models(section, work=context.work, fold=data.fold)  # refuses a leaking ensemble before a file is read
    assert context.manifest_path is not None
    manifest, outside = load_manifest(context.manifest_path), context.args.allow_outside
    found = experiment_cases(section, manifest, fold=data.fold, data_root=context.data_root, allow_outside=outside)
    return {context.work / "predictions" / name: cases for name, cases in found.items()}


def _named_jobs(args: argparse.Namespace, engine: MaskMaker) -> Mapping[Path, Sequence[InferCase]]:
    from medseg.inference.cases import find_cases

    places = {"data_root": args.data_root, "allow_outside": args.allow_outside, "leave_out": args.output}
    places["patterns"] = args.pattern or ()
    # The model's own rules, from its config, are in its channels; the section's take their place.
    return {args.output: find_cases(args.inputs, channels=engine.plan.channels, series=engine.section.series, **places)}


def _predict(
    context: Context,
    engine: MaskMaker,
    cases: Sequence[InferCase],
    folder: Path,
    options: RunOptions,
    cluster: Cluster | None,
) -> Sequence[CaseReport]:
    from medseg.cli.review import infer_note
    from medseg.durable import sha256_file
    from medseg.inference.remote import infer_on_cluster
    from medseg.inference.report import summary
    from medseg.inference.stage import infer_folder
    from medseg.runner.progress import plain_duration
    from medseg.tracking.record import write_stage_record
    from medseg.tracking.tracker import open_tracker

    started, config = time.monotonic(), context.config
    plain = {"infer": engine.section.model_dump(mode="json")} if config is None else config.plain()
    with ExitStack() as stack:
        run = None
        if config is not None:
            tracker = open_tracker(config.tracking, work=context.work, experiment=config.name, config=plain)
            # Each shard is a run of its own.
            name = f"infer {folder.name}" + (f" {options.shard.label}" if options.shard else "")
            resume_file = folder / (f"tracking-{options.shard.label}.json" if options.shard else "tracking.json")
            tracked = stack.enter_context(tracker).run("infer", name, resume_file=resume_file)
            run = stack.enter_context(tracked)
        if cluster is None:
            reports = infer_folder(engine, cases, output=folder, options=options)
        else:
            folders, device = _model_folders(context), context.device
            reports = infer_on_cluster(
                engine, cases, folders=folders, output=folder, cluster=cluster, device=device, options=options
            )
        seconds = time.monotonic() - started
        made_by = {"model_folders": [sha256_file(path / "model.json") for path in _model_folders(context)]}
        inputs = engine.model_sha256s()
        write_stage_record(folder, stage="infer", config=plain, inputs=inputs, seconds=seconds, extra=made_by)
        new = any(report.status != "kept" for report in reports)
        if run is not None and (new or not run.finished_before):
            run.log_metrics({"cases": len(reports), "cases_good": sum(r.good for r in reports)}, step=0)
            run.log_table([report.row() for report in reports], "infer_cases")
            run.log_note(infer_note(context, folder, summary(reports), made_by["model_folders"]))
    sys.stdout.write(
        f"{folder}: {summary(reports)} in {plain_duration(time.monotonic() - started)}; see report.csv there\n"
    )
    return reports


if __name__ == "__main__":
    sys.exit(main())
