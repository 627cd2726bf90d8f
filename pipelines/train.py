"""Train a network on the prepared data.

    medseg train --config configs/hippocampus.yaml --data-root DATA
    medseg train --config configs/hippocampus.yaml --data-root DATA --set data.fold=1

The same command again goes on where it stopped; a finished run says so. ``--fresh`` starts a new run folder beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb

if TYPE_CHECKING:
    from medseg.training.stage import TrainingInputs

_STARTED = time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    return run_verb("train", argv, body=_train, description="Train a network on the prepared data.", graceful=True)


def _train(context: Context) -> int:
    from medseg.durable import FolderLock
    from medseg.inference.runs import latest_run, next_run
    from medseg.networks.precision import choose_device
    from medseg.tracking.record import write_stage_record
    from medseg.tracking.tracker import open_tracker
    from medseg.training.stage import run_training

    config, started = context.experiment, time.monotonic()
    inputs = _inputs(context)
    folder = (next_run if context.args.fresh else latest_run)(context.work, config.data.fold)
    with (
        FolderLock(folder),
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run(
            stage="train",
            name=f"train {folder.name}",
            params=config.plain(),
            tags={},
            resume_file=folder / "tracking.json",
        ) as run,
    ):
        epochs = run_training(
            inputs,
            folder,
            device=choose_device(context.device),
            elapsed_seconds=lambda: time.monotonic() - _STARTED,
            allow_changed=context.args.allow_changed,
            stop=lambda: bool(context.stop),
        )
        for epoch in epochs:
            if epoch.complete:
                run.log_metrics(epoch.metrics(), step=epoch.step)
        write_stage_record(
            folder,
            stage="train",
            config=config.plain(),
            inputs={"prepared": inputs.prepared.sha256, "manifest": inputs.manifest_sha256},
            seconds=time.monotonic() - started,
        )
    return 0


def _inputs(context: Context) -> TrainingInputs:
    import yaml

    from medseg.manifest import load_manifest
    from medseg.preparation.store import PreparedData
    from medseg.training.stage import TrainingInputs, prepared_ids

    config = context.experiment
    assert context.manifest_path is not None
    manifest, prepared = load_manifest(context.manifest_path), PreparedData.open(context.work / "prepared")
    kept, held_out = manifest.fold_cases(config.data.fold) if config.data.fold is not None else (manifest.training, ())
    skip = config.prepare.on_bad_case == "skip"
    return TrainingInputs(
        prepared=prepared,
        training=prepared_ids(prepared, kept, skip=skip),
        validation=prepared_ids(prepared, held_out, skip=skip),
        network=config.network,
        section=config.train,
        seed=config.seed,
        fold=config.data.fold,
        config_text=yaml.safe_dump(config.plain(), sort_keys=False),
        manifest_sha256=manifest.sha256,
    )


if __name__ == "__main__":
    sys.exit(main())
