"""Clean-up of label maps, on masks whose answer can be seen."""

import numpy as np
import pytest

from medseg.errors import ModelError
from medseg.evaluation.postprocessing import Step, apply_steps, steps_from_plain
from medseg.imaging import Regions

NAMES = ("background", "organ", "lesion")
UNIT = (1.0, 1.0, 1.0)


def rows(*lines):
    """A picture (X, Y, 1) from lines of digits; x runs down the lines."""
    return np.array([[int(digit) for digit in line] for line in lines], np.uint8)[:, :, None]


def done(classes, *steps, spacing=UNIT):
    return apply_steps(classes, steps, class_names=NAMES, spacing_xyz_mm=spacing)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # Corners join: the 1 at the end of the first line belongs to the three below it.
        (Step(kind="largest_component", class_name="organ"), ("00001002", "00010000", "00110000", "00000022")),
        (Step(kind="largest_component", class_name="lesion"), ("10001000", "10010000", "00110000", "00000022")),
        (Step(kind="largest_component", class_name=None), ("00001000", "00010000", "00110000", "00000000")),
        (
            Step(kind="minimum_size", class_name="organ", minimum_mm3=3),
            ("00001002", "00010000", "00110000", "00000022"),
        ),
        (
            Step(kind="minimum_size", class_name="organ", minimum_mm3=2),
            ("10001002", "10010000", "00110000", "00000022"),
        ),
        (
            Step(kind="minimum_size", class_name="organ", minimum_mm3=9),
            ("00000002", "00000000", "00000000", "00000022"),
        ),
    ],
)
def test_components_are_kept_or_dropped(step, expected):
    before = rows("10001002", "10010000", "00110000", "00000022")
    kept = before.copy()
    np.testing.assert_array_equal(done(before, step), rows(*expected))
    np.testing.assert_array_equal(before, kept)


def test_of_equal_components_the_first_in_the_array_stays():
    step = Step(kind="largest_component", class_name="organ")
    np.testing.assert_array_equal(done(rows("1010", "1010"), step), rows("1000", "1000"))


def test_or_all_equal_components_as_nnunet_does():
    # nnU-Net 2.8.1, acvl_utils 0.2.6: remove_all_but_largest_component keeps every component of the largest size.
    step = Step(kind="largest_components", class_name="organ")
    np.testing.assert_array_equal(done(rows("10100", "10100", "00001"), step), rows("10100", "10100", "00000"))
    np.testing.assert_array_equal(done(rows("10100", "10001"), step), rows("10000", "10000"))


def test_a_region_is_all_of_its_combinations():
    # Stored indices: 1 whole alone, 2 whole and core, 3 whole, core and enhancing; a core is 2 and 3.
    regions = Regions({"background": (0,), "whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)})

    def clean(classes, name, kind="largest_components"):
        step = Step(kind=kind, class_name=name)
        names = ("background", *regions.names)
        return apply_steps(classes, [step], class_names=names, spacing_xyz_mm=UNIT, regions=regions)

    before = rows("1123000", "0000030", "3000022")
    # The core of 2 and 3 side by side has two voxels, the one at the right three: the others become background.
    np.testing.assert_array_equal(clean(before, "core"), rows("1100000", "0000030", "0000022"))
    np.testing.assert_array_equal(clean(before, "whole"), rows("1123000", "0000000", "0000000"))
    np.testing.assert_array_equal(clean(before, "enhancing"), before)
    ring = rows("333", "203", "333")
    np.testing.assert_array_equal(clean(ring, "core", "fill_holes"), rows("333", "223", "333"))


def test_holes_are_filled_with_background_only_and_in_the_plane_of_a_picture():
    before = rows("11111", "10021", "11111", "10010", "11111")
    # A way out over a corner is none; the open bay on the right is no hole, and the lesion stays.
    expected = rows("11111", "11121", "11111", "11110", "11111")
    np.testing.assert_array_equal(done(before, Step(kind="fill_holes", class_name="organ")), expected)


def test_a_tube_is_no_hole_in_3d():
    tube = np.zeros((3, 3, 4), np.uint8)
    tube[:] = 1
    tube[1, 1, :] = 0
    step = Step(kind="fill_holes", class_name="organ")
    np.testing.assert_array_equal(done(tube, step), tube)
    tube[1, 1, 0] = tube[1, 1, 3] = 1
    assert done(tube, step).all()


def test_sizes_are_in_cubic_millimetres():
    step = Step(kind="minimum_size", class_name="organ", minimum_mm3=3)
    before = rows("110")
    np.testing.assert_array_equal(done(before, step, spacing=(1.0, 1.0, 1.6)), before)
    assert not done(before, step, spacing=(1.0, 1.0, 1.4)).any()


@pytest.mark.parametrize("kind", ["largest_component", "minimum_size", "fill_holes"])
def test_an_absent_class_and_a_single_voxel(kind):
    step = Step(kind=kind, class_name="lesion", minimum_mm3=1)
    for shape in ((4, 4, 4), (1, 1, 1)):
        assert not done(np.zeros(shape, np.uint8), step).any()
        full = np.full(shape, 2, np.uint8)
        np.testing.assert_array_equal(done(full, step), full)


def test_steps_go_through_plain_values_and_strange_ones_are_refused():
    steps = (
        Step(kind="largest_component", class_name=None),
        Step(kind="minimum_size", class_name="lesion", minimum_mm3=12.5),
        Step(kind="fill_holes", class_name="organ"),
    )
    assert steps_from_plain([step.plain() for step in steps], NAMES) == steps
    assert [str(step) for step in steps] == [
        "all classes together: keep the largest component",
        "lesion: drop components below 12.5 mm³",
        "organ: fill holes",
    ]
    for strange in ({"kind": "melt", "class": "organ"}, {"kind": "fill_holes", "class": "spleen"}):
        with pytest.raises(ModelError, match=r"post-processing step is .+ update medseg"):
            steps_from_plain([strange], NAMES)
