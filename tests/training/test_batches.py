import numpy as np
import pytest
import torch

from medseg.config.train_sections import TrainSection
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.training.batches import BatchMaker, Prefetched


class Scan:
    """A scan of noise with one labelled block; every voxel is read from memory."""

    classes_present = (1,)

    def __init__(self, name, shape):
        self.id, self.shape_xyz = name, shape
        self.image = np.random.default_rng(len(name)).normal(size=(1, *shape)).astype(np.float32)
        self.labels = np.zeros(shape, np.uint8)
        self.labels[2:5, 2:5] = 1

    def locations(self, index):
        return np.argwhere(self.labels == index)

    def read_patch(self, start, size):
        reach = 40
        box = tuple(slice(s + reach, s + reach + n) for s, n in zip(start, size, strict=True))
        return np.pad(self.image, [(0, 0), *[(reach, reach)] * 3])[(slice(None), *box)].copy(), np.pad(
            self.labels, reach
        )[box]


def maker(dimensions):
    size, shape = ((8, 8, 1), (20, 18, 1)) if dimensions == 2 else ((8, 8, 8), (20, 18, 16))
    plan = Plan(
        dimensions=dimensions, orientation="RAS", spacing_xyz_mm=(1.0, 1.0, 1.0), median_shape_xyz=shape, patch_size_xyz=size,
        batch_size=3, channels=(ChannelPlan(name="MR", scheme="zscore"),), labels={"background": (0,), "organ": (1,)},
        features=(4, 8), strides=((1, 1, 1), (2, 2, 1)), kernel_sizes=((3, 3, 1), (3, 3, 1)), batch_dice=True,
        stored_dtype="float32", fingerprint_sha256="",
    )  # fmt: skip
    return BatchMaker([Scan("a", shape), Scan("bb", shape)], plan, TrainSection(), 7, torch.device("cpu"))


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (8, 8)), (3, (8, 8, 8))])
def test_shapes_and_types(dimensions, shape):
    batch = maker(dimensions)(0)
    assert batch.images.shape == (3, 1, *shape)
    assert batch.images.dtype == torch.float32
    assert batch.classes.shape == (3, *shape)
    assert batch.classes.dtype == torch.uint8
    assert set(batch.case_ids) == {"a", "bb"}


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_order_change_nothing(threads):
    plain, ahead = maker(3), Prefetched(maker(3), threads)
    for step in (0, 1, 2, 7, 8, 3):
        one, two = plain(step), ahead(step)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.classes, two.classes)
        assert one.case_ids == two.case_ids
