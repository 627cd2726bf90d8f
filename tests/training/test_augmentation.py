import numpy as np
import pytest
import torch

from medseg.augmentation.drawing import IntensityDraw, SpatialDraw, draw_intensity
from medseg.config.train_sections import AugmentationSection
from medseg.training.augmentation import make_tensors, read_sample, side_labels

CPU = torch.device("cpu")
OFF = dict.fromkeys(
    ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"), 0.0
)


class Scan:
    """A scan in memory; beyond its border everything is 0."""

    id, classes_present = "scan", ()

    def __init__(self, shape=(12, 10, 8)):
        rng = np.random.default_rng(0)
        self.labels = np.zeros(shape, np.uint8)
        self.labels[2:8, 3:7, 2:6] = 1
        self.labels[5:8, 3:7, 2:6] = 2
        self.image = rng.normal(size=(2, *shape)).astype(np.float32)
        self.shape_xyz, self.asked = shape, []

    def locations(self, index):
        return np.argwhere(self.labels == index)

    def read_patch(self, start, size):
        reach = 40
        self.asked.append((start, size))
        box = tuple(slice(s + reach, s + reach + n) for s, n in zip(start, size, strict=True))
        image = np.pad(self.image, [(0, 0), *[(reach, reach)] * 3])
        return image[(slice(None), *box)].copy(), np.pad(self.labels, reach)[box].copy()


def nothing() -> IntensityDraw:
    return draw_intensity(np.random.default_rng(0), AugmentationSection(**OFF), 2)


def read(source, start, size, draw, **arguments):
    sample = read_sample(source, start, size, draw, nothing())
    images, labels = make_tensors([sample], size, device=CPU, **arguments)
    return images[0].numpy(), labels[0].numpy()


def test_an_unturned_patch_is_what_was_read():
    source = Scan()
    image, labels = read(source, (1, -2, 0), (9, 12, 8), SpatialDraw(None, ()))
    np.testing.assert_array_equal(image[:, :, 2:], source.image[:, 1:10])
    np.testing.assert_array_equal(labels[:, 2:], source.labels[1:10])
    assert not image[:, :, :2].any()
    assert not labels[:, :2].any()


def test_image_and_labels_are_mirrored_together():
    source = Scan()
    image, labels = read(source, (0, 0, 0), (12, 10, 8), SpatialDraw(None, (0, 2)))
    np.testing.assert_array_equal(image, source.image[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(labels, source.labels[::-1, :, ::-1])


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_a_turned_patch_is_mirrored_after_it_was_turned(axes):
    source = Scan()
    cos, sin = np.cos(0.4), np.sin(0.4)
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.1]])
    plain = read(source, (2, 1, 0), (8, 7, 6), SpatialDraw(matrix, ()))
    mirrored = read(source, (2, 1, 0), (8, 7, 6), SpatialDraw(matrix, axes))
    np.testing.assert_allclose(mirrored[0], np.flip(plain[0], [axis + 1 for axis in axes]), atol=1e-6)
    np.testing.assert_array_equal(mirrored[1], np.flip(plain[1], axes))


def test_only_the_box_that_the_turned_patch_covers_is_read():
    source = Scan()
    read(source, (2, 1, 0), (4, 4, 4), SpatialDraw(None, (0,)))
    read(source, (2, 1, 0), (4, 4, 4), SpatialDraw(np.eye(3) * 0.5, ()))
    # the patch's centre is (3.5, 2.5, 1.5); its voxels reach 0.75 from it, with one voxel of room before and two behind
    assert source.asked == [((2, 1, 0), (4, 4, 4)), ((1, 0, -1), (7, 7, 7))]


def test_the_extra_transform_has_the_last_word_and_its_own_seed():
    seen = []

    def extra(image, labels, seed):
        seen.append(seed)
        return image * 0 + 3, labels.clone().fill_(1)

    source = Scan()
    image, labels = read(source, (0, 0, 0), (4, 4, 4), SpatialDraw(None, ()), extra=extra)
    assert seen == [nothing().extra_seed]
    assert np.unique(image).tolist() == [3]
    assert np.unique(labels).tolist() == [1]


@pytest.mark.parametrize(
    ("names", "sided"),
    [
        (("left kidney", "right kidney", "liver"), ("left kidney", "right kidney")),
        (("kidney_L", "kidney_R"), ("kidney_L", "kidney_R")),
        (("KidneyLeft", "spleen"), ("KidneyLeft",)),
        (("kidney_l", "spleen"), ()),
        (("lung-lt", "lung-rt", "l"), ("lung-lt", "lung-rt")),
        (("anterior", "posterior", "leftover", "bright"), ()),
        ((), ()),
    ],
)
def test_names_of_sides_are_recognised(names, sided):
    assert side_labels(names) == sided
