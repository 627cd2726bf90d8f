"""Minimal filtering beside the direct sum in float64."""

import pytest
import torch

from medseg.networks import winograd
from medseg.networks.winograd import convolve, filter_planes

LAST = torch.channels_last_3d


@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [
        ((8, 5, 6), (3, 3, 3), (1, 1)),
        ((9, 4, 4), (3, 3, 3), (1, 1)),
        ((3, 4, 5), (3, 1, 3), (0, 1)),
        ((1, 2, 3), (3, 1, 1), (0, 0)),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 30])
def test_is_the_convolution(size, kernel, padding, chunk, monkeypatch):
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", chunk)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, *size), torch.randn(4, 5, *kernel)
    expected = torch.nn.functional.conv3d(x.double(), weight.double(), padding=(1, *padding))
    found = convolve(x.to(memory_format=LAST), filter_planes(weight), padding)
    assert found.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


def test_a_filter_on_paper():
    # 1, 2, 3, 4 smoothed by (1, 1, 1) with zeros around: 3, 6, 9, 7.
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4, 1, 1)
    found = convolve(x, filter_planes(torch.ones(1, 1, 3, 1, 1)), (0, 0))
    torch.testing.assert_close(found.flatten(), torch.tensor([3.0, 6.0, 9.0, 7.0]))


def test_keeps_its_digits_over_many_channels():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 8, 4, 4), torch.randn(8, 256, 3, 3, 3)
    expected = torch.nn.functional.conv3d(x.double(), weight.double(), padding=1)
    found = convolve(x.to(memory_format=LAST), filter_planes(weight), (1, 1))
    assert float((found - expected).norm() / expected.norm()) < 1e-5
