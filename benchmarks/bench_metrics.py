"""What scoring costs: HD, HD95, ASSD, NSD and Dice of three labels, medseg beside MONAI and surface-distance.

    benchmarks/setup_metric_peers.sh
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/bench_metrics.py one --case B --method medseg --repeats 3
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/bench_metrics.py all --case B [--methods medseg monai surface-distance]
    python benchmarks/bench_metrics.py many --cases 1000 --processes 1 2 --folder /tmp/many

Cases, spacing 0.7 x 0.7 x 2.5 mm: A, 256^3; B, 512 x 512 x 300: a large organ, a paired one, 14 scattered lesions of which two
were missed, and one far false positive. C: B's large organ displaced by 20 voxels in 0.1 % salt. D, 192^3: every voxel of the
prediction by chance. Label maps lie in memory; each method runs in a process of its own, once warm (imports, tables). CPU
seconds are the least of the repeats; peak is VmHWM above what was there before. medseg computes all its default metrics.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

SPACING = (0.7, 0.7, 2.5)
TOLERANCE_MM = 2.0
NAMES = ("background", "organ", "pair", "lesions")
KEYS = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd")


def ball(array, centre, radii_mm, value):
    low = [max(0, int(c - r / s) - 1) for c, r, s in zip(centre, radii_mm, SPACING, strict=True)]
    high = [min(n, int(c + r / s) + 2) for c, r, s, n in zip(centre, radii_mm, SPACING, array.shape, strict=True)]
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grid = np.ogrid[window]
    inside = sum(((x - c) * s / r) ** 2 for x, c, s, r in zip(grid, centre, SPACING, radii_mm, strict=True)) < 1
    array[window][inside] = value


def case(name):
    """Prediction and reference, uint8 in NIfTI's memory order (x fastest)."""
    shape = {"A": (256, 256, 256), "D": (192, 192, 192)}.get(name, (512, 512, 300))
    size = np.array(shape) / (512, 512, 300)
    radius = float(np.cbrt(size.prod()))
    prediction, reference = (np.zeros(shape, np.uint8, order="F") for _ in range(2))
    rng = np.random.default_rng(0)

    def draw(array, centre, radii, value, shift=(0, 0, 0), grown=1.0):
        ball(array, np.array(centre) * size + shift, np.array(radii) * radius * grown, value)

    draw(reference, (180, 250, 150), (81, 77, 107), 1)
    if name == "D":
        prediction[...] = rng.integers(0, 4, shape)
        return prediction, reference
    if name == "C":
        draw(prediction, (180, 250, 150), (81, 77, 107), 1, shift=(20, 0, 0))
        prediction[rng.random(shape) < 0.001] = 1
        return prediction, reference
    draw(prediction, (180, 250, 150), (81, 77, 107), 1, shift=(4, -3, 1), grown=0.98)
    for x in (120, 390):
        draw(reference, (x, 340, 140), (27, 24, 55), 2)
        draw(prediction, (x, 340, 140), (27, 24, 55), 2, shift=(2, 1, -1), grown=1.02)
    for number in range(14):
        centre, own = rng.integers((60, 60, 30), (450, 450, 270)), rng.uniform(5, 8)
        draw(reference, centre, (own,) * 3, 3)
        if number > 1:
            draw(prediction, centre, (own,) * 3, 3, shift=rng.integers(-2, 3, 3), grown=1.05)
    draw(prediction, (40, 470, 20), (6,) * 3, 3)
    return prediction, reference


def by_medseg(prediction, reference, method="auto"):
    from medseg.evaluation import surface
    from medseg.evaluation.case import score_classes
    from medseg.evaluation.lattice import nearest_distances

    surface.nearest_distances = lambda *args, **given: nearest_distances(*args, **{**given, "method": method})
    rows = score_classes(
        prediction,
        reference,
        spacing_xyz_mm=SPACING,
        class_names=NAMES,
        tolerance_mm=dict.fromkeys(NAMES[1:], TOLERANCE_MM),
    )
    return {row.class_name: [row.values[key] for key in KEYS] for row in rows}


def by_monai(prediction, reference):
    import torch
    from monai import metrics

    torch.set_num_threads(1)
    p, r = (
        torch.from_numpy(np.stack([array == k for k in (1, 2, 3)])[None].astype(np.uint8))
        for array in (prediction, reference)
    )
    common = {"include_background": True, "spacing": list(SPACING)}
    found = (
        metrics.compute_dice(p, r, include_background=True, ignore_empty=False),
        metrics.compute_hausdorff_distance(p, r, **common),
        metrics.compute_hausdorff_distance(p, r, percentile=95, **common),
        metrics.compute_average_surface_distance(p, r, symmetric=True, **common),
        metrics.compute_surface_dice(p, r, [TOLERANCE_MM] * 3, **common),
    )
    return {name: [float(own[0, k]) for own in found] for k, name in enumerate(NAMES[1:])}


def by_surface_distance(prediction, reference):
    import surface_distance

    result = {}
    for k, name in enumerate(NAMES[1:], start=1):
        masks = reference == k, prediction == k
        found = surface_distance.compute_surface_distances(*masks, SPACING)
        result[name] = [
            surface_distance.compute_dice_coefficient(*masks),
            surface_distance.compute_robust_hausdorff(found, 100.0),
            surface_distance.compute_robust_hausdorff(found, 95.0),
            float(np.mean(surface_distance.compute_average_surface_distance(found))),
            surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE_MM),
        ]
    return result


