"""DICOM-SEG and RTSTRUCT, read and written: on synthetic series, and on the real ones where they are."""

import warnings

import numpy as np
import pytest
from pydicom import dcmread

from medseg.errors import EnvironmentFault, GeometryError, LabelError, ScanError
from medseg.imaging import LabelMap, read_header, read_label_map, structure_check
from medseg.imaging.dicom_source import open_source
from medseg.imaging.label_table import label_table
from medseg.imaging.rtstruct_writing import write_rtstruct
from tests.imaging import dicom_samples as samples

LABELS = {"background": (0,), "liver": (2,), "tumour": (5,)}
REGIONS = {"background": (0,), "whole": (1, 2), "core": (2,)}
ORIENTATIONS = {
    "axial": samples.AXIAL,
    "column cosine 0 -1 0": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (0.8, 0.6, 0.0, 0.0, 0.0, -1.0),
}


def series(folder, orientation=samples.AXIAL, change=None):
    def own_uids(ds, index):
        ds.SOPInstanceUID = f"{samples.SECRET_UID}.2.{index}"
        if change is not None:
            change(ds, index)

    samples.write_series(folder, orientation=orientation, change=own_uids)
    return read_header(folder)


def write(kind, label_map, path, scan):
    """With the writer of ``kind``, imported only where it is asked for."""
    if kind == "rtstruct":
        write_rtstruct(label_map, path, source=scan, label_table=label_table(LABELS))
    else:
        from medseg.imaging.dicom_seg_writing import write_dicom_seg

        write_dicom_seg(label_map, path, source=scan, label_table=label_table(LABELS))


def mask(header, labels, seed=0):
    values = [own[0] for own in labels.values()]
    array = np.random.default_rng(seed).choice(values, header.shape).astype(np.uint8)
    array[:, :, 1] = 0
    return LabelMap(array, header.affine, header)


def source(folder, header):
    return open_source([folder], series_uid=None, like=header)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_rtstruct_out_and_in(tmp_path, labels, orientation):
    header = series(tmp_path / "scan", orientation)
    wanted, path = mask(header, labels), tmp_path / "a.dcm"
    write_rtstruct(wanted, path, source=source(tmp_path / "scan", header), label_table=label_table(labels))
    found = read_label_map(path, naming=labels, like=header)
    np.testing.assert_array_equal(found.array, wanted.array)
    assert found.header.warnings == ()


