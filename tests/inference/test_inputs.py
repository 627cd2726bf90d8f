"""Checksums of a case's files, and noticing that they change."""

import hashlib
import os

import pytest

from medseg.errors import ScanError
from medseg.inference.inputs import InputFiles


def test_a_files_checksum_is_that_of_its_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    expected = {f"image_000{n}": hashlib.sha256(name).hexdigest() for n, name in enumerate((b"a", b"b"))}
    assert InputFiles([tmp_path / "a", tmp_path / "b"]).sha256s() == expected


def test_a_folders_checksum_depends_on_bytes_not_names(tmp_path):
    for folder, names in (("one", ("1", "2")), ("two", ("z", "y")), ("other", ("1", "2"))):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            (tmp_path / folder / name).write_bytes(b"slice" + bytes([number + (folder == "other")]))
    one, two, other = (InputFiles([tmp_path / name]).sha256s() for name in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.parametrize("change", ["edit", "replace", "add", "remove"])
def test_a_change_is_noticed(tmp_path, change):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"voxels")
    files = InputFiles([tmp_path])
    files.check_unchanged()
    if change == "edit":
        (tmp_path / "a").write_bytes(b"more voxels")
    elif change == "replace":
        (tmp_path / "c").write_bytes(b"voxels")
        (tmp_path / "c").replace(tmp_path / "a")
    elif change == "add":
        (tmp_path / "c").write_bytes(b"voxels")
    else:
        (tmp_path / "a").unlink()
    with pytest.raises(ScanError, match="was changed while it was read"):
        files.check_unchanged()


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scan.nii")
    with pytest.raises(ScanError, match=r"scan.nii: is no regular file"):
        InputFiles([tmp_path / "scan.nii"])


def test_a_missing_file_is_named_without_its_folder(tmp_path, no_absolute_paths):
    with pytest.raises(ScanError, match=r"^scan.nii: can't be read") as caught:
        InputFiles([tmp_path / "scan.nii"])
    no_absolute_paths(str(caught.value))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_named(tmp_path):
    for folder in ("closed", "CT"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"voxels")
    (tmp_path / "CT" / "a").chmod(0)
    with pytest.raises(ScanError, match=r"^CT/a: can't be read \(Permission denied\)"):
        InputFiles([tmp_path / "CT"]).sha256s()
    (tmp_path / "closed").chmod(0o444)
    try:
        with pytest.raises(ScanError, match=r"^a: can't be read \(Permission denied\)"):
            InputFiles([tmp_path / "closed" / "a"])
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_a_slice_that_is_gone_between_two_looks_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"voxels")
    files = InputFiles([tmp_path])
    monkeypatch.setattr("medseg.inference.inputs._files", lambda *_: [tmp_path / "b"])
    with pytest.raises(ScanError, match=rf"^{tmp_path.name}/b: can't be read \(No such file or directory\)"):
        files.sha256s()
