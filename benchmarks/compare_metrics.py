"""Do other libraries find the same numbers? medseg's metrics of 300 random pairs beside theirs and beside brute force.

    benchmarks/setup_metric_peers.sh
    python benchmarks/compare_metrics.py [--peers /tmp/metric_peers] [--pairs 300] [--output FILE.md]

Pairs: 2D, 3D, anisotropic, touching the border, with holes, sparse and dense, one empty, both empty, and volumes of one slice
(the others get the slice; medseg squeezes by itself). Each library runs in a process of its own, and where it is not medseg's
own dependency in an environment of its own. Prints per library and metric how many pairs both define and the largest relative
deviation; then what differs on purpose, with numbers. Returns 1 where a deviation is above 1e-9 of brute force or 1e-5 of a
library.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medseg.durable import write_text
from medseg.evaluation import score_masks

HERE = Path(__file__).parent / "peers"
OURS = ("surface_elements", "pooled")
# A distance of the lattice never equals it, so that "<=" with and without a slack agree.
TOLERANCE_MM = 1.3717

Mask = np.ndarray
KINDS = ("plane", "volume", "anisotropic", "border", "holes", "noise", "slice", "sparse", "missed", "both_empty")


def blob(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> Mask:
    """A few ellipsoids together, in places that may reach over the border."""
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    extent = np.array(shape) * spacing
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 4)):
        centre, radii = rng.uniform(0.1, 0.9, len(shape)) * extent, rng.uniform(0.12, 0.4, len(shape)) * extent.mean()
        mask |= sum(((x - c) / r) ** 2 for x, c, r in zip(grid, centre, radii, strict=True)) < 1
    return mask


def pairs(count: int) -> Iterator[tuple[str, Mask, Mask, np.ndarray]]:
    """Name, prediction, reference, spacing."""
    for number in range(count):
        rng, kind, again = np.random.default_rng(number), KINDS[number % len(KINDS)], number // len(KINDS)
        flat = kind == "plane" or (kind in ("border", "holes", "noise", "sparse", "missed") and again % 3 == 0)
        shape = tuple(int(n) for n in rng.integers(12, 36 if flat else 20, 2 if flat else 3))
        if kind == "slice":
            shape = tuple(1 if axis == again % 3 else n for axis, n in enumerate(shape))
        spacing = np.array([0.7, 0.7, 2.5]) if kind == "anisotropic" else rng.uniform(0.4, 3.0, len(shape))
        if kind == "volume":
            spacing[:] = 1.0
        reference = blob(rng, shape, spacing)
        prediction = np.roll(reference, rng.integers(-2, 3, len(shape)), range(len(shape)))
        yield (
            f"{number:03d}_{kind}",
            *changed(kind, prediction ^ (rng.random(shape) < 0.02), reference, rng, again),
            spacing,
        )


def changed(kind: str, prediction: Mask, reference: Mask, rng: np.random.Generator, again: int) -> tuple[Mask, Mask]:
    """The pair, made what its kind says."""
    shape = reference.shape
    if kind == "border":
        reference[0], prediction[:, 0] = True, True
    elif kind == "holes":
        prediction &= rng.random(shape) < 0.8
        reference &= rng.random(shape) < 0.95
    elif kind == "noise":
        prediction, reference = rng.random((2, *shape)) < rng.uniform(0.1, 0.9)
    elif kind == "sparse":
        prediction, reference = rng.random((2, *shape)) < 0.01
    elif kind == "missed":
        (prediction if again % 2 else reference)[...] = False
    elif kind == "both_empty" and again % 2:
        prediction[...], reference[...] = False, False
    elif kind == "both_empty":  # every other time a pair that agrees in all but a few voxels
        prediction = reference ^ (rng.random(shape) < 0.005)
    return prediction, reference


def run(command: list[str]) -> dict[str, dict[str, Any]]:
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    if printed.returncode:
        sys.stderr.write(printed.stderr)
        raise SystemExit(f"{command[1]} failed")
    rows = [json.loads(line) for line in printed.stdout.splitlines()]
    return {row.pop("pair"): row for row in rows}


def deviation(ours: float, theirs: float) -> float:
    """Relative to the larger, and absolute below 1e-3 mm or share."""
    return abs(ours - theirs) / max(abs(ours), abs(theirs), 1e-3)


def defined(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def table(
    ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, dict[str, Any]]]
) -> tuple[list[str], list[str]]:
    lines = ["| beside | metric | pairs | largest relative deviation | allowed |", "| --- | --- | --- | --- | --- |"]
    worse = []
    for name, found in theirs.items():
        allowed = 1e-9 if name == "brute force" else 1e-5
        for metric in sorted({key for row in found.values() for key in row if key in next(iter(ours.values()))}):
            both = [
                (deviation(ours[pair][metric], row[metric]), pair)
                for pair, row in found.items()
                if defined(row.get(metric)) and defined(ours[pair][metric])
            ]
            largest, pair = max(both)
            lines.append(f"| {name} | `{metric}` | {len(both)} | {largest:.1e} | {allowed:.0e} |")
            if largest > allowed:
                worse.append(f"{name}: {metric} of {pair} deviates by {largest:.2e}")
    return lines, worse


def empties(theirs: dict[str, dict[str, dict[str, Any]]], masks: dict[str, tuple[bool, bool]]) -> list[str]:
    """What each library gives where masks are empty."""
    lines = ["| library | both empty | one empty |", "| --- | --- | --- |"]
    for name, found in theirs.items():
        cells = []
        for wanted in (0, 1):
            values: dict[str, set[str]] = {}
            for pair, row in found.items():
                if sum(masks[pair]) == wanted:
                    for metric, value in row.items():
                        if metric in (
                            "dice",
                            "hd_mm",
                            "hd95_mm",
                            "hd_surfel_mm",
                            "assd_mm",
                            "nsd",
                            "nsd_surfel",
                            "error",
                        ):
                            values.setdefault(metric, set()).add(value if metric == "error" else f"{value:g}")
            cells.append("; ".join(f"{metric} {' or '.join(sorted(own))}" for metric, own in values.items()) or "-")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def on_purpose(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """How far apart what has one name in the literature can lie: median and largest ratio over the pairs."""
    lines = ["| what differs | pairs | median | largest |", "| --- | --- | --- | --- |"]

    def line(words: str, values: list[float], unit: str) -> None:
        lines.append(f"| {words} | {len(values)} | {np.median(values):.3g} {unit} | {max(values):.3g} {unit} |")

    inside = [row for row in ours.values() if defined(row["hd_mm"])]
    others = {"hd95_mm": ("hd95_pooled_mm", "hd95_surfel_mm"), "assd_mm": ("masd_mm", "assd_surfel_mm")}
    for one, other in ((one, other) for one, several in others.items() for other in several):
        line(f"`{one}` and `{other}`", [abs(row[one] - row[other]) for row in inside], "mm")
    line("`nsd` and `nsd_surfel`", [abs(row["nsd"] - row["nsd_surfel"]) for row in inside], "")
    filled = theirs["SimpleITK"]
    apart = [abs(ours[pair]["hd_mm"] - row["hd_filled_mm"]) for pair, row in filled.items() if "hd_filled_mm" in row]
    line("`hd_mm` and SimpleITK's HD of whole masks", apart, "mm")
    return lines


def spheres() -> list[str]:
    """Shapes whose surface distances are known: what a voxel grid makes of them, by both definitions."""
    lines = ["| shapes | spacing, mm | by | HD | HD95 | ASSD | NSD |", "| --- | --- | --- | --- | --- | --- | --- |"]
    shapes = {
        "spheres, R 30 mm, shifted by 5 mm: truth 5, 4.75, 2.50, .400 at 2 mm": ((30, 30), 5.0, 2.0),
        "concentric spheres, R 30 and 33 mm: truth 3, 3, 3, 1 at 3 mm": ((30, 33), 0.0, 3.0),
    }
    for words, (radii, shift, tolerance) in shapes.items():
        for spacing in ((1.0, 1.0, 1.0), (0.7, 0.7, 2.5)):
            grid = np.ogrid[tuple(slice(-int(40 / s), int(40 / s) + 1) for s in spacing)]
            x, y, z = (places * s for places, s in zip(grid, spacing, strict=True))
            one, other = (((x - c) ** 2 + y**2 + z**2 <= r * r) for r, c in zip(radii, (0, shift), strict=True))
            found = score_masks(one, other, spacing_mm=spacing, tolerance_mm=tolerance, metrics=("surface_elements",))
            for by, end in (("voxels", ""), ("surface elements", "_surfel")):
                names = (f"hd{end}_mm", f"hd95{end}_mm", f"assd{end}_mm", f"nsd{end}")
                values = " | ".join(f"{found[name]:.3f}" for name in names)
                lines.append(f"| {words} | {' x '.join(f'{s:g}' for s in spacing)} | {by} | {values} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("/tmp/metric_peers"), help="folder of setup_metric_peers.sh")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--output", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    python = {
        "brute force": Path(sys.executable),
        "MONAI": Path(sys.executable),
        "surface-distance": arguments.peers / "surface_distance/bin/python",
        "medpy": arguments.peers / "medpy/bin/python",
        "SimpleITK": Path(sys.executable),
    }
    ours: dict[str, dict[str, float]] = {}
    filled: dict[str, tuple[bool, bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, prediction, reference, spacing in pairs(arguments.pairs):
            kept = [axis for axis, size in enumerate(reference.shape) if size > 1]
            ours[name] = score_masks(
                prediction, reference, spacing_mm=tuple(spacing), tolerance_mm=TOLERANCE_MM, metrics=OURS
            )
            filled[name] = bool(prediction.any()), bool(reference.any())
            np.savez(
                Path(folder) / f"{name}.npz", prediction=prediction.squeeze(), reference=reference.squeeze(),
                spacing=spacing[kept], tolerance=TOLERANCE_MM,
            )  # fmt: skip
        theirs = {
            name: run([str(own), str(HERE / f"metrics_{name.replace(' ', '_').replace('-', '_').lower()}.py"), folder])
            for name, own in python.items()
        }
    lines, worse = table(ours, theirs)
    text = "\n".join([*lines, "", *empties(theirs, filled), "", *on_purpose(ours, theirs), "", *spheres()]) + "\n"
    sys.stdout.write(text)
    if arguments.output:
        write_text(arguments.output, text)
    for fault in worse:
        sys.stderr.write(f"{fault}\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
