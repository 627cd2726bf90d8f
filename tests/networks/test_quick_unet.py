"""Fewer multiplications, the same function, and nothing left behind."""

import pytest
import torch

from medseg.networks import quick_convolutions as module
from medseg.networks import quick_norms
from medseg.networks.quick_unet import is_quick, quick_unet
from medseg.networks.reordered import build_unet


def network_of(**changes):
    torch.manual_seed(0)
    values = {
        "dimensions": 3,
        "channels": 2,
        "classes": 3,
        "features": (8, 12, 16),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    }
    network = build_unet(**(values | changes)).eval()
    for parameter in network.parameters():  # biases and norms that do something
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def assert_same_answer(network, x):
    """Logits and features are the plain network's, which answers afterwards as before."""
    with torch.inference_mode():
        expected = network(x)
        with quick_unet(network, None):
            quick = network(x)
        assert torch.equal(network(x), expected)
        network.features_only = True
        features = network(x)
        with quick_unet(network, None):
            torch.testing.assert_close(network(x), features, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(quick, expected, atol=1e-3, rtol=1e-4)


@pytest.fixture(autouse=True)
def small_maps_count_as_large(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_VOXELS", 1)
    monkeypatch.setattr(module, "_LEAST_PRODUCTS", 1)
    monkeypatch.setattr(quick_norms, "_ROWS", 50)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual": True, "convolutions": (1, 2, 2), "decoder_convolutions": 1},
        {"order": (2, 1, 0), "dropout": 0.2},
        {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)), "kernel_sizes": ((3, 3, 3),) * 3},
        {"channels": 1},
    ],
    ids=["thick slices", "residual", "turned", "cubes", "one channel"],
)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("winograd", [True, False])
def test_same_answer_and_nothing_left_behind(changes, batch, winograd, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_PRODUCTS", 1 if winograd else 1e9)
    network = network_of(**changes)
    before, x = list(network.state_dict()), torch.randn(batch, changes.get("channels", 2), 8, 12, 16)
    assert_same_answer(network, x)
    assert list(network.state_dict()) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 1},
        {"residual": True, "features": (8, 12, 12), "strides": ((1, 1), (2, 2), (2, 1)), "decoder_convolutions": 1},
        {"order": (1, 0), "dropout": 0.2},
    ],
    ids=["one channel", "residual", "turned"],
)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("winograd", [True, False])
def test_same_answer_in_two_dimensions(changes, batch, winograd, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_PRODUCTS", 1 if winograd else 1e9)
    network = network_of(
        **({"dimensions": 2, "kernel_sizes": ((3, 3),) * 3, "strides": ((1, 1), (2, 2), (2, 2))} | changes)
    )
    x = torch.randn(batch, changes.get("channels", 2), 12, 16)
    assert_same_answer(network, x)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_product_of_kernels_at_edges_and_inside(precision, monkeypatch):
    """In float64 terms: a decoder's first convolution of (upsampled, skip) is what the joint one gives, but for a constant."""
    network = network_of(strides=((1, 1, 1), (2, 1, 2), (2, 2, 2)), kernel_sizes=((3, 1, 3), (3, 3, 3), (3, 3, 3)))
    monkeypatch.setattr(module.Joint, "pays", lambda *_: True)
    network.double()
    up, after = network.up[-1], network.decoder[-1][0][0]
    low, skip = torch.randn(1, 12, 2, 6, 1).double(), torch.randn(1, 8, 4, 6, 2).double()
    with torch.inference_mode():
        expected = after(torch.cat((up(low), skip), dim=1))
        network.float()
        joint = module.Joint(up, after)
        found = joint.answer(low.to(precision or torch.float32), skip.to(precision or torch.float32), precision)
    difference = found.double() - expected
    bound = 1e-4 if precision is None else 0.3
    assert float((difference - difference.mean(dim=(2, 3, 4), keepdim=True)).abs().max()) < bound


def test_bf16_is_as_near_as_the_plain_network():
    network, x = network_of(), torch.randn(1, 2, 8, 16, 16)
    with torch.inference_mode():
        exact = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = (network(x).float() - exact).norm()
            with quick_unet(network, torch.bfloat16):
                quick = (network(x).float() - exact).norm()
    assert quick < 1.5 * plain


@pytest.mark.parametrize(
    ("kernel", "padding"), [((1, 3, 3), (0, 1, 1)), ((3, 1, 3), (1, 0, 1)), ((3, 3, 3), (1, 1, 1))]
)
def test_first_convolution_of_one_channel(kernel, padding, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_PRODUCTS", 1e9)  # which pairs are for
    own, x = torch.nn.Conv3d(1, 5, kernel, padding=padding), torch.randn(2, 1, 4, 5, 6)
    with torch.inference_mode():
        found = module.Convolution(own, with_bias=True).answer(x, None)
        expected = torch.nn.functional.conv3d(x.double(), own.weight.double(), own.bias.double(), padding=padding)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_pooling_that_a_kernel_cannot_stand_for_is_left_alone():
    after = torch.nn.Conv3d(2, 3, 1)
    assert module.are_one(torch.nn.AvgPool3d((1, 2, 2), (1, 2, 2)), after)
    assert not module.are_one(torch.nn.AvgPool3d((3, 3, 3), (2, 2, 2)), after)
    assert not module.are_one(torch.nn.AvgPool3d((2, 2, 2), (2, 2, 2), ceil_mode=True), after)
    assert not module.are_one(torch.nn.AvgPool3d((2, 2, 2), (2, 2, 2)), torch.nn.Conv3d(2, 3, 3, padding=1))


def test_new_weights_are_seen():
    network, x = network_of(), torch.randn(1, 2, 8, 16, 16)
    with torch.inference_mode(), quick_unet(network, None):
        network(x)
    other = network_of(channels=2)
    torch.nn.init.normal_(other.up[0].weight)
    torch.nn.init.normal_(other.encoder[1][0][0].weight)
    network.load_state_dict(other.state_dict())
    with torch.inference_mode(), quick_unet(network, None):
        torch.testing.assert_close(network(x), other(x), atol=1e-3, rtol=1e-4)


def test_left_as_they_were_when_the_block_fails():
    network = network_of()
    with pytest.raises(RuntimeError, match="expected input"), quick_unet(network, None):
        network(torch.randn(1, 5, 8, 16, 16))
    assert "forward" not in vars(network.heads[-1])
    assert "decode" not in vars(network)


def test_knows_what_it_knows():
    assert is_quick(network_of())
    assert not is_quick(network_of(norm="batch"))
    assert is_quick(network_of(dimensions=2))
    assert not is_quick(network_of(dimensions=2, norm="batch"))
    assert not is_quick(torch.nn.Conv3d(1, 1, 1))
