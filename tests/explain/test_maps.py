"""Grad-CAM and occlusion against what can be worked out, brute force, and MONAI's own on a classifier."""

import numpy as np
import pytest
import torch
from torch import nn

from medseg.errors import UsageError
from medseg.explain.gradcam import gradcam
from medseg.explain.layers import choose_layer, spatial_layers
from medseg.explain.occlusion import box_count, occlusion
from medseg.explain.sanity import rank_correlation, shuffled
from medseg.explain.windows import RegionScore, views_of
from medseg.inference.engine import sigmoid, softmax
from medseg.inference.sliding_window import predict_scores
from medseg.networks.build import build_network
from medseg.training.architecture import architecture_of
from tests.explain.test_windows import network_of
from tests.networks.test_overfit import LARGER, NETWORKS
from tests.training.overfit import SIZES, overfit, tensors, toy_cases, toy_plan


class TwoMaps(nn.Module):
    """Two feature maps at half the size, x and -2 x of the pooled image, and logits 0 and 3 f0 + f1 at full size."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv3d(1, 2, 2, stride=2, bias=False)
        self.head = nn.Conv3d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.features.weight[0].fill_(1 / 8)
            self.features.weight[1].fill_(-2 / 8)
            self.head.weight[:] = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1, 1)

    def forward(self, x):
        logit = self.head(self.features(x)).repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def test_gradcam_of_a_linear_network_is_what_it_is_on_paper():
    x = np.zeros((1, 4, 4, 4), np.float32)
    x[0, :2, :2, :2] = 8
    x[0, 2:, 2:, 2:] = -8
    region = np.zeros((4, 4, 4), bool)
    region[:2] = True
    views = views_of(x, region, patch_size_xyz=(4, 4, 4), overlap=0)
    values, score = gradcam(views, TwoMaps().eval(), channel=1, layer="features")
    # Features are (8, -16) and (-8, 16) in two of 8 cells. The mean over 32 voxels of 3 f0 + f1: the first cell's
    # 24 - 16 = 8 over 8 of them.
    assert score == pytest.approx(2.0)
    # d score / d f is 8/32 of (3, 1) in the four cells of the region, 0 in the others: weights 3/8 and 1/8. So the map is
    # 3/8 * 8 - 1/8 * 16 = 1 in the first cell and -1, cut off to 0, in the last; linear in between.
    expected = nn.functional.interpolate(
        torch.tensor([1.0] + [0.0] * 7).reshape(1, 1, 2, 2, 2), size=(4, 4, 4), mode="trilinear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning:monai", "ignore::FutureWarning:torch")
def test_gradcam_is_monais_where_one_window_holds_the_scan():
    from monai.visualize import GradCAM

    rng = np.random.default_rng(1)
    array, region = rng.normal(size=(2, 8, 8, 8)).astype(np.float32), rng.random((8, 8, 8)) < 0.3
    network = network_of(3)
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = False  # MONAI's own hooks can't look past it
    views = views_of(array, region, patch_size_xyz=(8, 8, 8), overlap=0.5)
    values, _ = gradcam(views, network, channel=2, layer="encoder.1")
    scorer = RegionScore(network, views)
    cam = GradCAM(nn_module=scorer, target_layers="network.encoder.1")
    expected = cam.compute_map(scorer.look_at(views.views[0]), class_idx=2)
    large = nn.functional.interpolate(expected, size=(8, 8, 8), mode="trilinear", align_corners=False)
    assert values.max() > 0
    np.testing.assert_allclose(values, large[0, 0].detach().numpy(), rtol=1e-4, atol=1e-8)
    assert all(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(("patch", "slice_axis"), [((8, 8, 8), None), ((8, 8, 1), 2)])
@pytest.mark.parametrize("overlapping", [False, True])
def test_occlusion_is_what_brute_force_finds(patch, slice_axis, overlapping):
    rng = np.random.default_rng(2)
    array, region = rng.normal(size=(2, 12, 8, 6)).astype(np.float32), np.zeros((12, 8, 6), bool)
    region[5:9, 2:5, 1:4] = True
    network = network_of(3 if slice_axis is None else 2)
    views = views_of(array, region, patch_size_xyz=patch, overlap=0.5, slice_axis=slice_axis)
    box, fill = (4, 4, 1 if slice_axis == 2 else 6), (0.5, -1.0)
    values, score = occlusion(
        views, network, channel=1, overlapping=overlapping, box_xyz=box, stride_xyz=box, fill=fill, batch_size=3
    )

    def probability(covered):
        scores = predict_scores(
            covered, network, patch_size_xyz=patch, class_count=3, overlap=0.5, slice_axis=slice_axis, device="cpu"
        )
        return (sigmoid if overlapping else softmax)(scores)[1][region].mean()

    assert score == pytest.approx(probability(array), abs=1e-6)
    low = 0 if slice_axis is None else 1
    for corner in ((0, 0, low), (4, 4, low), (8, 0, low)):
        where = tuple(slice(start, start + size) for start, size in zip(corner, box, strict=True))
        covered = array.copy()
        covered[(slice(None), *where)] = np.reshape(fill, (2, 1, 1, 1))
        assert values[corner] == pytest.approx(score - probability(covered), abs=1e-5)
    assert np.abs(values).max() > 1e-5


@pytest.mark.filterwarnings("ignore")
def test_occlusion_is_monais_where_one_window_holds_the_scan():
    from monai.visualize import OcclusionSensitivity

    rng = np.random.default_rng(3)
    array, region = rng.normal(size=(2, 8, 8, 8)).astype(np.float32), np.zeros((8, 8, 8), bool)
    region[3, 4, 5] = True  # of one voxel the mean probability is the probability of the mean logit
    network = network_of(3)
    views = views_of(array, region, patch_size_xyz=(8, 8, 8), overlap=0.5)
    values, score = occlusion(
        views,
        network,
        channel=1,
        overlapping=False,
        box_xyz=(4, 4, 4),
        stride_xyz=(4, 4, 4),
        fill=(0.25, 0.25),
        batch_size=8,
    )
    scorer = RegionScore(network, views)
    x = scorer.look_at(views.views[0])
    with torch.no_grad():
        found, _ = OcclusionSensitivity(scorer, mask_size=4, n_batch=8, mode=0.25, overlap=0.0, verbose=False)(x)
    np.testing.assert_allclose(values, score - found[0, 1].numpy(), atol=1e-5)


def test_boxes_stay_with_the_region_and_half_steps_are_averaged():
    region = np.zeros((24, 8, 8), bool)
    region[2, 4, 4] = True
    views = views_of(np.zeros((1, 24, 8, 8), np.float32), region, patch_size_xyz=(8, 8, 8), overlap=0)
    assert box_count(views, (4, 4, 4), (4, 4, 4)) == 8
    assert box_count(views, (4, 4, 4), (2, 4, 4)) == 5 * 4


def test_layers_are_named():
    network = network_of(3)
    x = torch.zeros(1, 2, 8, 8, 8)
    layers = spatial_layers(network, x)
    assert layers["encoder.0"] == (4, 8, 8, 8)
    assert layers["encoder.1"] == (8, 4, 4, 4)
    assert choose_layer(network, x, None) == "encoder.1"
    assert choose_layer(network, x, "encoder.0") == "encoder.0"
    with pytest.raises(UsageError, match=r"--layer: is 'bottom', expected a layer with maps: .*encoder\.0"):
        choose_layer(network, x, "bottom")


def explained(name, dimensions):
    size = LARGER.get((dimensions, name), SIZES[dimensions])
    plan = toy_plan(dimensions, patch_size_xyz=size, median_shape_xyz=size)
    torch.manual_seed(0)
    network = build_network(architecture_of(NETWORKS[name], plan)).eval()
    images, classes = toy_cases(dimensions, size)
    views = views_of(images[:1], classes[0] == 1, patch_size_xyz=size, overlap=0.5, slice_axis=plan.slice_axis)
    x = views.inputs([views.image])
    layer = choose_layer(network, x, None)
    values, _ = gradcam(views, network, channel=1, layer=layer)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    return layer, spatial_layers(network, x)[layer], values, x


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("name", "layer"),
    [("unet", "encoder.2"), ("fcn vgg", "encoder.features.22"), ("deeplabv3plus", "encoder.layer4"), ("vgg_unet", None),
     ("UNet", None)],
)  # fmt: skip
def test_the_default_layer_is_the_encoders_deepest(name, layer, dimensions):
    found, shape, _, x = explained(name, dimensions)
    assert found == (layer or found)
    assert np.prod(shape[1:]) < np.prod(x.shape[2:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_explained(name, dimensions):
    explained(name, dimensions)


def test_correlation_of_ranks():
    one = np.array([1.0, 2, 3, 4])
    assert rank_correlation(one, one**3) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, np.ones(4)) == 0
    # Ranks 1 2 3 4 and 1.5 1.5 3 4: products of centred ranks 1.5 + 0.5 + 0.25 + 2.25 = 4.5, squares 5 and 4.5.
    assert rank_correlation(one, np.array([1.0, 1, 3, 4])) == pytest.approx(4.5 / np.sqrt(5 * 4.5))


def test_maps_of_a_trained_network_change_when_its_weights_are_shuffled():
    plan = toy_plan(2)
    torch.manual_seed(0)
    network = build_network(architecture_of(NETWORKS["unet"], plan))
    overfit(network, 2)
    images, classes = toy_cases(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = shuffled(network)
    weight, other = network.encoder[1][0][0].weight, random.encoder[1][0][0].weight
    assert not torch.equal(weight, other)
    assert torch.equal(weight.flatten().sort().values, other.flatten().sort().values)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    views = views_of(images[:1], classes[0] == 2, patch_size_xyz=SIZES[2], overlap=0.5, slice_axis=2)
    cams = [gradcam(views, one, channel=2, layer="encoder.1")[0] for one in (network, random)]
    settings = {
        "channel": 2,
        "overlapping": False,
        "box_xyz": (4, 4, 1),
        "stride_xyz": (2, 2, 1),
        "fill": (0.0,),
        "batch_size": 8,
    }
    falls = [occlusion(views, one, **settings)[0] for one in (network, random)]
    assert rank_correlation(*cams) < 0.5
    assert rank_correlation(*falls) < 0.5
    # The trained network's core rests on what is around it, and covering it costs more than covering a corner.
    assert falls[0][classes[0] == 2].mean() > 5 * abs(falls[0][classes[0] == 0].mean())
    assert tensors(images, classes, 2)[0].shape == (2, 1, 32, 32)
