"""A scan of 512 x 512 x 400 voxels and 40 classes through a small network, within a bound of resident memory.

    python benchmarks/bench_large_scan.py [--memory 5] [--shape 512 512 400] [--peer-python /tmp/nnunet_env/bin/python]

The model's voxels are 1.25 times the scan's, its patch is 96 x 96 x 96, its base features are 8, mirrors are off, weights are
random (time and memory do not depend on them). Ours runs in a process of its own: seconds per phase, peak resident memory,
and how its scores were kept. With a peer, nnU-Net's own predictor goes through the same: network of the same size, logits in
half precision, its export; what it takes, or how it ends, is printed beside. ``--plain`` keeps classes in place of features.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

_CLASSES = 40
_FEATURES = (8, 16, 32, 64)
_STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
_PEER = Path(__file__).resolve().parent / "peers/nnunet_large_scan.py"


def main() -> None:
    """Starts a process per contestant and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=float, default=5.0, help="GB that a scan may take beside the process")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument(
        "--only-peer", action="store_true", help="under `ulimit -v` say, so that it takes the machine from nobody"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.stdout.write(json.dumps(_own(args)) + "\n")
        return
    if not args.only_peer:
        sys.stdout.write(f"medseg: {_run([sys.executable, __file__, '--child', *sys.argv[1:]])}\n")
    if args.peer_python:
        sys.stdout.write(f"nnU-Net: {_run([str(args.peer_python), str(_PEER), *map(str, args.shape)])}\n")


def _run(command: list[str]) -> str:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    died = f"ended with {child.returncode}, " if child.returncode else ""
    return f"{died}peak {usage.ru_maxrss / 2**20:.2f} GiB resident, {output.strip()}"


def _model():
    import torch

    from medseg.inference.model import Model
    from medseg.networks.unet import UNet
    from medseg.preparation.plan import ChannelPlan, Plan

    torch.manual_seed(0)
    network = UNet(
        dimensions=3, channels=1, classes=_CLASSES, features=_FEATURES, strides=_STRIDES, kernel_sizes=((3, 3, 3),) * 4
    ).eval()
    plan = Plan(
        dimensions=3, orientation="RAS", spacing_xyz_mm=(1.25, 1.25, 1.25), median_shape_xyz=(410, 410, 320),
        patch_size_xyz=(96, 96, 96), batch_size=2, channels=(ChannelPlan(name="CT", scheme="zscore"),),
        labels={"background": (0,)} | {f"organ_{n}": (n,) for n in range(1, _CLASSES)}, features=_FEATURES, strides=_STRIDES,
        kernel_sizes=((3, 3, 3),) * 4, batch_dice=False, stored_dtype="float16", fingerprint_sha256="0" * 64,
    )  # fmt: skip
    return Model(network, plan, (), "0" * 64, Path("synthetic"), {})


def _own(args: argparse.Namespace) -> dict[str, object]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from medseg.runner.resources import keep_freed_memory

    keep_freed_memory()
    import torch

    from medseg.config.sections import InferSection
    from medseg.imaging import Volume
    from medseg.inference.ensemble import build_engine

    section = InferSection(mirror=False, precision="auto")
    limit = int(args.memory * 1e9)
    engine = build_engine([_model()], section, device=torch.device("cpu"), memory_bytes=limit)
    if args.plain:
        vars(engine)["_features"] = 0
    rng = np.random.default_rng(0)
    array = np.empty((1, *args.shape), np.float32)
    for plane in array[0]:
        plane[...] = rng.standard_normal(plane.shape, np.float32)
    volume = Volume(array, np.eye(4))
    foretold = engine.peak_bytes(volume.shape, volume.affine)
    times = [time.monotonic()]
    prepared, grid = engine.prepare(volume)
    del volume, array
    times.append(time.monotonic())
    scores = engine.scores(prepared)
    times.append(time.monotonic())
    classes = engine.classes(scores, grid)
    times.append(time.monotonic())
    seconds = dict(zip(("prepare", "compute", "mask"), np.round(np.diff(times), 1).tolist(), strict=True))
    return {
        "seconds": seconds,
        "foretold_gb": round(foretold.host_bytes / 1e9, 2),
        "file_gb": round(foretold.file_bytes / 1e9, 2),
        "kept_as": type(scores).__name__,
        **engine.effort(),
        "classes_found": len(np.unique(classes)),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    main()
