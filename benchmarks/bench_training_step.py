"""Training steps of nnU-Net's own hippocampus network: nnU-Net's and ours, same patch, same effective batch, same cores.

    benchmarks/setup_nnunet.sh /tmp/nnunet_env
    python benchmarks/bench_training_step.py --peer-python /tmp/nnunet_env/bin/python \\
        --plans PLANS.json --dataset DATASET.json [--rounds 3] [--output benchmarks/results/training_step_DATE.md]

PLANS.json and DATASET.json are nnU-Net's for the data set. Each round starts a fresh process of either, one after the other, so
that a machine that slows down slows both. Random batches made beforehand: networks, losses and optimisers are timed, no
loader. nnU-Net trains float32 on a CPU; ours as ``precision: auto`` decides, and in float32 beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_FEATURES = (32, 64, 128, 256)
_PATCH = (40, 56, 40)


def main() -> None:
    """Runs all rounds and prints the table, or, as a child, times our steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--plans", type=Path)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--batch", type=int, default=7)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=("auto", "float32"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.stdout.write(json.dumps(_own_steps(args)) + "\n")
        return
    if not (args.peer_python and args.plans and args.dataset):
        parser.error("--peer-python, --plans and --dataset are needed")
    rows: dict[str, list[dict[str, Any]]] = {"nnU-Net 2.8.1, float32": [], "medseg, auto": [], "medseg, float32": []}
    for _ in range(args.rounds):
        peer = [str(args.peer_python), str(_HERE / "peers/nnunet_step.py"), str(args.plans), str(args.dataset)]
        rows["nnU-Net 2.8.1, float32"].append(_run([*peer, "3d_fullres", str(args.batch), str(args.steps)]))
        own = [sys.executable, __file__, "--batch", str(args.batch), "--steps", str(args.steps)]
        own += ["--micro-batch", str(args.micro_batch)]
        for kind in ("auto", "float32"):
            rows[f"medseg, {kind}"].append(_run([*own, "--child", kind]))
    text = _table(rows, args)
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text)


def _run(command: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def _own_steps(args: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # all as the medseg command sets them
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from medseg.runner.resources import keep_freed_memory

    keep_freed_memory()
    import copy

    import torch

    from medseg.config.train_sections import TrainSection
    from medseg.networks.build import build_network
    from medseg.networks.precision import choose_precision
    from medseg.training.batch import Batch
    from medseg.training.losses import build_loss
    from medseg.training.schedule import build_optimiser
    from medseg.training.state import Progress, TrainState
    from medseg.training.step import train_step

    cube, half = [3, 3, 3], [2, 2, 2]
    torch.manual_seed(1)
    network = build_network(
        {
            "kind": "unet", "dimensions": 3, "channels": 1, "classes": 3, "features": list(_FEATURES),
            "strides": [[1, 1, 1], half, half, half], "kernel_sizes": [cube] * 4,
        }
    )  # fmt: skip
    section = TrainSection.model_validate({"micro_batch": args.micro_batch})
    optimiser = build_optimiser(section.optimiser, network.parameters())
    state = TrainState(network.train(), copy.deepcopy(network).eval(), optimiser, Progress(steps=100))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(args.batch, 1, *_PATCH, generator=generator)
    classes = torch.randint(0, 3, (args.batch, *_PATCH), generator=generator).to(torch.uint8)
    batch = Batch(images, classes, ("random",) * args.batch)
    loss = build_loss(section.loss, class_count=3, batch_dice=False)
    precision = choose_precision(torch.device("cpu"), args.child)
    times = []
    for _ in range(args.steps + 1):
        began = time.perf_counter()
        train_step(state, batch, section=section, loss=loss, rate=1e-3, seed=1, precision=precision)
        times.append(time.perf_counter() - began)
    return {"seconds": times[1:], "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _table(rows: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    pace = {name: args.batch / statistics.median(s for r in runs for s in r["seconds"]) for name, runs in rows.items()}
    peer = next(iter(pace.values()))
    command = f"--batch {args.batch} --micro-batch {args.micro_batch} --steps {args.steps} --rounds {args.rounds}"
    network = f"Plain U-Net {'-'.join(map(str, _FEATURES))}, patch {' x '.join(map(str, _PATCH))}, batch {args.batch}"
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {version('torch')}"
    lines = [
        f"# Training steps, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/bench_training_step.py {command}`",
        "",
        f"{machine}. {network}. Median step of all rounds; peak resident memory of the process.",
        "",
        "| who | patches a second | ratio | of the rounds | peak MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, runs in rows.items():
        each = ", ".join(f"{args.batch / statistics.median(r['seconds']):.2f}" for r in runs)
        peak = max(r["peak_mib"] for r in runs)
        lines.append(f"| {name} | {pace[name]:.2f} | {pace[name] / peer:.2f} | {each} | {peak:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
