import math

import brute_force
import numpy as np
import pytest

from medseg.evaluation import score_masks
from medseg.evaluation.surface import boundary, surface_distances


def box(shape, *slices):
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "spacing"), brute_force.PAIRS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_equal_to_brute_force(name, prediction, reference, spacing):
    flat_p, flat_r = prediction.squeeze(), reference.squeeze()
    kept = [size for size, count in zip(spacing, prediction.shape, strict=True) if count > 1]
    wanted = brute_force.surface_metrics(flat_p, flat_r, kept, 1.5) | brute_force.overlap_metrics(prediction, reference)
    found = score_masks(prediction, reference, spacing_mm=spacing, tolerance_mm=1.5)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("method", ["tree", "transform"])
def test_tree_and_transform_agree(method):
    rng = np.random.default_rng(3)
    for share in (0.01, 0.5):
        prediction, reference = rng.random((2, 8, 7, 6)) < share
        spacing = (0.7, 1.1, 2.5)
        found = surface_distances(prediction, reference, spacing_mm=spacing, method=method)
        wanted = [
            brute_force.directed(brute_force.boundary_points(a, spacing), brute_force.boundary_points(b, spacing))
            for a, b in ((prediction, reference), (reference, prediction))
        ]
        np.testing.assert_allclose(np.sort(found.to_reference), np.sort(wanted[0]), rtol=1e-12)
        np.testing.assert_allclose(np.sort(found.to_prediction), np.sort(wanted[1]), rtol=1e-12)


def test_boxes_shifted_along_one_axis():
    # Squares of 6 x 6 pixels of 1 x 2 mm, shifted by 3 pixels = 6 mm along the second axis. Each has 36 - 16 = 20 boundary
    # pixels. Of the first, columns 5 to 10, the pixels of columns 5, 6, 7 lie left of the other square, whose left side is
    # column 8: all 6 of column 5 at 6 mm, 2 each of columns 6 and 7 at 4 and 2 mm. 2 each of columns 8 and 9 and the top and
    # bottom one of column 10 lie on the other's boundary; the 4 inner ones of column 10 are off its top or bottom by 1, 2, 2
    # and 1 pixels of 1 mm, which is nearer than its left and right sides (4 and 6 mm).
    prediction, reference = box((10, 20), slice(2, 8), slice(5, 11)), box((10, 20), slice(2, 8), slice(8, 14))
    wanted = sorted([6.0] * 6 + [4.0] * 2 + [2.0] * 2 + [0.0] * 6 + [1.0, 2.0, 2.0, 1.0])
    found = surface_distances(prediction, reference, spacing_mm=(1.0, 2.0))
    assert sorted(found.to_reference) == wanted
    assert sorted(found.to_prediction) == wanted
    scores = score_masks(prediction, reference, spacing_mm=(1.0, 2.0), tolerance_mm=2.0)
    assert scores["dice"] == 3 / 6
    assert scores["iou"] == 3 / 9
    assert scores["hd_mm"] == 6.0
    assert scores["hd95_mm"] == 6.0
    assert scores["assd_mm"] == (36 + 8 + 4 + 6) / 20
    assert scores["nsd"] == (2 + 6 + 4) / 20
    assert scores["volume_reference_ml"] == 36 * 2.0 / 1000
    assert scores["volume_difference_ml"] == 0.0


def test_concentric_boxes():
    # Squares of 4 and 10 pixels of 1 mm, 3 mm apart on every side. The inner square's 12 boundary pixels are 3 mm from the
    # outer's; of the outer's 36, the 16 that face a side of the inner one are 3 mm away, the others sqrt(9 + k^2) mm from
    # its corner: k = 1 and 2 eight times each, k = 3 at the four corners.
    inner, outer = box((14, 14), slice(5, 9), slice(5, 9)), box((14, 14), slice(2, 12), slice(2, 12))
    found = surface_distances(inner, outer, spacing_mm=(1.0, 1.0))
    assert sorted(found.to_reference) == [3.0] * 12
    corner = [math.sqrt(10)] * 8 + [math.sqrt(13)] * 8 + [math.sqrt(18)] * 4
    assert sorted(found.to_prediction) == pytest.approx([3.0] * 16 + corner, rel=1e-15)
    scores = score_masks(inner, outer, spacing_mm=(1.0, 1.0), tolerance_mm=3.0)
    assert scores["hd_mm"] == math.sqrt(18)
    assert scores["nsd"] == (12 + 16) / 48
    assert scores["assd_mm"] == pytest.approx((36 + 48 + sum(corner)) / 48, rel=1e-15)
    assert scores["dice"] == 2 * 16 / (16 + 100)


