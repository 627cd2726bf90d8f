import math

import numpy as np
import pytest

from medseg.evaluation import lattice
from medseg.evaluation.lattice import nearest_distances
from medseg.evaluation.masks import ClassMask, boundary_indices


def brute(points, others, shape, spacing):
    a, b = (np.stack(np.unravel_index(own, shape), axis=1) * spacing for own in (points, others))
    return np.array([math.sqrt(((b - p) ** 2).sum(axis=1).min()) for p in a])


@pytest.mark.parametrize("method", ["auto", "near", "tree", "transform"])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40,), (0.3,)), ((30, 25), (0.7, 1.9)), ((14, 12, 11), (0.7, 0.7, 2.5)), ((30, 5, 6), (1, 1, 1))],
)
@pytest.mark.parametrize("shares", [(0.01, 0.01), (0.5, 0.02), (0.4, 0.4)])
def test_equal_to_brute_force(method, shape, spacing, shares):
    rng = np.random.default_rng(3)
    points, others = (np.flatnonzero(rng.random(shape) < share) for share in shares)
    points, others = np.append(points, 0), np.append(others, others.size * 0 + math.prod(shape) - 1)
    found = nearest_distances(points, others, shape=shape, spacing_mm=spacing, method=method)
    np.testing.assert_allclose(found, brute(points, others, shape, spacing), rtol=1e-13)


def test_far_points_are_left_to_a_tree_and_near_ones_found_without():
    # 30 mm apart, beyond the ball of offsets; and one point 1 mm away.
    shape, spacing = (40, 3, 3), (1.0, 1.0, 1.0)
    points, others = np.array([0, 9]), np.array([30 * 9, 31 * 9, 2 * 9])
    assert nearest_distances(points, others, shape=shape, spacing_mm=spacing).tolist() == [2.0, 1.0]
    assert nearest_distances(points, others[:2], shape=shape, spacing_mm=spacing).tolist() == [30.0, 29.0]


def test_empty_sets():
    some, none = np.array([1, 2]), np.zeros(0, np.intp)
    assert nearest_distances(some, none, shape=(5,), spacing_mm=(1.0,)).tolist() == [math.inf] * 2
    assert nearest_distances(none, some, shape=(5,), spacing_mm=(1.0,)).size == 0


@pytest.mark.parametrize("spacing", [(1.0,), (0.7, 2.5), (0.7, 0.7, 2.5), (1.0, 1.0, 9.0)])
def test_offsets_are_all_within_their_radius_by_length(spacing):
    steps, lengths = lattice._offsets(spacing)
    assert (np.diff(lengths) >= 0).all()
    assert not steps[0].any()
    assert len(np.unique(steps, axis=0)) == len(steps)
    # Whatever is missing is longer than the longest that is there.
    far = {1: 60, 2: 60, 3: 14}[len(spacing)]
    wide = np.stack(np.meshgrid(*(np.arange(-far, far + 1),) * len(spacing)), axis=-1).reshape(-1, len(spacing))
    own = np.sqrt(((wide * spacing) ** 2).sum(axis=1))
    assert np.count_nonzero(own <= lengths[-1] + 1e-12) == len(steps)


def taken(monkeypatch, points, others, shape):
    """(offsets tried, what did the rest)."""
    used = []
    monkeypatch.setattr(lattice, "_by_tree", lambda p, *a: used.append("tree") or np.zeros(p.size))
    monkeypatch.setattr(lattice, "_by_transform", lambda p, *a: used.append("transform") or np.zeros(p.size))
    search = lattice._NearSearch(others, shape, (1.0,) * len(shape))
    nearest_distances(points, others, shape=shape, spacing_mm=(1.0,) * len(shape))
    return lattice._worthwhile(search, points, others.size, math.prod(shape)), used


def test_the_cheapest_way_is_taken(monkeypatch):
    smooth = np.zeros((90, 90, 90), bool)
    smooth[20:70, 20:70, 20:70] = True
    edge = boundary_indices(ClassMask(smooth))
    tries, used = taken(monkeypatch, edge, boundary_indices(ClassMask(np.roll(smooth, 1, 0))), smooth.shape)
    assert tries > 1
    assert used == []  # all are near
    tries, used = taken(monkeypatch, edge, edge[:50] - 20 * 90 * 90, smooth.shape)
    assert (tries, used) == (0, ["tree"])
    noise = np.flatnonzero(np.random.default_rng(0).random(smooth.shape) < 0.5)
    tries, used = taken(monkeypatch, noise, edge[:1], smooth.shape)
    assert (tries, used) == (0, ["transform"])


def test_boundary_in_any_chunks(monkeypatch):
    from medseg.evaluation import masks

    rng = np.random.default_rng(0)
    for shape in ((13,), (9, 7), (7, 6, 5), (1, 5, 4), (2, 2, 2)):
        mask = rng.random(shape) < 0.7
        padded = np.pad(mask, 1)
        inside = padded.copy()
        for axis in range(mask.ndim):
            inside &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
        wanted = np.flatnonzero((padded & ~inside)[(slice(1, -1),) * mask.ndim])
        for chunk in (1, 20, 2**19):
            monkeypatch.setattr(masks, "_CHUNK_VOXELS", chunk)
            assert boundary_indices(ClassMask(mask)).tolist() == wanted.tolist()
            assert boundary_indices(ClassMask(np.asfortranarray(mask))).tolist() == wanted.tolist()


def test_mask_of_several_classes():
    classes = np.random.default_rng(0).integers(0, 5, (4, 3, 6)).astype(np.uint8)
    assert (ClassMask(classes, (1, 4)).array == np.isin(classes, (1, 4))).all()
