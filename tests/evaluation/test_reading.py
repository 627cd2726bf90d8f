"""Files of named structures against each other and against plain label maps, whatever grid each was cut to."""

import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.evaluation import folder_set, match_folders, run_evaluate
from medseg.evaluation.reading import read_maps, read_pair
from medseg.imaging import LabelMap, read_header, write_label_map
from medseg.imaging.dicom_source import open_source
from medseg.imaging.label_table import label_table
from medseg.imaging.seg_nrrd import seg_nrrd_bytes
from medseg.imaging.structures import Naming
from tests.imaging import dicom_samples as samples

LABELS = {"background": (0,), "liver": (1,), "tumour": (2,)}
NAMING = Naming(LABELS)
AFFINE = np.diag([-0.7, -0.7, 2.5, 1.0])


def full(first, last):
    """Liver in planes ``first`` to ``last`` of a 6 x 6 x 8 scan, with a voxel of tumour."""
    array = np.zeros((6, 6, 8), np.uint8)
    array[1:5, 1:5, first:last] = 1
    array[2, 2, first + 1] = 2
    return array


def cut(path, array, box):
    """Writes a .seg.nrrd cut to a box, as 3D Slicer does."""
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [*(part.start for part in box), 1.0])[:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(seg_nrrd_bytes(array[box], affine, label_table(LABELS)))
    return path


def test_segmentations_that_were_cut_differently_share_a_grid(tmp_path):
    one = cut(tmp_path / "a.seg.nrrd", full(1, 5), (slice(1, 5), slice(0, 6), slice(1, 5)))
    other = cut(tmp_path / "b.seg.nrrd", full(3, 8), (slice(0, 6), slice(1, 5), slice(3, 8)))
    for pair in ((one, other), (other, one)):
        found = read_pair(*pair, naming=NAMING)
        assert found[0].shape == found[1].shape == (6, 6, 7)
        np.testing.assert_array_equal(found[0].affine, found[1].affine)
        arrays = {True: full(1, 5)[:, :, 1:], False: full(3, 8)[:, :, 1:]}
        np.testing.assert_array_equal(found[0].array, arrays[pair[0] is one])
        np.testing.assert_array_equal(found[1].array, arrays[pair[0] is not one])


def test_a_plain_label_map_says_the_grid(tmp_path):
    one = cut(tmp_path / "a.seg.nrrd", full(1, 5), (slice(1, 5), slice(0, 6), slice(1, 5)))
    plain = tmp_path / "b.nii.gz"
    write_label_map(LabelMap(full(2, 4), AFFINE), plain, like=None)
    for found in (read_maps((one, plain), naming=NAMING), read_maps((plain, one), naming=NAMING)[::-1]):
        np.testing.assert_array_equal(found[0].array, full(1, 5))
        np.testing.assert_array_equal(found[1].array, full(2, 4))


def test_segmentations_beside_each_other_s_voxels_are_refused(tmp_path):
    one = cut(tmp_path / "a.seg.nrrd", full(1, 5), (slice(0, 6), slice(0, 6), slice(0, 8)))
    moved = tmp_path / "b.seg.nrrd"
    affine = AFFINE.copy()
    affine[2, 3] = 1.2
    moved.write_bytes(seg_nrrd_bytes(full(1, 5), affine, label_table(LABELS)))
    with pytest.raises(GeometryError, match=r"lies up to 0.48 voxels off the scan's voxels"):
        read_pair(one, moved, naming=NAMING)


@pytest.fixture
def dicom_seg(tmp_path):
    """Writes a mask of planes ``first`` to ``last`` of a series of five as DICOM-SEG, which leaves empty planes out."""
    pytest.importorskip("highdicom")
    from medseg.imaging.dicom_seg_writing import write_dicom_seg

    def change(ds, index):
        ds.SOPInstanceUID = f"{samples.SECRET_UID}.2.{index}"

    samples.write_series(tmp_path / "scan", change=change)
    header = read_header(tmp_path / "scan")

    def write(path, first, last):
        array = np.zeros(header.shape, np.uint8)
        array[1:4, 1:4, first:last] = 1
        array[2, 2, 2] = 2
        path.parent.mkdir(parents=True, exist_ok=True)
        source = open_source([tmp_path / "scan"], series_uid=None, like=header)
        label_map = LabelMap(array, header.affine, header)
        write_dicom_seg(label_map, path, source=source, label_table=label_table(LABELS), kind="BINARY")

    return write


def test_two_folders_of_dicom_seg(tmp_path, dicom_seg):
    dicom_seg(tmp_path / "p" / "a.dcm", 0, 4)
    dicom_seg(tmp_path / "r" / "a.seg.dcm", 1, 5)
    (tmp_path / "p" / "scan.dcm").write_bytes(next((tmp_path / "scan").iterdir()).read_bytes())
    assert [pair.case_id for pair in match_folders(tmp_path / "p", tmp_path / "r")] == ["a"]
    cases = folder_set(
        "set", predictions=tmp_path / "p", references=tmp_path / "r", labels="liver=1,tumour=2", metrics="all"
    )
    report = run_evaluate(cases, output=tmp_path / "s", processes=1)
    assert (report.faults, report.exit_code) == ((), 0)
    liver, tumour = report.scores.rows["a"]
    assert liver.values["dice"] == pytest.approx(2 * (3 * 9 - 1) / (8 * 9 - 2))
    assert tumour.values["dice"] == 1.0
