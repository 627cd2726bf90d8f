import math

import pytest
import torch

from medseg.config.train_sections import LossSection
from medseg.training.losses import build_loss, cross_entropy, soft_dice_loss, supervised_loss


def logits_of(probabilities):
    return torch.log(torch.tensor(probabilities, dtype=torch.float64))


def test_soft_dice_worked_out_on_paper():
    # two voxels, classes 0 and 1; foreground probabilities 0.8 and 0.4, truth 1 and 0:
    # Dice = 2 * 0.8 / (0.8 + 0.4 + 1) = 1.6 / 2.2
    logits = logits_of([[[0.2, 0.6], [0.8, 0.4]]])
    loss = soft_dice_loss(logits, torch.tensor([[1, 0]]), batch_dice=False, smooth=0.0)
    assert float(loss) == pytest.approx(1 - 1.6 / 2.2)


def test_batch_dice_pools_the_samples():
    # sample 1 as above; sample 2: probabilities 0.5, 0.5, truth 1, 1: overlap 1.0, total 1.0 + 2
    logits = logits_of([[[0.2, 0.6], [0.8, 0.4]], [[0.5, 0.5], [0.5, 0.5]]])
    classes = torch.tensor([[1, 0], [1, 1]])
    pooled = soft_dice_loss(logits, classes, batch_dice=True, smooth=0.0)
    single = soft_dice_loss(logits, classes, batch_dice=False, smooth=0.0)
    assert float(pooled) == pytest.approx(1 - 2 * 1.8 / (2.2 + 3.0))
    assert float(single) == pytest.approx(1 - (1.6 / 2.2 + 2 / 3) / 2)


def test_ignored_voxels_do_not_count():
    logits = logits_of([[[0.2, 0.6, 0.9], [0.8, 0.4, 0.1]]])
    short, classes = logits[:, :, :2], torch.tensor([[1, 0, 255]], dtype=torch.uint8)
    assert float(soft_dice_loss(logits, classes, batch_dice=False)) == pytest.approx(
        float(soft_dice_loss(short, classes[:, :2], batch_dice=False))
    )
    assert float(cross_entropy(logits, classes)) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    nobody = torch.full_like(classes, 255)
    assert float(cross_entropy(logits, nobody)) == 0


def test_an_empty_patch_predicted_empty_costs_nothing():
    logits = torch.tensor([[[30.0, 30.0], [-30.0, -30.0]]])
    assert float(soft_dice_loss(logits, torch.zeros(1, 2), batch_dice=False)) == pytest.approx(0, abs=1e-6)


def test_equal_to_monai_where_definitions_coincide():
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 4, 6, 5, 4), torch.randint(0, 4, (2, 6, 5, 4))
    for batch in (False, True):
        theirs = losses.DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=batch)
        ours = build_loss(LossSection(batch_dice=batch), batch_dice=False)
        assert float(ours(logits, classes)) == pytest.approx(float(theirs(logits, classes[:, None])), rel=1e-5)


def test_heads_are_weighted_1_to_one_half_and_the_coarsest_left_out():
    seen = []

    def loss(logits, classes):
        seen.append(tuple(classes.shape))
        return logits.mean()

    outputs = [torch.full((1, 2, n, n), value) for n, value in ((8, 1.0), (4, 4.0), (2, 100.0))]
    total = supervised_loss(outputs, torch.zeros(1, 8, 8, dtype=torch.uint8), loss)
    assert float(total) == pytest.approx((1 * 1.0 + 0.5 * 4.0) / 1.5)
    assert seen == [(1, 8, 8), (1, 4, 4)]


@pytest.mark.parametrize("kind", ["dice_ce", "dice", "ce"])
def test_each_kind_falls_with_a_better_answer(kind):
    loss = build_loss(LossSection(kind=kind), batch_dice=True)
    classes = torch.randint(0, 3, (1, 8, 8))
    right = torch.nn.functional.one_hot(classes.long(), 3).movedim(-1, 1).float()
    assert float(loss(5 * right, classes)) < float(loss(right, classes)) < float(loss(-right, classes))
