"""nnU-Net's arithmetic on answers from paper; against nnU-Net itself it is held in tests/exchange/test_nnunet.py."""

import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.errors import ConfigError, ScanError
from medseg.imaging import Volume
from medseg.inference.engine import Engine
from medseg.inference.ensemble import build_engine
from medseg.inference.reference import ReferenceEngine, axis_order
from medseg.inference.reference_scan import _picked, _zoomed_labels
from medseg.inference.reference_windows import _gaussian
from tests.inference.stand_ins import threshold_model

SECTION = InferSection(accumulate="fp16", mirror=False)


def engine(section=SECTION, **plan):
    return build_engine([threshold_model(**plan)], section, device=torch.device("cpu"))


def steps_scan():
    """A corner of 0, then 100, 300 and 500 in slabs along x."""
    array = np.repeat(np.float32([0, 0, 0, 0, 100, 100, 300, 300, 300, 500, 500, 500]), 10 * 6).reshape(1, 12, 10, 6)
    return Volume(array, np.diag([1.0, 1.2, 3.1, 1.0]))


def test_fp16_sums_choose_it_and_its_mask_is_the_fast_engines():
    exact, fast = engine(), engine(InferSection(mirror=False, precision="float32"))
    assert isinstance(exact, ReferenceEngine)
    assert type(fast) is Engine
    masks = []
    for one in (exact, fast):
        array, grid = one.prepare(steps_scan())
        masks.append(one.classes(one.scores(array), grid))
    assert np.array_equal(*masks)
    assert masks[0][:, 0, 0].tolist() == [0] * 6 + [1] * 3 + [2] * 3


def test_slabs_are_the_probabilities_of_the_mask():
    one = engine(spacing=(1.5, 1.2, 3.1))
    array, grid = one.prepare(steps_scan())
    scores = one.scores(array)
    assert scores.dtype == np.float16
    slabs = list(one.slabs(scores, grid))
    probabilities = np.concatenate([slab for _, slab in slabs], axis=1)
    assert [where.start for where, _ in slabs] == [0]
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-6)
    inside = one.classes(scores, grid)[tuple(map(slice, grid.crop_start, grid.crop_stop))]
    assert np.array_equal(probabilities.argmax(axis=0), inside)


def test_weights_are_nnunets():
    weights = _gaussian((4, 3))
    assert weights.dtype == torch.float16
    assert weights[2, 1] == 10
    assert weights.min() > 0
    # One voxel off the middle of 3, SD 3/8: 10 exp(-1/2 (8/3)^2), rounded to half precision.
    assert float(weights[2, 0]) == pytest.approx(10 * np.exp(-0.5 * (8 / 3) ** 2), rel=2e-3)


def test_labels_go_to_the_label_with_most_of_a_voxel():
    # 3 voxels to 2: the first new voxel holds all of the first and half of the second.
    assert _zoomed_labels(np.int16([[1, 1, 2]]), (1, 2)).tolist() == [[1, 2]]
    # A tie of two halves is the nearest voxel's; no label reaches a half in the middle of the four.
    quarter = np.int16([[3, 5], [7, 9]])
    assert _zoomed_labels(quarter, (1, 1)).tolist() == [[9]]
    assert _zoomed_labels(np.int16([[-1, 4]]), (1, 1)).tolist() == [[4]]


def test_slices_are_picked_as_map_coordinates_rounds():
    assert _picked(np.arange(3), 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert _picked(np.arange(6), 3).tolist() == [1, 3, 5]
    assert _picked(np.arange(4), 4).tolist() == [0, 1, 2, 3]


def test_its_axes_are_the_networks_or_begin_with_the_slices():
    assert axis_order(threshold_model()) == (2, 1, 0)
    flat = {"patch": (16, 1, 16), "strides": ((1, 1, 1), (2, 1, 2))}
    assert axis_order(threshold_model(dimensions=2, through_plane_axis=1, **flat)) == (1, 2, 0)


def test_what_is_not_nnunets_is_refused():
    with pytest.raises(
        ConfigError, match=r"infer\.precision: is bf16, expected auto or float32 beside accumulate fp16"
    ):
        engine(InferSection(accumulate="fp16", precision="bf16"))
    one = engine()
    one.memory_bytes = 1000
    with pytest.raises(ScanError, match=r"takes 0\.\d GB of memory as nnU-Net computes it, expected at most 0\.0 GB"):
        one.prepare(steps_scan())
    volume = steps_scan()
    predicted = one.peak_bytes(volume.shape, volume.affine)
    assert predicted.refused is not None
    assert predicted.host_bytes > 4 * volume.array.size
