"""What a searched folder holds, and that nothing in it is passed over without a word."""

import os

import pytest

from medseg.inference.cases import find_cases
from medseg.inference.folder_search import is_dicom_file, search_folder
from tests.imaging.dicom_samples import (
    CLASSES,
    SECRET_UID,
    enhanced_dataset,
    everywhere,
    save,
    slice_dataset,
    stored,
    write_series,
)
from tests.inference.test_cases import ONE, ids, touch


def names(top, paths):
    return [path.relative_to(top).as_posix() for path in paths]


def contours(path):
    data = slice_dataset(0, stored(1)[0])
    data.SOPClassUID, data.Modality = CLASSES["RTSTRUCT"], "RTSTRUCT"
    del data.PixelData, data.Rows
    return save(data, path)


@pytest.mark.parametrize(
    "options",
    [
        {"names": "IM{:04d}.dcm"},
        {"names": "IM{:04d}"},
        {"names": "MR.1.2.840.{:04d}"},
        {"names": "{:04d}.img"},
        {"names": "IM{:04d}", "preamble": False},
    ],
)
def test_slices_are_known_by_their_content_whatever_their_names(tmp_path, options):
    write_series(tmp_path / "p" / "CT", count=2, **options)
    content = search_folder(tmp_path)
    assert names(tmp_path, content.dicom) == ["p/CT"]
    assert (content.files, content.passed_over()) == ([], ())


def test_contours_before_the_slices_do_not_hide_them(tmp_path):
    contours(write_series(tmp_path / "a", count=2) / "AA.dcm")
    contours(tmp_path / "b" / "AA.dcm")
    content = search_folder(tmp_path)
    assert names(tmp_path, content.dicom) == ["a"]
    assert content.passed_over() == ("1 DICOM folders hold no images (contours, plans)",)


def test_a_table_of_contents_is_no_scan(tmp_path):
    write_series(tmp_path / "DICOM" / "S1", count=2)
    data = slice_dataset(0, stored(1)[0])
    data.SOPClassUID = "1.2.840.10008.1.3.10"
    save(data, tmp_path / "DICOMDIR")
    assert names(tmp_path, search_folder(tmp_path).dicom) == ["DICOM/S1"]


def test_what_cant_be_parsed_is_kept_so_that_reading_it_says_why(tmp_path):
    touch(tmp_path, "x/a.dcm")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\x08\x00\x16\x00UI\xff\xff" + b"\xff" * 50)
    assert names(tmp_path, search_folder(tmp_path).dicom) == ["x", "y"]


def test_a_series_that_is_spread_over_folders_is_told(tmp_path, caplog):
    for part in ("DIR000", "DIR001"):
        write_series(tmp_path / part, count=2)
    write_series(tmp_path / "other", count=2, change=everywhere(SeriesInstanceUID="1.2.3"))
    assert names(tmp_path, search_folder(tmp_path).dicom) == ["DIR000", "DIR001", "other"]
    assert "2 DICOM folders hold slices of a series that others hold too" in caplog.text
    assert SECRET_UID not in caplog.text


def multi_frame(path, series):
    data = enhanced_dataset(stored(3))
    data.SeriesInstanceUID = series
    return save(data, path)


def test_multi_frame_files_of_a_series_each_are_scans(tmp_path):
    for folder, series in (("many", ("1.1", "1.2")), ("parts", ("1.3", "1.3")), ("one", ("1.4",))):
        for number, uid in enumerate(series):
            multi_frame(tmp_path / folder / f"p{number}.dcm", uid)
    contours(tmp_path / "many" / "plan.dcm")
    content = search_folder(tmp_path)
    assert names(tmp_path, content.dicom) == ["many", "one", "parts"]
    assert {folder.name: names(folder, scans) for folder, scans in content.scans_in.items()} == {
        "many": ["p0.dcm", "p1.dcm"]
    }
    assert ids(find_cases([tmp_path], channels=ONE)) == ["many_p0", "many_p1", "one", "parts"]
    # A slice among them makes the folder one scan, which reading it judges.
    save(slice_dataset(0, stored(1)[0]), tmp_path / "many" / "slice.dcm")
    assert search_folder(tmp_path / "many").scans_in == {}


def test_masks_of_an_earlier_run_are_no_scans(tmp_path, caplog):
    touch(tmp_path, "a.nii.gz", "old/a.nii.gz", "old/a.nii.gz.sidecar.json", "old/maps/a_entropy.nii.gz")
    touch(
        tmp_path, "parts/report.jsonl", "parts/stage.json", "parts/a/organ.nii.gz", "parts/a/organ.nii.gz.sidecar.json"
    )
    assert names(tmp_path, search_folder(tmp_path).files) == ["a.nii.gz"]
    assert "2 folders hold masks of medseg infer and are left out" in caplog.text
    # Asked for by name, they are scans like any other.
    assert names(tmp_path, search_folder(tmp_path / "old").files) == ["old/a.nii.gz", "old/maps/a_entropy.nii.gz"]


def test_structures_and_files_of_unread_kinds_are_told_without_their_names(tmp_path, caplog):
    touch(tmp_path, "a.nrrd", "a.seg.nrrd", "Jane.img", "Jane.hdr", "b.nii.bz2", "c.raw.gz", "notes.txt", ".d.img")
    content = search_folder(tmp_path)
    assert names(tmp_path, content.files) == ["a.nrrd"]
    assert content.passed_over() == (
        "1 files hold structures (.seg.nrrd)",
        "3 files are of a kind that is not read (1 .hdr, 1 .img, 1 .nii.bz2)",
    )
    assert "Jane" not in caplog.text


def test_links_to_folders_are_followed_out_of_the_folder_and_never_twice(tmp_path):
    touch(tmp_path, "disk/p1/a.nii", "disk/p1/deep/b.nii", "top/c.nii", "top/d/e.nii")
    top = tmp_path / "top"
    (top / "p1").symlink_to(tmp_path / "disk" / "p1")
    (top / "again").symlink_to(tmp_path / "disk" / "p1")
    (top / "d" / "up").symlink_to(top)
    (top / "d" / "side").symlink_to(top / "d")
    (top / "out").symlink_to(tmp_path)
    (top / "loop").symlink_to("loop")
    (tmp_path / "disk" / "p1" / "back").symlink_to(tmp_path / "disk" / "p1")
    assert names(top, search_folder(top).files) == ["again/a.nii", "again/deep/b.nii", "c.nii", "d/e.nii"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cant_be_listed_is_told(tmp_path):
    touch(tmp_path, "a.nii", "closed/b.nii")
    (tmp_path / "closed").chmod(0)
    try:
        assert search_folder(tmp_path).unread == {
            tmp_path / "closed": "closed: can't be searched (Permission denied); check its permissions"
        }
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not is_dicom_file(tmp_path / "pipe")
    assert search_folder(tmp_path).files == []
