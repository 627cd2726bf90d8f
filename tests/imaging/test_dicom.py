"""What a sound series gives: voxels, grid, header and warnings."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.errors import ScanError
from medseg.imaging import dicom_pixels, dicom_series
from medseg.imaging.dicom import list_series, open_series, read_dicom_header, read_dicom_volume
from tests.imaging import dicom_samples as samples

# By hand: columns run along x (0.5 mm), rows along y (0.75 mm), slices along z, from ORIGIN; LPS to RAS flips x and y.
AXIAL_AFFINE = np.array([[-0.5, 0, 0, -10], [0, -0.75, 0, 20], [0, 0, 2.5, 15], [0, 0, 0, 1.0]])


def test_values_and_grid_of_a_series(tmp_path):
    planes = samples.stored(4)

    volume = read_dicom_volume(samples.write_series(tmp_path / "ct", planes))

    assert volume.array.dtype == np.float32
    assert volume.shape == (7, 5, 4)
    np.testing.assert_array_equal(volume.array[0], planes.transpose(2, 1, 0).astype(np.float32) - 1024)
    np.testing.assert_allclose(volume.affine, AXIAL_AFFINE, atol=1e-12)
    assert volume.array[0].flags.f_contiguous


def test_header_without_voxels(tmp_path, monkeypatch):
    folder = samples.write_series(tmp_path / "ct")
    monkeypatch.setattr("medseg.imaging.dicom.read_planes", lambda *_: pytest.fail("pixels were read"))

    header = read_dicom_header(folder)

    assert header.shape == (7, 5, 5)
    assert (header.format, header.dtype, header.channels, header.planar) == ("dicom", "int16", 1, False)
    assert (header.modality, header.warnings) == ("CT", ())
    np.testing.assert_allclose(header.affine, AXIAL_AFFINE, atol=1e-12)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        # Coronal: rows along x, columns of a slice down z (-z); the normal is x cross -z = +y.
        ((1, 0, 0, 0, 0, -1), [[-0.5, 0, 0, -10], [0, 0, -2.5, 20], [0, -0.75, 0, 15]]),
        # Sagittal: along y, down -z; the normal is y cross -z = -x.
        ((0, 1, 0, 0, 0, -1), [[0, 0, 2.5, -10], [-0.5, 0, 0, 20], [0, -0.75, 0, 15]]),
        # Prone: along -x, down -y; the normal is +z still.
        ((-1, 0, 0, 0, -1, 0), [[0.5, 0, 0, -10], [0, 0.75, 0, 20], [0, 0, 2.5, 15]]),
    ],
)
def test_grid_of_other_orientations(tmp_path, orientation, expected):
    header = read_dicom_header(samples.write_series(tmp_path / "s", orientation=orientation))

    np.testing.assert_allclose(header.affine[:3], expected, atol=1e-6)


def test_oblique_voxel_lies_where_its_slice_says(tmp_path):
    angle = np.radians(25)
    orientation = (np.cos(angle), np.sin(angle), 0, -np.sin(angle) * 0.6, np.cos(angle) * 0.6, -0.8)
    planes = samples.stored(4)

    volume = read_dicom_volume(samples.write_series(tmp_path / "mr", planes, modality="MR", orientation=orientation))

    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    position = np.array(samples.ORIGIN) + 3 * 2.5 * np.cross(row, column)  # of slice 3
    lps = position + row * 0.5 * 6 + column * 0.75 * 2  # column 6, row 2 (DICOM PS3.3, C.7.6.2.1.1)
    np.testing.assert_allclose(volume.affine @ [6, 2, 3, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-5)
    assert volume.array[0, 6, 2, 3] == np.float32(planes[3, 2, 6]) - 1024


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_stored_types(tmp_path, dtype, syntax):
    planes = samples.stored(3, dtype=dtype) % 100
    planes[0, 0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max

    volume = read_dicom_volume(samples.write_series(tmp_path / "s", planes.astype(dtype), syntax=syntax))

    expected = (planes.astype(np.float64) - 1024).astype(np.float32)
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))
    assert volume.header.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint8", "int32"])
def test_big_endian(tmp_path, dtype):
    planes = samples.stored(3, dtype=dtype)
    swapped = planes.astype(planes.dtype.newbyteorder(">"))

    volume = read_dicom_volume(samples.write_series(tmp_path / "s", swapped, syntax=ExplicitVRBigEndian))

    np.testing.assert_array_equal(volume.array[0], planes.transpose(2, 1, 0).astype(np.float32) - 1024)


def test_big_endian_bytes_in_words(tmp_path):
    planes = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)

    def words(ds, index):
        ds.PixelData = planes[index].reshape(-1, 2)[:, ::-1].tobytes()
        ds["PixelData"].VR = "OW"

    volume = read_dicom_volume(samples.write_series(tmp_path / "s", planes, change=words, syntax=ExplicitVRBigEndian))

    np.testing.assert_array_equal(volume.array[0], planes.transpose(2, 1, 0).astype(np.float32) - 1024)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floating_pixels(tmp_path, dtype):
    planes = np.random.default_rng(2).normal(size=(3, 5, 7)).astype(dtype)

    volume = read_dicom_volume(
        samples.write_series(
            tmp_path / "s", planes, change=samples.everywhere(RescaleSlope=None, RescaleIntercept=None)
        )
    )

    np.testing.assert_array_equal(volume.array[0], planes.transpose(2, 1, 0).astype(np.float32))
    assert volume.header.dtype == dtype


@pytest.mark.parametrize("high_bit", [11, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_value_are_dropped(tmp_path, high_bit, signed):
    values = np.random.default_rng(3).integers(-2048 if signed else 0, 2048, (3, 5, 7))
    rubbish = np.random.default_rng(4).integers(0, 16, values.shape)
    word = values & 0xFFF
    word = (rubbish << 12 | word) if high_bit == 11 else (word << 4 | rubbish)
    change = samples.everywhere(BitsStored=12, HighBit=high_bit, PixelRepresentation=int(signed))

    volume = read_dicom_volume(samples.write_series(tmp_path / "s", word.astype(np.uint16), change=change))

    np.testing.assert_array_equal(volume.array[0], values.transpose(2, 1, 0).astype(np.float32) - 1024)


def test_every_slice_has_its_own_slope(tmp_path):
    planes = samples.stored(4, dtype="uint16")
    slopes = [0.1, 0.0123456789, 7.25, 3.3333]

    def change(ds, index):
        ds.RescaleSlope = slopes[index]

    volume = read_dicom_volume(samples.write_series(tmp_path / "pet", planes, modality="PT", change=change))

    for index, slope in enumerate(slopes):
        expected = planes[index].astype(np.float32) * np.float32(slope)
        np.testing.assert_array_equal(volume.array[0, :, :, index], expected.T)


def test_values_without_rescaling(tmp_path):
    change = samples.everywhere(RescaleSlope=None, RescaleIntercept=None)
    planes = samples.stored(3)

    mr = read_dicom_volume(samples.write_series(tmp_path / "mr", planes, modality="MR", change=change))
    ct = read_dicom_volume(samples.write_series(tmp_path / "ct", planes, change=change))

    np.testing.assert_array_equal(mr.array[0], planes.transpose(2, 1, 0).astype(np.float32))
    assert mr.header.warnings == ()
    assert "no RescaleSlope: stored values are taken as they are" in ct.header.warnings


def test_monochrome1_leaves_values_and_warns(tmp_path):
    planes = samples.stored(3)
    folder = samples.write_series(
        tmp_path / "ct", planes, change=samples.everywhere(PhotometricInterpretation="MONOCHROME1")
    )

    volume = read_dicom_volume(folder)

    np.testing.assert_array_equal(volume.array[0], planes.transpose(2, 1, 0).astype(np.float32) - 1024)
    assert any("MONOCHROME1" in warning for warning in volume.header.warnings)


def test_identical_duplicate_is_dropped_with_a_warning(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    (folder / "IM0009.dcm").write_bytes((folder / "IM0002.dcm").read_bytes())

    volume = read_dicom_volume(folder)

    assert volume.shape == (7, 5, 5)
    assert volume.header.warnings == ("1 plane dropped that repeats another one exactly (first: IM0009.dcm)",)


def test_positions_rounded_to_a_tenth_are_accepted_with_a_warning(tmp_path):
    def change(ds, index):
        ds.ImagePositionPatient = [10, -20, round(index * 1.25 + 0.01, 1)]

    header = read_dicom_header(samples.write_series(tmp_path / "ct", count=7, change=change))

    assert header.affine[2, 2] == pytest.approx(1.25, abs=0.02)
    assert any("off an even spacing" in warning for warning in header.warnings)


@pytest.mark.parametrize(
    ("thickness", "between", "told"), [(1.3, None, True), (1.4, None, False), (1.0, 2.5, False), (2.0, 0.5, False)]
)
def test_slices_that_may_be_missing_are_told(tmp_path, thickness, between, told):
    # 2.5 mm apart; SpacingBetweenSlices is the distance to some writers and the gap to others.
    change = samples.everywhere(SliceThickness=thickness, **({"SpacingBetweenSlices": between} if between else {}))
    warnings = read_dicom_header(samples.write_series(tmp_path / "a", change=change)).warnings
    assert warnings == (
        ("slices lie 2.5 mm apart and are 1.3 mm thick; look whether some are missing",) if told else ()
    )


def test_a_series_that_is_mixed_of_two_reconstructions_says_so(tmp_path):
    def change(ds, index):
        ds.ConvolutionKernel = f"{samples.SECRET}{index > 2}"
        ds.EchoTime = "4.6"

    header = read_dicom_header(samples.write_series(tmp_path / "a", change=change))
    assert header.warnings == ("ConvolutionKernel has 2 values within the series; look whether it is one scan",)


def test_single_slice_takes_its_thickness_and_says_so(tmp_path):
    header = read_dicom_header(samples.write_series(tmp_path / "ct", count=1))

    assert header.affine[2, 2] == 4.0
    assert any("only one slice" in warning for warning in header.warnings)


def test_file_without_preamble(tmp_path):
    planes = samples.stored(3)

    volume = read_dicom_volume(samples.write_series(tmp_path / "old", planes, preamble=False, names="IM{:04d}"))

    np.testing.assert_array_equal(volume.array[0], planes.transpose(2, 1, 0).astype(np.float32) - 1024)


def test_other_objects_and_files_beside_the_slices(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    for kind in ("SEG", "RTSTRUCT"):
        ds = samples.slice_dataset(0, samples.stored(1)[0])
        ds.SOPClassUID, ds.Modality, ds.SeriesInstanceUID = samples.CLASSES[kind], kind, f"{samples.SECRET_UID}.9"
        samples.save(ds, folder / f"{kind}.dcm")
    (folder / "DICOMDIR").write_bytes(b"anything")
    (folder / ".DS_Store").write_bytes(b"anything")
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "more").mkdir()

    volume = read_dicom_volume(folder)

    assert volume.shape == (7, 5, 5)
    assert volume.header.warnings == ("notes.txt ignored: not DICOM",)


def test_series_is_chosen_by_code_or_uid(tmp_path):
    folder = samples.write_series(tmp_path / "study", count=3)
    second = samples.everywhere(SeriesInstanceUID="1.2.3.4")
    samples.write_series(folder, count=4, modality="MR", change=second, names="second{}.dcm")

    infos = {info.modality: info for info in list_series(folder)}

    assert infos["CT"].shape == (7, 5, 3)
    assert infos["MR"].shape == (7, 5, 4)
    assert infos["MR"].spacing_xyz_mm == pytest.approx((0.5, 0.75, 2.5))
    assert infos["MR"].files == ("second1.dcm", "second2.dcm", "second3.dcm", "second4.dcm")
    assert read_dicom_header(folder, series_uid=infos["MR"].code).modality == "MR"
    assert read_dicom_volume(folder, series_uid="1.2.3.4").shape == (7, 5, 4)
    assert samples.SECRET_UID not in repr(infos)
    assert samples.SECRET not in repr(infos)


def test_listing_names_the_fault_of_a_broken_series(tmp_path):
    folder = samples.write_series(tmp_path / "ct", change=samples.at(2, PixelSpacing=None))

    (info,) = list_series(folder)

    assert info.shape is None
    assert info.slice_count == 5
    assert "PixelSpacing is missing" in info.fault


def test_listing_of_a_folder_without_images_is_empty(tmp_path):
    ds = samples.slice_dataset(0, samples.stored(1)[0])
    ds.SOPClassUID, ds.Modality = samples.CLASSES["RTSTRUCT"], "RTSTRUCT"
    samples.save(ds, tmp_path / "rt" / "a.dcm")

    assert list_series(tmp_path / "rt") == ()


def test_headers_are_parsed_once_for_header_and_voxels(tmp_path, monkeypatch):
    folder = samples.write_series(tmp_path / "ct", count=6)
    parsed = []
    original = dicom_series.read_file_header
    monkeypatch.setattr(dicom_series, "read_file_header", lambda *args: parsed.append(args) or original(*args))

    series = open_series(folder)
    assert series.header.shape == (7, 5, 6)
    series.read()
    series.read()

    assert len(parsed) == 6


def test_file_that_changes_before_its_pixels_are_read_is_refused(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    series = open_series(folder)
    file = folder / "IM0002.dcm"
    os.utime(file, ns=(1, 1))

    with pytest.raises(ScanError, match=r"ct/IM0002\.dcm: file changed while it was being read"):
        series.read()


def test_one_file_can_be_named(tmp_path):
    folder = samples.write_series(tmp_path / "ct")

    assert read_dicom_header(folder / "IM0001.dcm").shape == (7, 5, 1)


def test_pydicom_says_nothing_of_a_header(tmp_path, caplog):
    """An odd value makes pydicom warn with the value in the text; neither a warning nor a log line may come out."""
    folder = samples.write_series(tmp_path / "ct", change=samples.everywhere(SeriesDate=samples.SECRET))
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    level = logging.getLogger("pydicom").level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_dicom_volume(folder)

    assert caught == []
    assert samples.SECRET not in caplog.text
    assert logging.getLogger("pydicom").level == level


def test_rescaling_rounds_each_step_to_float32():
    stored = np.array([[3, -7], [1000, 32767]], dtype=np.int16)
    slope, intercept = 0.00006911235598, -0.1

    values = dicom_pixels.rescaled(stored, slope, intercept)

    for value, number in zip(values.ravel(), stored.ravel(), strict=True):
        assert value == np.float32(np.float32(number) * np.float32(slope)) + np.float32(intercept)


@pytest.mark.real
@pytest.mark.parametrize("name", ["CT", "PET", "MR_T1"])
def test_real_series_are_bit_identical_to_their_nifti_twins(shared_data, name):
    """Expected files hold the same voxel order (no flip, no permutation): X = column, Y = row, Z towards the head."""
    import nibabel

    twin = nibabel.load(shared_data / "dicom" / "STS_002" / "expected" / f"{name}_image.nii.gz")

    volume = read_dicom_volume(shared_data / "dicom" / "STS_002" / name / "image")

    expected = np.asarray(twin.dataobj)
    assert expected.dtype == np.float32
    assert volume.array[0].tobytes(order="F") == expected.tobytes(order="F")
    np.testing.assert_allclose(volume.affine, twin.affine, rtol=0, atol=3e-5)  # the twin's is float32
    assert volume.header.warnings == ()


@pytest.mark.real
def test_real_slices_of_a_liver(shared_data):
    volume = read_dicom_volume(shared_data / "dicom" / "dcmqi" / "ct-3slice")

    assert volume.shape == (512, 512, 3)
    assert (volume.array.min(), volume.array.max()) == (-3024, 1381)


@pytest.mark.real
def test_real_objects_without_an_image(shared_data):
    assert list_series(shared_data / "dicom" / "STS_002" / "CT" / "mask") == ()
    with pytest.raises(ScanError, match=r"liver\.dcm: is a DICOM object without an image"):
        read_dicom_volume(shared_data / "dicom" / "dcmqi" / "liver.dcm")


_PYDICOM_FILES = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


@pytest.mark.parametrize("path", _PYDICOM_FILES, ids=lambda path: path.name)
def test_odd_real_files_are_read_or_refused_in_one_line(path):
    refusal, volume = "", None
    try:
        volume = read_dicom_volume(path)
    except ScanError as error:
        refusal = str(error)
    if volume is None:
        assert refusal.startswith(path.name)
        assert "\n" not in refusal
        return
    dataset = pydicom.dcmread(path)
    values = dataset.pixel_array.astype(np.float32) * float(dataset.get("RescaleSlope", 1))
    values += float(dataset.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(volume.array[0, :, :, 0], values.T)


@pytest.mark.parametrize("seed", range(4))
def test_simpleitk_agrees_on_sound_series(tmp_path, seed):
    """An independent reader, with its LPS affine put together here, on random oblique grids and slopes."""
    import SimpleITK

    random = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(random.normal(size=(3, 3)))
    orientation = np.concatenate([turned[:, 0], turned[:, 1]])

    def change(ds, index):
        ds.RescaleSlope, ds.RescaleIntercept = f"{random.uniform(0.1, 3):.6f}", f"{random.integers(-50, 50)}"

    folder = samples.write_series(tmp_path / "s", samples.stored(6, seed=seed), orientation=orientation, change=change)
    volume = read_dicom_volume(folder)

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(volume.affine, np.diag([-1, -1, 1, 1]) @ affine, atol=2e-3)
    theirs = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_allclose(volume.array[0], theirs, rtol=1e-6, atol=1e-3)
