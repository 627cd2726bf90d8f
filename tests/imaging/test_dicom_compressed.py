"""Compressed syntaxes: read through decoders that are there, refused by name where none is, never half a plane."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.dicom import read_dicom_header, read_dicom_volume
from medseg.imaging.dicom_compressed import code_stream_size
from tests.imaging import dicom_samples as samples

_REAL = Path(pydicom.__file__).parent / "data" / "test_files"


def compressed(folder, planes, syntax, frames):
    """A series whose slices hold the given bytes as their one compressed frame."""

    def change(ds, index):
        ds.PixelData = encapsulate([frames[index]])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True

    return samples.write_series(folder, planes, change=change, syntax=syntax)


def rle(plane):
    """One plane as DICOM's RLE of literal runs only (PS3.5, annex G), the high bytes' segment first."""
    segments = []
    for byte in range(plane.dtype.itemsize)[::-1]:
        raw = plane.astype(plane.dtype.newbyteorder("<")).tobytes()[byte :: plane.dtype.itemsize]
        runs = b"".join(bytes([len(raw[i : i + 128]) - 1]) + raw[i : i + 128] for i in range(0, len(raw), 128))
        segments.append(runs + b"\0" * (len(runs) % 2))
    offsets = np.cumsum([64] + [len(segment) for segment in segments])[:-1]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
def test_rle_needs_nothing_but_pydicom(tmp_path, dtype):
    planes = samples.stored(3, dtype=dtype)

    volume = read_dicom_volume(compressed(tmp_path / "ct", planes, RLELossless, [rle(plane) for plane in planes]))

    np.testing.assert_array_equal(volume.array[0], planes.transpose(2, 1, 0).astype(np.float32) - 1024)


def test_rle_of_twelve_signed_bits(tmp_path):
    values = np.random.default_rng(1).integers(-2048, 2048, (2, 5, 7))
    planes = (values & 0xFFF).astype(np.uint16)

    def change(ds, index):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 1
        ds.PixelData = encapsulate([rle(planes[index])])
        ds["PixelData"].VR = "OB"

    folder = samples.write_series(tmp_path / "ct", planes, change=change, syntax=RLELossless)

    np.testing.assert_array_equal(
        read_dicom_volume(folder).array[0], values.transpose(2, 1, 0).astype(np.float32) - 1024
    )


def test_rle_of_an_enhanced_file(tmp_path):
    planes = samples.stored(4)
    ds = samples.enhanced_dataset(planes)
    ds.PixelData = encapsulate([rle(plane) for plane in planes[::-1]])
    ds["PixelData"].VR = "OB"
    path = samples.save(ds, tmp_path / "file.dcm", syntax=RLELossless)

    slopes = 1 + 0.5 * np.arange(4, dtype=np.float32)
    expected = planes.transpose(2, 1, 0).astype(np.float32) * slopes - np.float32(7)
    np.testing.assert_array_equal(read_dicom_volume(path).array[0], expected)


def test_identical_compressed_duplicate_is_dropped(tmp_path):
    planes = samples.stored(3)
    folder = compressed(tmp_path / "ct", planes, RLELossless, [rle(plane) for plane in planes])
    (folder / "IM0009.dcm").write_bytes((folder / "IM0002.dcm").read_bytes())

    assert read_dicom_header(folder).warnings == (
        "1 plane dropped that repeats another one exactly (first: IM0009.dcm)",
    )


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (JPEGLSLossless, "JPEG-LS Lossless Image Compression"),
        (JPEG2000Lossless, r"JPEG 2000 Image Compression \(Lossless Only\)"),
        (JPEGBaseline8Bit, r"JPEG Baseline \(Process 1\)"),
    ],
)
def test_no_decoder_is_said_by_the_syntax_name(tmp_path, monkeypatch, syntax, name):
    folder = compressed(tmp_path / "ct", samples.stored(2), syntax, [b"\0" * 8] * 2)
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))

    with pytest.raises(
        UnsupportedScanError, match=rf"^ct/IM0001\.dcm: transfer syntax is {name} and no decoder"
    ) as caught:
        read_dicom_header(folder)
    assert "pip install 'medseg[dicom]'" in str(caught.value)


@pytest.mark.parametrize(
    ("syntax", "name"), [(MPEG2MPML, "MPEG2 Main Profile / Main Level"), ("1.2.3.4", "not a registered one")]
)
def test_syntax_that_is_never_read(tmp_path, syntax, name):
    folder = compressed(tmp_path / "ct", samples.stored(2), syntax, [b"\0" * 8] * 2)

    with pytest.raises(UnsupportedScanError, match=rf"^ct/IM0001\.dcm: transfer syntax is {name}, which is not read"):
        read_dicom_header(folder)


def test_broken_code_stream(tmp_path):
    folder = compressed(tmp_path / "ct", samples.stored(2), RLELossless, [b"\x07" * 90] * 2)

    with pytest.raises(ScanError, match=r"^ct/IM0002\.dcm: compressed pixels can't be decoded \(\w+\)"):
        read_dicom_volume(folder)


@pytest.mark.parametrize("lost", [1, 8, 9, 40])
def test_compressed_file_that_is_cut(tmp_path, lost):
    planes = samples.stored(2)
    folder = compressed(tmp_path / "ct", planes, RLELossless, [rle(plane) for plane in planes])
    data = (folder / "IM0001.dcm").read_bytes()
    (folder / "IM0001.dcm").write_bytes(data[:-lost])

    with pytest.raises(ScanError, match=r"^ct/IM0001\.dcm: compressed PixelData ends early"):
        read_dicom_header(folder)


def test_fewer_fragments_than_frames(tmp_path):
    planes = samples.stored(4)
    ds = samples.enhanced_dataset(planes)
    ds.PixelData = encapsulate([rle(plane) for plane in planes[1:]])
    ds["PixelData"].VR = "OB"
    path = samples.save(ds, tmp_path / "file.dcm", syntax=RLELossless)

    with pytest.raises(ScanError, match=r"^file\.dcm: compressed PixelData has 3 of 4 planes"):
        read_dicom_header(path)


def test_fixed_length_of_compressed_pixels(tmp_path):
    folder = samples.write_series(tmp_path / "ct")
    name = b"1.2.840.10008.1.2.1\0"
    samples.patch(folder / "IM0001.dcm", name, b"1.2.840.10008.1.2.5\0")

    with pytest.raises(ScanError, match=r"^ct/IM0001\.dcm: compressed PixelData has a fixed length"):
        read_dicom_header(folder)


def j2k(columns, rows):
    return b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, columns, rows, 0, 0) + b"\0" * 40


def jpeg(columns, rows, marker=0xC0):
    table = b"\xff\xdb" + struct.pack(">H", 6) + b"\0" * 4
    return b"\xff\xd8" + table + bytes([0xFF, marker]) + struct.pack(">HBHH", 11, 8, rows, columns) + b"\0" * 10


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (j2k(300, 200), (300, 200)),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + j2k(300, 200), (300, 200)),
        (jpeg(300, 200), (300, 200)),
        (jpeg(300, 200, marker=0xF7), (300, 200)),
        (jpeg(300, 200, marker=0xC4), None),
        (b"\xff\xd8", None),
        (b"\xff\x4f\xff\x51", None),
        (b"", None),
        (b"\0" * 100, None),
    ],
    ids=["j2k", "jp2", "jpeg", "jpeg-ls", "no frame header", "cut jpeg", "cut j2k", "empty", "zeros"],
)
def test_size_in_a_code_stream(stream, size):
    assert code_stream_size(stream) == size


@pytest.mark.parametrize("stream", [j2k(65535, 65535), jpeg(65535, 65535)], ids=["j2k", "jpeg"])
def test_bomb_in_a_code_stream_is_refused_before_a_decoder_sees_it(tmp_path, monkeypatch, stream):
    syntax = JPEG2000Lossless if stream[1] == 0x4F else JPEGBaseline8Bit
    folder = compressed(tmp_path / "ct", samples.stored(2), syntax, [stream] * 2)
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: True))

    with pytest.raises(ScanError, match=r"^ct/IM0001\.dcm: compressed plane is 65535x65535, expected 7x5"):
        read_dicom_header(folder)


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"])
def test_lossless_twins_of_one_slice(name):
    plain = read_dicom_volume(_REAL / "MR_small.dcm")
    try:
        twin = read_dicom_volume(_REAL / f"{name}.dcm")
    except UnsupportedScanError as error:
        pytest.skip(str(error))

    np.testing.assert_array_equal(twin.array, plain.array)
    np.testing.assert_array_equal(twin.affine, plain.affine)
