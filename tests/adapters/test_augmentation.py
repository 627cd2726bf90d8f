"""The random transforms in MONAI's terms, and MONAI's inside our augmentation."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medseg.adapters.augmentation import NnunetIntensityd, NnunetSpatiald
from medseg.adapters.monai_random import ExtraTransforms
from medseg.config.train_sections import AugmentationSection, ExtraTransformSection
from medseg.errors import ConfigError

ALWAYS = AugmentationSection(
    rotation=1, scaling=1, noise=1, blur=1, brightness=1, contrast=1, low_resolution=1, gamma=1, gamma_inverted=1
)
STILL = AugmentationSection(rotation=0, scaling=0, mirror_axes=())


def sample(*shape, seed=0):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(n // 4, n // 2 + 1) for n in shape)] = 2
    image = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    return {"image": torch.from_numpy(image), "label": torch.from_numpy(labels[None].astype(np.int64)), "id": "a"}


@pytest.mark.parametrize("shape", [(14, 12, 10), (16, 14)])
def test_in_a_compose_they_repeat_with_its_seed_and_keep_shape_and_type(shape):
    chain = Compose([NnunetSpatiald("image", "label", section=ALWAYS), NnunetIntensityd("image", section=ALWAYS)])
    data = sample(*shape)
    kept = data["image"].clone()
    results = [chain.set_random_state(seed=seed)(data) for seed in (3, 3, 4)]
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert torch.equal(results[0]["label"], results[1]["label"])
    assert not torch.equal(results[0]["image"], results[2]["image"])
    assert torch.equal(data["image"], kept)
    assert results[0]["image"].shape == (2, *shape)
    assert results[0]["label"].shape == (1, *shape)
    assert results[0]["label"].dtype == torch.int64
    assert set(results[0]["label"].unique().tolist()) <= {0, 2}
    assert results[0]["id"] == "a"


def test_image_and_label_turn_together():
    """An image that is its own label, as a number, is rounded to it wherever all neighbours agree."""
    data = sample(20, 18, 16)
    data["image"] = data["label"].float()
    found = NnunetSpatiald("image", "label", section=ALWAYS).set_random_state(seed=1)(data)
    clear = (found["image"] == 0) | (found["image"] == 2)
    assert 0.5 < clear.float().mean() < 1
    assert torch.equal(found["image"][clear], found["label"][clear].float())
    assert int((found["label"] == 2).sum()) > 0


def test_nothing_drawn_is_nothing_changed():
    data = sample(9, 8, 7)
    found = NnunetSpatiald("image", "label", section=STILL)(data)
    assert torch.equal(found["image"], data["image"])
    assert torch.equal(found["label"], data["label"])


@pytest.mark.parametrize("shape", [(14, 12, 10), (16, 14)])
def test_the_affine_turns_along(shape):
    """A world position keeps its value: image = x + 10 y (+ 100 z) of the old affine's own world."""
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.5, 1.0], dtype=torch.float64))
    if len(shape) == 2:
        affine = torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64))
    axes = len(shape)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    scale = np.diag(affine.numpy())[:axes]
    ramp = ((voxels * scale) @ 10.0 ** np.arange(axes)).astype(np.float32)
    data = {"image": MetaTensor(torch.from_numpy(ramp[None]), affine=affine)}
    section = AugmentationSection(rotation=1, scaling=1)
    found = NnunetSpatiald("image", section=section).set_random_state(seed=2)(data)["image"]
    assert isinstance(found, MetaTensor)
    turned = found.affine.numpy()
    world = voxels @ turned[:axes, :axes].T + turned[:axes, -1]
    inside = np.all((world > 0) & (world < (np.array(shape) - 1) * scale), axis=-1)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[0].numpy()[inside], (world @ 10.0 ** np.arange(axes))[inside], atol=0.05)


