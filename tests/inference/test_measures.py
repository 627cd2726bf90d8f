"""Sizes of classes, worked out on paper."""

import numpy as np
import pytest

from medseg.imaging import Regions
from medseg.inference.measures import measure_classes

NAMES = ("background", "organ", "lesion", "absent")


def test_counts_volumes_and_borders():
    classes = np.zeros((6, 5, 4), np.uint8)
    classes[2:4, 1:4, 1:3] = 1
    classes[0, 2, 2] = 2
    affine = np.diag([2.0, -1.0, 5.0, 1.0])
    measures = measure_classes(classes, class_names=NAMES, affine=affine)
    assert measures.voxels == {"organ": 12, "lesion": 1, "absent": 0}
    assert measures.volume_ml == pytest.approx({"organ": 0.12, "lesion": 0.01, "absent": 0.0})
    assert measures.touches_border == {"organ": False, "lesion": True, "absent": False}


@pytest.mark.parametrize("corner", [(0, 2, 2), (-1, 2, 2), (2, 0, 2), (2, -1, 2), (2, 2, 0), (2, 2, -1)])
def test_every_face_counts(corner):
    classes = np.zeros((5, 5, 5), np.uint8)
    classes[corner] = 1
    assert measure_classes(classes, class_names=NAMES[:2], affine=np.eye(4)).touches_border == {"organ": True}


def test_a_picture_has_no_volume_and_no_face_along_z():
    classes = np.zeros((5, 5, 1), np.uint8)
    classes[2, 2, 0] = 1
    measures = measure_classes(classes, class_names=NAMES[:2], affine=np.eye(4), planar=True)
    assert (measures.voxels, measures.volume_ml, measures.touches_border) == ({"organ": 1}, {}, {"organ": False})


def test_overlapping_regions_count_as_a_whole():
    regions = Regions({"background": (0,), "organ": (1, 2), "lesion": (2,)})
    classes = np.zeros((5, 5, 5), np.uint8)
    classes[1:3, 2, 2], classes[0, 2, 2] = 1, 2
    measures = measure_classes(classes, class_names=tuple(regions.labels), affine=np.eye(4), regions=regions)
    assert measures.voxels == {"organ": 3, "lesion": 1}
    assert measures.touches_border == {"organ": True, "lesion": True}
