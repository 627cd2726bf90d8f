"""How well training keeps a CUDA device busy, in under 8 minutes.

    python benchmarks/bench_cuda_training.py --config configs/hippocampus.yaml --data-root hippocampus --work /tmp/bench \\
        [--minutes 5] [--output benchmarks/results/cuda_training_DATE.md]

1. Arithmetic: steps of nnU-Net's default 3D network for large scans (6 stages of 32 to 320 channels, 128^3, batch 2) and of
   its hippocampus network (4 stages, 40x56x40, batch 9) on one batch that lies on the device. Floating-point operations are
   counted by PyTorch's counter over one forward and backward pass; the peak is what a large bf16 matrix product reaches on
   the same device.
2. Loading: the config's own training on its prepared cases, plan network: seconds a step with the loader beside it, and with
   one batch used again and again; what is more is what the device waited.
3. Accuracy: ``medseg train`` for ``--minutes`` on the config's fold with the plan's network, then infer and evaluate.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_NETWORKS: dict[str, dict[str, Any]] = {
    "128^3, batch 2, 6 stages": {"features": [32, 64, 128, 256, 320, 320], "patch": [128, 128, 128], "batch": 2},
    "40x56x40, batch 9, 4 stages": {"features": [32, 64, 128, 256], "patch": [40, 56, 40], "batch": 9},
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--plan-network", nargs="*", metavar="KEY=VALUE", default=_PLAN_NETWORK, help="--set for all stages"
    )
    parser.add_argument("--skip-networks", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    import torch

    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    command = f"python benchmarks/bench_cuda_training.py --config configs/{args.config.name} --minutes {args.minutes:g}"
    lines = [
        f"# Training on one device, {time.strftime('%Y-%m-%d')}",
        "",
        f"{name}, {os.cpu_count()} cores, torch {version('torch')}; `{command}`",
        "",
    ]
    if not args.skip_networks:
        lines += _arithmetic(device, args.steps)
    _medseg("prepare", args)
    lines += _loading(args, device) + _accuracy(args)
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text)


_PLAN_NETWORK = [
    "prepare.batch_size=null",
    "network.features=null",
    "train.budget.steps_per_epoch=250",
]
"""What a config made for a few cores is changed by: the plan's own network and batch."""


