"""Small scored sets that a report is made of."""

import numpy as np

from medseg.evaluation import run_evaluate
from medseg.evaluation.experiment import folder_set
from medseg.imaging import LabelMap, Volume, write_label_map, write_volume
from medseg.imaging.nifti import write_nifti
from tests.synthetic import scan

AFFINE = np.diag([-1.0, -1.0, 2.5, 1.0])  # LPS order on disk, anisotropic


def score_three(folder):
    """Three scored cases: ``good``, ``bad`` (moved by 6 voxels) and ``none`` (missed), with scans; gives their folder."""
    for name, shift in {"good": 0, "bad": 6, "none": None}.items():
        truth = np.zeros((30, 28, 12), np.uint8)
        truth[4:14, 8:18, 3:9] = 1
        truth[6:10, 10:14, 4:7] = 2
        mask = truth * 0 if shift is None else np.roll(truth, shift, axis=0)
        image = 100.0 * truth + np.arange(30, dtype=np.float32)[:, None, None]
        _write(folder, name, mask, truth, image.astype(np.float32), AFFINE)
    _score(folder)
    return folder


def score_synthetic(folder):
    """Scans on oblique, flipped, anisotropic grids with an entropy map each, segmented ever worse; gives their folder."""
    (folder / "p" / "maps").mkdir(parents=True)
    for number, grid in enumerate(("lps", "oblique_flipped", "anisotropic", "permuted")):
        one = scan(grid, seed=number)
        mask = np.roll(one.labels, (number, -number), axis=(0, 1))
        if number == 3:
            mask[mask == 2] = 0
        name = f"case_{number}"
        _write(folder, name, mask, one.labels, one.image, one.affine)
        unsure = np.where(mask != one.labels, 200, np.where(mask > 0, 60, 5)).astype(np.uint8)
        write_nifti(unsure, one.affine, folder / "p" / "maps" / f"{name}_entropy.nii.gz", like=None, slope=1 / 255)
    _score(folder)
    return folder


def _write(folder, name, mask, truth, image, affine):
    for side, array in (("p", mask), ("r", truth)):
        (folder / side).mkdir(exist_ok=True)
        write_label_map(LabelMap(array, affine), folder / side / f"{name}.nii.gz", like=None)
    (folder / "scans").mkdir(exist_ok=True)
    write_volume(Volume(image[None], affine), folder / "scans" / f"{name}_0000.nii.gz")


def _score(folder):
    cases = folder_set("set", predictions=folder / "p", references=folder / "r", labels="organ=1,lesion=2")
    run_evaluate(cases, output=folder / "scores", processes=1)
