"""Every way a series can be broken, and the refusal that names it."""

from __future__ import annotations

import os
import stat
import struct

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.dicom import read_dicom_header, read_dicom_volume
from medseg.imaging.limits import Limits
from tests.imaging import dicom_samples as samples


def refused(folder, match, *, kind=ScanError, limits=None, header_too=True):
    """Both readers refuse with a one-line message that holds no header text and no path above the folder."""
    readers = (read_dicom_header, read_dicom_volume) if header_too else (read_dicom_volume,)
    for read in readers:
        with pytest.raises(kind, match=match) as caught:
            read(folder, limits=limits)
        text = str(caught.value)
        assert "\n" not in text
        assert text.startswith(folder.name)
        assert str(folder.parent) not in text
        assert samples.SECRET not in text
        assert samples.SECRET_UID not in text
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- which files, which series


def test_two_series(tmp_path):
    folder = samples.write_series(tmp_path / "ct", count=3)
    samples.write_series(folder, change=samples.everywhere(SeriesInstanceUID="1.2.3"), names="b{}.dcm")

    refused(
        folder,
        r"^ct: has 2 series, expected 1; choose one \(--series code=CODE\) of [0-9a-f]{8} \(CT, [35] files\), "
        r"[0-9a-f]{8} \(CT, [35] files\)",
    )


def test_series_asked_for_is_not_there(tmp_path):
    folder = samples.write_series(tmp_path / "ct")

    with pytest.raises(
        ScanError,
        match=r"^ct: the series asked for is not among its 1; choose one \(--series code=CODE\) of [0-9a-f]{8}",
    ):
        read_dicom_header(folder, series_uid=samples.SECRET)


def test_no_series_uid(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, SeriesInstanceUID=None)),
        r"^ct/IM0004\.dcm: SeriesInstanceUID is missing",
    )


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"^empty: no DICOM image in the folder, it holds nothing")


def test_folder_of_folders(tmp_path):
    (tmp_path / "study" / "series1").mkdir(parents=True)
    refused(tmp_path / "study", r"^study: no DICOM image in the folder, it holds 0 other files and 1 subfolders")


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", r"^nowhere: can't be read \(No such file or directory\)")


def test_file_that_is_not_dicom(tmp_path):
    (tmp_path / "page.dcm").write_text("<html>" + "x" * 500)
    refused(tmp_path / "page.dcm", r"^page\.dcm: is not DICOM")


@pytest.mark.parametrize("content", [b"", b"<html>gone</html>", b"\0" * 4000])
def test_damaged_slice_at_the_end_is_not_taken_for_a_foreign_file(tmp_path, content):
    """Without it the stack would be one slice short, and no gap would show."""
    folder = samples.write_series(tmp_path / "ct", names="IM{:04d}")
    (folder / "IM0001").write_bytes(content)

    refused(folder, r"^ct/IM0001: is not DICOM although it is named like a slice")


def test_too_many_files(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct"), r"^ct: holds 5 files, expected at most 4", limits=Limits(max_files=4)
    )


def test_fifo_between_the_slices(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    os.mkfifo(folder / "IM0009.dcm")
    refused(folder, r"^ct/IM0009\.dcm: is not a regular file")


def test_link_to_nowhere(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    (folder / "IM0009.dcm").symlink_to(tmp_path / "gone")
    refused(folder, r"^ct/IM0009\.dcm: can't be read \(No such file or directory\)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    (folder / "IM0002.dcm").chmod(stat.S_IWUSR)
    refused(folder, r"^ct/IM0002\.dcm: can't be read \(Permission denied\)")


def test_control_characters_in_a_name_stay_on_one_line(tmp_path):
    folder = samples.write_series(tmp_path / "c\nt", change=samples.at(0, PixelSpacing=None))
    with pytest.raises(ScanError, match=r"^c\\nt/IM0005\.dcm: PixelSpacing is missing"):
        read_dicom_header(folder)


# --- geometry


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        ("PixelSpacing", "PixelSpacing is missing"),
        ("ImagePositionPatient", "ImagePositionPatient is missing"),
        ("ImageOrientationPatient", "ImageOrientationPatient is missing"),
        ("Rows", "Rows is missing"),
        ("BitsAllocated", "BitsAllocated is missing"),
        ("PixelRepresentation", "PixelRepresentation is missing"),
    ],
)
def test_missing_tag(tmp_path, missing, match):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, **{missing: None})),
        rf"^ct/IM0004\.dcm: {match}",
    )