def _waiting(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_flops(device: Any) -> float:
    """Operations a second of a large bf16 matrix product."""
    import torch

    size = 8192 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        left @ left
    _waiting(device)
    began, rounds = time.perf_counter(), 20
    for _ in range(rounds):
        left @ left
    _waiting(device)
    return 2 * size**3 * rounds / (time.perf_counter() - began)


def _arithmetic(device: Any, steps: int) -> list[str]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from medseg.config.train_sections import TrainSection
    from medseg.networks.build import build_network
    from medseg.networks.precision import choose_precision, precision_name
    from medseg.training.batch import Batch
    from medseg.training.losses import build_loss
    from medseg.training.schedule import build_optimiser
    from medseg.training.state import Progress, TrainState
    from medseg.training.step import train_step

    peak = _peak_flops(device)
    precision = choose_precision(device, "auto")
    section = TrainSection()
    lines = [
        f"A large bf16 matrix product reaches {peak / 1e12:.0f} Tflop/s here. Steps in {precision_name(precision)}:",
        "",
        "| network | s a step | steps a second | patches a second | Tflop/s | of the product |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, spec in _NETWORKS.items():
        stages = len(spec["features"])
        torch.manual_seed(1)
        network = build_network(
            {
                "kind": "unet", "dimensions": 3, "channels": 1, "classes": 3, "features": spec["features"],
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1), "kernel_sizes": [[3, 3, 3]] * stages,
            }
        ).to(device)  # fmt: skip
        images = torch.randn(spec["batch"], 1, *spec["patch"], device=device)
        classes = torch.randint(0, 3, (spec["batch"], *spec["patch"]), device=device).to(torch.uint8)
        batch = Batch(images, classes, ("random",) * spec["batch"])
        optimiser = build_optimiser(section.optimiser, network.parameters())
        state = TrainState(network.train(), copy.deepcopy(network).eval(), optimiser, Progress(steps=100))
        loss = build_loss(section.loss, class_count=3, batch_dice=False)

        def step(state: TrainState = state, batch: Batch = batch, loss: Any = loss) -> None:
            train_step(state, batch, section=section, loss=loss, rate=1e-4, seed=1, precision=precision)

        with FlopCounterMode(display=False) as counter:
            step()
        seconds = _seconds_a_step(step, steps, device)
        rate = counter.get_total_flops() / seconds
        paces = f"{seconds:.4f} | {1 / seconds:.2f} | {spec['batch'] / seconds:.1f}"
        lines.append(f"| {name} | {paces} | {rate / 1e12:.1f} | {rate / peak:.0%} |")
        del state, network, optimiser
    return [*lines, ""]


def _seconds_a_step(step: Any, steps: int, device: Any) -> float:
    for _ in range(3):
        step()
    _waiting(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _waiting(device)
    return (time.perf_counter() - began) / steps


def _loading(args: argparse.Namespace, device: Any) -> list[str]:
    from medseg.config import load_config
    from medseg.manifest import load_manifest
    from medseg.networks.precision import choose_precision
    from medseg.preparation.store import PreparedData
    from medseg.training.distributed import ALONE
    from medseg.training.inputs import architecture_of, training_inputs
    from medseg.training.step import train_step
    from medseg.training.trainer import Trainer

    config = load_config(args.config, args.plan_network)
    manifest = load_manifest(args.config.parent / config.data.manifest)
    inputs = training_inputs(config, manifest, PreparedData.open(args.work / "prepared"))
    trainer = Trainer(
        inputs,
        dict(architecture_of(inputs.network, inputs.prepared.plan)),
        device=device,
        precision=choose_precision(device, config.train.precision),
        processes=ALONE,
        stop=lambda: False,
    )
    state = trainer.new_state()
    state.network.train()
    kept = trainer.batches(0)
    numbers = iter(range(1, 10**9))

    def step(batch: Any) -> None:
        train_step(
            state, batch, section=inputs.section, loss=trainer.loss, rate=1e-5, seed=1, precision=trainer.precision
        )

    alone = _seconds_a_step(lambda: step(kept), args.steps, device)
    fed = _seconds_a_step(lambda: step(trainer.batches(next(numbers))), 4 * args.steps, device)
    again = _seconds_a_step(lambda: step(kept), args.steps, device)
    alone = min(alone, again)
    if close := getattr(trainer.batches, "close", None):
        close()
    share = max(0.0, fed - alone) / fed
    batch = inputs.prepared.plan.batch_size
    kept_pace = f"{alone:.4f} s a step on one batch kept on the device"
    fed_pace = f"{fed:.4f} s with every batch read and augmented"
    return [f"Loader, {config.name}, batch {batch}: {kept_pace}, {fed_pace}: waited {share:.0%} of the step.", ""]


def _medseg(verb: str, args: argparse.Namespace, *further: str) -> float:
    command = [sys.executable, "-m", "medseg.cli.main", verb, "--config", str(args.config)]
    command += ["--data-root", str(args.data_root), "--work", str(args.work), "--device", args.device]
    for change in (*args.plan_network, f"train.budget.minutes={args.minutes}", *further):
        command += ["--set", change]
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        if subprocess.run(command, check=False, stdout=log, stderr=log).returncode != 0:
            log.seek(0)
            raise SystemExit(f"medseg {verb} failed:\n{log.read().decode()[-3000:]}")
    return time.monotonic() - began


def _accuracy(args: argparse.Namespace) -> list[str]:
    seconds = {verb: _medseg(verb, args) for verb in ("train", "infer", "evaluate")}
    (scores,) = sorted((args.work / "scores").glob("fold_*/cases.csv"))[-1:]
    dice: dict[str, list[float]] = {}
    with scores.open(newline="") as file:
        for row in csv.DictReader(file):
            dice.setdefault(row["class"], []).append(float(row["dice"]))
    means = {name: sum(values) / len(values) for name, values in dice.items()}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    took = f"{seconds['train'] / 60:.2f}, infer {seconds['infer']:.0f} s, evaluate {seconds['evaluate']:.0f} s"
    mean, cases = sum(means.values()) / len(means), len(next(iter(dice.values())))
    return [f"Training of {args.minutes:g} minutes took {took}: Dice {mean:.4f} ({shown}), {cases} held-out cases."]


if __name__ == "__main__":
    main()
