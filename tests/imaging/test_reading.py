import numpy as np
import pytest

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging import FORMATS, is_scan, read_header, read_label_map, read_volume, suffix_of
from tests.imaging.dicom_samples import write_series


def test_every_format_names_functions_that_exist():
    for entry in FORMATS:
        for name in (entry.read_header, entry.read, entry.read_labels, entry.write):
            assert name is None or callable(entry.function(name))


def test_suffixes_are_told_apart(tmp_path):
    assert suffix_of(tmp_path / "A.NII.GZ") == ".nii.gz"
    assert suffix_of(tmp_path / "a.b.nii") == ".nii"
    assert suffix_of(tmp_path / "a.seg.nrrd") == ".seg.nrrd"
    assert suffix_of(tmp_path / "a.gz") is None
    assert is_scan(tmp_path)
    assert not is_scan(tmp_path / "readme.txt")


def test_unknown_suffix(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(
        UnsupportedScanError, match=r"^a\.gz: suffix is \.gz \(content is gzip\), expected one of \.nii,"
    ):
        read_header(tmp_path / "a.gz")
    with pytest.raises(ScanError, match=r"^nothing: there is no such file"):
        read_volume(tmp_path / "nothing")


def test_empty_folder_is_no_series(tmp_path):
    with pytest.raises(ScanError, match=r"(?i)dicom"):
        read_volume(tmp_path)


def test_dicom_is_no_label_map(tmp_path):
    with pytest.raises(ScanError, match="holds 0 files, expected one DICOM-SEG or RTSTRUCT"):
        read_label_map(tmp_path)


def test_paths_may_be_text(tmp_path):
    from PIL import Image

    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_volume(str(tmp_path / "a.png")).shape == (4, 4, 1)


def test_a_dicom_file_needs_neither_suffix_nor_preamble(tmp_path):
    series = write_series(tmp_path / "a", count=1, names="IM{:04d}", preamble=False)
    assert read_header(series / "IM0001").format == "dicom"


@pytest.mark.parametrize("name", ["scan.nii.gz", "1.2.3.tif", "slices.dcm"])
def test_a_folder_of_slices_may_have_any_name(tmp_path, name):
    assert read_header(write_series(tmp_path / name, count=3)).shape == (7, 5, 3)
