import numpy as np
import pytest

from medseg.imaging import AxisChange
from medseg.report.experiment import folder_inputs, scored_folders
from medseg.report.masks import CaseMasks
from medseg.report.stage import make_report
from tests.report.scored_cases import score_three


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
