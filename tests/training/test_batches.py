import logging
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.config.train_sections import TrainSection
from medseg.errors import ConfigError, DamagedFileError
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.training import batches
from medseg.training.batches import BatchMaker, Prefetched, open_batches

AUGMENTATIONS = (
    "rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"
)  # fmt: skip


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


def maker(dimensions, through=None):
    size, shape = ((8, 8, 1), (20, 18, 1)) if dimensions == 2 else ((8, 8, 8), (20, 18, 16))
    if through is not None:
        size, shape = tuple(1 if axis == through else 8 + axis for axis in range(3)), (20, 18, 16)
    plan = Plan(
        dimensions=dimensions, through_plane_axis=through, orientation="RAS", spacing_xyz_mm=(1.0, 1.0, 1.0),
        median_shape_xyz=shape, patch_size_xyz=size,
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


@pytest.mark.parametrize(("through", "shape"), [(0, (9, 10)), (1, (8, 10)), (2, (8, 9))])
def test_samples_of_volumes_in_2d_are_slices(through, shape):
    plain = TrainSection.model_validate(
        {"augmentation": dict.fromkeys(AUGMENTATIONS, 0) | {"mirror_axes": ()}, "foreground_share": 0}
    )
    make = replace(maker(2, through), section=plain)
    stacks = {source.id: source.image[0] for source in make.sources}
    for step in range(4):
        batch = make(step)
        assert batch.images.shape == (3, 1, *shape)
        assert batch.classes.shape == (3, *shape)
        for image, case_id in zip(batch.images, batch.case_ids, strict=True):
            slices = np.moveaxis(stacks[case_id], through, 0)
            windows = np.lib.stride_tricks.sliding_window_view(slices, shape, axis=(1, 2))
            assert (windows[..., 0, 0] == float(image[0, 0, 0])).any()
            assert (windows == image[0].numpy()).all(axis=(-1, -2)).sum() == 1


@pytest.mark.parametrize("through", [0, 1, 2])
def test_augmented_slices_do_not_reach_into_their_neighbours(through):
    """With one class per slice, a turned and scaled slice shows its own class and, beyond the scan, background."""
    section = TrainSection.model_validate({"augmentation": {"rotation": 1, "scaling": 1}, "foreground_share": 0})
    make = replace(maker(2, through), section=section)
    count = make.sources[0].shape_xyz[through] + 1
    labels = {"background": (0,)} | {f"slice {n}": (n,) for n in range(1, count)}
    for source in make.sources:
        numbers = np.arange(1, count, dtype=np.uint8).reshape([-1 if axis == through else 1 for axis in range(3)])
        source.labels[...] = numbers
    make = replace(make, plan=make.plan.model_copy(update={"labels": labels}))
    for step in range(6):
        for classes in make(step).classes:
            assert len(set(classes.unique().tolist()) - {0}) == 1


def same(one, two):
    return (
        torch.equal(one.images, two.images) and torch.equal(one.classes, two.classes) and one.case_ids == two.case_ids
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_and_order_change_no_bit(workers):
    section = TrainSection.model_validate({"augmentation": dict.fromkeys(AUGMENTATIONS, 0.7)})
    plain = replace(maker(3), section=section)
    ahead = open_batches(plain, workers)
    assert isinstance(ahead, Prefetched)
    assert all(same(plain(step), ahead(step)) for step in (0, 1, 2, 7, 8, 3))
    ahead.close()


def test_no_workers_is_the_maker_itself():
    plain = maker(3)
    assert open_batches(plain, 0) is plain
    assert open_batches(plain, None) is plain  # a CPU has better things to do


def test_shares_in_order_are_the_batch():
    whole = maker(3)(4)
    parts = [replace(maker(3), share=(rank, 2))(4) for rank in range(2)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert parts[0].case_ids + parts[1].case_ids == whole.case_ids


def test_the_callers_threads_are_left_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ahead = open_batches(maker(3), 2)
        ahead(0)
        assert torch.get_num_threads() == 2
        ahead.close()
    finally:
        torch.set_num_threads(before)


def test_what_a_worker_raises_is_raised_where_its_batch_is_asked_for():
    def make(step):
        if step == 2:
            raise DamagedFileError("a: prepared data is damaged")
        return f"batch {step}"

    ahead = Prefetched(make, 2)
    assert [ahead(0), ahead(1)] == ["batch 0", "batch 1"]
    with pytest.raises(DamagedFileError, match="a: prepared data is damaged") as raised:
        ahead(2)
    assert raised.value.__notes__[0].startswith("raised by loader_")
    assert raised.value.__notes__[0].endswith("while it made the batch of step 2")
    assert ahead(3) == "batch 3"
    ahead.close()


def test_a_worker_that_does_not_answer_is_named(monkeypatch, caplog):
    release = threading.Event()
    monkeypatch.setattr(batches, "_PATIENCE_SECONDS", 0.05)

    def make(step):
        release.wait(0.2)
        return step

    ahead = Prefetched(make, 1)
    with caplog.at_level(logging.WARNING):
        assert ahead(0) == 0
    release.set()
    assert "loader_0: the batch of step 0 is not there after" in caplog.text
    ahead.close()


@pytest.mark.parametrize(
    ("labels", "axes", "orientation", "warning"),
    [
        (("left", "right"), None, "RAS", "mirrors along x, while .*(left, right).*set mirror_axes: [y, z]"),
        (("left", "right"), ("y", "z"), "RAS", None),
        (("left", "right"), ("y",), "native", "mirrors along y, .*set mirror_axes: []"),
        (("anterior", "posterior"), None, "RAS", None),
    ],
)
def test_mirrored_sides_are_warned_of(labels, axes, orientation, warning, caplog):
    make = maker(3)
    plan = make.plan.model_copy(
        update={"labels": {"background": (0,)} | {n: (i,) for i, n in enumerate(labels, 1)}, "orientation": orientation}
    )
    section = TrainSection.model_validate({"augmentation": {"mirror_axes": axes}})
    with caplog.at_level(logging.WARNING):
        open_batches(replace(make, plan=plan, section=section), 0)
    if warning is None:
        assert not caplog.records
    else:
        assert re.search(re.sub(r"([()\[\]])", r"\\\1", warning), caplog.text)


def test_extra_transforms_are_seeded_by_sample_and_checked_first():
    def with_extra(*extra):
        section = TrainSection.model_validate({"augmentation": dict.fromkeys(AUGMENTATIONS, 0.0) | {"extra": extra}})
        return replace(maker(3), section=section)

    make = with_extra({"name": "RandGaussianNoise", "arguments": {"prob": 1.0, "std": 0.5}})
    plain, ahead = open_batches(make, 0), open_batches(make, 2)
    assert all(same(plain(step), ahead(step)) for step in (0, 1, 5))
    without = with_extra()(0)
    noise = plain(0).images - without.images
    assert torch.equal(plain(0).classes, without.classes)
    assert 0.05 < float(noise.std()) < 0.6
    assert not torch.allclose(noise[0], noise[1])
    with pytest.raises(ConfigError, match=r"has no argument porb, expected one of prob, .*did you mean prob"):
        open_batches(with_extra({"name": "RandGaussianNoise", "arguments": {"porb": 1.0}}), 0)


def test_a_batch_says_which_classes_its_cases_were_labelled_for():
    assert maker(2)(0).known is None
    partly = replace(maker(2), partly_labelled={"bb": (True, False)})
    batch = partly(0)
    assert batch.known.tolist() == [[True, case != "bb"] for case in batch.case_ids]
