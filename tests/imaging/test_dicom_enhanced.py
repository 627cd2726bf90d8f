"""Enhanced multi-frame CT, MR and PET: functional groups, shared or per frame, and frames that are no one volume."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.errors import ScanError
from medseg.imaging.dicom import list_series, read_dicom_header, read_dicom_volume
from tests.imaging import dicom_samples as samples


def expected(planes):
    """Values of ``enhanced_dataset``: slope 1 + index / 2, intercept -7."""
    slopes = 1 + 0.5 * np.arange(len(planes), dtype=np.float32)
    return planes.transpose(2, 1, 0).astype(np.float32) * slopes - np.float32(7)


def refused(ds, tmp_path, match):
    path = samples.save(ds, tmp_path / "file.dcm")
    with pytest.raises(ScanError, match=match) as caught:
        read_dicom_header(path)
    assert samples.SECRET not in str(caught.value)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("order", [None, (2, 0, 3, 1)])
def test_frames_in_any_order(tmp_path, modality, shared, order):
    planes = samples.stored(4)
    ds = samples.enhanced_dataset(planes, modality=modality, order=order, shared=shared)

    volume = read_dicom_volume(samples.save(ds, tmp_path / "file.dcm"))

    np.testing.assert_array_equal(volume.array[0], expected(planes))
    affine = [[-0.5, 0, 0, -10], [0, -0.75, 0, 20], [0, 0, 2.5, 15], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, affine, atol=1e-12)
    assert volume.header.modality == modality


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_syntaxes(tmp_path, syntax):
    planes = samples.stored(3)
    stored = planes.astype(">i2") if syntax == ExplicitVRBigEndian else planes
    path = samples.save(samples.enhanced_dataset(stored), tmp_path / "folder" / "file.dcm", syntax=syntax)

    np.testing.assert_array_equal(read_dicom_volume(path.parent).array[0], expected(planes))
    assert list_series(path.parent)[0].slice_count == 3


def test_one_series_over_two_files(tmp_path):
    """A concatenation: the frames of one volume, cut into files."""
    planes = samples.stored(6)

    def move(frame, index):
        position = frame.PlanePositionSequence[0]
        position.ImagePositionPatient[2] = 15 + 2.5 * (index + 3)
        frame.PixelValueTransformationSequence[0].RescaleSlope = 1 + 0.5 * (index + 3)

    samples.save(samples.enhanced_dataset(planes[3:], change=move), tmp_path / "s" / "a.dcm")
    samples.save(samples.enhanced_dataset(planes[:3]), tmp_path / "s" / "b.dcm")

    np.testing.assert_array_equal(read_dicom_volume(tmp_path / "s").array[0], expected(planes))


def test_two_time_points(tmp_path):
    def change(frame, index):
        frame.PlanePositionSequence[0].ImagePositionPatient = [10, -20, 2.5 * (index // 2)]
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + index % 2

    ds = samples.enhanced_dataset(samples.stored(6), change=change)
    refused(ds, tmp_path, r"^file\.dcm: has 2 images at 3 positions.*they differ in TemporalPositionIndex")


def content(**values):
    def change(frame, index):
        if index == 1:
            for keyword, value in values.items():
                setattr(frame.FrameContentSequence[0], keyword, value)

    return change


@pytest.mark.parametrize("values", [{"StackID": "2"}, {"TemporalPositionIndex": 2}])
def test_stack_or_time_varies_without_a_shared_position(tmp_path, values):
    ds = samples.enhanced_dataset(samples.stored(4), change=content(**values))
    refused(ds, tmp_path, rf"^file\.dcm frame \d: {next(iter(values))} has 2 values within one series, expected 1")


@pytest.mark.parametrize(
    ("sequence", "keyword", "values"),
    [
        ("MREchoSequence", "EffectiveEchoTime", (10.0, 20.0)),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 800.0)),
        ("MRImageFrameTypeSequence", "FrameType", (["ORIGINAL", "M"], ["ORIGINAL", "P"])),
    ],
)
def test_echo_diffusion_or_type_varies(tmp_path, sequence, keyword, values):
    def change(frame, index):
        item = Dataset()
        setattr(item, keyword, values[index % 2])
        setattr(frame, sequence, Sequence([item]))

    ds = samples.enhanced_dataset(samples.stored(4), modality="MR", change=change)
    refused(ds, tmp_path, rf"{keyword} has 2 values within one series")


@pytest.mark.parametrize(
    ("sequence", "keyword"),
    [
        ("PixelMeasuresSequence", "PixelSpacing"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PlanePositionSequence", "ImagePositionPatient"),
    ],
)
def test_missing_group_in_a_frame(tmp_path, sequence, keyword):
    def change(frame, index):
        if index == 2:
            del frame[sequence]

    ds = samples.enhanced_dataset(samples.stored(4), shared=False, order=range(4), change=change)
    refused(ds, tmp_path, rf"^file\.dcm frame 3: {keyword} is missing")


def test_frame_of_another_orientation(tmp_path):
    def change(frame, index):
        if index == 3:
            frame.PlaneOrientationSequence[0] = Dataset()
            frame.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    ds = samples.enhanced_dataset(samples.stored(4), shared=False, order=range(4), change=change)
    refused(ds, tmp_path, r"^file\.dcm frame 4: ImageOrientationPatient differs by 1")


def test_missing_frame(tmp_path):
    def change(frame, index):
        if index > 1:
            frame.PlanePositionSequence[0].ImagePositionPatient[2] += 2.5

    ds = samples.enhanced_dataset(samples.stored(4), order=range(4), change=change)
    refused(ds, tmp_path, r"^file\.dcm: gap of 5 mm after file\.dcm frame 2 at 17\.5 mm \(2\.5 expected\)")


def test_fewer_groups_than_frames(tmp_path):
    ds = samples.enhanced_dataset(samples.stored(4))
    del ds.PerFrameFunctionalGroupsSequence[0]
    refused(ds, tmp_path, r"PerFrameFunctionalGroupsSequence has 3 items, expected 4")


def test_short_pixel_data(tmp_path):
    ds = samples.enhanced_dataset(samples.stored(4))
    ds.PixelData = ds.PixelData[:-70]
    refused(ds, tmp_path, r"^file\.dcm: PixelData has 210 of 280 bytes \(7x5x4 int16\)")


def test_more_frames_than_pixels_can_be(tmp_path):
    ds = samples.enhanced_dataset(samples.stored(4))
    ds.NumberOfFrames = 2**31
    refused(ds, tmp_path, r"^file\.dcm: header declares 7x5x2147483648 = .* voxels, expected at most")