def test_masked_zeros_stay():
    data = sample(8, 8, 8)
    data["image"][:, :3] = 0
    found = NnunetIntensityd("image", section=ALWAYS, masked=True)(data)["image"]
    assert float(found[:, :3].abs().max()) == 0
    assert not torch.equal(found, data["image"])


def test_missing_keys_and_different_shapes():
    data = sample(8, 8, 8)
    lenient = NnunetSpatiald(("image", "second"), "label", section=ALWAYS, allow_missing_keys=True)
    assert lenient(data).keys() == data.keys()
    with pytest.raises(KeyError, match="second"):
        NnunetSpatiald(("image", "second"), "label")(data)
    data["label"] = data["label"][:, :4]
    with pytest.raises(ValueError, match="expected one of two or three axes"):
        NnunetSpatiald("image", "label")(data)


NEEDED = {
    "RandCoarseDropout": {"holes": 2, "spatial_size": 3}, "RandCoarseShuffle": {"holes": 2, "spatial_size": 3},
    "RandScaleIntensity": {"factors": 0.3}, "RandShiftIntensity": {"offsets": 0.3}, "RandStdShiftIntensity": {"factors": 0.3},
    "RandScaleIntensityFixedMean": {"factors": 0.3}, "Rand3DElastic": {"sigma_range": [2, 3], "magnitude_range": [60, 90]},
    "Rand2DElastic": {"spacing": [4, 4], "magnitude_range": [1, 2]},
}  # fmt: skip
NAMES = ExtraTransformSection.model_fields["name"].annotation.__args__


@pytest.mark.parametrize("name", NAMES)
def test_every_allowed_transform_works_and_repeats(name):
    planar = name == "Rand2DElastic"
    data = sample(16, 16, 1) if planar else sample(16, 16, 16)
    image, labels = data["image"], data["label"][0].to(torch.uint8)
    extra = ExtraTransforms([(name, NEEDED.get(name, {}) | {"prob": 1.0})], slice_axis=2 if planar else None)
    results = []
    for seed in (5, 5, 6):
        np.random.seed(seed + len(results))  # noqa: NPY002 - neither global generator has a say
        torch.manual_seed(seed + len(results))
        results.append(extra(image.clone(), labels.clone(), seed))
    for one, two in zip(*results[:2], strict=True):
        assert torch.equal(one, two)
    assert results[0][0].shape == image.shape
    assert results[0][0].dtype == torch.float32
    assert results[0][1].dtype == torch.uint8
    assert not torch.equal(results[0][0], image)
    assert set(results[0][1].unique().tolist()) <= {0, 2}
    bends = name in ("Rand2DElastic", "Rand3DElastic", "RandGridDistortion")
    assert torch.equal(results[0][1], labels) != bends


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("RandGibbsNoise", {"alhpa": 0.3}, r"extra\[0\]: RandGibbsNoise has no argument alhpa, .*did you mean alpha"),
        ("RandShiftIntensity", {}, "RandShiftIntensity lacks the argument offsets, expected a value; add it"),
        ("RandGibbsNoise", {"alpha": 3.0}, "RandGibbsNoise refuses its arguments .*alpha"),
        ("RandGridDistortion", {"mode": "bilinear"}, "has no argument mode"),
        ("Rand2DElastic", NEEDED["Rand2DElastic"], "is for other dimensions than the plan's, expected one for 3D"),
    ],
)
def test_wrong_arguments_are_refused_before_training(name, arguments, match):
    with pytest.raises(ConfigError, match=match):
        ExtraTransforms([(name, arguments)], slice_axis=None)


def test_slices_of_any_axis():
    data = sample(16, 1, 16)
    extra = ExtraTransforms([("RandGridDistortion", {"prob": 1.0})], slice_axis=1)
    image, labels = extra(data["image"], data["label"][0].to(torch.uint8), 3)
    assert image.shape == (2, 16, 1, 16)
    assert labels.shape == (16, 1, 16)
