"""How many augmented samples a second? medseg's augmentation beside nnU-Net's (batchgeneratorsv2), on the same core.

    python benchmarks/bench_augmentation.py [--reference PYTHON] [--samples N] [--device cpu|cuda] [--quick]

Both draw nnU-Net's list with its probabilities and ranges, from the same volume in memory, sample after sample on one thread;
medseg reads the box that the turned patch covers, nnU-Net the enlarged patch that its loader always reads. ``--reference`` is
the interpreter of an environment that holds nnunetv2 (benchmarks/setup_nnunet.sh makes one); without it medseg is measured
alone. Seconds are CPU seconds of the process where the device is the CPU, so that a busy machine counts little, else wall
seconds. Prints a Markdown table; benchmarks/results/ keeps dated ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch


@dataclass(frozen=True)
class Subject:
    """A kind of patch. ``volume`` and ``patch`` in (z, y, x) as nnU-Net has them, the coarsest spacing first."""

    volume: tuple[int, ...]
    patch: tuple[int, ...]
    channels: int
    batch: int


SUBJECTS = {
    "CT, 128x128x128": Subject((256, 256, 256), (128, 128, 128), 1, 2),
    "hippocampus, 40x56x40": Subject((64, 80, 64), (40, 56, 40), 1, 9),
    "thin stack, 20x256x224": Subject((40, 400, 400), (20, 256, 224), 1, 2),
    "pictures, 256x256": Subject((520, 520), (256, 256), 3, 12),
}


def volume_of(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Noise (C, ...) float32, and three blobs as labels (...) uint8 that fill about a tenth of the volume."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((subject.channels, *subject.volume), dtype=np.float32)
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in subject.volume], indexing="ij")
    labels = np.zeros(subject.volume, np.uint8)
    for label, centre in enumerate((-0.5, 0.0, 0.45), 1):
        distance = sum((axis - centre * (-1) ** i) ** 2 for i, axis in enumerate(axes))
        labels[distance < 0.16 + 0.02 * np.sin(9 * axes[-1])] = label
    return image, labels


def starts(subject: Subject, count: int) -> list[tuple[int, ...]]:
    """Where patches begin."""
    rng = np.random.default_rng(1)
    return [
        tuple(int(rng.integers(0, v - p + 1)) for v, p in zip(subject.volume, subject.patch, strict=True))
        for _ in range(count)
    ]


def boxed(array: np.ndarray, start: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """A copy of the box, zeros beyond the border; the last axes are spatial."""
    lead = array.shape[: array.ndim - len(size)]
    result = np.zeros((*lead, *size), array.dtype)
    here, there = [], []
    for s, n, limit in zip(start, size, array.shape[len(lead) :], strict=True):
        first, last = max(s, 0), max(min(s + n, limit), s, 0)
        here.append(slice(first, last))
        there.append(slice(first - s, last - s))
    result[(..., *there)] = array[(..., *here)]
    return result


def theirs(subject: Subject) -> Callable[[int], object]:
    """Sample k by nnU-Net's own pipeline."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    patch, axes = subject.patch, len(subject.patch)
    dummy = axes == 3 and max(patch) / patch[0] > 3
    degrees = 30 if axes == 3 and not dummy else 15 if axes == 2 and max(patch) / min(patch) > 1.5 else 180
    angle = (-degrees / 360 * 2 * np.pi, degrees / 360 * 2 * np.pi)
    enlarged = [int(n) for n in get_patch_size(patch, angle, angle, angle, (0.85, 1.25))]
    if dummy:
        enlarged[0] = patch[0]
    transforms = nnUNetTrainer.get_training_transforms(patch, angle, None, tuple(range(axes)), dummy)
    image, labels = volume_of(subject)
    where = starts(subject, 64)

    def sample(k: int) -> object:
        np.random.seed(k)  # noqa: NPY002 - it is the generator that batchgeneratorsv2 draws from
        torch.manual_seed(k)
        start = tuple(s - (e - p) // 2 for s, e, p in zip(where[k % 64], enlarged, patch, strict=True))
        box = boxed(image, start, tuple(enlarged)), boxed(labels[None], start, tuple(enlarged)).astype(np.int16)
        return transforms(image=torch.from_numpy(box[0]), segmentation=torch.from_numpy(box[1]))

    return sample


def ours(subject: Subject, device: str) -> Callable[[int], object]:
    """Batch k by medseg; the slice axis of pictures is z."""
    from medseg.config.train_sections import TrainSection
    from medseg.preparation.plan import ChannelPlan, Plan
    from medseg.training.batches import BatchMaker

    image, labels = volume_of(subject)
    planar = labels.ndim == 2
    if planar:
        image, labels = image[..., None], labels[..., None]
    patch = (*subject.patch, 1) if planar else subject.patch

    class Scan:
        id, classes_present, shape_xyz = "scan", (), labels.shape

        def locations(self, _: int) -> np.ndarray:
            return np.zeros((0, 3), np.int64)

        def read_patch(self, start: tuple[int, ...], size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
            return boxed(image, start, size), boxed(labels, start, size)

    thin = max(patch) / patch[0] > 3
    plan = Plan(
        dimensions=2 if planar else 3, orientation="native", spacing_xyz_mm=(4.0 if thin else 1.0, 1.0, 1.0),
        median_shape_xyz=labels.shape, patch_size_xyz=patch, batch_size=subject.batch,
        channels=tuple(ChannelPlan(name=f"c{c}", scheme="none") for c in range(subject.channels)),
        labels={"background": (0,), "a": (1,), "b": (2,), "c": (3,)}, features=(4,), strides=((1, 1, 1),),
        kernel_sizes=((3, 3, 1),) if planar else ((3, 3, 3),), batch_dice=True, stored_dtype="float32", fingerprint_sha256="",
    )  # fmt: skip
    return BatchMaker([Scan()], plan, TrainSection(), 0, torch.device(device))


def measure(make: Callable[[int], object], count: int, *, device: str) -> tuple[float, float]:
    """Mean and median seconds per call, after three calls."""
    cuda = device != "cpu"
    clock = time.perf_counter if cuda else time.process_time
    times = []
    for k in range(-3, count):
        began = clock()
        make(k + 3)
        if cuda:
            torch.cuda.synchronize()
        if k >= 0:
            times.append(clock() - began)
    return statistics.fmean(times), statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", help="interpreter of an environment with nnunetv2")
    parser.add_argument("--samples", type=int, default=200, help="per subject")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    parser.add_argument("--only-theirs", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = max(8, arguments.samples // (10 if arguments.quick else 1))
    if arguments.only_theirs:
        print(json.dumps({name: measure(theirs(s), count, device="cpu") for name, s in SUBJECTS.items()}))
        return
    reference: dict[str, tuple[float, float]] = {}
    if arguments.reference:
        command = [arguments.reference, __file__, "--only-theirs", "--samples", str(count)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        reference = json.loads(output.strip().splitlines()[-1])
    print(
        f"{platform.processor() or platform.machine()}, {arguments.device}, one thread, torch {torch.__version__}, ",
        end="",
    )
    print(f"{count} samples a row, Python {sys.version.split()[0]}\n")
    print("| patch | medseg ms (median) | samples/s | batchgeneratorsv2 ms (median) | samples/s | times faster |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, subject in SUBJECTS.items():
        mean, median = measure(ours(subject, arguments.device), max(8, count // subject.batch), device=arguments.device)
        mean, median = mean / subject.batch, median / subject.batch
        row = f"| {name} | {mean * 1e3:.2f} ({median * 1e3:.2f}) | {1 / mean:.1f} |"
        if name in reference:
            other, middle = reference[name]
            row += f" {other * 1e3:.2f} ({middle * 1e3:.2f}) | {1 / other:.1f} | {other / mean:.1f} |"
        print(row if name in reference else row + " | | |")


if __name__ == "__main__":
    main()
