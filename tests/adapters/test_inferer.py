"""The Inferer does what MONAI's does where the two mean the same, and more where they do not."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer

from medseg.adapters.inferer import EvenWindowInferer
from medseg.inference.sliding_window import predict_scores


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def network(channels=2, planar=False):
    torch.manual_seed(0)
    kind = torch.nn.Conv2d if planar else torch.nn.Conv3d
    return torch.nn.Sequential(kind(channels, 3, 3, padding=1), torch.nn.Tanh()).eval()


@pytest.mark.parametrize(("shape", "roi"), [((2, 2, 16, 12, 8), (16, 12, 8)), ((2, 2, 20, 18), (20, 18))])
def test_equals_monais_where_one_window_is_the_whole(shape, roi):
    planar = len(shape) == 4
    with torch.no_grad():
        expected = SlidingWindowInferer(roi, mode="gaussian")(images(*shape), network(planar=planar))
    torch.testing.assert_close(EvenWindowInferer(roi)(images(*shape), network(planar=planar)), expected)


@pytest.mark.parametrize("axes", [2, 3])
def test_equals_monais_on_a_network_that_looks_at_one_voxel(axes):
    inputs = images(2, 2, *(21, 17, 12)[:axes])
    expected = SlidingWindowInferer(8, sw_batch_size=3, mode="gaussian")(inputs, torch.tanh)
    torch.testing.assert_close(EvenWindowInferer(8, sw_batch_size=3)(inputs, torch.tanh), expected)


def test_is_an_inferer_and_takes_monais_tensors():
    inferer = EvenWindowInferer((8, 8, 8), overlap=0.25, mirror_axes=(0, 2))
    assert isinstance(inferer, Inferer)
    found = inferer(MetaTensor(images(1, 2, 20, 9, 8)), network())
    expected = predict_scores(
        images(2, 20, 9, 8).numpy(),
        network(),
        patch_size_xyz=(8, 8, 8),
        class_count=3,
        overlap=0.25,
        mirror_axes_xyz=(0, 2),
    )
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_further_arguments_reach_the_network():
    inputs = images(1, 1, 6, 6, 6)
    found = EvenWindowInferer(4)(inputs, lambda x, factor, *, shift: x * factor + shift, 2.0, shift=1.0)
    torch.testing.assert_close(found, 2 * inputs + 1)


def test_blends_in_float32():
    half = EvenWindowInferer(4)(images(1, 1, 9, 9, 9), lambda x: torch.full_like(x, 0.7, dtype=torch.bfloat16))
    torch.testing.assert_close(half, torch.full_like(half, 0.69921875), rtol=5e-7, atol=0)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="roi_size is"):
        EvenWindowInferer((4, 4))(images(1, 1, 8, 8, 8), torch.tanh)
    with pytest.raises(ValueError, match="training mode"):
        EvenWindowInferer(4)(images(1, 2, 8, 8, 8), network().train())
