"""Times nnU-Net's own training step in nnU-Net's own environment; started by ``bench_training_step.py``.

    NNUNET_ENV/bin/python benchmarks/peers/nnunet_step.py PLANS.json DATASET.json CONFIGURATION BATCH STEPS

The trainer is nnU-Net's, with its network, loss, deep supervision, optimiser and ``train_step``; the batch is random and made
beforehand, so that no loader is timed. Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """See the module."""
    plans_file, dataset_file, configuration, batch_size, steps = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = folder
        os.environ.setdefault("nnUNet_compile", "0")
        with contextlib.redirect_stdout(sys.stderr):
            seconds = _timed_steps(plans_file, dataset_file, configuration, int(batch_size), int(steps))
    print(json.dumps({"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def _timed_steps(plans_file: str, dataset_file: str, configuration: str, batch_size: int, steps: int) -> list[float]:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = json.loads(Path(plans_file).read_text())
    plans["continue_training"] = False
    plans["configurations"][configuration]["batch_size"] = batch_size
    dataset = json.loads(Path(dataset_file).read_text())
    # The trainer looks at the endings of the prepared files to choose its reader; nothing is read.
    prepared = Path(os.environ["nnUNet_preprocessed"]) / plans["dataset_name"]  # noqa: SIM112 - its name
    prepared = prepared / plans["configurations"][configuration]["data_identifier"]
    prepared.mkdir(parents=True)
    (prepared / "none.b2nd").touch()
    trainer = nnUNetTrainer(plans, configuration, 0, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.network.train()
    generator = torch.Generator().manual_seed(1)
    patch = list(trainer.configuration_manager.patch_size)
    classes = trainer.label_manager.num_segmentation_heads
    channels = trainer.num_input_channels
    data = torch.randn(batch_size, channels, *patch, generator=generator)
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(patch)]  # noqa: SLF001 - no public way
    target = []
    for scale in scales:
        size = [round(p * s) for p, s in zip(patch, scale, strict=True)]
        target.append(torch.randint(0, classes, (batch_size, 1, *size), generator=generator).to(torch.int16))
    times = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        trainer.train_step({"data": data, "target": target})
        times.append(time.perf_counter() - began)
    return times[1:]


if __name__ == "__main__":
    main()
