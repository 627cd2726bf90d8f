import numpy as np
import pytest

from medseg.audit.shapes import class_shapes, measure_shapes, shape_hints

UNIT = (1.0, 1.0, 1.0)


def measured(mask, spacing=UNIT):
    return measure_shapes(mask.astype(np.uint8), 2, spacing_xyz_mm=spacing)[1]


def test_a_box():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 6:12, 8:12] = True
    shape = measured(mask, (1.0, 1.0, 2.0))
    assert shape.voxels == 240
    assert shape.volume_ml == pytest.approx(0.48)
    assert shape.share == pytest.approx(0.03)
    assert shape.centre_xyz == pytest.approx((0.5, 0.45, 0.5))
    assert shape.centre_mm == pytest.approx((10, 9, 20))
    assert (shape.components, shape.stray_share, shape.stray_far_mm) == (1, 0, 0)
    assert shape.elongation == pytest.approx(np.sqrt(99 / (15 * 4)), rel=1e-6)  # variance (n^2 - 1) / 12 of n places


def test_a_stray_voxel():
    mask = np.zeros((20, 10, 10), bool)
    mask[2:6, 2:6, 2:6] = True
    mask[15, 3, 3] = True
    shape = measured(mask, (2.0, 1.0, 1.0))
    assert shape.components == 2
    assert shape.stray_share == pytest.approx(1 / 65)
    assert shape.stray_far_mm == pytest.approx(20)  # from x = 5 to x = 15


def test_tubes_and_balls_are_told_apart():
    x, y, z = np.meshgrid(*(np.arange(40),) * 3, indexing="ij")
    ball = (x - 20) ** 2 + (y - 20) ** 2 + (z - 20) ** 2 <= 12**2
    tree = ((np.abs(x - 20) <= 1) & (np.abs(y - 20) <= 1)) | ((np.abs(z - x) <= 1) & (np.abs(y - 20) <= 1))
    assert measured(ball).tube_share < 0.2
    assert measured(ball).thickness_mm == pytest.approx(24, abs=3)
    assert measured(tree).tube_share > 0.5
    assert measured(tree).thickness_mm == pytest.approx(3, abs=1)


def test_a_picture_is_solid_across_its_slice():
    mask = np.zeros((30, 30, 1), bool)
    mask[5:25, 10:20] = True
    shape = measured(mask)
    assert shape.thickness_mm == pytest.approx(10, abs=1.5)
    assert shape.components == 1


def test_ignored_and_absent_classes_have_no_shape():
    classes = np.zeros((6, 6, 6), np.uint8)
    classes[0] = 255
    assert measure_shapes(classes, 3, spacing_xyz_mm=UNIT) == {}
    classes[2:4, 2:4, 2:4] = 2
    assert set(measure_shapes(classes, 3, spacing_xyz_mm=UNIT)) == {2}
    classes[2, 2, 2] = 1
    assert measure_shapes(classes, 3, spacing_xyz_mm=UNIT)[1].tube_share == 0


def test_a_set_is_summed_up():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[5:15, 5:15, 5:15] = 1
    one = measure_shapes(mask, 3, spacing_xyz_mm=UNIT)
    first, second = class_shapes(("background", "organ", "lesion"), [one, one, {}])
    assert (first.name, first.present, first.cases) == ("organ", 2, 3)
    assert first.median["voxels"] == 1000
    assert any("absent in 1 of 3 cases" in hint for hint in first.hints)
    assert "occurs in no labelled case" in second.hints[0]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"thickness_voxels": 2.0, "tube_share": 0.9, "elongation": 1.5}, "clDice"),
        ({"thickness_voxels": 2.0, "tube_share": 0.9, "elongation": 9.0}, "thin and long"),
        ({"thickness_voxels": 2.5}, "finer spacing"),
        ({"share": 1e-5}, "tiny"),
        ({"components": 12.0}, "many pieces"),
        ({}, None),
    ],
)
def test_hints(changes, word):
    usual = {
        "voxels": 5000.0, "volume_ml": 5.0, "share": 0.01, "components": 1.0, "stray_share": 0.0, "thickness_mm": 8.0,
        "thickness_voxels": 8.0, "tube_share": 0.1, "elongation": 1.5,
    }  # fmt: skip
    hints = shape_hints(usual | changes, present=10, cases=10)
    assert [word in hint for hint in hints] == ([True] if word else [])
