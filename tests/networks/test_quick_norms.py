"""The faster kernel is the same function, and leaves the network as it was."""

import pytest
import torch

from medseg.networks.quick_norms import is_thin, quick_norms, thin_instance_norm
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


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("affine", [True, False])
def test_few_channels(kind, channels, affine):
    torch.manual_seed(0)
    # 43,776 voxels: with 16 channels 10,944 rows, in three parts
    x = 5 + 3 * torch.randn(1, channels, 32, 36, 38)
    x = x.to(kind).contiguous(memory_format=torch.channels_last_3d)
    norm = torch.nn.InstanceNorm3d(channels, affine=affine).to(torch.float32)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    assert is_thin(x)
    with torch.inference_mode():
        found = thin_instance_norm(norm, x)
        exact = x.double()
        mean, variance = exact.mean(dim=(2, 3, 4), keepdim=True), exact.var(dim=(2, 3, 4), keepdim=True, correction=0)
        expected = (exact - mean) / (variance + norm.eps).sqrt()
        if affine:
            expected = expected * norm.weight[:, None, None, None] + norm.bias[:, None, None, None]
    assert (found.dtype, found.shape) == (kind, x.shape)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    bound = 1e-5 if kind == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, atol=bound, rtol=bound)


def test_which_maps_are_thin():
    assert not is_thin(torch.empty(1, 8, 4, 4, 4))  # small
    assert not is_thin(torch.empty(1, 12, 32, 32, 32))  # does not divide 64
    assert not is_thin(torch.empty(1, 32, 32, 32, 32))  # fills a vector
    assert not is_thin(torch.empty(2, 8, 32, 32, 32))  # two windows
    assert not is_thin(torch.empty(1, 1, 17, 17, 17))  # 4,913 voxels don't make rows of 64
    assert is_thin(torch.empty(1, 8, 17, 16, 32))
