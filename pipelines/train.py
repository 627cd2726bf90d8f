"""Train a network on the prepared data.

    medseg train --config configs/hippocampus.yaml --data-root DATA
    medseg train --config configs/hippocampus.yaml --data-root DATA --set data.fold=1

The same command again goes on where it stopped; a finished run says so. ``--fresh`` starts a new run folder beside it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb

if TYPE_CHECKING:
    from medseg.tracking.run import TrackedRun
    from medseg.training.inputs import TrainingInputs

_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    return run_verb("train", argv, body=_train, description="Train a network on the prepared data.", graceful=True)


def _train(context: Context) -> int:
    from medseg.durable import FolderLock
    from medseg.inference.runs import latest_run, next_run
    from medseg.networks.precision import choose_device
    from medseg.runner.progress import StepProgress
    from medseg.tracking.tracker import open_tracker
    from medseg.training.stage import run_training

    config, device, inputs = context.experiment, choose_device(context.device), _inputs(context)
    folder = (next_run if context.args.fresh else latest_run)(context.work, config.data.fold)
    with (
        FolderLock(folder),
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run("train", f"train {folder.name}", resume_file=folder / "tracking.json") as run,
        StepProgress("train") as bar,
    ):
        finished = (folder / "model" / "model.json").exists()
        if not (finished and run.finished_before):
            run.log_dataset(config.name, inputs.prepared.sha256, [{"case": case} for case in inputs.training])
        epochs = run_training(
            inputs,
            folder,
            device=device,
            elapsed_seconds=lambda: time.monotonic() - context.started,
            allow_changed=context.args.allow_changed,
            stop=lambda: bool(context.stop),
            each_step=bar.reach,
        )
        for epoch in epochs:
            if epoch.complete:
                _LOG.info("%s", epoch)
                run.log_metrics(epoch.metrics(), step=epoch.step)
        if (folder / "model" / "model.json").exists():
            if not (finished and run.finished_before):
                _record(context, inputs, folder, run)
            ending = "trained before, nothing left to do" if finished else "trained"
        else:
            run.finish("KILLED", "a signal")
            ending = "stopped, state saved; the same command goes on"
    sys.stdout.write(f"{folder}: {ending}\n")
    return 0


def _inputs(context: Context) -> TrainingInputs:
    from medseg.manifest import load_manifest
    from medseg.preparation.store import PreparedData
    from medseg.training.inputs import training_inputs

    assert context.manifest_path is not None
    manifest = load_manifest(context.manifest_path)
    return training_inputs(context.experiment, manifest, PreparedData.open(context.work / "prepared"))


def _record(context: Context, inputs: TrainingInputs, folder: Path, run: TrackedRun) -> None:
    from medseg.durable import sha256_file
    from medseg.tracking.figures import learning_curves_png
    from medseg.tracking.record import write_stage_record
    from medseg.training.state import history_curves

    hashes = {"manifest": inputs.manifest_sha256, "prepared": inputs.prepared.sha256}
    hashes["model"] = sha256_file(folder / "model" / "model.json")
    seconds = time.monotonic() - context.started
    write_stage_record(folder, stage="train", config=context.experiment.plain(), inputs=hashes, seconds=seconds)
    run.log_figure_png(learning_curves_png(history_curves(folder / "state")), "learning curves")
    run.log_folder(folder / "model", "model")


if __name__ == "__main__":
    sys.exit(main())
