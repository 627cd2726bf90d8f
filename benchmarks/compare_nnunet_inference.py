"""Masks of imported nnU-Net models beside nnU-Net's own, voxel by voxel. After make_nnunet_models.py, in medseg's environment.

    python benchmarks/compare_nnunet_inference.py --work WORK [--only regions cascade] [--cases 3]

For each model: voxels that differ with ``accumulate: fp16`` (none should), with the default, and how far nnU-Net's two best
scores are from each other where the default differs, in fp16 steps at their size. For regions that is the distance of the
logit from 0, in steps at 1. A cascade's stages are also told apart, the second given the mask that nnU-Net's first drew.
Ends with 1 where a bound of the importer is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from medseg.config.sections import InferSection
from medseg.exchange.nnunet import import_nnunet
from medseg.imaging import read_label_map
from medseg.inference.cascade import CascadeEngine
from medseg.inference.ensemble import build_engine
from medseg.inference.model import load_models
from medseg.preparation.case import load_case
from medseg.preparation.previous import with_previous

LEAST_EQUAL, MOST_STEPS = 0.9999, 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--cases", type=int, help="at most so many of each set")
    parser.add_argument("--precision", default="float32", help="of the default's network: float32 or bf16")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    facts = json.loads((args.work / "models.json").read_text())
    counts = f"{'cases':>6}{'voxels':>11}{'fp16 differ':>13}{'fp32 differ':>13}"
    print(f"{'model':<22}{counts}{'equal':>10}{'steps':>9}{'mean Dice':>11}")
    good = True
    for name in args.only or facts:
        with tempfile.TemporaryDirectory() as folder:
            good &= compare(name, facts[name], Path(folder) / "model", args)
    return 0 if good else 1


@dataclass
class Tally:
    """One line of the table."""

    name: str
    bound_steps: bool = True
    cases: int = 0
    voxels: int = 0
    half: int = 0
    full: int = 0
    steps: float = 0.0
    dice: list[float] = field(default_factory=list)

    def add(self, expected, exact, fast, engine, scores, grid) -> None:
        """Masks on the scan's own grid; the rest is the fp16 engine and what it gave, for the distance of scores."""
        self.cases, self.voxels = self.cases + 1, self.voxels + expected.size
        self.half, self.full = self.half + int((exact != expected).sum()), self.full + int((fast != expected).sum())
        self.dice += [overlap(fast == value, expected == value) for value in np.unique(expected)[1:]]
        if (fast != expected).any():
            self.steps = max(self.steps, apart(engine, scores, grid, fast != expected))

    def told(self) -> bool:
        """Prints the line; whether the importer's bounds are kept."""
        equal, dice = 1 - self.full / self.voxels, np.mean(self.dice) if self.dice else np.nan
        counts = f"{self.cases:>6}{self.voxels:>11}{self.half:>13}{self.full:>13}"
        print(f"{self.name:<22}{counts}{equal:>10.6f}{self.steps:>9.2f}{dice:>11.5f}", flush=True)
        return self.half == 0 and equal >= LEAST_EQUAL and (self.steps <= MOST_STEPS or not self.bound_steps)


def compare(name: str, fact: dict, folder: Path, args: argparse.Namespace) -> bool:
    # From the folder of the data set, as a user has it: the first stage of a cascade lies beside the second.
    top = Path(fact["folder"])
    import_nnunet(top.parent, folder, configuration=top.name)
    exact, fast = (
        build_engine(load_models(folder, device=args.device), InferSection(**section), device=torch.device(args.device))
        for section in ({"accumulate": "fp16"}, {"precision": args.precision})
    )
    cascade = isinstance(exact, CascadeEngine)
    # One voxel of the first stage changes what the second is given: each stage is held to the bound by itself.
    whole, first, second = Tally(name, bound_steps=not cascade), Tally("  first stage"), Tally("  second, same first")
    for case, files in list(fact["scans"].items())[: args.cases]:
        volume = load_case([Path(file) for file in files], exact.plan.channels)
        expected = read_label_map(Path(fact["masks"]) / f"{case}.nii.gz").array
        array, grid = exact.prepare(volume)
        scores = exact.scores(array)
        mask = exact.classes(scores, grid)
        fast_array, fast_grid = fast.prepare(volume)
        fast_mask = fast.classes(fast.scores(fast_array), fast_grid)
        written = [exact.label_map(m, affine=volume.affine, header=volume.header).array for m in (mask, fast_mask)]
        whole.add(expected, *written, exact.second if cascade else exact, scores, grid)
        if cascade:
            own = exact.first.scores(array.first)
            given = exact.first.classes(own, array.first_grid)
            other = fast.first.classes(fast.first.scores(fast_array.first), fast_array.first_grid)
            first.add(given, given, other, exact.first, own, array.first_grid)
            previous = fast.second.previous_mask(given, fast_array.grid)
            stacked = with_previous(fast_array.image, previous, fast.plan.previous_channels)
            other = fast.second.classes(fast.second.scores(stacked), fast_array.grid)
            second.add(mask, mask, other, exact.second, scores, grid)
    lines = [whole, first, second] if cascade else [whole]
    return all([line.told() for line in lines])  # noqa: C419 - every line is printed


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    both = one.sum() + other.sum()
    return float(2 * (one & other).sum() / both) if both else 1.0


def apart(engine, scores, grid, where: np.ndarray) -> float:
    """The most fp16 steps between nnU-Net's two best scores over the voxels ``where`` (the scan's own axes)."""
    order = engine.order
    channels = np.stack([channel.astype(np.float32) for channel in engine.on_crop(scores, grid)])
    oriented = np.transpose(where, grid.permutation)
    oriented = np.flip(oriented, [axis for axis in range(3) if grid.flips[axis]])
    cropped = oriented[tuple(map(slice, grid.crop_start, grid.crop_stop))].transpose(order)
    own = channels[:, cropped]
    if own.size == 0:
        return float("inf")
    if engine.plan.regions is not None:
        return float((np.abs(own).min(axis=0) * 2**10).max())
    second, first = np.sort(own, axis=0)[-2:]
    size = np.maximum(np.abs(first), np.abs(second)).astype(np.float16)
    return float(((first - second) / np.spacing(size).astype(np.float32)).max())


if __name__ == "__main__":
    sys.exit(main())
