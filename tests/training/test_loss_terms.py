import math

import pytest
import torch

from medseg.training.loss_terms import BoundaryTerm, OverlapTerm, VoxelTerm
from medseg.training.targets import ClassAnswer


def answer_of(probabilities, classes, known=None):
    """Of nested lists (B, N, K) and (B, N)."""
    logits = torch.log(torch.tensor(probabilities, dtype=torch.float64)).movedim(-1, 1)
    return ClassAnswer(logits, torch.tensor(classes, dtype=torch.uint8), None if known is None else torch.tensor(known))


def two(*foreground):
    return [[1 - p, p] for p in foreground]


def value(term, answer):
    sums = term.sums(answer)
    assert sums.shape == (term.size,)
    return float(term.value(sums))


# Two voxels with foreground probabilities 0.8 and 0.4, truth 1 and 0: I = 0.8, P = 1.2, T = 1.
ONE = answer_of([two(0.8, 0.4)], [[1, 0]])
# The same, and a sample with 0.5 and 0.5, truth 1 and 1: I = 1, P = 1, T = 2.
PAIR = answer_of([two(0.8, 0.4), two(0.5, 0.5)], [[1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dice", 1.6 / 2.2),
        ("jaccard", 0.8 / 1.4),
        ("tversky", 0.8 / (0.8 + 0.3 * 0.4 + 0.7 * 0.2)),
        ("generalised_dice", 1.6 / 2.2),
    ],
)
def test_overlaps_worked_out_on_paper(kind, expected):
    for over_batch in (False, True):
        assert value(OverlapTerm(kind, 1, over_batch=over_batch), ONE) == pytest.approx(1 - expected, abs=1e-5)


def test_over_the_batch_samples_are_pooled():
    assert value(OverlapTerm("dice", 1, over_batch=True), PAIR) == pytest.approx(1 - 2 * 1.8 / (2.2 + 3.0), abs=1e-5)
    single = 1 - (1.6 / 2.2 + 2 / 3) / 2
    assert value(OverlapTerm("dice", 1, over_batch=False), PAIR) == pytest.approx(single, abs=1e-5)


def test_generalised_dice_weighs_small_classes_by_their_square():
    # class 1: I = 0.6, P = 0.6 + 0.1 + 0.2, T = 1; class 2: I = 0.7 + 0.5, P = 0.3 + 0.7 + 0.5, T = 2
    probabilities = [[[0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.3, 0.2, 0.5]]]
    answer = answer_of(probabilities, [[1, 2, 2]])
    expected = 2 * (0.6 / 1 + 1.2 / 4) / ((0.9 + 1) / 1 + (1.5 + 2) / 4)
    for over_batch in (False, True):
        assert value(OverlapTerm("generalised_dice", 2, over_batch=over_batch), answer) == pytest.approx(
            1 - expected, abs=1e-5
        )


@pytest.mark.parametrize("kind", ["dice", "jaccard", "tversky", "generalised_dice"])
def test_an_empty_patch_predicted_empty_costs_nothing(kind):
    empty = answer_of([two(1e-12, 1e-12)], [[0, 0]])
    for over_batch in (False, True):
        assert value(OverlapTerm(kind, 1, over_batch=over_batch), empty) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("over_batch", [False, True])
def test_a_class_no_sample_is_known_for_takes_no_part(over_batch):
    probabilities = [[[0.1, 0.6, 0.3], [0.2, 0.1, 0.7]]]
    answer = answer_of(probabilities, [[1, 0]], known=[[True, True, False]])
    # class 1 alone: I = 0.6, P = 0.7, T = 1
    assert value(OverlapTerm("dice", 2, over_batch=over_batch), answer) == pytest.approx(1 - 1.2 / 1.7, abs=1e-5)


def test_ignored_voxels_take_no_part():
    longer = answer_of([[*two(0.8, 0.4), [0.9, 0.1]]], [[1, 0, 255]])
    for term in (
        OverlapTerm("dice", 1, over_batch=True), OverlapTerm("jaccard", 1, over_batch=False), VoxelTerm("ce"),
        VoxelTerm("focal"), VoxelTerm("topk", share=0.5), VoxelTerm("ce", smoothing=0.1),
    ):  # fmt: skip
        assert value(term, longer) == pytest.approx(value(term, ONE))


def test_voxel_terms_worked_out_on_paper():
    right, wrong = -math.log(0.8), -math.log(0.6)
    assert value(VoxelTerm("ce"), ONE) == pytest.approx((right + wrong) / 2)
    assert value(VoxelTerm("focal", gamma=2), ONE) == pytest.approx((0.2**2 * right + 0.4**2 * wrong) / 2)
    assert value(VoxelTerm("topk", share=0.5), ONE) == pytest.approx(wrong)
    assert value(VoxelTerm("topk", share=0.51), ONE) == pytest.approx((right + wrong) / 2)  # rounded up
    assert value(VoxelTerm("ce", weights=(1, 3)), ONE) == pytest.approx((3 * right + wrong) / 4)
    spread = -(math.log(0.8) + math.log(0.2)) / 2 - (math.log(0.6) + math.log(0.4)) / 2
    assert value(VoxelTerm("ce", smoothing=0.2), ONE) == pytest.approx((0.8 * (right + wrong) + 0.2 * spread) / 2)


def test_the_hardest_voxels_are_each_samples_own():
    answer = answer_of([two(0.9, 0.8), two(0.1, 0.2)], [[1, 1], [1, 1]])
    assert value(VoxelTerm("topk", share=0.5), answer) == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2)


def test_boundary_worked_out_on_paper():
    # Truth is voxels 1 and 2 of five: signed distances 1, 0, 0, 1, 2, in units of 5 voxels.
    answer = answer_of([two(0.5, 0.9, 0.9, 0.4, 0.1)], [[0, 1, 1, 0, 0]])
    assert value(BoundaryTerm(), answer) == pytest.approx((0.5 + 0.4 + 2 * 0.1) / 5 / 5)
    nothing = answer_of([two(0.5, 0.9)], [[0, 0]])
    assert value(BoundaryTerm(), nothing) == 0
