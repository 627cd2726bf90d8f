"""FCN, DeepLabV3+ and the VGG U-Net: shapes and what makes each what it is."""

import pytest
import torch

from medseg.networks.build import build_network

PLAN = {
    2: {"dimensions": 2, "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 4},
    3: {
        "dimensions": 3, "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[3, 3, 1], *[[3, 3, 3]] * 3],
    },
}  # fmt: skip
SIZE = {2: (16, 24), 3: (16, 24, 8)}


def network(kind, dimensions, encoder, **values):
    return build_network(
        {"kind": kind, **PLAN[dimensions], "channels": 2, "classes": 3, "encoder": encoder, "width": 4} | values
    )


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("kind", "encoder", "heads"), [("fcn", "vgg11", 4), ("fcn", "resnet18", 5), ("vgg_unet", "vgg13", 3)]
)
def test_heads_come_finest_first(kind, encoder, heads, dimensions):
    net = network(kind, dimensions, encoder)
    x = torch.randn(2, 2, *SIZE[dimensions])
    outputs = net.train()(x)
    assert len(outputs) == heads
    assert outputs[0].shape == (2, 3, *SIZE[dimensions])
    sizes = [head[0, 0].numel() for head in outputs]
    assert sizes == sorted(sizes, reverse=True)
    assert net.eval()(x).shape == (2, 3, *SIZE[dimensions])
    off = network(kind, dimensions, encoder, deep_supervision=False).train()
    assert off(x).shape == (2, 3, *SIZE[dimensions])


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_deeplab_answers_on_the_patch_grid(dimensions, norm):
    net = network("deeplabv3plus", dimensions, "resnet18", rates=[1, 2, 3], norm=norm)
    x = torch.randn(2, 2, *SIZE[dimensions])
    assert net.train()(x).shape == (2, 3, *SIZE[dimensions])
    assert net.eval()(x).shape == (2, 3, *SIZE[dimensions])
    assert [b[0].dilation[0] for b in net.pyramid.branches] == [1, 1, 2, 3]


def test_fcn_adds_scores_from_the_coarsest_up():
    net = network("fcn", 2, "vgg11", fused=2, deep_supervision=False).eval()
    assert [score.in_channels for score in net.scores] == [16, 32]
    x = torch.randn(1, 2, 16, 24)
    maps = net.encoder(x)
    coarse = torch.nn.functional.interpolate(net.scores[1](maps[3]), scale_factor=2, mode="bilinear")
    expected = torch.nn.functional.interpolate(net.scores[0](maps[2]) + coarse, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(net(x), expected)
