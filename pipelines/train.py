"""Train a network on the prepared data.

    medseg train --config configs/hippocampus.yaml --data-root DATA
    medseg train --config configs/hippocampus.yaml --data-root DATA --set data.fold=1
    medseg train --config configs/hippocampus.yaml --data-root DATA --fold all

The same command again goes on where it stopped; a finished run says so. ``--fresh`` starts a new run folder beside it,
``--extend`` trains a finished run on to the larger budget that the config has now. Under ``torchrun`` all its processes train
one network together.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb

if TYPE_CHECKING:
    import torch

    from medseg.tracking.run import TrackedRun
    from medseg.training.distributed import Processes
    from medseg.training.inputs import TrainingInputs

_LOG = logging.getLogger(__name__)
_STOPPED = 143  # also where the signal came to another of the processes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_verb(
        "train", arguments, body=partial(_train_or_folds, arguments), add_arguments=_add_arguments, graceful=True,
        description="Train a network on the prepared data.",
    )  # fmt: skip


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extend", action="store_true", help="train a finished run on to the larger budget that the config has now"
    )
    parser.add_argument(
        "--fold", metavar="FOLDS", help="all, or e.g. 0,2: each in a process; all are then scored together"
    )
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="folds trained side by side [%(default)s]")


def _train_or_folds(arguments: Sequence[str], context: Context) -> int:
    if context.args.fold is None:
        return _train(context)
    from medseg.crossvalidation.children import train_folds

    assert context.manifest_path is not None
    return train_folds(
        arguments,
        manifest=context.manifest_path,
        work=context.work,
        folds=context.args.fold,
        parallel=context.args.parallel,
        device=context.device,
        asked_to_stop=lambda: context.stop.signum,
    )


def _train(context: Context) -> int:
    from medseg.inference.runs import latest_run, next_run
    from medseg.networks.precision import choose_device
    from medseg.training.distributed import joined_processes, own_device

    device = own_device(choose_device(context.device))
    with joined_processes(device) as processes:
        chosen = next_run if context.args.fresh else latest_run
        folder = processes.from_first(chosen(context.work, context.experiment.data.fold))
        if processes.first:
            return _lead(context, folder, device, processes)
        return _follow(context, folder, device, processes)


def _follow(context: Context, folder: Path, device: torch.device, processes: Processes) -> int:
    """Trains along in a process that writes nothing and logs nothing but errors."""
    from medseg.training.stage import run_training

    logging.getLogger("medseg").setLevel(logging.ERROR)
    args = context.args
    for _ in run_training(
        _inputs(context), folder, device=device, elapsed_seconds=lambda: time.monotonic() - context.started,
        allow_changed=args.allow_changed, extend=args.extend, stop=lambda: bool(context.stop), processes=processes,
    ):  # fmt: skip
        pass
    return _STOPPED if _model_sha256(folder) is None else 0


def _lead(context: Context, folder: Path, device: torch.device, processes: Processes) -> int:
    from medseg.cli.review import fold_words, train_note
    from medseg.durable import FolderLock
    from medseg.runner.progress import StepProgress
    from medseg.tracking.tracker import open_tracker
    from medseg.training.stage import run_training

    config, inputs = context.experiment, _inputs(context)
    tags = {"fold": fold_words(inputs.fold), "network": inputs.network.kind, "run": folder.name}
    with (
        FolderLock(folder),
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run("train", f"train {folder.name}", tags=tags, resume_file=folder / "tracking.json") as run,
        StepProgress("train") as bar,
    ):
        before = _model_sha256(folder)
        if before is None or not run.finished_before:
            run.log_dataset(config.name, inputs.prepared.sha256, [{"case": case} for case in inputs.training])
            run.log_note(train_note(context, inputs, folder, {}))
        epochs = run_training(
            inputs,
            folder,
            device=device,
            elapsed_seconds=lambda: time.monotonic() - context.started,
            allow_changed=context.args.allow_changed,
            extend=context.args.extend,
            stop=lambda: bool(context.stop),
            each_step=bar.reach,
            processes=processes,
        )
        last: dict[str, float] = {}
        for epoch in epochs:
            if epoch.complete:
                _LOG.info("%s", epoch)
                last |= epoch.metrics()
                run.log_metrics(epoch.metrics(), step=epoch.step)
        after = _model_sha256(folder)
        if after is None:
            run.finish("KILLED", "a signal")
        elif after != before or not run.finished_before:
            _record(context, inputs, folder, run, last)
    if after is None:
        ending = "stopped, state saved; the same command goes on"
    else:
        ending = "trained before, nothing left to do" if after == before else "trained"
    sys.stdout.write(f"{folder}: {ending}\n")
    return _STOPPED if after is None else 0


def _model_sha256(folder: Path) -> str | None:
    from medseg.durable import sha256_file

    path = folder / "model" / "model.json"
    return sha256_file(path) if path.exists() else None


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


def _record(context: Context, inputs: TrainingInputs, folder: Path, run: TrackedRun, last: Mapping[str, float]) -> None:
    from medseg.cli.review import fold_words, train_note, version_note
    from medseg.durable import sha256_file
    from medseg.tracking.figures import learning_curves_png
    from medseg.tracking.record import write_stage_record
    from medseg.training.state import history_curves

    hashes = {"manifest": inputs.manifest_sha256, "prepared": inputs.prepared.sha256}
    hashes["model"] = sha256_file(folder / "model" / "model.json")
    seconds = time.monotonic() - context.started
    write_stage_record(folder, stage="train", config=context.experiment.plain(), inputs=hashes, seconds=seconds)
    with run.best_effort("the learning curves"):
        run.log_figure_png(learning_curves_png(history_curves(folder / "state")), "learning curves")
    run.log_note(train_note(context, inputs, folder, last))
    name = context.experiment.tracking.registered_model
    run.log_model(
        folder / "model",
        registered_as=name,
        tags={"fold": fold_words(inputs.fold), "experiment": context.experiment.name},
        description=version_note(context, inputs.prepared.sha256, folder / "model", name=name) if name else "",
    )


if __name__ == "__main__":
    sys.exit(main())
