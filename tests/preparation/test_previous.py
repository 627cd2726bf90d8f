from pathlib import Path

import numpy as np
import pytest

from medseg.errors import GeometryError, InputError
from medseg.preparation.case import prepare_image
from medseg.preparation.previous import (
    PreviousMask,
    PreviousStage,
    one_hot,
    prepare_previous,
    refuse_other_scans,
    with_previous,
)
from tests.preparation.builders import plan_for
from tests.synthetic import scan


def test_a_mask_goes_the_way_of_its_scan():
    made = scan("permuted_flipped")
    _, grid = prepare_image(made.volume, plan_for((1.0, 0.7, 1.3)))
    prepared = prepare_previous(made.labels, grid)
    image, _ = prepare_image(made.volume, plan_for((1.0, 0.7, 1.3)))
    assert prepared.shape == image.shape[1:]
    # The image's noise has SD 10, its classes are 200 apart: away from borders the mask is where the image says.
    for index, level in ((1, 300), (2, 500)):
        assert np.median(image[0][prepared == index]) == pytest.approx(level, abs=15)
    with pytest.raises(GeometryError, match=r"label map: has shape \[3, 3, 3\]"):
        prepare_previous(np.zeros((3, 3, 3), np.uint8), grid)


def test_channels_are_one_per_class_behind_the_image():
    mask = np.array([0, 1, 2, 2, 3], np.uint8).reshape(5, 1, 1)
    expected = np.array([[0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], np.float32).reshape(3, 5, 1, 1)
    image = np.arange(10, dtype=np.float32).reshape(2, 5, 1, 1)
    joined = with_previous(image, mask, 3)
    assert joined.dtype == one_hot(mask, 3).dtype == np.float32
    np.testing.assert_array_equal(one_hot(mask, 3), expected)
    np.testing.assert_array_equal(joined, np.concatenate((image, expected)))


def test_masks_of_other_scans_are_refused():
    masks = {
        case: PreviousMask(path=Path(f"{case}.nii.gz"), scan_sha256s=(sha256,))
        for case, sha256 in (("a", "1"), ("b", "2"))
    }
    stage = PreviousStage(masks=masks, models={"fold_0": "x"})
    refuse_other_scans(stage, {"a": ["1"], "b": ["2"]})
    with pytest.raises(InputError, match=r"1 case\(s\) \(c\) have no out-of-fold mask") as refused:
        refuse_other_scans(stage, {"a": ["1"], "b": ["3"], "c": ["4"]})
    assert "1 case(s) (b) have masks of other scans than the manifest's" in str(refused.value)
