"""``medseg distil``: a narrower network that learns from a trained model, for machines that are slow or small."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.cli.epochs import follow_epochs

if TYPE_CHECKING:
    from medseg.training.inputs import TrainingInputs

_PURPOSE = "Train a narrower student (config's distil section) that follows a trained model."
_STOPPED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Trains the student; 0 when its model is written, 143 when a signal stopped it."""
    return run_verb("distil", argv, body=_distil, add_arguments=_arguments, description=_PURPOSE, graceful=True)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", type=Path, metavar="MODEL", help="model folder [that of the config's fold]")


def _distil(context: Context) -> int:
    import time

    from medseg.durable import FolderLock
    from medseg.exchange.distillation import DistillationTrainer, check_teacher, run_key, student_network
    from medseg.inference.model import load_models
    from medseg.inference.runs import latest_run, run_name
    from medseg.networks.precision import choose_device
    from medseg.runner.progress import StepProgress
    from medseg.tracking.tracker import open_tracker
    from medseg.training.stage import run_training

    config, device = context.experiment, choose_device(context.device)
    teacher = load_models(context.args.teacher or latest_run(context.work, config.data.fold) / "model")
    inputs = _inputs(context)
    check_teacher(teacher, inputs.prepared.plan, fold=inputs.fold)
    inputs = replace(inputs, network=student_network(inputs.network, inputs.prepared.plan, config.distil.width))
    name = f"{run_name(config.data.fold)}-{run_key(teacher, config.distil)}"
    folder = context.work / "distilled" / name
    with (
        FolderLock(folder),
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run("distil", f"distil {name}", resume_file=folder / "tracking.json") as run,
        StepProgress("distil") as bar,
    ):
        epochs = run_training(
            inputs, folder, device=device, elapsed_seconds=lambda: time.monotonic() - context.started,
            allow_changed=context.args.allow_changed, stop=lambda: bool(context.stop), each_step=bar.reach,
            make_trainer=partial(DistillationTrainer, teacher=teacher, settings=config.distil),
        )  # fmt: skip
        follow_epochs(epochs, run)
        finished = (folder / "model" / "model.json").exists()
        if not finished:
            run.finish("KILLED", "a signal")
        elif not run.finished_before:
            run.log_model(folder / "model", registered_as=config.tracking.registered_model)
    if not finished:
        sys.stdout.write(f"{folder}: stopped, state saved; the same command goes on\n")
        return _STOPPED
    sys.stdout.write(f"{folder / 'model'}: distilled; use it as any model folder\n")
    return 0


def _inputs(context: Context) -> TrainingInputs:
    from medseg.training.inputs import open_inputs

    assert context.manifest_path is not None
    return open_inputs(
        context.experiment,
        manifest_path=context.manifest_path,
        work=context.work,
        config_folder=context.args.config.parent,
        allow_changed=context.args.allow_changed,
    )


if __name__ == "__main__":
    sys.exit(main())
