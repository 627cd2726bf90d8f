"""Baselines on arrays whose answer can be worked out by hand, or found by trying every band."""

import numpy as np
import pytest

from medseg.evaluation.baselines import (
    Band,
    BandSearch,
    LocationMap,
    candidate_edges,
    from_relative,
    to_relative,
)
from medseg.evaluation.overlap import count_overlap, dice


def search(*cases: tuple[list[float], list[int]]) -> BandSearch:
    edges = np.unique(np.concatenate([values for values, _ in cases]))
    result = BandSearch(np.append(edges, edges.max() + 1))
    for values, mask in cases:
        result.add(np.array(values, np.float32), np.array(mask, bool))
    return result


def test_a_band_between_two_tissues_is_found_where_no_threshold_can():
    # Values 0, 1, 2; the class is 1. Band [1, 2): Dice 1. Best threshold: v >= 1 takes 4 for 2, Dice 2 * 2 / (4 + 2).
    found = search(([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 0, 0]))
    assert found.best("band") == (Band(1, 2), 1.0)
    band, score = found.best("threshold")
    assert band == Band(1, np.inf)
    assert score == pytest.approx(2 / 3)


def test_a_dark_class_is_a_threshold_from_above():
    found = search(([0, 0, 1, 2], [1, 1, 0, 0]))
    assert found.best("threshold") == (Band(-np.inf, 1), 1.0)
    assert found.best("above").dice == pytest.approx(2 / 3)  # everything: 2 * 2 / (4 + 2)


def test_the_mean_is_over_cases_not_voxels():
    # v >= 1 is right in the two small cases and wrong in the big one, v >= 2 the reverse.
    small = ([0, 1], [0, 1])
    big = ([1] * 100 + [2], [0] * 100 + [1])
    assert search(small, small, big).best("threshold").band == Band(1, np.inf)


def test_a_case_without_the_class_counts_as_a_model_s_score_would():
    # v >= 2 finds nothing in the empty case, which is left out: mean 2/3 of one case. v >= 1 scores (1 + 0) / 2.
    band, score = search(([0, 1, 2], [0, 1, 1]), ([0, 1, 0], [0, 0, 0])).best("above")
    assert band == Band(2, np.inf)
    assert score == pytest.approx(2 / 3)


def test_no_case_no_band():
    with pytest.raises(ValueError, match="no case was added"):
        BandSearch(np.array([0.0, 1.0])).best()


@pytest.mark.parametrize("sides", ["band", "threshold", "above"])
def test_equals_trying_every_band(sides):
    rng = np.random.default_rng(3)
    cases = [(rng.integers(0, 9, (4, 5, 3)).astype(np.float32), rng.random((4, 5, 3)) < 0.3) for _ in range(3)]
    found = BandSearch(np.arange(9.0))
    for values, mask in cases:
        found.add(values, mask)
    edges = [-np.inf, *np.arange(9.0), np.inf]
    bands = [Band(low, high) for i, low in enumerate(edges) for high in edges[i + 1 :]]
    if sides != "band":
        bands = [b for b in bands if np.isinf(b.high) or (sides == "threshold" and np.isinf(b.low))]
    scores = [np.mean([dice(count_overlap(band.mask(values), mask)) for values, mask in cases]) for band in bands]
    assert found.best(sides).dice == pytest.approx(max(scores), abs=1e-12)


def test_what_the_search_counts_is_what_the_mask_takes():
    # 0.1 is no float32: edge and voxel must be rounded alike.
    values = np.array([0.0, 0.1, 0.3], np.float32)
    mask = values > 0.05
    found = BandSearch(np.array([0.1], np.float64))
    found.add(values, mask)
    assert found.best() == (Band(pytest.approx(0.1), np.inf), 1.0)
    assert (found.best().band.mask(values) == mask).all()


def test_candidates_look_closely_at_a_small_class():
    values, labelled = np.linspace(0, 1, 1000, dtype=np.float32), np.linspace(0.9990, 0.9999, 50, dtype=np.float32)
    edges = candidate_edges(values, labelled, count=9)
    assert (np.diff(edges) > 0).all()
    assert ((edges > 0.9989) & (edges < 1)).sum() >= 9
    np.testing.assert_allclose(candidate_edges(values, labelled[:0], count=3), [0, 0.5, 1], atol=1e-6)


def test_relative_shares_on_paper():
    mask = np.zeros((3, 2, 1), np.uint8)
    mask[0] = 7  # the first third along x
    np.testing.assert_allclose(to_relative(mask, (3, 1, 1)).ravel(), [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(to_relative(mask, (2, 1, 1)).ravel(), [2 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(to_relative(mask, (6, 2, 4))[:, 0, 0], [1, 1, 0, 0, 0, 0], atol=1e-6)


def test_relative_coordinates_hold_for_every_size():
    small, large = np.zeros((4, 8, 4), bool), np.zeros((16, 16, 32), bool)
    small[2:, 2:4, :1] = True
    large[8:, 4:8, :8] = True
    shape = (8, 8, 8)
    np.testing.assert_allclose(to_relative(small, shape), to_relative(large, shape), atol=1e-6)


def test_back_on_voxels_half_lies_where_the_border_was():
    mask = np.zeros((12, 5, 3), bool)
    mask[:6] = True
    back = from_relative(to_relative(mask, (8, 4, 1)), mask.shape)
    assert ((back >= 0.5) == mask).all()
    # Blocks are 1.5 voxels: voxel 5 lies a sixth of a block past the centre of block 3, the last full one.
    np.testing.assert_allclose(back[:, 0, 0], [1] * 5 + [5 / 6, 1 / 6] + [0] * 5, atol=1e-6)


def test_location_map_is_the_mean_and_leaves_a_case_out_of_its_own():
    left, right = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    left[:2], right[2:] = True, True
    place = LocationMap((4, 4, 4))
    for mask in (left, left, right):
        place.add(mask)
    np.testing.assert_allclose(place.on((4, 4, 4)), np.where(left, 2 / 3, 1 / 3), atol=1e-6)
    np.testing.assert_allclose(place.without(right), left, atol=1e-6)
    np.testing.assert_allclose(place.without(left), 0.5, atol=1e-6)


def test_a_map_of_no_case_is_refused():
    place = LocationMap((4, 4, 4))
    with pytest.raises(ValueError, match="0 cases were added, expected at least one"):
        place.on((4, 4, 4))
    mask = np.ones((4, 4, 4), bool)
    place.add(mask)
    with pytest.raises(ValueError, match="0 cases were added, expected at least one"):
        place.without(mask)
