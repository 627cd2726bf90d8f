import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from medseg.config.sections import PrepareSection
from medseg.durable import sha256_file
from medseg.errors import ChangedError, DamagedFileError, InputError, LockedError
from medseg.manifest import load_manifest
from medseg.preparation.case import prepare_image, prepare_labels
from medseg.preparation.stage import run_prepare
from medseg.preparation.store import PreparedData
from tests.synthetic import scan, write_dataset, write_scan


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    write_dataset(folder, cases=6)
    return folder


def prepare(data: Path, work: Path, *, section: dict | None = None, manifest: str = "dataset.json", **flags):
    return run_prepare(
        PrepareSection(**(section or {})),
        load_manifest(data / manifest),
        data_root=data,
        output=work / "prepared",
        processes=1,
        **flags,
    )


def files_of(work: Path) -> dict[str, str]:
    folder = work / "prepared"
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def edit_manifest(data: Path, change) -> None:
    content = json.loads((data / "dataset.json").read_text())
    change(content)
    (data / "dataset.json").write_text(json.dumps(content))


def test_a_set_is_checked_planned_and_stored(data, tmp_path):
    report = prepare(data, tmp_path)
    assert (report.exit_code, report.case_count, report.read, report.written) == (0, 6, 6, 6)
    prepared = PreparedData.open(tmp_path / "prepared")
    assert list(prepared.cases) == [f"case_{i:02d}" for i in range(6)]
    assert prepared.sha256 == report.sha256
    assert prepared.class_names == ("background", "organ", "lesion")
    assert prepared.plan == report.plan
    assert prepared.plan.made_from_cases == 6
    made, case = scan("ras", seed=2), prepared.cases["case_02"]
    image, grid = prepare_image(made.volume, prepared.plan)
    patch = case.read_all()
    assert np.array_equal(patch.image, image.astype(np.float16).astype(np.float32))
    assert np.array_equal(patch.labels, prepare_labels(made.labels, grid))
    assert case.grid == grid
    assert {int(patch.labels[tuple(v)]) for v in case.locations(2)} == {2}


def test_a_second_start_does_nothing(data, tmp_path):
    prepare(data, tmp_path)
    before = files_of(tmp_path)
    report = prepare(data, tmp_path)
    assert (report.read, report.written, report.case_count) == (0, 0, 6)
    assert files_of(tmp_path) == before


def test_moved_or_touched_files_are_hashed_again_but_not_read_again(data, tmp_path):
    first = prepare(data, tmp_path)
    elsewhere = tmp_path / "copied"
    shutil.copytree(data, elsewhere)
    (tmp_path / ".prepare-inputs.json").unlink()
    report = prepare(elsewhere, tmp_path)
    assert (report.read, report.written, report.sha256) == (0, 0, first.sha256)
    os.utime(elsewhere / "images" / "case_00.nii.gz")
    report = prepare(elsewhere, tmp_path)
    assert (report.read, report.written) == (0, 0)


