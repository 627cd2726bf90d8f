"""Export folders: whole or not there, found again, never overwritten."""

import json

import pytest

from medseg.errors import UsageError
from medseg.exchange.export import refuse_same_folders
from medseg.exchange.folder import Export, is_exported, new_export

EXPORT = Export("onnx", "a" * 64, {"int8": False})


def write(folder, export=EXPORT):
    with new_export(folder, export) as work:
        (work / "inner").mkdir()
        (work / "inner" / "file.txt").write_text("content")


def test_an_export_is_found_again(tmp_path):
    folder = tmp_path / "below" / "out"
    assert not is_exported(folder, EXPORT)
    write(folder)
    assert is_exported(folder, EXPORT)
    record = json.loads((folder / "export.json").read_text())
    assert list(record["files"]) == ["inner/file.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_what_is_not_this_export_stays(tmp_path):
    folder = tmp_path / "out"
    write(folder)
    with pytest.raises(UsageError, match="other settings or of another model"):
        is_exported(folder, Export("onnx", "b" * 64, {"int8": False}))
    (folder / "inner" / "file.txt").write_text("changed")
    with pytest.raises(UsageError, match="a file that was changed"):
        is_exported(folder, EXPORT)
    (folder / "export.json").write_text('{"kind": "medseg export", "format": 9}')
    with pytest.raises(UsageError, match="export format 9"):
        is_exported(folder, EXPORT)
    (folder / "export.json").unlink()
    with pytest.raises(UsageError, match="is no export of medseg"):
        is_exported(folder, EXPORT)


def test_a_failure_leaves_nothing(tmp_path):
    def fail():
        with new_export(tmp_path / "out", EXPORT) as work:
            (work / "half").write_text("half")
            raise RuntimeError("amid")

    with pytest.raises(RuntimeError, match="amid"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_two_exports_need_two_folders(tmp_path):
    refuse_same_folders(tmp_path / "model", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UsageError, match="two of the folders are one"):
        refuse_same_folders(tmp_path / "model", [tmp_path / "a", tmp_path / "b" / ".." / "a"])
    with pytest.raises(UsageError, match="two of the folders are one"):
        refuse_same_folders(tmp_path / "a", [tmp_path / "a"])
