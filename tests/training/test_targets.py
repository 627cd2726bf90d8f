import math

import pytest
import torch

from medseg.training.targets import ClassAnswer, RegionAnswer


def logits_of(probabilities):
    """(B, K, N) log probabilities of nested lists (B, N, K)."""
    return torch.log(torch.tensor(probabilities, dtype=torch.float64)).movedim(-1, 1)


def test_classes():
    answer = ClassAnswer(logits_of([[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]]]), torch.tensor([[2, 255]]), None)
    assert torch.allclose(answer.probabilities, torch.tensor([[[0.2, 0.8], [0.3, 0.1]]], dtype=torch.float64))
    assert answer.truth.tolist() == [[[False, False], [True, False]]]
    assert answer.labelled.tolist() == [[[True, False]]]
    total, count = answer.voxel_loss_sum()
    assert (float(total), int(count)) == (pytest.approx(-math.log(0.3)), 1)
    losses, weights = answer.voxel_losses(torch.tensor([1.0, 1.0, 5.0]), 0.0)
    assert weights.tolist() == [[5.0, 0.0]]
    assert float((losses * weights).sum()) == pytest.approx(-5 * math.log(0.3))


def test_in_a_partly_labelled_case_background_may_be_any_class_nobody_looked_for():
    # class 1 is known, 2 is not. Voxels: background, class 1, and one with the class nobody looked for.
    logits = logits_of([[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]])
    known = torch.tensor([[True, True, False]])
    answer = ClassAnswer(logits, torch.tensor([[0, 1, 2]], dtype=torch.uint8), known)
    total, count = answer.voxel_loss_sum()
    assert (float(total), int(count)) == (pytest.approx(-math.log(0.8) - math.log(0.8)), 2)
    assert torch.allclose(answer.probabilities[0, 0], torch.tensor([0.2, 0.8, 0.2], dtype=torch.float64))
    assert answer.labelled.tolist() == [[[True, True, False]]]
    assert answer.known.tolist() == [[True, False]]
    smoothed, _ = answer.voxel_losses(None, 0.1)
    assert float(smoothed[0, 0]) == pytest.approx(-0.9 * math.log(0.8) - 0.1 * (math.log(0.8) + math.log(0.2)) / 2)


def test_no_gradient_is_lost_where_background_and_unknown_classes_are_far_apart():
    logits = torch.tensor([[[200.0], [0.0], [-200.0]]], requires_grad=True)
    known = torch.tensor([[True, True, False]])
    total, _ = ClassAnswer(logits, torch.tensor([[1]]), known).voxel_loss_sum()
    total.backward()
    assert logits.grad[0, :, 0].tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_all_known_is_the_same_as_not_asked():
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    asked = ClassAnswer(logits, classes, torch.ones(2, 3, dtype=torch.bool))
    plain = ClassAnswer(logits, classes, None)
    assert torch.allclose(asked.probabilities, plain.probabilities)
    assert torch.allclose(asked.voxel_loss_sum()[0], plain.voxel_loss_sum()[0])


def test_regions_overlap():
    # combination 1: only the outer region; 2: both.
    members = torch.tensor([[False, True, True], [False, False, True]])
    logits = torch.tensor([[[0.0, 1.0, 2.0, 3.0], [0.0, -1.0, 2.0, 3.0]]])
    answer = RegionAnswer(logits, torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8), None, members=members)
    assert answer.truth.tolist() == [[[False, True, True, False], [False, False, True, False]]]
    total, count = answer.voxel_loss_sum()

    def nll(x):
        return math.log(1 + math.exp(-x))

    assert float(total) == pytest.approx(2 * nll(0) + 2 * nll(1) + 2 * nll(2))
    assert int(count) == 6
    known = torch.tensor([[True, True, False]])
    partly = RegionAnswer(logits, torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8), known, members=members)
    total, count = partly.voxel_loss_sum()
    assert (float(total), int(count)) == (pytest.approx(nll(0) + nll(1) + nll(2)), 3)
