"""The same weights on the same scans with the same cores: `nnUNetv2_predict`'s inference and ours, whole commands.

    benchmarks/setup_nnunet.sh /tmp/nnunet_env
    python benchmarks/bench_inference.py --peer-bin /tmp/nnunet_env/bin --model NNUNET_MODEL_FOLDER --scans FOLDER \\
        [--labels FOLDER] [--cases 40] [--fold 0] [--work /tmp/bench] [--output benchmarks/results/inference_DATE.md]

NNUNET_MODEL_FOLDER is <Trainer>__<Plans>__<configuration>, imported by `medseg import-nnunet` beforehand, untimed; FOLDER
holds <case>.nii.gz or <case>_0000.nii.gz. Every row is a process of its own, from its start to its end: wall seconds, CPU
seconds of it and its children, peak resident memory of the largest process. Mirrors are on. Masks are compared with the peer's
and with LABELS. At the end, where an idle machine has to be: `medseg infer` of the smallest scan in float32, in turns with
`import torch` alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Row:
    """One command's figures."""

    name: str
    folder: Path
    wall: float
    cpu: float
    peak_mib: float


def main() -> None:
    """Runs the peer and ours, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-bin", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scans", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--work", type=Path, default=Path("/tmp/medseg_bench_inference"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=("bf16", "float32"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _own(args)
        return
    shutil.rmtree(args.work, ignore_errors=True)
    scans = args.work / "scans"
    scans.mkdir(parents=True)
    for path in sorted(args.scans.glob("*.nii.gz"))[: args.cases]:
        name = path.name.removesuffix(".nii.gz").removesuffix("_0000")
        (scans / f"{name}_0000.nii.gz").symlink_to(path.resolve())
    own_model = args.work / "model"
    medseg = Path(sys.executable).with_name("medseg")
    imported = [str(medseg), "import-nnunet", str(args.model), "--output", str(own_model), "--fold", args.fold]
    subprocess.run(imported, check=True)
    rows = []
    if args.peer_bin:
        peer = [str(args.peer_bin / "nnUNetv2_predict_from_modelfolder"), "-i", str(scans), "-m", str(args.model)]
        rows.append(_timed("nnU-Net", [*peer, "-f", args.fold, "-device", "cpu", "-o"], args.work / "peer"))
    for kind in ("float32", "bf16"):
        command = [
            sys.executable,
            __file__,
            "--child",
            kind,
            "--model",
            str(own_model),
            "--scans",
            str(scans),
            "--work",
        ]
        rows.append(_timed(f"medseg, {kind}", command, args.work / kind))
    smallest = min(sorted(scans.iterdir()), key=_voxels)
    text = _table(rows, args, len(list(scans.iterdir()))) + _one_scan(medseg, own_model, smallest, args.work)
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text)


def _voxels(path: Path) -> int:
    import nibabel

    return int(np.prod(nibabel.load(path).shape))


def _one_scan(medseg: Path, model: Path, scan: Path, work: Path) -> str:
    """An imported model's own config says float32, so the plain command computes in it."""
    seconds: dict[str, list[float]] = {"infer": [], "import": []}
    for turn in range(4):
        infer = [str(medseg), "infer", str(scan), "--model", str(model), "--output", str(work / f"one_{turn}")]
        for name, command in (("infer", infer), ("import", [sys.executable, "-c", "import torch"])):
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds[name].append(time.monotonic() - began)
    infer, alone = (min(values[1:]) for values in seconds.values())  # the first turn warms the disk's cache
    return (
        f"\nOne scan from command to mask: {infer:.2f} s, {infer / alone:.2f} times `import torch` ({alone:.2f} s).\n"
    )


def _timed(name: str, command: list[str], folder: Path) -> Row:
    folder.mkdir()
    environment = os.environ | dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/nowhere")
    began = time.monotonic()
    # os.wait4 of a shell-less child: its usage includes that of the children it waited for.
    child = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if child.returncode != 0:
        sys.exit(f"{name} ended with {child.returncode}")
    return Row(name, folder, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _own(args: argparse.Namespace) -> None:
    """What `medseg infer SCANS --model MODEL --output WORK` does, with a precision that no config is needed for."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # all as the medseg command sets them
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from medseg.runner.resources import keep_freed_memory

    keep_freed_memory()
    import torch

    from medseg.inference.cases import find_cases
    from medseg.inference.ensemble import build_engine
    from medseg.inference.experiment import own_section
    from medseg.inference.model import load_models
    from medseg.inference.stage import infer_folder

    models = load_models(args.model)
    section = own_section(models[0]).model_copy(update={"precision": args.child, "contract": "off"})
    engine = build_engine(models, section, device=torch.device("cpu"))
    reports = infer_folder(engine, find_cases([args.scans], channels=engine.plan.channels), output=args.work)
    if not all(report.good for report in reports):
        sys.exit("; ".join(str(report.reason) for report in reports if not report.good))


def _table(rows: list[Row], args: argparse.Namespace, cases: int) -> str:
    lines = [
        f"`{' '.join(['python', 'benchmarks/bench_inference.py', *sys.argv[1:]])}`",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {cases} cases, mirrors on.",
        "",
        "| who | wall s | of the peer's | CPU s | peak MiB | Dice with its masks (least) | equal voxels | Dice with labels |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first = rows[0]
    for row in rows:
        between, equal = _agreement(row.folder, first.folder)
        truth = f"{_truth(row.folder, args.labels):.4f}" if args.labels else ""
        lines.append(
            f"| {row.name} | {row.wall:.1f} | {row.wall / first.wall:.3f} | {row.cpu:.0f} | {row.peak_mib:.0f} "
            f"| {np.mean(between):.5f} ({min(between):.4f}) | {equal:.6f} | {truth} |"
        )
    if len(rows) > 2:
        between, _ = _agreement(rows[-1].folder, rows[-2].folder)
        lines += ["", f"bf16 masks with float32 masks: mean Dice {np.mean(between):.5f}, least {min(between):.4f}."]
    return "\n".join(lines) + "\n"


def _masks(folder: Path) -> dict[str, np.ndarray]:
    import nibabel

    found = sorted(folder.glob("*.nii.gz"))
    return {path.name.partition(".")[0].removesuffix("_0000"): np.asarray(nibabel.load(path).dataobj) for path in found}


def _agreement(folder: Path, other: Path) -> tuple[list[float], float]:
    """Dice over classes of each case, and the share of equal voxels of all."""
    ours, theirs = _masks(folder), _masks(other)
    dice, equal, voxels = [], 0, 0
    for name, mask in theirs.items():
        own = ours[name]
        dice.append(_dice(own, mask))
        equal, voxels = equal + int((own == mask).sum()), voxels + mask.size
    return dice, equal / voxels


def _truth(folder: Path, labels: Path) -> float:
    truth = _masks(labels)
    return float(np.mean([_dice(mask, truth[name]) for name, mask in _masks(folder).items()]))


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    values = [value for value in np.union1d(one, other) if value]
    scores = [2 * ((one == v) & (other == v)).sum() / ((one == v).sum() + (other == v).sum()) for v in values]
    return float(np.mean(scores)) if scores else 1.0


if __name__ == "__main__":
    main()