@pytest.mark.parametrize(
    "orientation",
    [
        pytest.param(value, id=name, marks=pytest.mark.slow if name in ("sagittal", "oblique") else ())
        for name, value in ORIENTATIONS.items()
    ],
)
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_dicom_seg_out_and_in(tmp_path, kind, orientation):
    pytest.importorskip("highdicom")
    from medseg.imaging.dicom_seg_writing import write_dicom_seg

    header = series(tmp_path / "scan", orientation)
    wanted, path = mask(header, LABELS), tmp_path / "a.dcm"
    table = label_table(LABELS, {"liver": {"code": "10200004", "meaning": "Liver", "colour": [200, 100, 50]}})
    write_dicom_seg(wanted, path, source=source(tmp_path / "scan", header), label_table=table, kind=kind)
    np.testing.assert_array_equal(read_label_map(path, naming=LABELS, like=header).array, wanted.array)
    # Where each voxel lies by the object's own header, worked out here with DICOM's formula (PS3.3, C.7.6.2.1.1).
    dataset = dcmread(path)
    segment = next(one for one in dataset.SegmentSequence if one.SegmentLabel == "liver")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    frames = dataset.pixel_array
    places = []
    for groups, frame in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        if kind == "LABELMAP":
            rows, columns = np.nonzero(frame == segment.SegmentNumber)
        elif groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment.SegmentNumber:
            rows, columns = np.nonzero(frame)
        else:
            continue
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        row, column = np.array(orientation[:3]), np.array(orientation[3:])
        places.append(position + np.outer(columns * samples.COLUMN_MM, row) + np.outer(rows * samples.ROW_MM, column))
    centroid_lps = np.concatenate(places).mean(axis=0)
    expected = (np.argwhere(wanted.array == 2) @ header.affine[:3, :3].T + header.affine[:3, 3]).mean(axis=0)
    np.testing.assert_allclose(centroid_lps * [-1, -1, 1], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_the_same_mask_is_the_same_object_and_an_empty_one_is_written(tmp_path, kind):
    pytest.importorskip("highdicom")
    from medseg.imaging.dicom_seg_writing import write_dicom_seg

    header = series(tmp_path / "scan")
    empty = LabelMap(np.zeros(header.shape, np.uint8), header.affine, header)
    for wanted in (mask(header, LABELS), empty):
        for name in ("a.dcm", "b.dcm"):
            scan = source(tmp_path / "scan", header)
            write_dicom_seg(wanted, tmp_path / name, source=scan, label_table=label_table(LABELS), kind=kind)
        assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    assert not read_label_map(tmp_path / "a.dcm", naming=LABELS, like=header).array.any()


def test_overlapping_structures_are_binary_only(tmp_path):
    pytest.importorskip("highdicom")
    from medseg.imaging.dicom_seg_writing import write_dicom_seg

    header = series(tmp_path / "scan")
    scan, table, wanted = source(tmp_path / "scan", header), label_table(REGIONS), mask(header, REGIONS)
    write_dicom_seg(wanted, tmp_path / "a.dcm", source=scan, label_table=table)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.dcm", naming=REGIONS, like=header).array, wanted.array)
    with pytest.raises(ScanError, match="structures overlap, which a LABELMAP can't hold"):
        write_dicom_seg(wanted, tmp_path / "b.dcm", source=scan, label_table=table, kind="LABELMAP")
    assert not (tmp_path / "b.dcm").exists()


def test_a_written_file_that_is_wrong_never_gets_its_name(tmp_path, monkeypatch):
    header = series(tmp_path / "scan")
    wrong = mask(header, LABELS, seed=1)
    monkeypatch.setattr(structure_check, "read_label_map", lambda *args, **kwargs: wrong)
    scan, table, wanted = source(tmp_path / "scan", header), label_table(LABELS), mask(header, LABELS)
    with pytest.raises(EnvironmentFault, match=r"a.dcm: written file reads back wrong .* voxels of liver differ"):
        write_rtstruct(wanted, tmp_path / "a.dcm", source=scan, label_table=table)
    assert not (tmp_path / "a.dcm").exists()


def test_a_structure_without_contours_is_an_empty_class(tmp_path):
    header = series(tmp_path / "scan")
    wanted, scan = mask(header, {"background": (0,), "liver": (2,)}), source(tmp_path / "scan", header)
    write_rtstruct(wanted, tmp_path / "a.dcm", source=scan, label_table=label_table(LABELS))
    found = read_label_map(tmp_path / "a.dcm", naming=LABELS, like=header)
    np.testing.assert_array_equal(found.array, wanted.array)
    assert found.header.warnings == ()
    only_empty = {"background": (0,), "tumour": (5,), "spleen": (6,)}
    assert not read_label_map(tmp_path / "a.dcm", naming=only_empty, like=header).array.any()


def test_contours_need_the_scan_they_were_drawn_on(tmp_path):
    header = series(tmp_path / "scan")
    path, scan = tmp_path / "a.dcm", source(tmp_path / "scan", header)
    write_rtstruct(mask(header, LABELS), path, source=scan, label_table=label_table(LABELS))
    with pytest.raises(GeometryError, match=r"a.dcm: holds contours without voxels, expected its scan"):
        read_label_map(path, naming=LABELS)
    between = header.affine.copy()
    between[2, 3] += samples.SLICE_MM / 2
    with pytest.raises(GeometryError, match=r"a contour lies 1.25 mm from the nearest slice of the scan"):
        read_label_map(path, naming=LABELS, like=LabelMap(np.zeros(header.shape, np.uint8), between))
    with pytest.raises(GeometryError, match="a contour lies outside the scan"):
        read_label_map(path, naming=LABELS, like=LabelMap(np.zeros((7, 5, 1), np.uint8), header.affine))


def test_an_image_is_no_label_and_names_stay_out_of_messages(tmp_path):
    header = series(tmp_path / "scan")
    image = next((tmp_path / "scan").iterdir())
    with pytest.raises(LabelError, match="is a DICOM image, expected labels") as caught:
        read_label_map(image, naming=LABELS, like=header)
    assert samples.SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_objects_carry_the_patients_name_whatever_its_character_set(tmp_path, kind, charset, name):
    if kind == "dicom-seg":
        pytest.importorskip("highdicom")

    header = series(tmp_path / "scan", change=samples.everywhere(SpecificCharacterSet=charset, PatientName=name))
    write(kind, mask(header, LABELS), tmp_path / "a.dcm", source(tmp_path / "scan", header))
    assert str(dcmread(tmp_path / "a.dcm").PatientName) == name


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_objects_of_files_without_preamble(tmp_path, kind):
    if kind == "dicom-seg":
        pytest.importorskip("highdicom")

    def change(ds, index):
        ds.SOPInstanceUID = f"{samples.SECRET_UID}.2.{index}"

    header = read_header(samples.write_series(tmp_path / "scan", change=change, names="IM{:04d}", preamble=False))
    wanted = mask(header, LABELS)
    write(kind, wanted, tmp_path / "a.dcm", source(tmp_path / "scan", header))
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.dcm", naming=LABELS, like=header).array, wanted.array)


def test_what_an_object_can_not_refer_to_is_named(tmp_path):
    header = read_header(samples.write_series(tmp_path / "alike"))
    with pytest.raises(ScanError, match=r"^alike: SOPInstanceUID is the same in several slices, expected one each"):
        source(tmp_path / "alike", header)
    pytest.importorskip("highdicom")
    header = series(tmp_path / "no_frame", change=samples.everywhere(FrameOfReferenceUID=None))
    with pytest.raises(ScanError, match=r"^no_frame: FrameOfReferenceUID is missing, which a DICOM-SEG of it needs"):
        write("dicom-seg", mask(header, LABELS), tmp_path / "a.dcm", source(tmp_path / "no_frame", header))


def test_nothing_is_said_of_an_odd_character_set(tmp_path, caplog):
    header = series(tmp_path / "scan", change=samples.everywhere(SpecificCharacterSet="ISO_IR ZZSECRETZZ"))
    caplog.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write("rtstruct", mask(header, LABELS), tmp_path / "a.dcm", source(tmp_path / "scan", header))
    assert samples.SECRET not in caplog.text
    assert said == []


@pytest.mark.real
@pytest.mark.parametrize("name", ["CT", "PET", "MR_T1"])
def test_real_contours_become_the_reference_mask(shared_data, name):
    """All three RTSTRUCT of a patient: no voxel differs from the masks that IBSI's authors made of them."""
    patient = shared_data / "dicom" / "STS_002"
    wanted = read_label_map(patient / "expected" / f"{name}_mask.nii.gz")
    header = read_header(patient / name / "image")
    labels = {"background": (0,), "tumour": (1,)}
    for path in (patient / name / "mask" / "RS.dcm", patient / name / "mask"):
        found = read_label_map(path, naming=labels, like=header)
        assert np.count_nonzero(found.array != wanted.array) == 0


@pytest.mark.real
def test_a_real_segmentation_is_its_nrrd(shared_data):
    folder = shared_data / "dicom" / "dcmqi"
    wanted = read_label_map(folder / "liver_seg.nrrd")
    for like in (None, read_header(folder / "ct-3slice")):
        found = read_label_map(folder / "liver.dcm", naming={"background": (0,), "liver": (1,)}, like=like)
        assert int(found.array.sum()) == 107_098
        np.testing.assert_array_equal(found.array, wanted.array)
        np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)


