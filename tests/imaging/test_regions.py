import numpy as np
import pytest

from medseg.errors import LabelError
from medseg.imaging import LabelMap, from_classes, to_classes
from medseg.imaging.regions import MOST_REGIONS, Regions, index_labels, overlap, regions_of
from medseg.imaging.resampling import scores_to_sets
from medseg.manifest import schema

# BraTS: oedema 1 is only part of the whole tumour, necrosis 2 of the core too, enhancing 3 of all three.
TUMOUR = {"background": (0,), "whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
# Two that cross: 3 is in both.
CROSSING = {"background": (0,), "a": (1, 3), "b": (2, 3)}
APART = {"background": (0,), "liver": (1,), "tumour": (2, 3)}


def test_only_a_value_of_two_labels_is_an_overlap():
    assert [overlap(labels) for labels in (TUMOUR, CROSSING, APART)] == [True, True, False]
    assert regions_of(APART) is None
    assert index_labels(APART) == APART


def test_combinations_take_the_place_of_classes():
    assert index_labels(TUMOUR) == {
        "background": (0,), "whole": (1,), "whole+core": (2,), "whole+core+enhancing": (3,),
    }  # fmt: skip
    assert index_labels(CROSSING) == {"background": (0,), "a": (1,), "a+b": (3,), "b": (2,)}
    assert index_labels({"background": (0,), "all": (4, 1, 2), "part": (2,)}) == {
        "background": (0,), "all": (4, 1), "all+part": (2,),
    }  # fmt: skip


def test_members():
    assert Regions(TUMOUR).members == (
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, True),
    )
    assert Regions(TUMOUR).indices_of("core") == (2, 3)
    assert Regions(CROSSING).indices_of("b") == (2, 3)


def codes(*names, labels):
    order = Regions(labels).names
    return sum(1 << order.index(name) for name in names)


@pytest.mark.parametrize(
    ("found", "value"),
    [
        ((), 0),
        (("whole",), 1),
        (("whole", "core"), 2),
        (("whole", "core", "enhancing"), 3),
        # what no voxel of the labels is: painted one over the other, the last one stays (nnU-Net's regions_class_order)
        (("core",), 2),
        (("enhancing",), 3),
        (("whole", "enhancing"), 3),
    ],
)
def test_what_a_set_of_regions_is_written_as(found, value):
    index = Regions(TUMOUR).join(np.array([codes(*found, labels=TUMOUR)], np.uint16))
    assert from_classes(index, TUMOUR).tolist() == [value]


def test_regions_that_cross_keep_their_own_value():
    sets = [codes(*names, labels=CROSSING) for names in ((), ("a",), ("b",), ("a", "b"))]
    assert from_classes(Regions(CROSSING).join(np.array(sets, np.uint16)), CROSSING).tolist() == [0, 1, 2, 3]


def test_there_and_back():
    values = np.array([[[0, 1, 2, 3, 9]]], np.uint8)
    classes = to_classes(LabelMap(values, np.eye(4), None), TUMOUR, ignore=9, name="a")
    assert classes.tolist() == [[[0, 1, 2, 3, 255]]]
    np.testing.assert_array_equal(from_classes(classes[..., :4], TUMOUR), values[..., :4])
    with pytest.raises(LabelError, match="label values are 9"):
        to_classes(LabelMap(values, np.eye(4), None), TUMOUR, ignore=None, name="a")


def test_a_voxel_is_in_the_regions_whose_logit_is_above_0():
    regions = Regions(TUMOUR)
    logits = np.array([[0.0, 0.1, 5, 5], [-1, -1, 0.2, 5], [-1, -1, -1, 0.3]], np.float32)
    assert regions.decide(logits[:, None, None, :]).tolist() == [[[0, 1, 2, 3]]]
    sets = scores_to_sets(logits[:, :, None, None], (4, 1, 1))
    assert regions.join(sets).ravel().tolist() == [0, 1, 2, 3]


def test_logits_are_resampled_before_they_are_judged():
    # One row of -1, 2 at twice the voxels: edges kept, so -1, -0.25, 1.25, 2.
    logits = np.array([[-1.0, 2.0]], np.float32)[:, :, None, None]
    assert scores_to_sets(logits, (4, 1, 1)).ravel().tolist() == [0, 0, 1, 1]
    many = np.random.default_rng(0).normal(size=(3, 9, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(scores_to_sets(many, (20, 7, 5), slab=3), scores_to_sets(many, (20, 7, 5), slab=64))


def test_the_manifest_refuses_more_regions_than_fit():
    assert schema._MAX_OVERLAPPING == MOST_REGIONS
