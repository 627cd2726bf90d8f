import pytest
import torch

from medseg.networks.build import parameter_count
from medseg.networks.encoders import RESNETS, VGGS, build_encoder

ONES = [1, 1, 1]


def flat(stages):
    return [ONES, *([2, 2, 1],) * (stages - 1)]


def encoder(name, *, stages=6, dimensions=2, channels=3, width=64, strides=None, kernels=None):
    strides = strides or flat(stages)
    kernels = kernels or [[3, 3, 3]] * len(strides)
    return build_encoder(
        name, dimensions=dimensions, channels=channels, width=width, strides=strides, kernel_sizes=kernels, norm="batch"
    )


# torchvision's published counts, less the classifiers' (512 or 2048 x 1000 + 1000; VGG's three linear layers)
@pytest.mark.parametrize(
    ("name", "published", "classifier"),
    [
        ("resnet18", 11_689_512, 512 * 1000 + 1000),
        ("resnet34", 21_797_672, 512 * 1000 + 1000),
        ("resnet50", 25_557_032, 2048 * 1000 + 1000),
        ("resnet101", 44_549_160, 2048 * 1000 + 1000),
        ("vgg11", 132_868_840, 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000),
        ("vgg16", 138_365_992, 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000),
        ("vgg19", 143_678_248, 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000),
    ],
)
def test_parameters_are_the_published_ones(name, published, classifier):
    with torch.device("meta"):
        assert parameter_count(encoder(name)) == published - classifier


def test_names_are_torchvisions():
    with torch.device("meta"):
        resnet, vgg = encoder("resnet50").state_dict(), encoder("vgg16").state_dict()
    assert resnet["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert resnet["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.bn3.weight",
        "layer1.0.downsample.1.num_batches_tracked",
    } <= set(resnet)
    assert vgg["features.40.weight"].shape == (512, 512, 3, 3)  # vgg16_bn's last convolution
    assert vgg["features.41.running_var"].shape == (512,)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_halves_five_times(name):
    net = encoder(name, width=4)
    maps = net(torch.zeros(2, 3, 64, 32))
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 16), (16, 8), (8, 4), (4, 2), (2, 1)]
    assert [m.shape[1] for m in maps] == net.widths
    assert [r[0] for r in net.reductions] == [2, 4, 8, 16, 32]


def test_resnet_goes_on_dilated_where_the_plan_stops_pooling():
    net = encoder("resnet18", stages=4, width=4)
    assert [tuple(m.shape[2:]) for m in net(torch.zeros(2, 3, 32, 32))][-3:] == [(4, 4), (4, 4), (4, 4)]
    # as torchvision's replace_stride_with_dilation: a layer's first block keeps the dilation of the layer before
    assert [b.conv1.dilation[0] for layer in (net.layer2, net.layer3, net.layer4) for b in layer] == [1, 1, 1, 2, 2, 4]


def test_axes_that_the_plan_leaves_are_left():
    strides, kernels = [ONES, [2, 2, 1], [2, 2, 1], [2, 2, 2]], [[3, 3, 1], [3, 3, 1], [3, 3, 3], [3, 3, 3]]
    for name in ("resnet18", "vgg11"):
        net = encoder(name, dimensions=3, channels=1, width=4, strides=strides, kernels=kernels)
        maps = net(torch.zeros(2, 1, 16, 16, 4))
        assert tuple(maps[-1].shape[2:]) == (2, 2, 2)
        assert [16 // r[0] for r in net.reductions] == [m.shape[2] for m in maps]
        assert [4 // r[2] for r in net.reductions] == [m.shape[4] for m in maps]
    assert encoder("resnet18", dimensions=3, width=4, strides=strides, kernels=kernels).conv1.kernel_size == (7, 7, 1)


def test_vgg_ends_where_the_plan_does():
    net = encoder("vgg13", stages=3, width=4)
    assert [tuple(m.shape[1:]) for m in net(torch.zeros(2, 3, 16, 8))] == [(4, 16, 8), (8, 8, 4), (16, 4, 2)]
    assert len(encoder("vgg13", stages=7, width=4).widths) == 5


def test_unknown_encoders_are_named():
    assert set(RESNETS) | set(VGGS) >= {"resnet34", "vgg16"}
    with pytest.raises(ValueError, match="encoder is 'alexnet', expected one of resnet18"):
        encoder("alexnet")
