import numpy as np
import pytest

from medseg.errors import LabelError
from medseg.imaging import IGNORE, LabelMap, from_classes, to_classes

LABELS = {"background": (0,), "liver": (5, 6), "tumour": (200,)}


def label_map(values, dtype):
    return LabelMap(np.array(values, dtype).reshape(-1, 1, 1), np.eye(4))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_become_class_indices(dtype, order):
    labels = LabelMap(np.array([[[0, 5], [6, 200]], [[9, 0], [200, 5]]], dtype, order=order), np.eye(4))
    classes = to_classes(labels, LABELS, ignore=9, name="a.nii")
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[[0, 1], [1, 2]], [[IGNORE, 0], [2, 1]]]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_unknown_values_are_listed_with_counts(dtype):
    with pytest.raises(
        LabelError, match=r"^a\.nii: label values are 7 \(2 voxels\), 9 \(1 voxel\), expected only 0, 5, 6, 200; "
    ):
        to_classes(label_map([0, 7, 5, 9, 7], dtype), LABELS, ignore=None, name="a.nii")


def test_values_outside_the_type():
    with pytest.raises(LabelError, match=r"label values are -1 \(1 voxel\)"):
        to_classes(label_map([0, -1], "int16"), LABELS, ignore=None, name="a")
    with pytest.raises(LabelError, match=r"label values are 1099511627776 \(1 voxel\)"):
        to_classes(label_map([0, 2**40], "int64"), LABELS, ignore=None, name="a")
    # 56 = 200 - 144 and 255 - 199: no wrapping round of values that the type can't hold
    assert to_classes(label_map([1], "uint8"), {"a": (1,), "b": (257,)}, ignore=None, name="a").tolist() == [[[0]]]


def test_negative_and_big_label_values():
    labels = {"background": (-1,), "a": (300,), "b": (70000,)}
    assert to_classes(label_map([-1, 300], "int16"), labels, ignore=None, name="a").ravel().tolist() == [0, 1]
    assert to_classes(label_map([70000, -1], "int32"), labels, ignore=None, name="a").ravel().tolist() == [2, 0]


def test_many_unknown_values_are_cut_short():
    with pytest.raises(LabelError, match=r"17 \(1 voxel\) and 12 more, expected only 0"):
        to_classes(label_map(np.arange(10, 30), "uint8"), {"background": (0,)}, ignore=None, name="a")


def test_too_many_classes():
    labels = {f"c{k}": (k,) for k in range(255)}
    with pytest.raises(LabelError, match="has 255 classes, expected at most 254"):
        to_classes(label_map([0], "uint8"), labels, ignore=None, name="a")


def test_from_classes_takes_the_first_value_in_the_smallest_type():
    classes = np.array([[[0, 1], [2, 2]]], np.uint8)
    values = from_classes(classes, LABELS)
    assert values.dtype == np.uint8
    assert values.tolist() == [[[0, 5], [200, 200]]]
    assert from_classes(classes, {"a": (0,), "b": (1,), "c": (300,)}).dtype == np.uint16
    assert from_classes(classes, {"a": (-1,), "b": (1,), "c": (200,)}).dtype == np.int16
    turned = np.asfortranarray(np.zeros((3, 4, 5), np.uint8))
    turned[1, 2, 3] = 1
    np.testing.assert_array_equal(from_classes(turned, LABELS), turned * 5)


def test_from_classes_refuses_unknown_indices():
    with pytest.raises(LabelError, match="run from 0 to 255, expected 0 to 2"):
        from_classes(np.array([[[0, IGNORE]]], np.uint8), LABELS)
