"""What a scan says about itself, on grids whose axes are known."""

import numpy as np
import pytest

from medseg.imaging import Header, Volume
from medseg.preparation.scan_facts import ScanFacts, axes_of, oblique_degrees, scan_facts


@pytest.mark.parametrize(
    ("columns", "axes"),
    [([[1, 0, 0], [0, 1, 0], [0, 0, 1]], "RAS"), ([[-2, 0, 0], [0, -1, 0], [0, 0, 3]], "LPS"),
     ([[0, -1, 0], [0, 0, -1], [1, 0, 0]], "PIR")],
)  # fmt: skip
def test_axes_are_called_after_where_they_run(columns, axes):
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns, float).T
    assert axes_of(affine) == axes
    assert oblique_degrees(affine) == 0


def test_obliqueness_is_the_largest_angle():
    affine, angle = np.eye(4), np.radians(30)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert oblique_degrees(affine @ np.diag([3, 1, 2, 1])) == pytest.approx(30, abs=0.01)


def test_facts_of_a_scan_survive_their_file():
    array = np.zeros((2, 101, 10, 1), np.float32)
    array[0] = np.arange(101)[:, None, None]  # without 0: 1 to 100
    header = Header(shape=(101, 10, 1), affine=np.eye(4), qform_code=0, sform_code=0, modality="MR")
    facts = scan_facts(Volume(array, np.eye(4), header))
    assert (facts.oriented, facts.modality) == (False, "MR")
    assert facts.percentiles[0] == pytest.approx((1, 50.5, 100), abs=0.6)
    assert facts.percentiles[1] == (0, 0, 0)
    assert ScanFacts.from_plain(facts.plain()) == facts
