"""Scans of DICOM exports with their contours, segmentations and .seg.nrrd as labels, from the manifest to the store."""

import json

import numpy as np
import pytest

from medseg.config.sections import PrepareSection
from medseg.config.series import SeriesSection
from medseg.evaluation.case import CaseTask, FileState, file_stamp, score_case
from medseg.evaluation.protocol import make_protocol
from medseg.imaging import LabelMap, read_header, read_volume, write_label_map
from medseg.imaging.dicom_source import open_source
from medseg.imaging.label_table import label_table
from medseg.imaging.rtstruct_writing import write_rtstruct
from medseg.imaging.writing import write_seg_nrrd
from medseg.manifest import load_manifest, save_manifest
from medseg.preparation.case import load_case, prepare_image, prepare_labels
from medseg.preparation.stage import run_prepare
from medseg.preparation.store import PreparedData
from tests.imaging.test_dicom_choice import add_series, uid

# As the files name the structures, and as the manifest does.
DRAWN = {"background": (0,), "GTV-1": (1,), "Left Lung": (2,), "couch": (3,)}
LABELS = {"background": (0,), "left_lung": (2,), "tumour": (1,)}
ALIASES = {"tumour": {"aliases": ["gtv 1"], "colour": [255, 0, 0]}}
RULE = SeriesSection(modality="CT", most_slices=True)


def make_case(root, number):
    """A folder with two CT series, and structures drawn on the longer one; the mask that they are."""
    folder = root / f"p{number}"
    add_series(folder / "scan", 1, count=2, patient=f"P{number}")
    add_series(folder / "scan", 2, count=6, patient=f"P{number}")
    header = read_header(folder / "scan", series=RULE)
    array = np.zeros(header.shape, np.uint8)
    array[1:3, 1:4, 1:3], array[4:6, 1:4, 2:4], array[3, 1, 1] = 1, 2, 3
    drawn, table = LabelMap(array, header.affine, header), label_table(DRAWN)
    if number == 0:
        write_seg_nrrd(drawn, folder / "label.seg.nrrd", label_table=table, like=header)
        return folder / "label.seg.nrrd", array
    source = open_source([folder / "scan"], series_uid=uid(2), like=header)
    write_rtstruct(drawn, folder / "label.dcm", source=source, label_table=table)
    return folder / "label.dcm", array


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    labels = [make_case(root, number)[0].relative_to(root).as_posix() for number in range(3)]
    content = {
        "format": 1,
        "name": "export",
        "licence": "none",
        "channels": ["CT"],
        "labels": {"left_lung": 2, "tumour": 1},
        "label_table": ALIASES,
        "training": [{"id": f"p{n}", "image": f"p{n}/scan", "label": label} for n, label in enumerate(labels)],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_named_labels_of_a_chosen_series_are_stored(data, tmp_path):
    manifest = load_manifest(data / "dataset.json").with_series(RULE)
    output = tmp_path / "prepared"
    report = run_prepare(PrepareSection(), manifest, data_root=data, output=output, processes=1)
    assert (report.exit_code, report.written) == (0, 3)
    plan = report.plan
    assert plan.label_table == ALIASES
    assert plan.channels[0].series == RULE
    array = make_case(tmp_path / "again", 1)[1]
    classes = np.choose(array, [0, 2, 1, 0]).astype(np.uint8)
    for number, case in enumerate(PreparedData.open(output).cases.values()):
        image, grid = prepare_image(read_volume(data / f"p{number}" / "scan", series=RULE), plan)
        patch = case.read_all()
        np.testing.assert_array_equal(patch.image, image.astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(patch.labels, prepare_labels(classes, grid))
    told = [finding.what for finding in report.checks.findings if finding.case_id == "p1"]
    assert any("was chosen of 2" in line for line in told)
    assert "label.dcm: 1 structures are of no class and were passed over" in told
    again = run_prepare(PrepareSection(), manifest, data_root=data, output=output, processes=1)
    assert (again.read, again.written) == (0, 0)


def test_contours_are_scored_as_the_mask_that_they_are(data, tmp_path):
    header = read_header(data / "p1" / "scan", series=RULE)
    array = make_case(tmp_path / "again", 1)[1]
    array[array == 3] = 0
    write_label_map(LabelMap(array, header.affine), tmp_path / "p1.nii.gz", like=None)
    protocol = make_protocol(labels=LABELS, aliases={"tumour": ("gtv 1",)})
    one, other = (
        FileState(path=path, sha256="0" * 64, stamp=file_stamp(path))
        for path in (tmp_path / "p1.nii.gz", data / "p1" / "label.dcm")
    )
    for prediction, reference in ((one, other), (other, one)):
        rows = score_case(CaseTask(case_id="p1", prediction=prediction, reference=reference, protocol=protocol)).rows
        assert [(row.class_name, row.values["dice"]) for row in rows] == [("left_lung", 1.0), ("tumour", 1.0)]


def test_the_label_table_survives_the_manifest(data, tmp_path):
    manifest = load_manifest(data / "dataset.json")
    assert manifest.aliases == {"tumour": ("gtv 1",)}
    save_manifest(manifest, tmp_path / "copy.json")
    assert load_manifest(tmp_path / "copy.json").label_table == ALIASES


@pytest.mark.slow
def test_two_channels_of_one_folder_are_stored(tmp_path):
    root, rules = tmp_path / "data", {}
    for name in ("T1", "FLAIR"):
        rules[name] = SeriesSection(modality="MR", description=name)
    cases = []
    for number in range(3):
        folder = root / f"p{number}"
        for place, name in enumerate(("flair", "scout", "t1"), start=1):
            add_series(folder, place, count=6, modality="MR", description=name, patient=f"P{number}")
        header = read_header(folder, series=rules["T1"])
        array = np.zeros(header.shape, np.uint8)
        array[1:3, 1:4, 1:3], array[4:6, 1:4, 2:4] = 1, 2
        write_label_map(LabelMap(array, header.affine), root / f"p{number}.nii.gz", like=None)
        cases.append({"id": f"p{number}", "image": [f"p{number}"] * (number % 2 + 1), "label": f"p{number}.nii.gz"})
    content = {
        "format": 1,
        "name": "export",
        "licence": "none",
        "channels": ["T1", "FLAIR"],
        "labels": {"a": 1, "b": 2},
    }
    (root / "dataset.json").write_text(json.dumps(content | {"training": cases}))
    manifest = load_manifest(root / "dataset.json").with_series(rules)
    output = tmp_path / "prepared"
    report = run_prepare(PrepareSection(), manifest, data_root=root, output=output, processes=1)
    assert (report.exit_code, report.written) == (0, 3)
    assert [channel.series for channel in report.plan.channels] == list(rules.values())
    for number, case in enumerate(PreparedData.open(output).cases.values()):
        image, _ = prepare_image(load_case([root / f"p{number}"] * 2, report.plan.channels), report.plan)
        np.testing.assert_array_equal(case.read_all().image, image.astype(np.float16).astype(np.float32))
    told = [finding.what for finding in report.checks.findings if finding.case_id == "p1"]
    assert sum("was chosen of 3" in line for line in told) == 2
    again = run_prepare(PrepareSection(), manifest, data_root=root, output=output, processes=1)
    assert (again.read, again.written) == (0, 0)
