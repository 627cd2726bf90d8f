"""``medseg pretrain``: self-supervised pretraining on scans without labels, for ``train.init_from``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.cli.epochs import follow_epochs

if TYPE_CHECKING:
    from medseg.training.inputs import TrainingInputs

_PURPOSE = "Train the config's network to restore blotted-out parts of scans without labels, for train.init_from."
_STOPPED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrains; 0 when the weights are written, 143 when a signal stopped it."""
    return run_verb("pretrain", argv, body=_pretrain, add_arguments=_arguments, description=_PURPOSE, graceful=True)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unlabelled", type=Path, required=True, metavar="MANIFEST", help="scans; their labels are not read"
    )
    parser.add_argument("--unlabelled-root", type=Path, metavar="DIR", help="where its paths start [its own folder]")
    parser.add_argument("--minutes", type=float, metavar="M", help="of training [train.budget]")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="scans prepared at a time [by cores and free memory]"
    )


def _pretrain(context: Context) -> int:
    from medseg.durable import FolderLock
    from medseg.networks.precision import choose_device
    from medseg.runner.progress import StepProgress
    from medseg.tracking.tracker import open_tracker
    from medseg.training.pretraining import PretrainTrainer
    from medseg.training.stage import run_training

    config, folder = context.experiment, _folder(context.work / "pretraining", fresh=context.args.fresh)
    with (
        FolderLock(folder.parent),
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run("pretrain", f"pretrain {folder.name}", resume_file=folder / "tracking.json") as run,
        StepProgress("pretrain") as bar,
    ):
        inputs = _inputs(context)
        started = time.monotonic()  # preparing the scans is not charged: it is done once, however often one pretrains
        epochs = run_training(
            inputs, folder, device=choose_device(context.device), elapsed_seconds=lambda: time.monotonic() - started,
            allow_changed=context.args.allow_changed, stop=lambda: bool(context.stop), each_step=bar.reach,
            make_trainer=PretrainTrainer,
        )  # fmt: skip
        follow_epochs(epochs, run)
        finished = (folder / "model" / "model.json").exists()
        if not finished:
            run.finish("KILLED", "a signal")
        elif not run.finished_before:
            run.log_dataset(config.name, inputs.prepared.sha256, [{"case": case} for case in inputs.training])
            run.log_file(folder / "model" / "model.json")
    if not finished:
        sys.stdout.write(f"{folder}: stopped, state saved; the same command goes on\n")
        return _STOPPED
    sys.stdout.write(f"{folder / 'model'}: pretrained on {len(inputs.training)} scans; train with train.init_from\n")
    return 0


def _inputs(context: Context) -> TrainingInputs:
    from medseg.manifest import load_manifest
    from medseg.training.pretraining import pretraining_data, pretraining_inputs

    args, config = context.args, context.experiment
    manifest = load_manifest(args.unlabelled)
    prepared = pretraining_data(
        config, manifest, plan_folder=context.work / "prepared", output=context.work / "pretraining" / "prepared",
        data_root=args.unlabelled_root or args.unlabelled.parent, allow_outside=args.allow_outside,
        processes=args.processes,
    )  # fmt: skip
    return pretraining_inputs(config, prepared, manifest_sha256=manifest.sha256, minutes=args.minutes)


def _folder(parent: Path, *, fresh: bool) -> Path:
    """``run``, after ``--fresh`` ``run-2`` and so on; without it the newest."""
    numbers = [int(p.name[4:]) for p in parent.glob("run-*") if p.name[4:].isdigit()]
    newest = max(numbers, default=1)
    if fresh and (parent / "run").exists():
        newest += 1
    return parent / ("run" if newest == 1 else f"run-{newest}")
