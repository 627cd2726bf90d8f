import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from medseg.evaluation import score_masks
from medseg.evaluation.centreline import centreline_dice, count_centrelines
from medseg.evaluation.thinning import skeletonise


def euler_number(mask):
    """Of the union of closed voxels (26 or 8 neighbours hang together): corners - edges + faces - cubes."""
    padded = np.pad(mask, 1)
    total = 0
    for cell in itertools.product((0, 1), repeat=mask.ndim):
        # A cell of the complex is extended along the axes where ``cell`` is 1; it is there if any voxel around it is.
        found = padded
        for axis, extended in enumerate(cell):
            if not extended:
                keep = [slice(None)] * mask.ndim
                keep[axis] = slice(1, None)
                other = [slice(None)] * mask.ndim
                other[axis] = slice(None, -1)
                found = found[tuple(keep)] | found[tuple(other)]
        total += (-1) ** sum(cell) * int(found.sum())
    return total


def topology(mask):
    """Pieces, hollows (pieces of the outside but the outermost) and Euler number: with them tunnels are told, too."""
    pieces = ndimage.label(mask, np.ones((3,) * mask.ndim))[1]
    outside = ndimage.label(~np.pad(mask, 1))[1]
    return pieces, outside - 1, euler_number(mask)


def test_euler_number_on_paper():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert euler_number(ring) == 0
    assert euler_number(np.ones((2, 3, 4), bool)) == 1
    shell = np.ones((3, 3, 3), bool)
    shell[1, 1, 1] = False
    assert euler_number(shell) == 2
    shell[1, 1] = False  # a torus
    assert euler_number(shell) == 0


@pytest.mark.parametrize("shape", [(14, 13), (9, 8, 7)])
@pytest.mark.parametrize("share", [0.15, 0.4, 0.6, 0.85])
def test_topology_is_kept(shape, share):
    rng = np.random.default_rng(7)
    for smooth in (0, 1):
        noise = rng.random(shape)
        if smooth:
            noise = ndimage.gaussian_filter(noise, 1)
            mask = noise < np.quantile(noise, share)
        else:
            mask = noise < share
        skeleton = skeletonise(mask)
        assert not (skeleton & ~mask).any()
        assert topology(skeleton) == topology(mask)
        assert np.array_equal(skeletonise(skeleton), skeleton)


def test_skeletons_on_paper():
    bar = np.zeros((9, 30), bool)
    bar[3:6, 2:28] = True
    skeleton = skeletonise(bar)
    rows, columns = np.nonzero(skeleton)
    assert set(rows) == {4}
    assert len(columns) == len(set(columns)) >= 22
    tube = np.zeros((11, 11, 30), bool)
    tube[np.hypot(*np.ogrid[-5:6, -5:6]) <= 3] = True
    skeleton = skeletonise(tube)
    assert (skeleton.sum(axis=(0, 1)) <= 1).all()
    assert set(np.nonzero(skeleton)[0]) == {5}
    assert skeleton.sum() >= 22
    ring = np.hypot(*np.ogrid[-10:11, -10:11])
    skeleton = skeletonise((ring > 5) & (ring < 9))
    assert euler_number(skeleton) == 0
    # One pixel wide: each has two neighbours but where it turns.
    assert ndimage.convolve(skeleton.astype(int), np.ones((3, 3)))[skeleton].max() <= 4


def test_lines_points_and_nothing_stay_what_they_are():
    line = np.zeros((5, 6, 7), bool)
    line[2, 3, 1:6] = True
    assert np.array_equal(skeletonise(line), line)
    assert skeletonise(np.ones((1, 1), bool)).all()
    assert not skeletonise(np.zeros((4, 4), bool)).any()
    assert skeletonise(np.ones(9, bool)).sum() >= 1
    full = skeletonise(np.ones((6, 6, 6), bool))
    assert topology(full) == (1, 0, 1)


def tube(shape, radius, *, cut=None):
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    mask = np.broadcast_to((grid[0] - 7) ** 2 + (grid[1] - 7) ** 2 <= radius**2, shape).copy()
    if cut is not None:
        mask[..., cut] = False
    return mask


def test_cldice_on_paper():
    shape = (15, 15, 40)
    thick, thin = tube(shape, 4), tube(shape, 2)
    # The thinner tube's centre line lies in the thicker one and reversed, however small their Dice is.
    assert score_masks(thin, thick, spacing_mm=(1.0,) * 3, metrics=("centreline",))["cldice"] == 1.0
    cut = tube(shape, 3, cut=slice(15, 25))
    counts = count_centrelines(cut, tube(shape, 3))
    assert counts.prediction == counts.prediction_inside
    assert counts.reference - counts.reference_inside == 10
    sensitivity = counts.reference_inside / counts.reference
    assert centreline_dice(counts) == pytest.approx(2 * sensitivity / (1 + sensitivity))


def test_cldice_of_empty_and_disjoint_masks():
    one, none = tube((15, 15, 9), 3), np.zeros((15, 15, 9), bool)
    for prediction, reference, wanted in (
        (one, one, 1.0), (one, none, 0.0), (none, one, 0.0), (none, none, math.nan), (one, np.roll(one, 7, 0), 0.0)
    ):  # fmt: skip
        assert centreline_dice(count_centrelines(prediction, reference)) == pytest.approx(wanted, nan_ok=True)
