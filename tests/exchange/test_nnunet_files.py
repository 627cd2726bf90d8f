import errno
import json
import stat
import zipfile
from pathlib import PurePosixPath

import pytest

from medseg.errors import EnvironmentFault, InputError, ModelError, UsageError
from medseg.exchange.nnunet_files import choose_trained, find_trained, folds_to_take, open_files, previous_of


def results(folder, *names, folds=("0",)):
    """Empty files where nnU-Net puts a model's."""
    for name in names:
        for fold in folds:
            (folder / name / f"fold_{fold}").mkdir(parents=True)
            (folder / name / f"fold_{fold}" / "checkpoint_final.pth").touch()
        (folder / name / "plans.json").write_text(json.dumps({"plans_name": name}))
        (folder / name / "dataset.json").write_text("{}")
    return folder


def test_a_model_is_found_at_any_height(tmp_path):
    results(tmp_path / "Dataset001_A", "T__P__2d", "T__P__3d_fullres")
    assert [one.configuration for one in find_trained(open_files(tmp_path))] == ["2d", "3d_fullres"]
    single = find_trained(open_files(tmp_path / "Dataset001_A" / "T__P__2d"))
    assert [(one.name, one.plans["plans_name"]) for one in single] == [("T__P__2d", "T__P__2d")]


def test_one_of_several_has_to_be_named(tmp_path):
    found = find_trained(open_files(results(tmp_path, "T__P__2d", "T__P__3d_fullres", "U__P__2d")))
    assert choose_trained(found, "3d_fullres").name == "T__P__3d_fullres"
    assert choose_trained(found, "U__P__2d").name == "U__P__2d"
    with pytest.raises(UsageError, match=r"3 trained configurations \(T__P__2d, T__P__3d_fullres, U__P__2d\)"):
        choose_trained(found, None)
    with pytest.raises(UsageError, match=r"holds 2 trained configurations as 2d"):
        choose_trained(found, "2d")


def test_a_cascades_first_stage_lies_beside_it(tmp_path):
    found = find_trained(open_files(results(tmp_path, "T__P__3d_cascade_fullres", "T__P__3d_lowres", "U__P__x")))
    assert previous_of(found[0], found, "3d_lowres").name == "T__P__3d_lowres"
    with pytest.raises(ModelError, match=r"is a cascade's second stage and U__P__3d_lowres does not lie beside it"):
        previous_of(found[2], found, "3d_lowres")


def test_folds_are_those_nnunet_takes(tmp_path):
    (one,) = find_trained(open_files(results(tmp_path, "T__P__2d", folds=("0", "10", "2", "all"))))
    assert list(folds_to_take(one, (), "final")) == ["0", "2", "10"]
    assert list(folds_to_take(one, ("all",), "final")) == ["all"]
    with pytest.raises(ModelError, match=r"has no checkpoint_best\.pth for fold any, expected one \(fold 0: final"):
        folds_to_take(one, (), "best")
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth for fold 1, expected one \([^)]*\)$"):
        folds_to_take(one, ("1",), "final")
    with pytest.raises(ModelError, match=r"take the other with --checkpoint final$"):
        folds_to_take(one, ("2",), "best")


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"holds no fold_\*/checkpoint_\*\.pth"):
        find_trained(open_files(tmp_path))
    with pytest.raises(InputError, match=r"no such folder or zip"):
        open_files(tmp_path / "nothing")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ModelError, match=r"text\.zip: is no whole zip \(BadZipFile\)"):
        open_files(tmp_path / "text.zip")
    results(tmp_path, "T__P__2d")
    (tmp_path / "T__P__2d" / "plans.json").write_text("[1")
    with pytest.raises(ModelError, match=r"plans\.json: is no JSON"):
        find_trained(open_files(tmp_path))


@pytest.mark.parametrize("name", ["../plans.json", "/plans.json", "a/../../b", "C:/plans.json", "a\\b", "."])
def test_a_zip_that_leaves_its_folder_is_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(ModelError, match=r"a member's name leaves the archive or is a link"):
        open_files(tmp_path / "bad.zip")


