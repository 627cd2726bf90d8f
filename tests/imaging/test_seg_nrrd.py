import gzip

import numpy as np
import pytest
import SimpleITK

from medseg.errors import GeometryError, LabelError
from medseg.imaging import LabelMap, read_label_map
from medseg.imaging.label_table import itk_snap_text, label_table
from medseg.imaging.seg_nrrd import read_segments, seg_nrrd_bytes
from medseg.imaging.writing import write_seg_nrrd

LABELS = {"background": (0,), "left lung": (3,), "tumour": (7,)}
REGIONS = {"background": (0,), "whole": (1, 2), "core": (2,)}
AFFINE = np.array([[0, -0.8, 0, 30.0], [0.7, 0, 0, -12], [0, 0, 2.5, 4], [0, 0, 0, 1]])


def label_map(labels):
    values = [own[0] for own in labels.values()]
    return LabelMap(np.random.default_rng(1).choice(values, (5, 4, 3)).astype(np.uint8), AFFINE)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_what_is_written_is_read_with_names_and_colours(tmp_path, labels):
    path, wanted = tmp_path / "a.seg.nrrd", label_map(labels)
    first = list(labels)[1]
    write_seg_nrrd(wanted, path, label_table=label_table(labels, {first: {"colour": [255, 0, 51]}}), like=None)
    found = read_label_map(path, naming=labels)
    np.testing.assert_array_equal(found.array, wanted.array)
    np.testing.assert_allclose(found.affine, AFFINE)
    segments = tuple(read_segments(path).values())
    assert [one.name for one in segments] == list(labels)[1:]
    assert segments[0].colour == (255, 0, 51)
    first_bytes = path.read_bytes()
    write_seg_nrrd(wanted, path, label_table=label_table(labels, {first: {"colour": [255, 0, 51]}}), like=None)
    assert path.read_bytes() == first_bytes


def test_simpleitk_reads_the_values_as_they_are(tmp_path):
    write_seg_nrrd(label_map(LABELS), tmp_path / "a.seg.nrrd", label_table=label_table(LABELS), like=None)
    image = SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), label_map(LABELS).array)
    assert image.GetMetaData("Segment1_Name") == "tumour"
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.seg.nrrd").array, label_map(LABELS).array)


def test_a_cropped_file_is_put_on_its_scan(tmp_path):
    """3D Slicer stores the smallest box that holds the segments."""
    whole = np.zeros((8, 7, 6), np.uint8)
    whole[2:4, 3:6, 1:3], whole[3, 3, 1] = 3, 7
    box = AFFINE.copy()
    box[:3, 3] += AFFINE[:3, :3] @ (2, 3, 1)
    cropped = seg_nrrd_bytes(whole[2:4, 3:6, 1:3], box, label_table(LABELS))
    (tmp_path / "a.seg.nrrd").write_bytes(cropped)
    scan = LabelMap(np.zeros_like(whole), AFFINE)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.seg.nrrd", naming=LABELS, like=scan).array, whole)
    smaller = LabelMap(np.zeros((3, 7, 6), np.uint8), AFFINE)
    with pytest.raises(GeometryError, match="slice 1 has voxels outside the scan"):
        read_label_map(tmp_path / "a.seg.nrrd", naming=LABELS, like=smaller)


def test_one_without_segments_is_a_plain_label_map_and_foreign_names_are_refused(tmp_path):
    data = seg_nrrd_bytes(label_map(LABELS).array, AFFINE, label_table(LABELS))
    head, _, rest = data.partition(b"\n\n")
    plain = b"\n".join(line for line in head.splitlines() if not line.startswith(b"Segment"))
    (tmp_path / "a.seg.nrrd").write_bytes(plain + b"\n\n" + rest)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.seg.nrrd").array, label_map(LABELS).array)
    assert len(gzip.decompress(rest)) == 60
    (tmp_path / "b.seg.nrrd").write_bytes(data)
    with pytest.raises(
        LabelError, match="none of its 2 structures is called as a class, expected one of liver, spleen"
    ):
        read_label_map(tmp_path / "b.seg.nrrd", naming={"background": (0,), "liver": (1,), "spleen": (2,)})


def test_itk_snap_names_each_value():
    lines = itk_snap_text(label_table(REGIONS, {"core": {"colour": [1, 2, 3]}})).splitlines()
    assert lines[1].split() == ["0", "0", "0", "0", "0", "0", "0", '"Clear', 'Label"']
    assert lines[2].split() == ["1", "230", "159", "0", "1", "1", "1", '"whole"']
    assert lines[3].split() == ["2", "1", "2", "3", "1", "1", "1", '"whole+core"']
