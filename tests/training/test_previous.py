from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.augmentation.drawing import SpatialDraw, draw_intensity
from medseg.augmentation.previous import PreviousDraw, change_previous, draw_previous
from medseg.config.sections import PrepareSection
from medseg.config.train_sections import AugmentationSection, TrainSection
from medseg.errors import ChangedError, InputError
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.preparation.store import PreparedData, StoredCase
from medseg.preparation.writing import write_case
from medseg.training.augmentation import make_tensors, read_sample
from medseg.training.batches import BatchMaker
from medseg.training.identity import identity_of
from medseg.training.previous import first_stage_models, join_previous, whole_case
from medseg.training.sampling import sample_rng
from tests.training import small_run

CPU = torch.device("cpu")
SHAPE = (20, 18, 16)
STILL = dict.fromkeys(
    ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"), 0
)


def plan_of(**changes):
    values = {
        "dimensions": 3, "orientation": "RAS", "spacing_xyz_mm": (1.0, 1.0, 1.0), "median_shape_xyz": SHAPE,
        "patch_size_xyz": (8, 8, 8), "batch_size": 3, "channels": (ChannelPlan(name="MR", scheme="zscore"),),
        "labels": {"background": (0,), "organ": (1,), "lesion": (2,)}, "features": (4, 8),
        "strides": ((1, 1, 1), (2, 2, 2)), "kernel_sizes": ((3, 3, 3), (3, 3, 3)), "batch_dice": True,
        "stored_dtype": "float32", "fingerprint_sha256": "", "previous_channels": 2,
    }  # fmt: skip
    return Plan(**(values | changes))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A case whose labels, first-stage mask and image are the same map, so that they show the same change."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:12, 4:13, 2:14], labels[6:10, 6:10, 5:9] = 1, 2
    path = tmp_path_factory.mktemp("store") / "a.key.bin"
    write_case(
        path, image=labels[None].astype(np.float32), labels=labels, previous=labels, grid=small_run.grid(SHAPE),
        dtype="float32", locations={k: np.flatnonzero(labels == k) for k in (1, 2)},
    )  # fmt: skip
    return StoredCase("a", path)


def section_of(**augmentation):
    return TrainSection.model_validate({"augmentation": augmentation})


def test_the_mask_is_turned_and_mirrored_as_the_labels_are(case):
    section = section_of(**STILL, previous_reshaped=0, previous_removed=0).model_copy()
    turning = section.augmentation.model_copy(update={"rotation": 1.0, "scaling": 0.5})
    make = BatchMaker([case], plan_of(), section.model_copy(update={"augmentation": turning}), 3, CPU)
    for step in range(4):
        batch = make(step)
        assert batch.images.shape == (3, 3, 8, 8, 8)
        hot = torch.stack([batch.classes == k for k in (1, 2)], dim=1).float()
        torch.testing.assert_close(batch.images[:, 1:], hot, rtol=0, atol=0)


def test_faults_are_drawn_apart_and_added_last(case):
    section = section_of(**STILL, mirror_axes=())
    plan, size = plan_of(), (8, 8, 8)
    make, plain = (BatchMaker([case], p, section, 3, CPU) for p in (plan, plan_of(previous_channels=0)))
    changed = 0
    for step in range(6):
        batch, without = make(step), plain(step)
        assert torch.equal(batch.images[:, :1], without.images)
        assert torch.equal(batch.classes, without.classes)
        for row in range(3):
            mask = without.classes[row].numpy().copy()
            change_previous(mask, draw_previous(sample_rng(3, step * 3 + row, stream=2), section.augmentation, 2))
            expected = np.stack([mask == k for k in (1, 2)])
            np.testing.assert_array_equal(batch.images[row, 1:].numpy().astype(bool), expected)
            changed += not np.array_equal(mask, without.classes[row].numpy())
    assert 0 < changed < 18
    assert size == tuple(batch.classes.shape[1:])


def test_masks_bend_with_transforms_from_elsewhere(case):
    draw = draw_intensity(np.random.default_rng(0), AugmentationSection(**STILL), 1)
    sample = read_sample(case, (4, 4, 4), (8, 8, 8), SpatialDraw(None, ()), draw, PreviousDraw())

    def rolled(image, labels, seed):
        assert seed == draw.extra_seed
        return image.roll(1, 1), labels.roll(1, 0)

    images, classes = make_tensors([sample], (8, 8, 8), device=CPU, extra=rolled)
    joined = join_previous(images, [sample], (8, 8, 8), count=2, extra=rolled)
    assert torch.equal(joined[0, 1], (classes[0] == 1).float())
    assert torch.equal(joined[0, 2], (classes[0] == 2).float())


def test_validation_sees_the_mask_of_the_store(case):
    image, labels = whole_case(case, plan_of())
    assert image.shape == (3, *SHAPE)
    np.testing.assert_array_equal(image[1:], np.stack([labels == 1, labels == 2]))
    assert whole_case(case, plan_of(previous_channels=0)).image.shape == (1, *SHAPE)


def test_a_first_stage_that_is_missing_or_another_is_refused(tmp_path):
    section = PrepareSection(configuration="3d_cascade_fullres", previous_work="low")
    model = tmp_path / "low" / "runs" / "fold_1" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of the two bytes {}
    prepared = PreparedData(tmp_path, plan_of(), {}, "0" * 64, previous={"fold_1": sha256})
    given = {"config_folder": tmp_path}
    assert first_stage_models(section, prepared, fold=1, **given) == {"fold_1": model}
    assert first_stage_models(section, prepared, fold=None, **given) == {"fold_1": model}
    assert (
        first_stage_models(PrepareSection(), replace(prepared, plan=plan_of(previous_channels=0)), fold=1, **given)
        == {}
    )
    with pytest.raises(InputError, match="fold_0 has no finished model"):
        first_stage_models(section, prepared, fold=0, **given)
    with pytest.raises(InputError, match=r"prepare.previous_work: is null, expected the first stage's work folder"):
        first_stage_models(PrepareSection(), prepared, fold=1, **given)
    with pytest.raises(ChangedError, match="the model of fold_1 is not the one that drew the masks"):
        first_stage_models(section, replace(prepared, previous={"fold_1": "0"}), fold=1, **given)


def test_a_run_is_what_its_first_stage_was(tmp_path):
    prepared = small_run.write_prepared(tmp_path)
    plain = identity_of(small_run.inputs(prepared), {}, None)
    assert "previous" not in plain
    assert "previous_channels" not in plain["plan"]
    assert not [name for name in plain["train"]["augmentation"] if name.startswith("previous")]
    plan = prepared.plan.model_copy(update={"previous_channels": 1})
    second = replace(prepared, plan=plan, previous={"fold_0": "a" * 64})
    found = identity_of(small_run.inputs(second), {}, None)
    assert found["previous"] == {"fold_0": "a" * 64}
    assert found["plan"]["previous_channels"] == 1
    assert found["train"]["augmentation"]["previous_reshaped"] == 0.4