def test_a_link_in_a_zip_is_refused(tmp_path):
    member = zipfile.ZipInfo("fold_0/checkpoint_final.pth")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ModelError, match=r"is a link"):
        open_files(tmp_path / "bad.zip")


def test_sizes_are_bounded_before_anything_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.exchange.nnunet_files.MOST_CHECKPOINT_BYTES", 10)
    monkeypatch.setattr("medseg.exchange.nnunet_files.MOST_JSON_BYTES", 10)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("T/fold_0/checkpoint_final.pth", bytes(1000))
        archive.writestr("T/plans.json", json.dumps({"a": "b" * 1000}))
    files = open_files(tmp_path / "bomb.zip")
    with (
        pytest.raises(ModelError, match=r"has 1000 bytes, expected at most 10"),
        files.checkpoint(PurePosixPath("T/fold_0/checkpoint_final.pth")),
    ):
        pass
    with pytest.raises(ModelError, match=r"plans\.json: has more than 10 bytes"):
        files.json(PurePosixPath("T/plans.json"))


def deflated(path, method):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("T/fold_0/checkpoint_final.pth", bytes(range(256)) * 4)
    return bytearray(path.read_bytes())


def refuses_checkpoint(path, match):
    files = open_files(path)
    with (
        pytest.raises(ModelError, match=match),
        files.checkpoint(PurePosixPath("T/fold_0/checkpoint_final.pth")),
    ):
        pass


@pytest.mark.parametrize(
    ("method", "fault"),
    [(zipfile.ZIP_DEFLATED, r"\(error\)"), (zipfile.ZIP_LZMA, r"\(LZMAError\)"), (zipfile.ZIP_BZIP2, r"\(OSError\)")],
)
def test_a_damaged_stream_is_named(method, fault, tmp_path):
    data = deflated(tmp_path / "model.zip", method)
    start = data.index(b".pth") + 4
    data[start + 9 : start + 40] = b"\xff" * 31
    (tmp_path / "model.zip").write_bytes(data)
    refuses_checkpoint(tmp_path / "model.zip", rf"checkpoint_final\.pth can't be read {fault}; download the zip again")


def test_a_stream_that_ends_early_is_named(tmp_path):
    data = deflated(tmp_path / "model.zip", zipfile.ZIP_STORED)
    where = data.index(b"PK\x01\x02")
    data[where + 20 : where + 28] = (10**6).to_bytes(4, "little") * 2  # sizes in the directory: more than there is
    (tmp_path / "model.zip").write_bytes(data)
    refuses_checkpoint(tmp_path / "model.zip", r"checkpoint_final\.pth can't be read")


def test_a_directory_that_zipfile_does_not_know_is_refused(tmp_path):
    data = deflated(tmp_path / "model.zip", zipfile.ZIP_DEFLATED)
    where = data.index(b"PK\x01\x02")
    data[where + 6] = 227  # the version needed to read it
    (tmp_path / "model.zip").write_bytes(data)
    with pytest.raises(ModelError, match=r"is no whole zip \(NotImplementedError\)"):
        open_files(tmp_path / "model.zip")


def test_a_full_disk_is_not_the_zips_fault(tmp_path, monkeypatch):
    deflated(tmp_path / "model.zip", zipfile.ZIP_DEFLATED)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medseg.exchange.nnunet_files.shutil.copyfileobj", full)
    files = open_files(tmp_path / "model.zip")
    with (
        pytest.raises(EnvironmentFault, match=r"no room for checkpoint_final\.pth in the temporary folder"),
        files.checkpoint(PurePosixPath("T/fold_0/checkpoint_final.pth")),
    ):
        pass


def test_a_damaged_member_is_named(tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("T/fold_0/checkpoint_final.pth", b"abcdefghij" * 10)
    data = bytearray(path.read_bytes())
    data[data.index(b"abcdef")] ^= 1
    path.write_bytes(data)
    files = open_files(path)
    with (
        pytest.raises(ModelError, match=r"checkpoint_final\.pth can't be read \(BadZipFile\)"),
        files.checkpoint(PurePosixPath("T/fold_0/checkpoint_final.pth")),
    ):
        pass