@pytest.mark.parametrize("spacing", [[0, 0.5], [-1, 0.5], [1e-6, 0.5], [0.5, 5000]])
def test_impossible_pixel_spacing(tmp_path, spacing):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.everywhere(PixelSpacing=spacing)),
        r"PixelSpacing is .* mm, expected 0\.001 to 1000",
    )


@pytest.mark.parametrize("value", ["abc\\1", "1", "nan\\1", "1\\2\\3"])
def test_malformed_pixel_spacing(tmp_path, value):
    def change(ds, index):
        if index == 2:
            ds["PixelSpacing"]._value = value.split("\\")

    folder = samples.write_series(tmp_path / "ct", change=change)
    refused(folder, r"^ct/IM0003\.dcm: PixelSpacing is malformed, expected 2 finite numbers")


def test_other_pixel_spacing_in_one_slice(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(0, PixelSpacing=[0.8, 0.5])),
        r"^ct/IM0005\.dcm: PixelSpacing is 0\.8 x 0\.5 mm, expected 0\.75 x 0\.5 mm as in IM0001\.dcm",
    )


def test_other_matrix_in_one_slice(tmp_path):
    def change(ds, index):
        if index == 0:
            ds.Rows, ds.Columns, ds.PixelData = 3, 4, b"\0" * 24

    refused(
        samples.write_series(tmp_path / "ct", change=change),
        r"^ct/IM0005\.dcm: size is 4x3, expected 7x5 as in 4 of 5 planes",
    )


@pytest.mark.parametrize("scout", [0, 4])
def test_scout_in_the_series(tmp_path, scout):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(scout, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
        rf"^ct/IM000{5 - scout}\.dcm: ImageOrientationPatient differs by 1 from IM000\d\.dcm's",
    )


@pytest.mark.parametrize(
    "cosines", [[1, 0, 0, 0, 1.1, 0], [1, 0, 0, 0.1, 1, 0], [0, 0, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0]]
)
def test_orientation_that_is_none(tmp_path, cosines):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.everywhere(ImageOrientationPatient=cosines)),
        r"ImageOrientationPatient has lengths .* expected 1, 1 and 0",
    )


def test_missing_slice(tmp_path):
    folder = samples.write_series(tmp_path / "ct", count=6)
    (folder / "IM0004.dcm").unlink()  # slice 2, at 20 mm

    refused(folder, r"^ct: gap of 5 mm after IM0005\.dcm at 17\.5 mm \(2\.5 expected\); slices are missing")


def test_two_missing_slices_of_three(tmp_path):
    folder = samples.write_series(tmp_path / "ct", count=4)
    (folder / "IM0002.dcm").unlink()
    refused(folder, r"^ct: gap of 5 mm after IM0003\.dcm at 17\.5 mm \(2\.5 expected\)")


def test_slice_out_of_its_place(tmp_path):
    folder = samples.write_series(tmp_path / "ct", change=samples.at(2, ImagePositionPatient=[10, -20, 20.3]))
    refused(folder, r"^ct: gap of 2\.8 mm after IM0004\.dcm at 17\.5 mm \(2\.5 expected\), and 1 more such gap")


def test_spacing_that_drifts(tmp_path):
    def change(ds, index):
        ds.ImagePositionPatient = [10, -20, 2.5 * index + 0.01 * index**2]

    refused(
        samples.write_series(tmp_path / "ct", count=12, change=change),
        r"^ct/IM\d+\.dcm: lies 0\.\d+ mm off its even place, expected at most 0\.06 mm",
    )


