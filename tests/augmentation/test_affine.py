import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.augmentation.affine import box_around, resample_box
from medseg.augmentation.gathering import Turned, resample_boxes

ROOM = 40


def scan(seed=0, shape=(24, 20, 22), classes=4):
    """Smooth noise and its grey bands as labels."""
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5).astype(np.float32)
    return image, np.digitize(image, np.quantile(image, np.arange(1, classes) / classes)).astype(np.uint8)


def rotation(degrees, axes=(0, 1)):
    matrix = np.eye(3)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix[np.ix_(axes, axes)] = [[cos, -sin], [sin, cos]]
    return matrix


MATRICES = {
    "about z": rotation(25),
    "about x": rotation(-100, (1, 2)),
    "free": rotation(20) @ rotation(-15, (1, 2)) @ rotation(28, (0, 2)),
    "scaled": np.eye(3) * 0.77,
    "turned, scaled, sheared and mirrored": rotation(12) @ rotation(31, (1, 2)) @ np.diag([1.3, -0.8, 1.1]),
    "in plane, mirrored through it": rotation(40, (0, 2)) @ np.diag([1.2, -1, 1.2]),
}


def read(array, start, shape):
    box = tuple(slice(s + ROOM, s + ROOM + n) for s, n in zip(start, shape, strict=True))
    return np.ascontiguousarray(np.pad(array, ROOM)[box])


def resampled(image, labels, matrix, start, size):
    box = box_around(matrix, start, size)
    out_image, out_labels = torch.full((1, *size), np.nan), torch.full(size, 99, dtype=torch.uint8)
    resample_box(
        box,
        torch.from_numpy(read(image, box.start_xyz, box.shape_xyz))[None],
        torch.from_numpy(read(labels, box.start_xyz, box.shape_xyz)),
        out_image=out_image,
        out_labels=out_labels,
    )
    return out_image[0].numpy(), out_labels.numpy()


def by_scipy(image, labels, matrix, start, size):
    """The same with map_coordinates, one plane per class and an argmax."""
    offsets = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in size], indexing="ij"), -1)
    points = offsets @ matrix.T + np.asarray(start) + (np.asarray(size) - 1) / 2 + ROOM

    def at(array):
        return ndimage.map_coordinates(array.astype(float), points.reshape(-1, 3).T, order=1).reshape(size)

    padded = np.pad(labels, ROOM)
    shares = np.stack([at(padded == value) for value in range(256) if (padded == value).any()])
    values = np.array([value for value in range(256) if (padded == value).any()])
    return at(np.pad(image, ROOM)), values[shares.argmax(axis=0)], np.sort(shares, axis=0)[-2:]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("start", [(5, 4, 3), (-3, 6, 12)])
def test_equals_scipy_for_the_image_and_argmax_of_shares_for_labels(name, start):
    image, labels = scan()
    labels[3:6] = 255  # nobody labelled these: as good as a class
    size = (13, 12, 10)
    found = resampled(image, labels, MATRICES[name], start, size)
    expected_image, expected_labels, best = by_scipy(image, labels, MATRICES[name], start, size)
    np.testing.assert_allclose(found[0], expected_image, atol=2e-6)
    clear = best[1] - best[0] > 1e-5  # where two labels have the same share rounding decides
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[1][clear], expected_labels[clear])


def test_the_identity_changes_nothing_and_asks_for_no_more():
    image, labels = scan()
    box = box_around(np.diag([1.0, -1.0, 1.0]), (2, -3, 4), (9, 8, 7))
    assert (box.start_xyz, box.shape_xyz, box.moved) == ((2, -3, 4), (9, 8, 7), ())
    found = resampled(image, labels, np.diag([1.0, -1.0, 1.0]), (2, -3, 4), (9, 8, 7))
    np.testing.assert_array_equal(found[0], read(image, (2, -3, 4), (9, 8, 7))[:, ::-1])
    np.testing.assert_array_equal(found[1], read(labels, (2, -3, 4), (9, 8, 7))[:, ::-1])


def test_a_quarter_turn_is_a_rotation_of_the_array():
    image, labels = scan(shape=(12, 10, 8))
    # output offset (x, y) samples the scan at (-y, x): np.rot90 by one turn from axis 0 to 1, the other way round
    found = resampled(image, labels, rotation(90), (1, 0, 0), (10, 10, 8))
    np.testing.assert_allclose(found[0], np.rot90(image[1:11], k=-1), atol=1e-5)
    np.testing.assert_array_equal(found[1], np.rot90(labels[1:11], k=-1))


