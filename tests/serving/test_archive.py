"""Zip archives of unknown origin, and what a body is taken for."""

import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medseg.config.series import SeriesSection
from medseg.errors import ScanError
from medseg.imaging import read_volume
from medseg.preparation.plan import ChannelPlan
from medseg.serving.archive import unpack
from medseg.serving.scan import Upload, find_images, read_upload
from tests.imaging.dicom_samples import write_series
from tests.imaging.test_dicom_choice import add_series
from tests.synthetic import scan, write_scan

SLICE = b"\0" * 128 + b"DICM"


def archive(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def upload(body, folder, channels=1):
    plans = tuple(ChannelPlan(name=f"MR{number}", scheme="none") for number in range(channels))
    return Upload(body=body, folder=folder, channels=plans, max_unpacked_bytes=10**7, max_files=100, max_voxels=10**6)


def test_names_decide_about_the_order_alone(tmp_path):
    files = {"../../b": b"2", "/etc/a": b"1", "c/d/e": b"3", "__MACOSX/x": b"-", "c/.hidden": b"-"}
    (tmp_path / "out").mkdir()
    paths = unpack(archive(tmp_path / "body", files), tmp_path / "out", max_bytes=99, max_files=9)
    assert [path.name for path in paths] == ["00000", "00001", "00002"]
    assert [path.read_bytes() for path in paths] == [b"2", b"1", b"3"]
    assert {path.name for path in tmp_path.iterdir()} == {"body", "out"}


def flagged(data, at_local, at_central, value):
    """Both headers of the first file changed at these offsets."""
    data, central = bytearray(data), data.rindex(b"PK\x01\x02")
    data[at_local : at_local + len(value)] = value
    data[central + at_central : central + at_central + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-5], "is no whole zip file"),
        (lambda data: data[:40] + bytes([data[40] ^ 255]) + data[41:], "is no sound zip file"),
        (lambda data: flagged(data, 6, 8, b"\x01\x00"), "is encrypted"),
        (lambda data: flagged(data, 8, 10, b"\x0c\x00"), "in an uncommon way"),
        (lambda data: flagged(data, 22, 24, struct.pack("<L", 10)), "is no sound zip file"),
        (lambda data: data[:-22] + b"PK\x06\x07" + data[-22:], "zip64"),
        (lambda data: data[:-10] + struct.pack("<L", 10**6) + data[-6:], "has a directory of 1,000,000 bytes"),
    ],
)
def test_an_archive_that_is_not_what_it_says(tmp_path, change, message):
    body = archive(tmp_path / "body", {"a": b"abc" * 9999})
    body.write_bytes(change(body.read_bytes()))
    (tmp_path / "out").mkdir()
    with pytest.raises(ScanError, match=message):
        unpack(body, tmp_path / "out", max_bytes=10**6, max_files=100)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is no whole|holds no file"),
        ({"folder/": b""}, "holds no file"),
        ({str(n): b"" for n in range(101)}, "holds 101 files, expected at most 100"),
        ({"a": b"\0" * 10**6, "b": b"\0" * 10**5}, "unpacks to more than 1 MiB"),
    ],
)
def test_an_archive_with_too_little_or_too_much(tmp_path, files, message):
    (tmp_path / "out").mkdir()
    with pytest.raises(ScanError, match=message):
        unpack(archive(tmp_path / "body", files), tmp_path / "out", max_bytes=2**20, max_files=100)


def test_a_series_keeps_its_order_and_loses_what_is_no_dicom(tmp_path):
    files = {"2.dcm": SLICE + b"2", "1.dcm": SLICE + b"1", "report.txt": b"text"}
    (series,) = find_images(upload(archive(tmp_path / "body", files), tmp_path))
    assert [path.read_bytes()[-1:] for path in sorted(series.iterdir())] == [b"1", b"2"]
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


@pytest.mark.parametrize("zipped", [True, False])
def test_dicom_needs_no_preamble(tmp_path, zipped):
    series = write_series(tmp_path / "series", count=1, names="IM{:04d}", preamble=False)
    body = archive(tmp_path / "body", {"IM1": (series / "IM0001").read_bytes()}) if zipped else series / "IM0001"
    (tmp_path / "in").mkdir()
    volume, _ = read_upload(upload(body, tmp_path / "in"))
    assert volume.shape == (7, 5, 1)


def test_a_big_tiff_is_a_picture(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "body", format="TIFF", big_tiff=True)
    volume, _ = read_upload(upload(tmp_path / "body", tmp_path))
    assert volume.shape == (4, 3, 1)


def test_one_scan_a_channel_in_an_archive(tmp_path):
    one, _ = write_scan(scan("ras", seed=1), tmp_path / "one")
    two, _ = write_scan(scan("ras", seed=2), tmp_path / "two")
    (tmp_path / "in").mkdir()
    body = archive(tmp_path / "in" / "body", {"s_0001.nii.gz": two.read_bytes(), "s_0000.nii.gz": one.read_bytes()})
    volume, images = read_upload(upload(body, tmp_path / "in", channels=2))
    assert [path.suffixes for path in images] == [[".nii", ".gz"]] * 2
    assert np.array_equal(volume.array, [scan("ras", seed=1).image, scan("ras", seed=2).image])


def test_of_a_dicom_study_the_models_rules_find_each_channels_series(tmp_path):
    for number, name in enumerate(("flair", "t1"), start=1):
        add_series(tmp_path / "study", number, modality="MR", description=name)
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "study").iterdir())}
    (tmp_path / "in").mkdir()
    sent = upload(archive(tmp_path / "body", files), tmp_path / "in")
    rules = {name: SeriesSection(description=name.lower()) for name in ("T1", "FLAIR")}
    plans = tuple(ChannelPlan(name=name, scheme="none", series=rule) for name, rule in rules.items())
    volume, _ = read_upload(replace(sent, channels=plans))
    alone = [read_volume(tmp_path / "study", series=rule).array for rule in rules.values()]
    np.testing.assert_array_equal(volume.array, np.concatenate(alone))
