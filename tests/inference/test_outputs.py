from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection, OutputSection
from medseg.config.series import SeriesSection
from medseg.errors import ScanError
from medseg.imaging import Header, LabelMap, read_header, read_label_map
from medseg.imaging.label_table import label_table
from medseg.inference.cases import find_cases
from medseg.inference.engine import Engine
from medseg.inference.outputs import ITK_SNAP_NAME, OutputSpec, are_whole, structure_file_names, write_outputs
from medseg.inference.stage import RunOptions, run_infer
from tests.imaging.test_dicom_choice import add_series, uid
from tests.inference.stand_ins import threshold_model

LABELS = {"background": (0,), "left lung": (3,), "tumour": (7,)}
AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])
HEADER = Header(shape=(5, 4, 3), affine=AFFINE)
SCAN = (Path("scan.nii.gz"),)
CPU = torch.device("cpu")


def mask():
    array = np.random.default_rng(2).choice([0, 3, 7], HEADER.shape).astype(np.uint8)
    return LabelMap(array, AFFINE, HEADER)


def write(folder, **options):
    spec = OutputSpec(**options)
    names = spec.names("c1", SCAN, tuple(LABELS))
    table = label_table(LABELS)
    return names, write_outputs(mask(), folder, names, spec=spec, header=HEADER, label_table=table, source=SCAN)


def test_names_follow_the_scan_unless_a_format_is_asked_for():
    spec = OutputSpec()
    assert spec.names("a", (Path("a.PNG"),), ("background", "x")) == ("a.png",)
    assert spec.names("a", (Path("folder"),), ("background", "x")) == ("a.nii.gz",)
    assert OutputSpec(format="dicom-seg").names("a", (Path("f"),), ("b", "x")) == ("a.seg.dcm",)
    assert OutputSpec(format="rtstruct", layout="per_structure").names("a", (), ("b", "x", "y")) == ("a.rtstruct.dcm",)
    parts = OutputSpec(format="mha", layout="per_structure").names("a", SCAN, tuple(LABELS))
    assert parts == ("a/left_lung.mha", "a/tumour.mha")


def test_structures_that_would_share_a_file_name_are_numbered():
    assert structure_file_names(["a b", "A_b", "c"]) == ("a_b_1", "A_b_2", "c")
    assert structure_file_names(["../x", "é"]) == ("_x", "_")


def test_the_command_line_takes_the_place_of_the_config_and_defaults_leave_sidecars_as_they_were():
    section = OutputSection(format="mha", layout="per_structure")
    assert OutputSpec.of(section) == OutputSpec(format="mha", layout="per_structure")
    assert OutputSpec.of(section, format="nrrd") == OutputSpec(format="nrrd", layout="per_structure")
    assert OutputSpec().settings() == {}
    assert OutputSpec(format="nrrd").settings() != OutputSpec(format="mha").settings()


@pytest.mark.parametrize("kind", ["auto", "nrrd", "mha", "seg.nrrd"])
def test_a_label_map_in_every_format(tmp_path, kind):
    names, more = write(tmp_path, format=kind)
    assert more == {}
    np.testing.assert_array_equal(read_label_map(tmp_path / names[0], naming=LABELS).array, mask().array)
    written = {path.name for path in tmp_path.iterdir()} - {names[0]}
    assert written == (set() if kind == "seg.nrrd" else {ITK_SNAP_NAME})


@pytest.mark.parametrize("kind", ["auto", "seg.nrrd"])
def test_a_file_per_structure_and_whether_all_are_whole(tmp_path, kind):
    names, more = write(tmp_path, format=kind, layout="per_structure")
    for name, value in zip(names, (3, 7), strict=True):
        np.testing.assert_array_equal(read_label_map(tmp_path / name).array, mask().array == value)
    assert list(more) == [names[1]]
    assert are_whole(tmp_path, more)
    with (tmp_path / names[1]).open("ab") as stream:
        stream.write(b"x")
    assert not are_whole(tmp_path, more)
    (tmp_path / names[1]).unlink()
    assert not are_whole(tmp_path, more)


def test_the_mask_is_what_nibabel_reads(tmp_path):
    names, _ = write(tmp_path)
    image = nib.load(tmp_path / names[0])
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask().array)
    np.testing.assert_allclose(image.affine, AFFINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "dicom-seg"}, r"scan.nii.gz: is no DICOM series, expected one for --format dicom-seg"),
        ({"format": "rtstruct"}, r"is no DICOM series, expected one for --format rtstruct; take nii.gz or seg.nrrd"),
        ({"format": "png"}, r"scan.nii.gz: is a volume, expected a picture for --format png; take nii.gz"),
    ],
)
def test_what_a_format_can_not_hold_is_refused(tmp_path, options, message):
    with pytest.raises(ScanError, match=message):
        write(tmp_path, **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [pytest.param("dicom-seg", marks=pytest.mark.slow), "rtstruct"])
def test_a_dicom_scan_gets_dicom_masks_which_are_kept(tmp_path, kind):
    """Through the stage: of a folder with two series the rule's is read, and the object refers to that one."""
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    add_series(tmp_path / "scan", 1, count=3)
    add_series(tmp_path / "scan", 2, count=5)
    rule = SeriesSection(modality="CT", most_slices=True)
    engine = Engine([threshold_model(patch=(8, 8, 8))], InferSection(mirror=False, series=rule), device=CPU)
    cases = find_cases([tmp_path / "scan"], channels=engine.plan.channels, series=rule)
    options = RunOptions(spec=OutputSpec(format=kind), isolation="never")
    (report,) = run_infer(engine, cases, output=tmp_path / "masks", options=options)
    assert (report.status, report.reason) == ("ok", None)
    assert report.output == f"scan{options.spec.suffix(())}"
    assert "was chosen of 2" in report.warnings[0]
    path = tmp_path / "masks" / report.output
    found = read_label_map(path, naming=engine.plan.labels, like=read_header(tmp_path / "scan", series=rule))
    names = list(engine.plan.labels)[1:]
    assert {name: int(np.isin(found.array, engine.plan.labels[name]).sum()) for name in names} == report.voxels
    dataset = pydicom.dcmread(path)
    reference = (
        dataset.ReferencedSeriesSequence[0]
        if kind == "dicom-seg"
        else dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    )
    assert reference.SeriesInstanceUID == uid(2)
    (again,) = run_infer(engine, cases, output=tmp_path / "masks", options=options)
    assert again.status == "kept"
