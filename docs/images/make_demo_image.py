"""Makes demo.png beside this file from a finished demo: one slice of a held-out scan, its truth, and the prediction.

Run it as ``python docs/images/make_demo_image.py work/demo``.
"""  # noqa: INP001 - a script beside what it makes

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

CASE = "demo_024"
SCALE = 7
MARGIN = 8
COLOURS = {1: (70, 130, 220), 2: (245, 150, 40)}
STRENGTH = 0.55


def read(path: Path) -> npt.NDArray[np.float64]:
    """Voxels in the nearest RAS axis order, (X, Y, Z)."""
    array: npt.NDArray[np.float64] = nib.as_closest_canonical(nib.load(path)).get_fdata()
    return array


def panel(grey: npt.NDArray[np.float64], labels: npt.NDArray[np.float64] | None) -> npt.NDArray[np.uint8]:
    """(H, W, 3) picture of a slice (X, Y): patient's left on the right, front on top, labels tinted."""
    picture = np.repeat(grey[..., None], 3, axis=2)
    if labels is not None:
        for value, colour in COLOURS.items():
            inside = labels == value
            picture[inside] = (1 - STRENGTH) * picture[inside] + STRENGTH * np.array(colour)
    turned = picture.transpose(1, 0, 2)[::-1, ::-1]
    return np.kron(turned, np.ones((SCALE, SCALE, 1))).astype(np.uint8)


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description="Make docs/images/demo.png from a finished demo.")
    parser.add_argument("work", type=Path, help="the demo's work folder")
    work = parser.parse_args().work
    scan = read(work / "data" / "images" / f"{CASE}.nii.gz")
    truth = read(work / "data" / "labels" / f"{CASE}.nii.gz")
    prediction = read(work / "predictions" / "testing" / f"{CASE}.nii.gz")
    z = int((truth == 2).sum(axis=(0, 1)).argmax())
    grey = np.clip(scan[..., z] / np.quantile(scan, 0.995), 0, 1) * 255
    panels = [panel(grey, None), panel(grey, truth[..., z]), panel(grey, prediction[..., z])]
    gap = np.full((panels[0].shape[0], MARGIN, 3), 255, np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    Image.fromarray(picture).save(Path(__file__).with_name("demo.png"), optimize=True)


if __name__ == "__main__":
    main()