def test_slice_shifted_sideways(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(2, ImagePositionPatient=[12, -20, 20])),
        r"^ct/IM0003\.dcm: lies 2 mm off its even place, expected at most 0\.06 mm .*shifted sideways",
    )


def test_gantry_tilt(tmp_path):
    def change(ds, index):
        ds.ImagePositionPatient = [10, -20 + index * 2.5 * np.tan(np.radians(15)), 15 + 2.5 * index]

    refused(
        samples.write_series(tmp_path / "ct", change=change),
        r"^ct: slices step sideways by 15 degrees \(gantry tilt\)",
    )


def test_different_frames_of_reference(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(2, FrameOfReferenceUID="1.2.3")),
        r"^ct/IM\d+\.dcm: FrameOfReferenceUID has 2 values",
    )


def test_one_slice_without_a_thickness(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", count=1, change=samples.everywhere(SliceThickness=None)),
        r"^ct/IM0001\.dcm: is the only slice and has no usable SliceThickness",
    )


# --- more than one image at a position


def test_two_phases_at_each_position(tmp_path):
    folder = samples.write_series(tmp_path / "ct", samples.stored(16), change=samples.everywhere(AcquisitionNumber=1))
    second = samples.everywhere(AcquisitionNumber=2)
    samples.write_series(folder, samples.stored(16, seed=2), change=second, names="second{:04d}.dcm")

    refused(
        folder,
        r"^ct: has 2 images at 16 positions, expected 1 at each "
        r"\(first: IM0016\.dcm and second0016\.dcm at 15 mm; they differ in AcquisitionNumber\)",
    )


def test_different_image_at_one_position(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    ds = samples.slice_dataset(1, samples.stored(1, seed=9)[0])
    samples.save(ds, folder / "IM0009.dcm")

    refused(folder, r"^ct: has 2 images at 1 position, .*IM0004\.dcm and IM0009\.dcm at 17\.5 mm")


def test_same_pixels_with_another_slope_are_no_duplicate(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    ds = samples.slice_dataset(0, samples.stored(5)[0])
    ds.RescaleSlope = 2
    samples.save(ds, folder / "IM0009.dcm")

    refused(folder, r"^ct: has 2 images at 1 position")


def test_echoes_at_different_positions(tmp_path):
    def change(ds, index):
        ds.EchoNumbers = 1 + index % 2

    refused(
        samples.write_series(tmp_path / "mr", modality="MR", change=change),
        r"^mr/IM\d+\.dcm: EchoNumbers has 2 values within one series",
    )


# --- values


@pytest.mark.parametrize("slope", ["abc", "nan", "1\\2", "inf"])
def test_malformed_slope(tmp_path, slope):
    def change(ds, index):
        if index == 1:
            ds["RescaleSlope"]._value = slope

    refused(samples.write_series(tmp_path / "ct", change=change), r"^ct/IM0004\.dcm: RescaleSlope is malformed")


def test_zero_slope(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, RescaleSlope=0)),
        r"^ct/IM0004\.dcm: RescaleSlope is 0, expected another number than 0",
    )


def test_slope_without_intercept(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, RescaleIntercept=None)),
        r"^ct/IM0004\.dcm: RescaleIntercept is missing beside its twin",
    )


def test_rescaling_in_some_slices_only(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, RescaleIntercept=None, RescaleSlope=None)),
        r"^ct/IM0004\.dcm: rescaling is absent, expected given as in 4 of 5 planes",
    )


def test_rescale_types_differ(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, RescaleType=samples.SECRET)),
        r"^ct/IM0004\.dcm: RescaleType is different, expected the same in every slice",
    )


def test_values_that_overflow(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(2, RescaleSlope="3e38")),
        r"^ct/IM0003\.dcm: \d+ values are not finite after rescaling",
        header_too=False,
    )


