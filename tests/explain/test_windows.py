"""What the views of a region add up to is what the sliding window answers there."""

import numpy as np
import pytest
import torch

from medseg.errors import ScanError
from medseg.explain.windows import RegionScore, views_of, voxels_of
from medseg.inference.sliding_window import predict_scores
from medseg.networks.build import build_network

ARCHITECTURE = {
    "kind": "unet", "channels": 2, "classes": 3, "features": [4, 8], "deep_supervision": False,
    "strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
}  # fmt: skip


def network_of(dimensions, seed=0):
    torch.manual_seed(seed)
    return build_network({**ARCHITECTURE, "dimensions": dimensions}).eval()


@pytest.mark.parametrize(("patch", "slice_axis"), [((8, 8, 8), None), ((16, 8, 1), 2), ((1, 8, 8), 0)])
def test_a_regions_mean_logit_is_the_sum_over_its_views(patch, slice_axis):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(2, 13, 7, 11)).astype(np.float32)
    region = rng.random((13, 7, 11)) < 0.1
    network = network_of(3 if slice_axis is None else 2)
    views = views_of(array, region, patch_size_xyz=patch, overlap=0.5, slice_axis=slice_axis)
    scorer, total = RegionScore(network, views), torch.zeros(3)
    with torch.no_grad():
        for view in views.views:
            total += scorer(scorer.look_at(view))[0]
    whole = predict_scores(
        array, network, patch_size_xyz=patch, class_count=3, overlap=0.5, slice_axis=slice_axis, device="cpu"
    )
    np.testing.assert_allclose(total.numpy(), whole[:, region].mean(axis=1), rtol=1e-4, atol=1e-5)
    # What is the same in every window is the same when blended, wherever all windows see the region.
    everywhere = views_of(array, np.ones_like(region), patch_size_xyz=patch, overlap=0.5, slice_axis=slice_axis)
    ones = everywhere.blended(np.ones(patch, np.float32) for _ in everywhere.views)
    np.testing.assert_allclose(ones, 1, atol=1e-6)


def test_only_windows_that_see_the_region_are_looked_at():
    region = np.zeros((20, 8, 8), bool)
    region[1, 1, 1] = True
    views = views_of(np.zeros((1, 20, 8, 8), np.float32), region, patch_size_xyz=(8, 8, 8), overlap=0)
    assert [view.where[0].start for view in views.views] == [0]
    assert views.voxels == 1
    with pytest.raises(ScanError, match="has no voxel"):
        views_of(np.zeros((1, 8, 8, 8), np.float32), np.zeros((8, 8, 8), bool), patch_size_xyz=(8, 8, 8), overlap=0)


def test_millimetres_become_whole_voxels():
    assert voxels_of(6, (1, 2, 4)) == (6, 3, 2)
    assert voxels_of(1, (1, 2, 4)) == (1, 1, 1)
    assert voxels_of(6, (1, 2, 4), slice_axis=2) == (6, 3, 1)
