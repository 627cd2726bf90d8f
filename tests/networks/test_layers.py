import pytest
import torch
from torch import nn

from medseg.networks.layers import Dimension, initialise, per_stage


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 6), (7, 7), (5, 5), (11, 1)])
def test_group_norm_divides_its_channels(channels, groups):
    norm = Dimension(2).norm("group", channels)
    assert norm.num_groups == groups


@pytest.mark.parametrize("dimensions", [2, 3])
def test_only_the_stride_changes_the_size(dimensions):
    dim = Dimension(dimensions)
    x = torch.zeros(1, 2, 8, 12, 6)[..., 0] if dimensions == 2 else torch.zeros(1, 2, 8, 12, 6)
    layer = dim.convolution(2, 3, (3, 5, 1), stride=(2, 1, 1), dilation=(4, 2, 1))
    assert layer(x).shape[2:] == (4, 12, 6)[:dimensions]


def test_linear_resizing_keeps_outer_edges():
    x = torch.tensor([[[[0.0, 4.0]]]])  # centres at 1/4 and 3/4 of the width; their doubles' at 1/8, 3/8, 5/8, 7/8
    assert torch.equal(Dimension(2).resize(x, (1, 4)), torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))
    assert Dimension(2).resize(x, (1, 2)) is x


def test_one_number_stands_for_all_stages():
    assert per_stage(2, 3, "convolutions") == (2, 2, 2)
    assert per_stage([1, 3], 2, "convolutions") == (1, 3)
    with pytest.raises(ValueError, match="convolutions has 2 entries, expected one per stage: 3"):
        per_stage([1, 3], 3, "convolutions")


def test_he_initialisation_has_its_spread():
    torch.manual_seed(0)
    layer = nn.Conv2d(50, 80, 3)
    initialise(layer)
    assert layer.weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (50 * 9)) ** 0.5, rel=0.02)
    assert not layer.bias.any()
