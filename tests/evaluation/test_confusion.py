import math

import numpy as np
import pytest

from medseg.evaluation import confusion
from medseg.evaluation.confusion import count_confusion
from medseg.evaluation.overlap import count_overlap


def counted_one_by_one(prediction, reference, classes):
    matrix = np.zeros((classes, classes), int)
    for p, r in zip(prediction.ravel(), reference.ravel(), strict=True):
        matrix[p, r] += 1
    return matrix


@pytest.mark.parametrize("shape", [(7,), (9, 8), (6, 7, 5), (3, 4, 5, 2), (1, 1, 1), (0, 3)])
@pytest.mark.parametrize("share", [0.02, 0.9])
@pytest.mark.parametrize("chunk", [1, 2**19])
def test_equal_to_counting_one_by_one(monkeypatch, shape, share, chunk):
    monkeypatch.setattr(confusion, "_CHUNK_VOXELS", chunk)
    rng = np.random.default_rng(2)
    prediction, reference = (rng.integers(0, 4, (2, *shape)) * (rng.random((2, *shape)) < share)).astype(np.uint8)
    found = count_confusion(prediction, reference, classes=4)
    assert found.matrix.tolist() == counted_one_by_one(prediction, reference, 4).tolist()
    for k in (1, 2, 3):
        assert found.counts((k,)) == count_overlap(prediction == k, reference == k)
        where = np.argwhere((prediction == k) | (reference == k))
        wanted = [(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True)] if len(where) else None
        box = found.boxes[k]
        assert (box and [(own.start, own.stop) for own in box]) == wanted
    whole = count_overlap(np.isin(prediction, (1, 3)), np.isin(reference, (1, 3)))
    assert found.counts((1, 3)) == whole


def test_box_of_several_classes():
    labels = np.zeros((9, 9), np.uint8)
    labels[1, 2], labels[6, 4] = 1, 2
    found = count_confusion(labels, labels * 0, classes=4)
    assert found.box((1, 2)) == (slice(1, 7), slice(2, 5))
    assert labels[found.box((3,))].size == 0
    assert found.boxes[0] is None


def test_arrays_in_any_memory_order():
    rng = np.random.default_rng(1)
    prediction, reference = rng.integers(0, 3, (2, 6, 5, 4)).astype(np.uint8)
    wanted = count_confusion(prediction, reference, classes=3)
    for turn in (np.asfortranarray, lambda array: np.pad(array, 1)[1:-1, 1:-1, 1:-1]):
        found = count_confusion(turn(prediction), turn(reference), classes=3)
        assert found.matrix.tolist() == wanted.matrix.tolist()
        assert found.boxes == wanted.boxes


def test_values_on_paper():
    # Of 10 pixels of background 8 are right and 2 called 1; of 4 of class 1 three are right and one called background.
    reference = np.array([0] * 10 + [1] * 4, np.uint8)
    prediction = np.array([0] * 8 + [1] * 2 + [1] * 3 + [0], np.uint8)
    found = count_confusion(prediction, reference, classes=3)  # class 2 is nowhere and left out
    assert confusion.pixel_accuracy(found) == 11 / 14
    assert confusion.mean_iou(found) == pytest.approx((8 / 11 + 3 / 6) / 2, rel=1e-15)
    assert confusion.frequency_weighted_iou(found) == pytest.approx((10 * 8 / 11 + 4 * 3 / 6) / 14, rel=1e-15)


def test_ignored_voxels_are_in_no_count():
    labels = np.array([0, 0, 0, 1, 1], np.uint8)
    found = count_confusion(labels, labels, classes=2, ignored=2)
    assert found.matrix.tolist() == [[1, 0], [0, 2]]


def test_no_voxel_is_undefined():
    found = count_confusion(np.zeros((0,), np.uint8), np.zeros((0,), np.uint8), classes=2)
    for metric in (confusion.pixel_accuracy, confusion.mean_iou, confusion.frequency_weighted_iou):
        assert math.isnan(metric(found))
