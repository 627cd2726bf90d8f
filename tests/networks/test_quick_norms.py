"""The faster kernel is the same function, and leaves the network as it was."""

import pytest
import torch

from medseg.networks.quick_norms import quick_norms
from medseg.networks.unet import UNet


@pytest.mark.parametrize("dimensions", [2, 3])
def test_same_answer_and_nothing_left_behind(dimensions):
    torch.manual_seed(0)
    network = UNet(
        dimensions=dimensions,
        channels=1,
        classes=2,
        features=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 2,
    ).eval()
    for norm in (m for m in network.modules() if hasattr(m, "track_running_stats")):
        torch.nn.init.normal_(norm.weight)
    before, x = list(network.state_dict()), torch.randn(2, 1, *(8,) * dimensions)
    with torch.inference_mode():
        expected = network(x)
        with quick_norms(network):
            quick = network(x)
        assert torch.equal(network(x), expected)
    torch.testing.assert_close(quick, expected, atol=1e-5, rtol=1e-5)
    assert list(network.state_dict()) == before


def test_norms_with_running_statistics_are_left_alone():
    network = torch.nn.InstanceNorm3d(3, track_running_stats=True).eval()
    x = torch.randn(1, 3, 4, 4, 4)
    with quick_norms(network):
        assert torch.equal(network(x), x / (1 + network.eps) ** 0.5)


def test_far_from_zero_it_keeps_its_digits():
    x = torch.randn(1, 4, 8, 8, 8) + 100
    network = torch.nn.InstanceNorm3d(4, affine=True).eval()
    with torch.inference_mode(), quick_norms(network):
        found = network(x.to(memory_format=torch.channels_last_3d))
    exact = torch.nn.functional.instance_norm(x.double())
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=0)