def test_hd95_is_the_larger_directed_percentile_not_the_pooled_one():
    # A line of 21 pixels against the same line with one pixel 10 mm beside it.
    line = box((21, 12), slice(None), 0)
    with_spur = line.copy()
    with_spur[10, 10] = True
    scores = score_masks(with_spur, line, spacing_mm=(1.0, 1.0))
    # Directed: 21 zeros and one 10, whose 95th percentile lies at place .95 * 21 = 19.95, between two zeros.
    assert scores["hd95_mm"] == 0.0
    assert scores["hd_mm"] == 10.0
    # One pixel that is found, and one 29 mm away that is not.
    point = box((30, 3), 0, 1)
    missed = point.copy()
    missed[29, 1] = True
    # Directed: [0] and [0, 29]: 0.95 * 29 = 27.55. Pooled [0, 0, 29] it would be 26.1.
    assert score_masks(point, missed, spacing_mm=(1.0, 1.0))["hd95_mm"] == pytest.approx(27.55, rel=1e-15)


@pytest.mark.parametrize("spacing", [0.7, 0.1, 1 / 3, 1.1])
def test_tolerance_of_exactly_the_distance_counts(spacing):
    for steps in range(1, 8):
        prediction = box((4, 30), slice(1, 3), slice(5, 6))
        reference = box((4, 30), slice(1, 3), slice(5 + steps, 6 + steps))
        tolerance_mm = float(np.float32(steps * spacing))
        assert (
            score_masks(prediction, reference, spacing_mm=(spacing, spacing), tolerance_mm=tolerance_mm)["nsd"] == 1.0
        )
        assert (
            score_masks(prediction, reference, spacing_mm=(spacing, spacing), tolerance_mm=tolerance_mm - 0.01)["nsd"]
            == 0.0
        )


def test_boundary_of_a_box_at_the_border():
    mask = np.ones((4, 5, 6), bool)
    assert boundary(mask).sum() == 4 * 5 * 6 - 2 * 3 * 4
    assert not boundary(np.zeros((3, 3), bool)).any()


def test_single_slice_is_scored_in_its_plane():
    rng = np.random.default_rng(1)
    prediction, reference = rng.random((2, 15, 14)) < 0.6
    flat = score_masks(prediction, reference, spacing_mm=(0.5, 0.8))
    sheet = score_masks(prediction[:, None], reference[:, None], spacing_mm=(0.5, 5.0, 0.8))
    assert {k: sheet[k] for k in ("hd_mm", "hd95_mm", "assd_mm", "nsd", "dice")} == {
        k: flat[k] for k in ("hd_mm", "hd95_mm", "assd_mm", "nsd", "dice")
    }
    assert sheet["volume_reference_ml"] == pytest.approx(5.0 * flat["volume_reference_ml"])


def test_symmetry_flips_padding_and_scaling():
    rng = np.random.default_rng(5)
    prediction, reference = rng.random((2, 9, 8, 7)) < 0.4
    spacing = (0.7, 0.9, 2.5)
    keys = ("hd_mm", "hd95_mm", "assd_mm", "nsd")
    wanted = score_masks(prediction, reference, spacing_mm=spacing)
    swapped = score_masks(reference, prediction, spacing_mm=spacing)
    flipped = score_masks(prediction[::-1, :, ::-1], reference[::-1, :, ::-1], spacing_mm=spacing)
    turned = score_masks(
        prediction.transpose(2, 0, 1), reference.transpose(2, 0, 1), spacing_mm=(spacing[2], spacing[0], spacing[1])
    )
    padded = score_masks(np.pad(prediction, 3), np.pad(reference, 3), spacing_mm=spacing)
    doubled = score_masks(prediction, reference, spacing_mm=tuple(2 * s for s in spacing), tolerance_mm=2.0)
    for other in (swapped, flipped, turned, padded):
        assert [other[key] for key in keys] == pytest.approx([wanted[key] for key in keys], rel=1e-12)
    assert [doubled[key] for key in keys] == pytest.approx(
        [2 * wanted["hd_mm"], 2 * wanted["hd95_mm"], 2 * wanted["assd_mm"], wanted["nsd"]], rel=1e-12
    )


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(2, 3\)"):
        score_masks(np.ones((2, 2), bool), np.ones((2, 3), bool), spacing_mm=(1.0, 1.0))
