import csv
import json

import numpy as np
import pytest

from medseg.audit import sketch as sketching
from medseg.audit.pictures import suspect_slices
from medseg.audit.sketch import working_spacing_xyz_mm
from medseg.audit.stage import run_audit
from medseg.errors import InputError
from medseg.imaging import LabelMap, Volume, read_label_map, read_volume, write_label_map, write_volume
from medseg.manifest import load_manifest
from tests.audit.sketches import texture
from tests.synthetic import write_dataset


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", cases=9, grid="oblique_flipped")
    for number, path in enumerate(sorted((tmp_path / "data" / "images").iterdir())):
        volume = read_volume(path)  # the synthetic scans are one phantom; patients have a structure of their own
        own = 100 * texture(number, volume.shape)
        write_volume(Volume(volume.array + own, volume.affine), path, like=volume.header)
    return tmp_path / "data"


def audit(data, output="audit", **more):
    manifest = load_manifest(data / "dataset.json")
    return run_audit(manifest, data_root=data, output=data.parent / output, processes=1, **more)


def change_manifest(data, change):
    content = json.loads((data / "dataset.json").read_text())
    change(content["training"])
    (data / "dataset.json").write_text(json.dumps(content))


def move_label(data, case_id, voxels):
    path = data / "labels" / f"{case_id}.nii.gz"
    label = read_label_map(path)
    write_label_map(LabelMap(np.roll(label.array, voxels, (0, 1, 2)), label.affine), path, like=label.header)


@pytest.mark.slow
def test_a_sound_set_has_nothing_urgent(data):
    report = audit(data)
    assert report.case_count == 9
    assert [finding.kind for finding in report.findings if finding.score >= 10] == []
    assert [shape.name for shape in report.shapes] == ["organ", "lesion"]
    assert report.exit_code == 0


@pytest.mark.slow
def test_planted_faults_lead_the_list(data):
    move_label(data, "case_02", (4, -3, 0))
    exchanged = data / "labels" / "case_03.nii.gz"
    label = read_label_map(exchanged)
    write_label_map(LabelMap(np.array([0, 2, 1])[label.array], label.affine), exchanged, like=label.header)
    volume = read_volume(data / "images" / "case_04.nii.gz")
    write_volume(Volume(np.ascontiguousarray(volume.array[:, 2:] * 0.4), volume.affine), data / "copy.nii.gz")
    copy = {"id": "copy", "patient": "other", "image": "copy.nii.gz", "fold": 0}
    change_manifest(data, lambda cases: cases.append(copy))
    report = audit(data)
    assert [(finding.kind, finding.cases) for finding in report.findings[:3]] == [
        ("leak", ("case_04", "copy")),
        ("swapped classes", ("case_03",)),
        ("moved label", ("case_02",)),
    ]
    written = json.loads((data.parent / "audit" / "audit.json").read_text())
    assert written["findings"][0]["cases"] == ["case_04", "copy"]
    rows = list(csv.DictReader((data.parent / "audit" / "findings.csv").read_text().splitlines()))
    assert (rows[0]["case"], rows[0]["other_case"]) == ("case_04", "copy")
    pictures = dict(suspect_slices(report))
    assert {"01 leak case_04", "01 leak copy", "02 swapped classes case_03"} <= set(pictures)
    assert pictures["01 leak copy"].label is None


@pytest.mark.slow
def test_a_second_audit_reads_only_what_changed(data, monkeypatch):
    first = audit(data).plain()
    made = []
    make = sketching._make
    monkeypatch.setattr(sketching, "_make", lambda task: made.append(task.id) or make(task))
    assert audit(data).plain() == first
    assert made == []
    move_label(data, "case_01", (1, 0, 0))
    (data.parent / "audit" / "cases" / "case_05.npz").write_bytes(b"damaged")
    audit(data)
    assert made == ["case_01", "case_05"]


def test_predictions_take_the_place_of_the_voxel_model(data):
    truth = {f"case_{k:02d}": data.parent / "masks" / f"case_{k:02d}.nii.gz" for k in range(9)}
    for case_id, path in truth.items():
        label = read_label_map(data / "labels" / f"{case_id}.nii.gz")
        write_label_map(label, path, like=label.header)
    move_label(data, "case_06", (0, 3, 0))
    report = audit(data, predictions=truth)
    assert (report.findings[0].kind, report.findings[0].cases) == ("moved label", ("case_06",))
    assert any("out-of-fold prediction agree at Dice" in sentence for sentence in report.findings[0].also)


def test_few_patients_are_said(data):
    change_manifest(data, lambda cases: cases.__delitem__(slice(3, None)))
    assert any("too few labelled patients" in note for note in audit(data).notes)


def test_bad_files_are_findings_and_the_rest_is_done(data):
    (data / "images" / "case_00.nii.gz").write_bytes(b"no scan")
    (data / "labels" / "case_01.nii.gz").unlink()
    label = read_label_map(data / "labels" / "case_02.nii.gz")
    grid = label.affine.copy()
    grid[0, 3] += 5
    write_label_map(LabelMap(label.array, grid), data / "labels" / "case_02.nii.gz", like=None)
    report = audit(data)
    kinds = {finding.cases[0]: finding.kind for finding in report.findings[:3]}
    assert kinds == {"case_00": "unreadable", "case_01": "unreadable", "case_02": "grid"}
    assert report.exit_code == 4
    assert report.case_count == 9


def test_nothing_to_read_is_refused(data):
    for path in (data / "images").iterdir():
        path.write_bytes(b"no scan")
    with pytest.raises(InputError, match="none of its 9 cases can be read"):
        audit(data)


def test_pictures_are_audited(tmp_path):
    write_dataset(tmp_path / "data", cases=8, grid="picture", suffix=".png")
    report = audit(tmp_path / "data")
    assert report.case_count == 8
    assert all(sketch.planar for sketch in report.sketches.values())


def test_working_spacing():
    assert working_spacing_xyz_mm([(30, 30, 30)], [(1, 1, 2)]) == (1, 1, 2)
    x, y, z = working_spacing_xyz_mm([(512, 512, 30)], [(0.5, 0.5, 5)])
    assert x == y
    assert z == 5
    assert (256 / x) * (256 / y) * 30 <= 48**3
    assert working_spacing_xyz_mm([(1000, 1000, 1)], [(1, 1, 1)])[2] == 1