METHODS: dict[str, Callable] = {
    "medseg": by_medseg,
    "medseg-tree": partial(by_medseg, method="tree"),
    "medseg-transform": partial(by_medseg, method="transform"),
    "monai": by_monai,
    "surface-distance": by_surface_distance,
}


def memory_mib(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def one(arguments):
    warnings.simplefilter("ignore")
    method = METHODS[arguments.method]
    small = np.zeros((16, 16, 16), np.uint8)
    for k in (1, 2, 3):
        small[k * 4 : k * 4 + 3, 4:9, 4:9] = k
    method(np.roll(small, 5, 0), small)
    prediction, reference = case(arguments.case)
    ctypes.CDLL(None).malloc_trim(0)  # what making the case left free must not hide what the method takes
    seconds, peaks = [], []
    for _ in range(arguments.repeats):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        before, began = memory_mib("VmRSS"), time.process_time()
        values = method(prediction, reference)
        seconds.append(time.process_time() - began)
        peaks.append(memory_mib("VmHWM") - before)
    print(json.dumps({
        "case": arguments.case, "method": arguments.method, "cpu_s": min(seconds), "all_s": seconds, "peak_mib": max(peaks),
        "voxels": np.bincount(reference.reshape(-1, order="F"), minlength=4)[1:].tolist(), "values": values,
    }))  # fmt: skip


def all_of(arguments):
    """Every method in a process of its own, one after another; a Markdown table with ratios to medseg."""
    rows = []
    for method in arguments.methods:
        python = arguments.peers / "surface_distance/bin/python" if method == "surface-distance" else sys.executable
        repeats = str(arguments.repeats if method.startswith("medseg") else 1)
        command = [str(python), __file__, "one", "--case", arguments.case, "--method", method, "--repeats", repeats]
        printed = subprocess.run(command, capture_output=True, text=True, check=False)
        if printed.returncode:
            raise SystemExit(printed.stderr)
        rows.append(json.loads(printed.stdout.splitlines()[-1]))
        sys.stderr.write(f"{printed.stdout.splitlines()[-1]}\n")
    first = rows[0]
    print(f"Case {arguments.case}, reference voxels {first['voxels']}\n")
    print("| method | CPU s | times medseg's | peak MiB | times medseg's |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        ratios = row["cpu_s"] / first["cpu_s"], row["peak_mib"] / first["peak_mib"]
        print(f"| {row['method']} | {row['cpu_s']:.3f} | {ratios[0]:.1f} | {row['peak_mib']:.0f} | {ratios[1]:.1f} |")


def many(arguments):
    """Case pairs of 128^3 by ``medseg evaluate``: rate, and CPU seconds with all its processes."""
    make_many(arguments.folder, arguments.cases)
    print("| processes | cases | wall s | cases/s | CPU s | CPU ms a case |\n| --- | --- | --- | --- | --- | --- |")
    for processes in arguments.processes:
        output = arguments.folder / f"scores_{processes}"
        subprocess.run(["rm", "-rf", str(output)], check=True)
        command = [
            sys.executable, "-m", "medseg.cli.main", "evaluate", "--predictions", str(arguments.folder / "p"),
            "--references", str(arguments.folder / "r"), "--labels", "organ=1,pair=2,lesions=3", "--output", str(output),
            "--processes", str(processes),
        ]  # fmt: skip
        before, began = os.times(), time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        wall, after = time.monotonic() - began, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        rate = arguments.cases / wall
        print(
            f"| {processes} | {arguments.cases} | {wall:.1f} | {rate:.1f} | {cpu:.1f} | {1000 * cpu / arguments.cases:.1f} |"
        )


def make_many(folder, cases):
    from medseg.imaging import LabelMap, write_label_map

    prediction, reference = case("A")
    prediction, reference = prediction[::2, ::2, ::2], reference[::2, ::2, ::2]
    affine = np.diag([1.4, 1.4, 5.0, 1.0])
    for number in range(cases):
        for side, array in (("p", np.roll(prediction, number % 5, number % 3)), ("r", reference)):
            path = folder / side / f"case_{number:04d}.nii.gz"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_label_map(LabelMap(np.asfortranarray(array), affine), path, like=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    single = verbs.add_parser("one")
    single.add_argument("--method", choices=METHODS, required=True)
    single.set_defaults(run=one)
    several = verbs.add_parser("all")
    several.add_argument("--methods", nargs="+", choices=METHODS, default=["medseg", "surface-distance", "monai"])
    several.add_argument(
        "--peers", type=Path, default=Path("/tmp/metric_peers"), help="folder of setup_metric_peers.sh"
    )
    several.set_defaults(run=all_of)
    for own in (single, several):
        own.add_argument("--case", choices=("A", "B", "C", "D"), default="A")
        own.add_argument("--repeats", type=int, default=3)
    folder = verbs.add_parser("many")
    folder.add_argument("--cases", type=int, default=1000)
    folder.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    folder.add_argument("--folder", type=Path, required=True)
    folder.set_defaults(run=many)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