def test_halving_the_scale_doubles_the_structure():
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[12:20, 12:20, 12:20] = 1
    _, larger = resampled(labels.astype(np.float32), labels, np.eye(3) * 0.5, (0, 0, 0), (32, 32, 32))
    # sampled a quarter voxel inside each face: a face voxel's share is 3/4, an edge's 9/16, a corner's 27/64 < 1/2
    assert int((larger == 1).sum()) == 16**3 - 8


@pytest.mark.parametrize(("labels", "winner"), [((3, 1), 1), ((255, 2), 2)])
def test_of_equal_shares_the_lowest_label_wins(labels, winner):
    # A patch of one voxel between two: half a voxel along x, by a patch that is two voxels long and squeezed to nothing.
    array = np.zeros((2, 1, 1), np.uint8)
    array[:, 0, 0] = labels
    _, found = resampled(array.astype(np.float32), array, np.diag([0.0, 1.0, 1.0]), (0, 0, 0), (2, 1, 1))
    assert found.ravel().tolist() == [winner, winner]


def test_three_labels_meet_without_any_having_half():
    array = np.zeros((2, 2, 1), np.uint8)
    array[:, :, 0] = [[7, 3], [5, 5]]
    # every voxel of the patch lies at (0.5, 0.5): 7 and 3 have a quarter, 5 a half; at x = 0.4 it is 0.3, 0.3 and 0.4
    for x, expected in ((0.5, 5), (0.4, 5), (0.1, 3)):
        matrix = np.diag([0.0, 0.0, 1.0])
        box = box_around(matrix, (0, 0, 0), (2, 2, 1))
        box = type(box)(
            box.start_xyz, box.shape_xyz, matrix, (box.centre_xyz[0] - 0.5 + x, *box.centre_xyz[1:]), box.moved
        )
        out = torch.empty((2, 2, 1), dtype=torch.uint8)
        content = torch.from_numpy(read(array, box.start_xyz, box.shape_xyz))
        resample_box(box, content[None].float(), content, out_image=torch.empty(1, 2, 2, 1), out_labels=out)
        assert out.unique().tolist() == [expected]


def test_a_slice_stays_in_its_slice():
    labels = np.broadcast_to(np.arange(1, 23, dtype=np.uint8), (24, 20, 22)).copy()
    image, found = resampled(labels.astype(np.float32), labels, rotation(33), (6, 4, 9), (8, 8, 1))
    assert set(found.ravel().tolist()) == {10}
    np.testing.assert_allclose(image, 10)


def test_the_number_of_threads_changes_no_bit():
    image, labels = scan(shape=(70, 60, 50))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(resampled(image, labels, MATRICES["free"], (3, 2, 1), (64, 48, 48)))
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        np.testing.assert_array_equal(found[0], results[0][0])
        np.testing.assert_array_equal(found[1], results[0][1])


def test_all_at_once_gives_the_same_as_one_at_a_time():
    image, labels = scan()
    labels[:2] = 255
    size, turned, expected = (12, 10, 8), [], []
    for row, matrix in enumerate(MATRICES.values()):
        box = box_around(matrix, (4, 3, 5 + row), size)
        content = read(image, box.start_xyz, box.shape_xyz)[None], read(labels, box.start_xyz, box.shape_xyz)
        turned.append(Turned(row + 1, box, np.concatenate([content[0], -content[0]]), content[1]))
        expected.append(resampled(image, labels, matrix, (4, 3, 5 + row), size))
    images, classes = torch.full((8, 2, *size), 5.0), torch.full((8, *size), 77, dtype=torch.uint8)
    resample_boxes(turned, images, classes)
    for row in (0, 7):  # not theirs
        assert images[row].unique().tolist() == [5.0]
        assert classes[row].unique().tolist() == [77]
    for row, (one_image, one_labels) in enumerate(expected, 1):
        np.testing.assert_allclose(images[row, 0].numpy(), one_image, atol=1e-6)
        np.testing.assert_array_equal(images[row, 0].numpy(), -images[row, 1].numpy())
        assert (classes[row].numpy() != one_labels).mean() < 1e-3  # near-equal shares are settled by rounding


def test_no_turned_patch_is_no_work():
    images, classes = torch.ones(2, 1, 3, 3, 3), torch.ones(2, 3, 3, 3, dtype=torch.uint8)
    resample_boxes([], images, classes)
    assert images.unique().tolist() == [1.0]
