import numpy as np
import pytest

from medseg.evaluation import run_evaluate
from medseg.evaluation.experiment import folder_set
from medseg.imaging import AxisChange, LabelMap, Volume, write_label_map, write_volume
from medseg.report.experiment import folder_inputs, scored_folders
from medseg.report.masks import CaseMasks
from medseg.report.stage import make_report


@pytest.fixture
def masks_of():
    """Masks of a case in memory, in RAS order; classes are numbered from 1 in the order of ``names``."""

    def make(prediction, truth, *, names=("organ",), spacing=(1.0, 1.0, 1.0), planar=False, ignored=None):
        return CaseMasks(
            case_id="a",
            truth=np.asarray(truth, np.uint8),
            prediction=np.asarray(prediction, np.uint8),
            ignored=ignored,
            members={name: (index,) for index, name in enumerate(names, start=1)},
            spacing_xyz_mm=spacing,
            planar=planar,
            change=AxisChange(),
            affine=np.diag([*spacing, 1.0]),
            shape=np.shape(truth),
        )

    return make


AFFINE = np.diag([-1.0, -1.0, 2.5, 1.0])  # LPS order on disk, anisotropic


@pytest.fixture
def scored(tmp_path):
    """Three scored cases: ``good``, ``bad`` (moved by 6 voxels) and ``none`` (missed), with scans; gives their folders."""
    return score_three(tmp_path)


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The same, with the report of it; not to be changed."""
    folder = score_three(tmp_path_factory.mktemp("reported"))
    cases = scored_folders(folder / "scores", predictions=folder / "p", references=folder / "r")
    make_report(folder_inputs(folder / "scores", cases, scans=folder / "scans"))
    return folder


def score_three(tmp_path):
    names = {"good": 0, "bad": 6, "none": None}
    for name, shift in names.items():
        truth = np.zeros((30, 28, 12), np.uint8)
        truth[4:14, 8:18, 3:9] = 1
        truth[6:10, 10:14, 4:7] = 2
        mask = truth * 0 if shift is None else np.roll(truth, shift, axis=0)
        for side, array in (("p", mask), ("r", truth)):
            (tmp_path / side).mkdir(exist_ok=True)
            write_label_map(LabelMap(array, AFFINE), tmp_path / side / f"{name}.nii.gz", like=None)
        (tmp_path / "scans").mkdir(exist_ok=True)
        image = 100.0 * truth + np.arange(30, dtype=np.float32)[:, None, None]
        write_volume(Volume(image[None].astype(np.float32), AFFINE), tmp_path / "scans" / f"{name}_0000.nii.gz")
    cases = folder_set("set", predictions=tmp_path / "p", references=tmp_path / "r", labels="organ=1,lesion=2")
    run_evaluate(cases, output=tmp_path / "scores", processes=1)
    return tmp_path
