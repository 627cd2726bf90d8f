import pytest
import torch

from medseg.config.train_sections import LossSection, OptimiserSection, TrainSection
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.training.losses import build_loss
from medseg.training.memory import predict_memory, resident_bytes

CPU = torch.device("cpu")


def plan(batch_size=2, patch=(16, 16, 8), **changes):
    values = {
        "dimensions": 3, "orientation": "RAS", "spacing_xyz_mm": (1.0, 1.0, 1.0), "median_shape_xyz": (16, 16, 8),
        "patch_size_xyz": patch, "batch_size": batch_size, "channels": (ChannelPlan(name="MR", scheme="none"),),
        "labels": {"background": (0,), "organ": (1,)}, "features": (4, 8), "strides": ((1, 1, 1), (2, 2, 2)),
        "kernel_sizes": ((3, 3, 3), (3, 3, 3)), "batch_dice": True, "stored_dtype": "float32",
        "fingerprint_sha256": "0" * 64,
    }  # fmt: skip
    return Plan(**(values | changes))


def architecture(features=(4, 8)):
    return {
        "kind": "unet", "dimensions": 3, "channels": 1, "classes": 2, "features": list(features),
        "strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 2,
    }  # fmt: skip


def predicted(made=None, *, section=None, features=(4, 8), precision=None, **arguments):
    section = section or TrainSection()
    loss = build_loss(section.loss, class_count=2, batch_dice=False)
    return predict_memory(
        architecture(features), plan=made or plan(), section=section, loss=loss, device=CPU, precision=precision,
        **arguments,
    )  # fmt: skip


def test_a_step_grows_with_the_batch_and_weights_do_not():
    # Activations are 4 to 8 channels of 2048 voxels a sample and their gradients; weights are 11 kB.
    small, large = predicted(plan(2)), predicted(plan(8))
    assert large.weights == small.weights
    assert large.step == pytest.approx(4 * small.step, rel=0.1)


def test_activations_are_at_least_what_the_convolutions_put_out():
    # Kept for the way back: input and output of both norms of the top stage, in encoder and decoder, float32.
    top = 2 * 16 * 16 * 8 * 4 * 4
    assert 8 * top < predicted().step < 40 * top


def test_half_precision_takes_less():
    assert predicted(precision=torch.bfloat16).step < 0.8 * predicted().step


def test_weights_are_kept_with_their_average_and_the_optimisers_moments():
    from medseg.networks.build import build_network

    own = 4 * sum(p.numel() for p in build_network(architecture()).parameters())
    assert predicted().weights == 4 * own  # AdamW has two moments
    section = TrainSection(optimiser=OptimiserSection(kind="sgd"))
    assert predicted(section=section).weights == 3 * own


@pytest.mark.parametrize("kind", ["dice_ce", "focal", "topk_ce"])
def test_losses_are_looked_at_too(kind):
    assert predicted(section=TrainSection(loss=LossSection(kind=kind))).step > 0


def test_a_step_that_no_machine_has_room_for_can_be_looked_at():
    assert predicted(plan(64, (512, 512, 512))).step > 1e12


def test_what_the_process_has_already_is_added():
    assert predicted(base_bytes=10**9).peak - predicted().peak == 10**9
    assert resident_bytes() > 10**7