def test_floating_pixels_with_holes(tmp_path):
    planes = np.ones((3, 5, 7), np.float32)
    planes[1, 2, 3] = np.nan
    refused(
        samples.write_series(tmp_path / "ct", planes), r"^ct/IM0002\.dcm: 1 values are not finite", header_too=False
    )


def test_table_of_values(tmp_path):
    def change(ds, index):
        ds.ModalityLUTSequence = Sequence([Dataset()])

    refused(samples.write_series(tmp_path / "ct", change=change), "ModalityLUTSequence", kind=UnsupportedScanError)


# --- pixel data


def test_short_pixel_data(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, PixelData=b"\0" * 20)),
        r"^ct/IM0004\.dcm: PixelData has 20 of 70 bytes \(7x5x1 int16\)",
    )


def test_long_pixel_data(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(1, PixelData=b"\0" * 100)),
        r"^ct/IM0004\.dcm: PixelData has 100 bytes, expected 70",
    )


def test_length_that_lies(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    mark = b"\xe0\x7f\x10\x00OW\0\0"
    samples.patch(folder / "IM0002.dcm", mark + struct.pack("<I", 70), mark + struct.pack("<I", 2**31 - 2))

    refused(folder, r"^ct/IM0002\.dcm: PixelData has 2,147,483,646 bytes, expected 70")


def test_undefined_length_of_uncompressed_pixels(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    mark = b"\xe0\x7f\x10\x00OW\0\0"
    samples.patch(folder / "IM0002.dcm", mark + struct.pack("<I", 70), mark + b"\xff" * 4)

    refused(folder, r"^ct/IM0002\.dcm: PixelData has no length although it is not compressed")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.97])
def test_cut_file(tmp_path, kept):
    folder = samples.write_series(tmp_path / "ct")
    file = folder / "IM0002.dcm"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])

    refused(folder, r"^ct/IM0002\.dcm: (file ends after \d+ of 70 bytes of PixelData|PixelData is missing)")


def test_cut_at_every_byte(tmp_path):
    """No cut of a slice may go unnoticed, whatever it hits."""
    folder = samples.write_series(tmp_path / "ct", count=2)
    file = folder / "IM0002.dcm"
    data = file.read_bytes()
    for length in range(0, len(data), 3):
        file.write_bytes(data[:length])
        with pytest.raises(ScanError, match=r"^ct") as caught:
            read_dicom_header(folder)
        assert samples.SECRET not in str(caught.value)


def test_no_pixel_data(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.at(0, PixelData=None)),
        r"^ct/IM0005\.dcm: PixelData is missing, the file seems to be cut",
    )


def test_absurd_rows_and_columns(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.everywhere(Rows=65535, Columns=65535)),
        r"^ct/IM0001\.dcm: header declares 65535x65535x1 = 4\.3e\+09 voxels, expected at most 1,073,741,824",
    )


def test_too_many_voxels_in_all(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct"),
        r"^ct: header declares 7x5x5 = .* voxels, expected at most 100",
        limits=Limits(max_voxels=100),
    )


def test_header_of_absurd_length(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct"),
        r"^ct/IM0001\.dcm: header has [\d,]+ bytes, expected at most 500",
        limits=Limits(max_header_bytes=500),
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"SamplesPerPixel": 3}, "SamplesPerPixel is 3, expected 1"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation is PALETTE COLOR"),
        ({"PhotometricInterpretation": samples.SECRET}, "PhotometricInterpretation is of another kind"),
        ({"BitsAllocated": 1}, "BitsAllocated is 1, expected 8 or 16 or 32"),
        ({"NumberOfFrames": 2}, "NumberOfFrames is 2 without functional groups|PixelData has 70 of 140"),
    ],
)
def test_pixels_of_a_kind_that_is_not_read(tmp_path, change, match):
    refused(samples.write_series(tmp_path / "ct", change=samples.everywhere(**change)), match)


