import pytest

from medseg.errors import InputError
from medseg.evaluation.matching import CasePaths, label_files, match_folders, match_references


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_stems_and_what_is_passed_over(tmp_path):
    names = ("a.nii.gz", "b.nii", "c.1.NRRD", "d.seg.nrrd", "e.mha", "f.png", "g.tif")
    others = ("a.nii.gz.sidecar.json", "report.jsonl", ".h.nii.gz", "preview.jpg", "readme.txt", ".png")
    folder = touch(tmp_path / "p", *names, *others)
    (folder / "k.nii.gz").mkdir()
    assert {stem: path.name for stem, path in label_files(folder).items()} == dict(
        zip(("a", "b", "c.1", "d", "e", "f", "g"), names, strict=True)
    )


def test_pairs_whatever_the_format(tmp_path):
    predictions = touch(tmp_path / "p", "a.nii.gz", "b.nrrd", "x.png")
    references = touch(tmp_path / "r", "a.nrrd", "b.nrrd", "c.nii")
    assert match_folders(predictions, references) == (
        CasePaths(case_id="a", prediction=predictions / "a.nii.gz", reference=references / "a.nrrd"),
        CasePaths(case_id="b", prediction=predictions / "b.nrrd", reference=references / "b.nrrd"),
        CasePaths(case_id="c", prediction=None, reference=references / "c.nii"),
        CasePaths(case_id="x", prediction=predictions / "x.png", reference=None),
    )


def test_cases_known_to_have_no_reference_are_not_extra(tmp_path):
    predictions = touch(tmp_path / "p", "a.nii.gz", "b.nii.gz")
    found = match_references(predictions, {"a": tmp_path / "r.nii"}, known=["a", "b"])
    assert [case.case_id for case in found] == ["a"]


def test_two_files_of_one_case_are_refused(tmp_path):
    folder = touch(tmp_path / "p", "a.nii.gz", "a.nrrd")
    with pytest.raises(InputError, match=r"p: case a has two files \(a.nii.gz, a.nrrd\), expected one"):
        label_files(folder)


def test_missing_folder_and_nothing_in_common_are_refused(tmp_path):
    with pytest.raises(InputError, match="gone: no such folder"):
        match_folders(tmp_path / "gone", tmp_path)
    folders = touch(tmp_path / "p", "a.png"), touch(tmp_path / "r", "b.png", "c.png")
    with pytest.raises(InputError, match="p: none of its 1 label maps has the name of one of the 2 references"):
        match_folders(*folders)
