"""Consensus of raters against raters whose performance is known, and against the algorithm spelt out."""

import numpy as np
import pytest

from medseg.evaluation.consensus import consensus_classes, consensus_regions, majority, staple
from medseg.imaging import Regions


def raters(truth, sensitivity, specificity, seed=0):
    generator = np.random.default_rng(seed)
    chances = [np.where(truth, p, 1 - q) for p, q in zip(sensitivity, specificity, strict=True)]
    return np.stack([generator.random(truth.shape) < chance for chance in chances])


def spelt_out(masks, share, steps):
    """Warfield 2004, equations 14, 18 and 19, voxel by voxel."""
    p, q = [0.99999] * len(masks), [0.99999] * len(masks)
    voxels = list(zip(*(mask.ravel().tolist() for mask in masks), strict=True))
    for _ in range(steps):
        weights = []
        for votes in voxels:
            inside, outside = share, 1 - share
            for j, vote in enumerate(votes):
                inside *= p[j] if vote else 1 - p[j]
                outside *= 1 - q[j] if vote else q[j]
            weights.append(inside / (inside + outside))
        total = sum(weights)
        p = [sum(w for w, votes in zip(weights, voxels, strict=True) if votes[j]) / total for j in range(len(masks))]
        q = [
            sum(1 - w for w, votes in zip(weights, voxels, strict=True) if not votes[j]) / (len(voxels) - total)
            for j in range(len(masks))
        ]
    return p, q


def test_staple_finds_what_the_raters_are():
    truth = np.zeros((40, 40, 40), bool)
    truth[8:32, 8:32, 8:32] = True
    sensitivity, specificity = [0.95, 0.9, 0.8, 0.99, 0.7], [0.97, 0.9, 0.99, 0.85, 0.95]
    found = staple(raters(truth, sensitivity, specificity))
    assert found.converged
    assert found.sensitivity == pytest.approx(sensitivity, abs=0.015)
    assert found.specificity == pytest.approx(specificity, abs=0.015)
    assert (found.mask != truth).mean() < 0.02


def test_staple_trusts_the_better_rater():
    truth = np.zeros((40, 40, 40), bool)
    truth[8:32, 8:32, 8:32] = True
    masks = raters(truth, [0.97, 0.7, 0.7, 0.7], [0.98, 0.8, 0.8, 0.8])
    assert (staple(masks).mask != truth).mean() < 0.6 * (majority(masks) != truth).mean()


def test_staple_is_the_algorithm_spelt_out():
    truth = np.zeros((12, 12), bool)
    truth[3:9, 3:9] = True
    masks = raters(truth, [0.9, 0.8, 0.85], [0.9, 0.95, 0.8], seed=2)
    found = staple(masks)
    p, q = spelt_out(masks, masks.mean(), found.iterations)
    assert found.sensitivity == pytest.approx(p, abs=1e-6)
    assert found.specificity == pytest.approx(q, abs=1e-6)


def test_one_bad_rater_is_outvoted_by_performance():
    truth = np.zeros((30, 30), bool)
    truth[5:25, 5:25] = True
    found = staple(np.stack([truth, truth, truth, ~truth]))
    assert (found.mask == truth).all()
    assert found.sensitivity[3] == pytest.approx(0, abs=1e-6)


def test_raters_who_agree_are_the_truth():
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    found = staple(np.stack([mask] * 3))
    assert (found.mask == mask).all()
    assert found.converged
    for value in (False, True):
        certain = staple(np.full((2, 4, 4), value))
        assert (certain.mask == value).all()
        assert certain.iterations == 0


def test_half_is_no_majority():
    masks = np.array([[1, 1, 0], [1, 0, 0]], bool)
    assert majority(masks).tolist() == [True, False, False]
    assert majority(np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1]], bool)).tolist() == [True, True, False]


@pytest.mark.parametrize("how", ["majority", "staple"])
def test_classes(how):
    base = np.zeros((8, 8, 2), np.uint8)
    base[1:4, 1:7] = 1
    base[4:7, 1:7] = 2
    other = base.copy()
    other[3, 1:7] = 2  # one of three draws the border elsewhere
    ignoring = base.copy()
    ignoring[0, 0, 0] = 255
    found, performance = consensus_classes([base, other, ignoring], class_count=4, how=how, ignore=255)
    expected = base.copy()
    expected[0, 0, 0] = 255
    assert (found == expected).all()
    assert sorted(performance) == ([1, 2] if how == "staple" else [])


@pytest.mark.parametrize("how", ["majority", "staple"])
def test_raters_who_agree_on_the_whole_and_not_on_its_parts(how):
    regions = Regions({"background": (0,), "whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)})
    raters = [np.zeros((6, 4, 1), np.uint8) for _ in range(3)]
    for value, rater in enumerate(raters, start=1):
        rater[1:5, 1:3] = value  # stored indices: the whole alone, with the core, with all
        rater[0, 0] = 255
    found, performance = consensus_regions(raters, regions=regions, how=how, ignore=255)
    assert (found[0, 0, 0], found[5, 3, 0]) == (255, 0)
    assert np.isin(found[1:5, 1:3], regions.indices_of("whole")).all()
    if how == "majority":
        assert (found[1:5, 1:3] == 2).all()  # two of three have the core, one has an enhancing part
    assert sorted(performance) == ([1, 2, 3] if how == "staple" else [])
