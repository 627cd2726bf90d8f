import numpy as np
import pytest

from medseg.config.sections import DataSection, InferSection
from medseg.config.series import SeriesSection
from medseg.evaluation.case import ClassScores
from medseg.evaluation.experiment import CaseSet, first_series
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.protocol import make_protocol
from medseg.evaluation.telling import ranked_cases, telling_cases, telling_slices
from medseg.imaging import LabelMap, Volume, read_volume, write_label_map, write_volume
from medseg.manifest import Channel, Manifest
from medseg.tracking.figures import overlay_png
from tests.imaging.test_dicom_choice import add_series

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])  # LPS order on disk: RAS turns x and y round


def row(dice):
    counts = {"true_positive": 1, "false_positive": 0, "false_negative": 0}
    return (ClassScores(class_name="organ", situation="present", diagonal_mm=1.0, values={"dice": dice}, **counts),)


def test_cases_are_picked_by_their_mean_dice():
    rows = {name: row(dice) for name, dice in {"a": 0.9, "b": 0.1, "c": 0.5, "d": None}.items()}
    assert telling_cases(rows) == {"worst": "b", "median": "c", "best": "a"}
    assert telling_cases({"a": row(0.9)}) == {"worst": "a"}
    assert telling_cases({"d": row(None)}) == {}


@pytest.fixture
def one_case(tmp_path):
    truth = np.zeros((12, 10, 6), np.uint8)
    truth[2:5, 1:4, 4] = 7
    write_label_map(LabelMap(truth, AFFINE), tmp_path / "truth.nii.gz", like=None)
    write_label_map(LabelMap(truth, AFFINE), tmp_path / "mask.nii.gz", like=None)
    write_volume(Volume(truth[None].astype(np.float32), AFFINE), tmp_path / "scan.nii.gz")
    protocol = make_protocol(labels={"background": (0,), "organ": (7,)})
    pair = CasePaths(case_id="a", prediction=tmp_path / "mask.nii.gz", reference=tmp_path / "truth.nii.gz")
    return CaseSet(name="set", pairs=[pair], protocol=protocol, scans={"a": tmp_path / "scan.nii.gz"})


def test_the_slice_with_most_of_the_structure_is_shown_as_radiologists_look_at_it(one_case):
    ((rank, (image, truth, prediction, planar)),) = telling_slices(one_case, {"a": row(1.0)})
    assert (rank, planar, image.shape) == ("worst", False, (12, 10))
    # file voxels x 2..4, y 1..3 run towards left and back, the other way round in RAS: x 7..9, y 6..8
    assert set(map(tuple, np.argwhere(truth))) == {(x, y) for x in (7, 8, 9) for y in (6, 7, 8)}
    np.testing.assert_array_equal(prediction, truth)
    picture = overlay_png(image, truth, prediction)
    factor = picture.shape[0] // 10
    assert picture.shape == (10 * factor, 12 * factor, 3)
    coloured = np.argwhere(np.ptp(picture.astype(int), axis=2) > 20) // factor
    # the patient's right is on the picture's left, front is up: columns 12 - 1 - x, rows 10 - 1 - y
    assert set(map(tuple, coloured)) == {(y, x) for y in (1, 2, 3) for x in (2, 3, 4)}


def test_a_scan_that_can_not_be_read_is_left_out(one_case, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"broken")
    assert list(telling_slices(one_case, {"a": row(1.0)})) == []


def test_a_scan_of_a_dicom_folder_is_shown_by_its_series(tmp_path):
    for number, name in enumerate(("flair", "t1"), start=1):
        add_series(tmp_path / "scan", number, modality="MR", description=name)
    rules = {name: SeriesSection(description=name.lower()) for name in ("T1", "FLAIR")}
    scan = read_volume(tmp_path / "scan", series=rules["T1"])
    mask = LabelMap(np.ones(scan.shape, np.uint8), scan.affine)
    for name in ("mask", "truth"):
        write_label_map(mask, tmp_path / f"{name}.nii.gz", like=None)
    pair = CasePaths(case_id="a", prediction=tmp_path / "mask.nii.gz", reference=tmp_path / "truth.nii.gz")
    channels = tuple(Channel(name=name) for name in rules)
    manifest = Manifest(name="x", licence="x", channels=channels, labels={}, training=())
    data, infer = DataSection(manifest="m.json", series=rules), InferSection()
    protocol = make_protocol(labels={"background": (0,), "organ": (1,)})
    cases = CaseSet(
        name="set", pairs=[pair], protocol=protocol, scans={"a": tmp_path / "scan"},
        series=first_series(manifest, infer=infer, data=data),
    )  # fmt: skip
    assert cases.series == rules["T1"]
    ((_, (image, *_)),) = telling_slices(cases, {"a": row(1.0)})
    # Of equally full slices the first; LPS planes turned to RAS.
    np.testing.assert_array_equal(image, scan.array[0, ::-1, ::-1, 0])
    other = infer.model_copy(update={"series": rules["FLAIR"]})
    assert first_series(manifest, infer=other, data=data) == rules["FLAIR"]


def test_ranks_are_spread_evenly_from_the_worst_to_the_best():
    rows = {f"case_{number}": row(number / 10) for number in range(9)} | {"undefined": row(None)}
    assert ranked_cases(rows, most=3) == {"rank 1 of 9": "case_0", "rank 5 of 9": "case_4", "rank 9 of 9": "case_8"}
    assert list(ranked_cases(rows, most=20).values()) == [f"case_{number}" for number in range(9)]
    assert ranked_cases({"a": row(0.5)}, most=3) == {"rank 1 of 1": "a"}
    assert ranked_cases({}, most=3) == {}