def test_a_multi_frame_scan_whose_frames_run_backwards(tmp_path):
    pytest.importorskip("highdicom")
    from medseg.imaging.dicom_seg_writing import write_dicom_seg

    path = samples.save(samples.enhanced_dataset(samples.stored(4)), tmp_path / "scan.dcm")
    header = read_header(path)
    wanted, scan, table = mask(header, LABELS), source(path, header), label_table(LABELS)
    assert scan.frames == ((0, 3), (0, 2), (0, 1), (0, 0))
    write_dicom_seg(wanted, tmp_path / "seg.dcm", source=scan, label_table=table)
    write_rtstruct(wanted, tmp_path / "rt.dcm", source=scan, label_table=table)
    for name in ("seg.dcm", "rt.dcm"):
        found = read_label_map(tmp_path / name, naming=LABELS, like=header)
        np.testing.assert_array_equal(found.array, wanted.array)
    contour = dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 4


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["CT", "PET", "MR_T1"])
def test_real_masks_go_out_and_come_back(shared_data, tmp_path, name):
    pytest.importorskip("highdicom")
    from medseg.imaging.dicom_seg_writing import write_dicom_seg

    patient = shared_data / "dicom" / "STS_002"
    header, labels = read_header(patient / name / "image"), {"background": (0,), "tumour": (1,)}
    array = read_label_map(patient / "expected" / f"{name}_mask.nii.gz").array.astype(np.uint8)
    wanted, table = LabelMap(array, header.affine, header), label_table(labels)
    scan = source(patient / name / "image", header)
    write_dicom_seg(wanted, tmp_path / "binary.dcm", source=scan, label_table=table)
    write_dicom_seg(wanted, tmp_path / "labelmap.dcm", source=scan, label_table=table, kind="LABELMAP")
    write_rtstruct(wanted, tmp_path / "contours.dcm", source=scan, label_table=table)
    for path in tmp_path.iterdir():
        found = read_label_map(path, naming=labels, like=header)
        assert np.count_nonzero(found.array != array) == 0
