"""Batches of scans on a CUDA device: how busy it is, scans per minute, memory. Under 8 minutes on any recent card.

    python benchmarks/bench_cuda_inference.py [--scans 100] [--minutes 3] [--output benchmarks/results/cuda_inference_DATE.md]

Synthetic scans of 256 x 256 x 200 voxels as gzip NIfTI (a few, named many times), through the hippocampus network (four
stages, patch 40 x 56 x 40) with 8 base features and with nnU-Net's own 32, mirrors off, through the whole stage: reading,
decompression, preparation, network, masks on the disk. Kernel time is between CUDA events around every forward pass, so
blending and copies count as idle. A row that would take longer than ``--minutes`` takes fewer scans and says so.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np

_SHAPE = (256, 256, 200)
_PATCH = (40, 56, 40)
_DISTINCT = 4


def main() -> None:
    """Runs both networks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=3.0, help="for each network")
    parser.add_argument("--shape", type=int, nargs=3, default=_SHAPE)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, default=Path("/tmp/medseg_bench_cuda"))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu tries the script out")
    shutil.rmtree(args.work, ignore_errors=True)
    scans = _make_scans(args)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    lines = [
        f"{name}, {os.cpu_count()} cores, torch {torch.__version__}; {'x'.join(map(str, args.shape))} voxels.",
        "",
        "| base features | scans | wall s | scans a minute | share of wall with a kernel running | GPU GiB | host GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(base, scans, args) for base in (8, 32)]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text)


def _make_scans(args: argparse.Namespace) -> list[Path]:
    import nibabel

    folder = args.work / "scans"
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(0), []
    for number in range(min(_DISTINCT, args.scans)):
        array = np.asfortranarray(rng.normal(100, 20, args.shape).astype(np.int16))
        path = folder / f"distinct_{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        made.append(path)
    paths = [args.work / "many" / f"scan_{number:03d}.nii.gz" for number in range(args.scans)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.hardlink_to(made[number % len(made)])
    return paths


def _model(base: int, device: object):
    import torch

    from medseg.inference.model import Model
    from medseg.networks.unet import UNet
    from medseg.preparation.plan import ChannelPlan, Plan

    torch.manual_seed(0)
    features = tuple(base << stage for stage in range(4))
    strides, kernels = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 4
    network = UNet(dimensions=3, channels=1, classes=3, features=features, strides=strides, kernel_sizes=kernels)
    plan = Plan(
        dimensions=3, orientation="RAS", spacing_xyz_mm=(1.0, 1.0, 1.0), median_shape_xyz=_PATCH, patch_size_xyz=_PATCH,
        batch_size=2, channels=(ChannelPlan(name="MR", scheme="zscore"),),
        labels={"background": (0,), "anterior": (1,), "posterior": (2,)}, features=features, strides=strides,
        kernel_sizes=kernels, batch_dice=False, stored_dtype="float16", fingerprint_sha256="0" * 64,
    )  # fmt: skip
    return Model(network.to(device).eval(), plan, (), f"{base:064d}", Path(f"base_{base}"), {})


class _KernelTime:
    """CUDA events before and after every forward pass of a network."""

    def __init__(self, network) -> None:
        self.spans = []
        network.register_forward_pre_hook(lambda *_: self._mark(begin=True))
        network.register_forward_hook(lambda *_: self._mark(begin=False))

    def _mark(self, *, begin: bool) -> None:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if begin:
            self.spans.append([event])
        else:
            self.spans[-1].append(event)

    def seconds(self) -> float:
        """Between each pair."""
        import torch

        torch.cuda.synchronize()
        return sum(first.elapsed_time(last) for first, last in self.spans) / 1000


def _row(base: int, scans: list[Path], args: argparse.Namespace) -> str:
    import torch

    from medseg.config.sections import InferSection
    from medseg.inference.cases import InferCase
    from medseg.inference.ensemble import build_engine
    from medseg.inference.stage import infer_folder

    device = torch.device(args.device)
    model = _model(base, device)
    section = InferSection(mirror=False, contract="off", quality=False)
    engine = build_engine([model], section, device=device, scratch=args.work)
    cases = [InferCase(id=path.name.removesuffix(".nii.gz"), images=(path,)) for path in scans]
    began = time.monotonic()
    infer_folder(engine, cases[:2], output=args.work / f"warm_{base}")  # kernels are chosen and memory is taken
    pace = (time.monotonic() - began) / 2
    cases = cases[: max(2, min(len(cases), int(args.minutes * 60 / pace)))]
    kernels = _KernelTime(model.network) if device.type == "cuda" else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    reports = infer_folder(engine, cases, output=args.work / f"base_{base}")
    wall = time.monotonic() - began
    if not all(report.good for report in reports):
        sys.exit("; ".join(str(report.reason) for report in reports if not report.good))
    share = "" if kernels is None else f"{kernels.seconds() / wall:.3f}"
    gpu = "" if kernels is None else f"{torch.cuda.max_memory_reserved() / 2**30:.2f}"
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"| {base} | {len(cases)} | {wall:.1f} | {60 * len(cases) / wall:.1f} | {share} | {gpu} | {host:.2f} |"


if __name__ == "__main__":
    main()
