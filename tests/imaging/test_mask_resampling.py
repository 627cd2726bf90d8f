import numpy as np
import pytest
from scipy import ndimage

from medseg.imaging.mask_resampling import resample_mask


def mask_of(shape, classes, seed):
    noise = np.random.default_rng(seed).normal(size=(classes, *shape))
    return ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5)).argmax(axis=0).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "new", "separate"),
    [((17, 13, 11), (23, 9, 14), None), ((14, 12, 10), (7, 6, 5), None), ((12, 14, 5), (17, 9, 8), 2)],
)
def test_the_largest_share_wins(shape, new, separate):
    """Against one zoom per label in float64, where the winner is clear."""
    mask = mask_of(shape, 4, seed=sum(shape))
    found = resample_mask(mask, new, separate_axis=separate)
    source = mask
    if separate is not None:
        picked = np.floor((np.arange(new[separate]) + 0.5) * shape[separate] / new[separate]).astype(int)
        source = np.take(mask, picked, separate)
    factors = [b / a for a, b in zip(source.shape, new, strict=True)]
    shares = np.stack(
        [ndimage.zoom((source == k).astype(float), factors, order=1, mode="nearest", grid_mode=True) for k in range(4)]
    )
    second, first = np.sort(shares, axis=0)[-2:]
    clear = first - second > 1e-5
    assert clear.mean() > 0.6
    np.testing.assert_array_equal(found[clear], shares.argmax(axis=0)[clear])
    assert found.flags.c_contiguous
    assert found.dtype == np.uint8


def test_of_equal_shares_the_nearest_voxels_label_wins_if_it_is_among_them():
    # Half the voxels: each new one lies between two old ones, and the later is counted as the nearest.
    line = np.array([1, 2, 5, 0, 3, 3], np.uint8).reshape(6, 1, 1)
    assert resample_mask(line, (3, 1, 1)).ravel().tolist() == [2, 0, 3]
    # Shares 3/8, 3/8 and 2/8: the nearest corner has the label that lost, so the lowest of the tied ones stays.
    corners = np.array([3, 1, 1, 1, 2, 2, 2, 3], np.uint8).reshape(2, 2, 2)
    assert resample_mask(corners, (1, 1, 1)).item() == 1
    corners = np.array([3, 1, 1, 3, 2, 2, 1, 2], np.uint8).reshape(2, 2, 2)
    assert resample_mask(corners, (1, 1, 1)).item() == 2


def test_an_equal_shape_and_a_single_label_are_kept():
    mask = mask_of((6, 5, 4), 3, seed=1)
    same = resample_mask(mask, (6, 5, 4))
    np.testing.assert_array_equal(same, mask)
    assert not np.shares_memory(same, mask)
    assert (resample_mask(np.full((4, 4, 4), 7, np.uint8), (3, 5, 9)) == 7).all()