def test_frames_without_functional_groups(tmp_path):
    change = samples.everywhere(NumberOfFrames=2, PixelData=b"\0" * 140)
    refused(
        samples.write_series(tmp_path / "nm", change=change), "without functional groups", kind=UnsupportedScanError
    )


@pytest.mark.parametrize(
    "bits", [{"BitsStored": 17}, {"BitsStored": 12, "HighBit": 5}, {"BitsStored": 0}, {"HighBit": 16}]
)
def test_bits_that_do_not_fit(tmp_path, bits):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.everywhere(**bits)),
        r"BitsStored \d+ with HighBit -?\d+ does not fit into BitsAllocated 16",
    )


def test_pixel_representation_that_is_none(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", change=samples.everywhere(PixelRepresentation=2)),
        "PixelRepresentation is 2, expected 0 or 1",
    )


# --- hostile files


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", ImplicitVRLittleEndian])
def test_three_thousand_nested_sequences(tmp_path, syntax):
    """Undefined lengths make the parser descend; the refusal comes instead of a RecursionError."""
    folder = samples.write_series(tmp_path / "ct", syntax=syntax)
    file = folder / "IM0002.dcm"
    data = file.read_bytes()
    explicit = syntax != ImplicitVRLittleEndian
    begin = b"\x40\x00\x75\x02" + (b"SQ\0\0" if explicit else b"") + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    end = b"\xfe\xff\x0d\xe0" + b"\0" * 4 + b"\xfe\xff\xdd\xe0" + b"\0" * 4
    place = data.rindex(b"\xe0\x7f\x10\x00")
    file.write_bytes(data[:place] + begin * 3000 + end * 3000 + data[place:])

    refused(folder, r"^ct/IM0002\.dcm: sequences are nested too deep")


def test_element_that_claims_two_gigabytes(tmp_path):
    folder = samples.write_series(tmp_path / "ct", syntax=ImplicitVRLittleEndian)
    file = folder / "IM0002.dcm"
    weight = b"\x28\x00\x30\x00" + struct.pack("<I", 8)  # PixelSpacing
    samples.patch(file, weight, weight[:4] + struct.pack("<I", 2**31 - 2))

    refused(folder, r"^ct/IM0002\.dcm: PixelData is missing, the file seems to be cut")


def test_deflated_syntax_is_refused_before_it_is_inflated(tmp_path):
    refused(
        samples.write_series(tmp_path / "ct", syntax=DeflatedExplicitVRLittleEndian),
        r"^ct/IM0001\.dcm: transfer syntax is Deflated Explicit VR Little Endian, which is not read",
        kind=UnsupportedScanError,
    )


def test_flipped_bytes_never_end_in_anything_but_a_refusal(tmp_path):
    """200 damaged headers: read or refused, and no header text in any message."""
    folder = samples.write_series(tmp_path / "ct", count=1)
    file = folder / "IM0001.dcm"
    data = file.read_bytes()
    random = np.random.default_rng(5)
    refusals = []
    for _ in range(200):
        damaged = bytearray(data)
        for place in random.integers(0, len(data) - 70, 3):
            damaged[place] ^= int(random.integers(1, 256))
        file.write_bytes(damaged)
        try:
            read_dicom_volume(folder)
        except ScanError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert samples.SECRET not in "".join(refusals)


def test_slices_of_two_patients_in_one_series(tmp_path):
    folder = samples.write_series(tmp_path / "a", change=samples.at(2, PatientID="ZZOTHER"))
    refused(folder, r"PatientID has 2 values in one series, expected 1; part the patients' files")


@pytest.mark.parametrize("modality", ["CR", "DX", "MG", "US"])
def test_pictures_say_that_they_are_none(tmp_path, modality):
    change = samples.everywhere(Modality=modality, ImagePositionPatient=None, ImageOrientationPatient=None)
    folder = samples.write_series(tmp_path / "a", count=1, change=change)
    refused(folder, rf"Modality is {modality}, a picture without a place in the patient", kind=UnsupportedScanError)
