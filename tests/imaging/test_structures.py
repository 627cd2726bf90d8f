import numpy as np
import pytest

from medseg.errors import GeometryError, LabelError
from medseg.imaging import Header
from medseg.imaging.structures import Naming, Painter, Way

LABELS = {"background": (0,), "left lung": (3,), "tumour": (7,)}
EVERYTHING = (slice(None), slice(None), slice(None))


def test_names_match_whatever_their_case_and_punctuation():
    found = {1: "BODY", 4: "Left_Lung", 9: "TUMOUR", 12: "couch"}
    assert Naming(LABELS).match(found, "a.dcm") == ({"left lung": (4,), "tumour": (9,)}, 2)
    aliases = Naming(LABELS, {"tumour": ("GTV-1", "couch")})
    assert aliases.match(found | {2: "gtv 1"}, "a.dcm")[0]["tumour"] == (9, 12, 2)


def test_one_structure_is_of_the_only_class():
    only = Naming({"background": (0,), "tumour": (1,)})
    assert only.match({5: "GTV_Mass_CT"}, "a.dcm") == ({"tumour": (5,)}, 0)
    with_alias = Naming({"background": (0,), "tumour": (1,)}, {"tumour": ("GTV_Mass_CT",)})
    assert with_alias.match({5: "GTV_Mass_CT"}, "a.dcm") == ({"tumour": (5,)}, 0)
    with pytest.raises(LabelError, match="none of its 1 structures"):
        with_alias.match({5: "BODY"}, "a.dcm")
    assert Naming().match({5: "GTV", 2: "x"}, "a.dcm") == ({"2": (2,), "5": (5,)}, 0)
    assert only.match({}, "a.dcm") == ({}, 0)


def test_names_of_a_file_reach_no_message():
    with pytest.raises(LabelError, match="none of its 2 structures is called as a class") as caught:
        Naming(LABELS).match({1: "SMITH^JOHN", 2: "b"}, "a.dcm")
    assert "SMITH" not in str(caught.value)


def painted(labels, *masks):
    painter = Painter((2, 2, 1), Naming(labels), "a.dcm")
    for name, mask in masks:
        painter.paint(name, EVERYTHING, np.array(mask, bool)[:, :, None])
    header = Header(shape=(2, 2, 1), affine=np.eye(4))
    return painter.label_map(np.eye(4), header, passed_over=0)


def test_a_later_class_is_painted_over_an_earlier_one_and_told():
    found = painted(LABELS, ("left lung", [[1, 1], [0, 0]]), ("tumour", [[0, 1], [1, 0]]))
    assert found.array[:, :, 0].tolist() == [[3, 7], [7, 0]]
    assert found.header.warnings == ("1 voxels are in two structures and count to the later class",)


def test_regions_get_the_value_of_their_combination():
    labels = {"background": (0,), "whole": (1, 2), "core": (2,)}
    found = painted(labels, ("whole", [[1, 1], [0, 0]]), ("core", [[0, 1], [0, 0]]))
    assert found.array[:, :, 0].tolist() == [[1, 2], [0, 0]]
    assert found.header.warnings == ()


def test_frames_are_put_on_axes_of_another_order_and_sense():
    # The grid's axes: 0 against the frame's rows, 1 along the normal, 2 along its columns.
    frame = np.diag([2.0, 3.0, 5.0, 1.0])
    grid = np.array([[0, 0, 2.0, 0], [-3.0, 0, 0, 9], [0, 5.0, 0, -5], [0, 0, 0, 1]])
    way = Way(frame, (4, 3, 6), grid, "a.dcm")
    mask = np.zeros((6, 4), bool)
    mask[1, 0] = mask[1, 1] = mask[2, 1] = True
    place, turned = way.onto(frame, mask, "frame 1")
    array = np.zeros((4, 3, 6), bool)
    array[place] = turned
    assert sorted(map(tuple, np.argwhere(array).tolist())) == [(2, 1, 1), (2, 1, 2), (3, 1, 1)]
    shifted = frame.copy()
    shifted[0, 3] = 1.0
    with pytest.raises(GeometryError, match=r"frame 2 lies up to 0.5 voxels off the scan's voxels"):
        way.onto(shifted, mask, "frame 2")
    shifted[0, 3] = 10.0
    with pytest.raises(GeometryError, match="frame 3 has voxels outside the scan"):
        way.onto(shifted, mask, "frame 3")