def test_no_trace_of_place_or_time_is_in_the_store(data, tmp_path):
    prepare(data, tmp_path / "one")
    shutil.copytree(data, tmp_path / "other data")
    prepare(tmp_path / "other data", tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    for file in (tmp_path / "one" / "prepared").rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes()


def test_a_changed_image_or_label_is_done_again_and_nothing_else(data, tmp_path):
    prepare(data, tmp_path)
    before = PreparedData.open(tmp_path / "prepared")
    write_scan(scan("ras", seed=50), data, case_id="case_03")
    report = prepare(data, tmp_path)
    assert (report.read, report.written) == (1, 1)
    after = PreparedData.open(tmp_path / "prepared")
    changed = [i for i in after.cases if after.cases[i].path != before.cases[i].path]
    assert changed == ["case_03"]
    assert not before.cases["case_03"].path.exists()
    assert after.plan == before.plan


def test_the_plan_stays_when_cases_come_or_go_and_says_how_far_they_moved(data, tmp_path):
    first = prepare(data, tmp_path)
    edit_manifest(data, lambda m: m["training"].pop())
    report = prepare(data, tmp_path)
    assert report.plan == first.plan
    assert report.drift == ("0 cases added, 1 removed since the plan was made from 6",)
    assert (report.written, report.case_count) == (0, 5)
    assert not list((tmp_path / "prepared" / "cases").glob("case_05.*"))
    replanned = prepare(data, tmp_path, replan=True)
    assert replanned.plan.made_from_cases == 5
    assert replanned.drift == ()
    assert prepare(data, tmp_path).plan == replanned.plan


def test_other_settings_are_refused_until_replan(data, tmp_path):
    first = prepare(data, tmp_path)
    with pytest.raises(
        ChangedError, match=r"^prepare\.spacing_xyz_mm: is \[2\.0, 2\.0, 2\.0\], but the plan was made with None"
    ):
        prepare(data, tmp_path, section={"spacing_xyz_mm": (2.0, 2.0, 2.0)})
    report = prepare(data, tmp_path, section={"spacing_xyz_mm": (2.0, 2.0, 2.0)}, replan=True)
    assert report.plan.spacing_xyz_mm == (2.0, 2.0, 2.0)
    assert report.written == 6
    assert report.read == 0
    assert not set(report.keys.values()) & set(first.keys.values())
    assert len(list((tmp_path / "prepared" / "cases").glob("*"))) == 6


def test_batch_and_patch_do_not_touch_the_stored_cases(data, tmp_path):
    first = prepare(data, tmp_path)
    report = prepare(data, tmp_path, section={"batch_size": 3, "patch_size_xyz": (16, 16, 16)}, replan=True)
    assert report.keys == first.keys
    assert report.written == 0


def test_a_plan_edited_by_hand_is_kept_and_its_cases_made_again(data, tmp_path):
    prepare(data, tmp_path)
    file = tmp_path / "prepared" / "plan.yaml"
    file.write_text(file.read_text().replace("spacing_xyz_mm: [1.0, 1.0, 1.0]", "spacing_xyz_mm: [1.5, 1.5, 1.5]"))
    report = prepare(data, tmp_path)
    assert report.plan.spacing_xyz_mm == (1.5, 1.5, 1.5)
    assert report.written == 6


def break_cases(data: Path) -> None:
    """Ten faults in five of six cases."""
    images, labels = data / "images", data / "labels"
    (images / "case_00.nii.gz").write_bytes((images / "case_00.nii.gz").read_bytes()[:2000])
    (labels / "case_01.nii.gz").unlink()
    write_scan(scan("lps", seed=2), data / "aside")
    shutil.copy(data / "aside" / "labels" / "case.nii.gz", labels / "case_02.nii.gz")
    shutil.copy(images / "case_04.nii.gz", images / "case_03.nii.gz")

    def same_patient(manifest):
        manifest["training"][0]["patient"] = manifest["training"][1]["patient"]
        del manifest["labels"]["lesion"]

    edit_manifest(data, same_patient)


def test_all_faults_of_all_cases_come_in_one_pass(data, tmp_path):
    shown = []
    break_cases(data)
    with pytest.raises(
        InputError, match=r"^synthetic: 6 of 6 cases are refused; correct them or the manifest, or prep"
    ):
        prepare(data, tmp_path, show=shown.append)
    found = {}
    for finding in shown[0].findings:
        found.setdefault(finding.case_id, []).append(finding.what)
    text = {case_id: "\n".join(lines) for case_id, lines in found.items()}
    assert "case_00.nii.gz: " in text["case_00"]  # cut short
    assert "'labels/case_01.nii.gz' is missing" in text["case_01"]
    assert "its patient also has case_00 in fold 0" in text["case_01"]
    assert "its grid is not the scan's: spacing is" in text["case_02"]
    assert "label values are 2 (" in text["case_03"]
    assert "has the same voxels as case_03 in fold 0" in text["case_04"]
    assert json.loads((tmp_path / "prepared" / "checks.json").read_text()) == shown[0].plain()
    assert not list((tmp_path / "prepared" / "cases").glob("*"))
    assert str(tmp_path) not in (tmp_path / "prepared" / "checks.json").read_text()


def test_bad_cases_are_left_out_where_asked(data, tmp_path):
    images = data / "images"
    image = images / "case_00.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    shutil.copy(images / "case_04.nii.gz", images / "case_03.nii.gz")  # folds 1 and 0
    report = prepare(data, tmp_path, section={"on_bad_case": "skip"})
    assert report.exit_code == 4
    assert report.checks.bad_cases == ("case_00", "case_04")
    prepared = PreparedData.open(tmp_path / "prepared")
    assert set(prepared.cases) == {"case_01", "case_02", "case_03", "case_05"}
    assert prepared.skipped == ("case_00", "case_04")
    again = prepare(data, tmp_path, section={"on_bad_case": "skip"})
    assert (again.exit_code, again.read, again.written) == (4, 0, 0)


def test_check_only_stops_after_the_checks(data, tmp_path):
    report = prepare(data, tmp_path, check_only=True)
    assert (report.exit_code, report.plan, report.read) == (0, None, 6)
    assert not (tmp_path / "prepared" / "plan.yaml").exists()
    assert prepare(data, tmp_path).read == 0


def test_non_finite_voxels_are_counted(data, tmp_path):
    import nibabel as nib

    made = scan("ras", seed=1)
    made.image[3, 4, 5:7] = np.nan
    nib.save(nib.Nifti1Image(made.image, made.affine), data / "images" / "case_01.nii.gz")
    with pytest.raises(InputError, match="1 of 6 cases are refused"):
        prepare(data, tmp_path)
    (finding,) = json.loads((tmp_path / "prepared" / "checks.json").read_text())["findings"]
    assert (finding["case"], finding["severity"]) == ("case_01", "error")
    assert "2 " in finding["what"]


def test_testing_cases_are_checked_and_not_stored(data, tmp_path):
    def move_one(manifest):
        moved = manifest["training"].pop()
        del moved["fold"]
        manifest["testing"].append(moved)

    edit_manifest(data, move_one)
    report = prepare(data, tmp_path)
    assert (report.read, report.case_count, report.plan.made_from_cases) == (6, 5, 5)
    assert "case_05" not in report.keys


def test_empty_labels_are_a_warning(data, tmp_path):
    made = scan("ras", seed=1)
    made.labels[:] = 0
    write_scan(made, data, case_id="case_01")
    report = prepare(data, tmp_path)
    assert [f.what for f in report.checks.findings] == [
        "case_01.nii.gz: the label map is empty, every voxel is background"
    ]
    assert PreparedData.open(tmp_path / "prepared").cases["case_01"].classes_present == ()


def test_pictures(tmp_path):
    data = tmp_path / "data"
    write_dataset(data, cases=3, grid="picture", suffix=".png", channel="grey")
    report = prepare(data, tmp_path)
    assert report.plan.dimensions == 2
    assert PreparedData.open(tmp_path / "prepared").cases["case_00"].shape_xyz == (48, 40, 1)


def test_damage_is_found_and_repaired(data, tmp_path):
    prepare(data, tmp_path)
    before = files_of(tmp_path)
    victim = PreparedData.open(tmp_path / "prepared").cases["case_01"]
    file = victim.path
    content = bytearray(file.read_bytes())
    content[1000] ^= 4
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"^case_01: "):
        victim.read_all()
    assert prepare(data, tmp_path, verify=True).written == 1
    assert files_of(tmp_path) == before


def test_damaged_facts_are_made_again(data, tmp_path):
    prepare(data, tmp_path)
    before = files_of(tmp_path)
    file = tmp_path / "prepared" / "facts.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace('"planar": false', '"planar": true')
    file.write_text("\n".join(lines))  # the last line looks as if it was cut, too
    assert prepare(data, tmp_path).read == 1
    assert files_of(tmp_path) == before


def test_leftovers_of_a_killed_start_are_removed(data, tmp_path):
    prepare(data, tmp_path)
    before = files_of(tmp_path)
    gone = tmp_path / "prepared" / "cases"
    next(gone.glob("case_04.*")).unlink()
    (tmp_path / "prepared" / "index.json").unlink()
    name = "".join(c for c in socket.gethostname() if c.isalnum())[:20] or "host"
    (gone / f".tmp-{name}-999999999-ab-key.bin").write_bytes(b"half")
    report = prepare(data, tmp_path)
    assert (report.read, report.written) == (0, 1)
    assert files_of(tmp_path) == before


def test_two_at_once_are_refused(data, tmp_path):
    from medseg.durable import FolderLock

    with FolderLock(tmp_path / "prepared"), pytest.raises(LockedError, match="is being written by process"):
        prepare(data, tmp_path)
