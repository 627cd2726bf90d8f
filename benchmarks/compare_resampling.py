"""Are prepared arrays nnU-Net's, in 3D and slice by slice? Compares voxels with nnU-Net 2.8.1's own resampling functions.

    benchmarks/setup_nnunet.sh
    python benchmarks/compare_resampling.py IMAGE=MASK ... [--nnunet /tmp/nnunet_env/bin/python] [--output FILE.md]

Each pair is resampled to a finer and a coarser grid in 3D and in 2D across each axis, without normalisation. Compared are the
image (largest difference, relative to the largest value), the labels (voxels that differ), and the way back (smooth random
class scores to the scan's grid: voxels of another class). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.durable import write_text
from medseg.imaging import AxisChange, LabelMap, Volume, apply_axes, read_label_map, read_volume
from medseg.preparation.case import prepare_image, prepare_labels, restore_classes
from medseg.preparation.plan import ChannelPlan, Plan

FACTORS = (0.8, 1.5)
SCORES = 3


def plan_of(spacing: tuple[float, float, float], through: int | None) -> Plan:
    """A plan that matters for the grid only."""
    return Plan(
        dimensions=3 if through is None else 2, through_plane_axis=through, orientation="RAS", spacing_xyz_mm=spacing,
        median_shape_xyz=(8, 8, 8), patch_size_xyz=(8, 8, 8), batch_size=2, channels=(ChannelPlan(name="any", scheme="none"),),
        labels={"background": (0,), "any": (1,)}, features=(4,), strides=((1, 1, 1),), kernel_sizes=((3, 3, 3),),
        batch_dice=False, stored_dtype="float32", fingerprint_sha256="",
    )  # fmt: skip


def write_ours(path: Path, volume: Volume, mask: LabelMap, factor: float, through: int | None) -> None:
    """What we make of a case, with what went in, on oriented axes (x, y, z)."""
    classes = (mask.array > 0).astype(np.uint8)
    _, own = prepare_image(volume, plan_of((1.0, 1.0, 1.0), None))
    x, y, z = (spacing * factor for spacing in own.spacing_xyz_mm)
    image, grid = prepare_image(volume, plan_of((x, y, z), through))
    change = AxisChange(grid.permutation, grid.flips)
    crop = tuple(map(slice, grid.crop_start, grid.crop_stop))
    noise = np.random.default_rng(0).normal(size=(SCORES, *grid.prepared_shape)).astype(np.float32)
    scores = np.stack([ndimage.gaussian_filter(part, 2) for part in noise])
    np.savez(
        path,
        image=apply_axes(volume.array, change)[(slice(None), *crop)],
        classes=apply_axes(classes, change)[crop],
        spacing=grid.spacing_xyz_mm,
        target=(x, y, z),
        through=-1 if through is None else through,
        scores=scores,
        our_image=image,
        our_labels=prepare_labels(classes, grid),
        our_back=apply_axes(restore_classes(scores, grid), change)[crop],
    )


def main() -> int:
    """Prints and writes the table; 1 where anything differs by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="IMAGE=MASK")
    parser.add_argument("--nnunet", default="/tmp/nnunet_env/bin/python", help="Python of nnU-Net's environment")
    parser.add_argument("--output", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number, pair in enumerate(arguments.pairs):
            image, _, mask = pair.partition("=")
            volume, label_map = read_volume(Path(image)), read_label_map(Path(mask))
            for factor in FACTORS:
                for through in (None, 0, 1, 2):
                    name = f"scan {number} x{factor} {'3d' if through is None else '2d across ' + 'xyz'[through]}"
                    write_ours(Path(folder) / f"{name}.npz", volume, label_map, factor, through)
        script = Path(__file__).with_name("nnunet_resampling.py")
        printed = subprocess.run([arguments.nnunet, script, folder], capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    lines = [
        "| case | image, relative | labels that differ | restored voxels that differ |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        if "shape" in row:
            lines.append(f"| {row['case']} | shape {row['shape']} | | |")
        else:
            labels, restored = f"{row['labels']} of {row['foreground']}", f"{row['restored']} of {row['voxels']}"
            lines.append(f"| {row['case']} | {row['image']:.1e} | {labels} | {restored} |")
    table = "\n".join(lines) + "\n"
    sys.stdout.write(table)
    if arguments.output:
        write_text(arguments.output, table)
    worse = [
        r for r in rows if "shape" in r or r["image"] > 1e-5 or max(r["labels"], r["restored"]) > 1e-4 * r["voxels"]
    ]
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
