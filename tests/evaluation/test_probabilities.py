import json

import numpy as np
import pytest

from medseg.errors import GeometryError, LabelError, ScanError
from medseg.evaluation import match_folders, run_evaluate
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.probabilities import find_probabilities, read_probabilities
from medseg.evaluation.protocol import make_protocol
from medseg.imaging.nifti import write_nifti

LABELS = {"background": (0,), "liver": (1,), "tumour": (2,)}
AFFINE = np.diag([0.8, 0.8, 2.0, 1.0])
SHAPE = (6, 5, 4)


def write_npz(path, probabilities, names=("liver", "tumour"), affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, probabilities=probabilities.astype(np.float16), affine=affine, class_names=np.array(names))


def read(path):
    return read_probabilities(path, class_names=("liver", "tumour"), affine=AFFINE, shape=SHAPE, name="case_1")


@pytest.fixture
def probabilities():
    return np.random.default_rng(0).dirichlet((1, 1, 1), SHAPE)[..., 1:]


def test_both_kinds_of_file(tmp_path, probabilities):
    write_npz(tmp_path / "maps" / "a_probabilities.npz", probabilities)
    found = find_probabilities(tmp_path / "a.nii.gz", "a")
    np.testing.assert_allclose(read(found), np.moveaxis(probabilities, 3, 0), atol=1e-3)
    steps = np.asfortranarray(np.rint(probabilities * 255).astype(np.uint8))
    write_nifti(steps, AFFINE, tmp_path / "maps" / "a_probabilities.nii.gz", like=None, slope=1 / 255)
    found = find_probabilities(tmp_path / "a.nii.gz", "a")
    assert found.name.endswith(".nii.gz")
    np.testing.assert_allclose(read(found), np.moveaxis(probabilities, 3, 0), atol=1 / 500)
    assert find_probabilities(tmp_path / "b.nii.gz", "b") is None


def test_classes_are_found_by_name(tmp_path, probabilities):
    write_npz(tmp_path / "x.npz", probabilities[..., ::-1], names=("tumour", "liver"))
    np.testing.assert_allclose(read(tmp_path / "x.npz"), np.moveaxis(probabilities, 3, 0), atol=1e-3)


def test_what_does_not_fit_is_refused(tmp_path, probabilities):
    path = tmp_path / "x.npz"
    write_npz(path, probabilities, names=("liver", "cyst"))
    with pytest.raises(LabelError, match=r"case_1: x\.npz has the classes liver, cyst, expected liver, tumour"):
        read(path)
    write_npz(path, probabilities[:-1])
    with pytest.raises(GeometryError, match="case_1: probabilities and reference lie on different grids"):
        read(path)
    write_npz(path, probabilities * 3)
    with pytest.raises(ScanError, match=r"case_1: x.npz has values from .* expected 0 to 1"):
        read(path)
    path.write_bytes(b"no map")
    with pytest.raises(ScanError, match=r"case_1: x\.npz can't be read"):
        read(path)


@pytest.fixture
def folders(tmp_path, save_mask):
    rng = np.random.default_rng(4)
    for name in ("a", "b"):
        for side in ("p", "r"):
            save_mask(tmp_path / side / f"{name}.nii.gz", rng.choice(3, SHAPE), spacing=(0.8, 0.8, 2.0))
    return tmp_path / "p", tmp_path / "r"


def evaluate(folders, output, metrics):
    cases = CaseSet(name="set", pairs=match_folders(*folders), protocol=make_protocol(labels=LABELS, metrics=metrics))
    return run_evaluate(cases, output=output, processes=1)


def test_calibration_of_the_maps_beside_the_masks(folders, tmp_path, probabilities):
    from medseg.imaging import read_label_map

    write_npz(folders[0] / "maps" / "a_probabilities.npz", probabilities)
    report = evaluate(folders, tmp_path / "s", ("calibration",))
    truth = read_label_map(folders[1] / "a.nii.gz").array == 1
    wanted = ((probabilities[..., 0].astype(np.float16).astype(float) - truth) ** 2).mean()
    assert report.scores.rows["a"][0].values["brier"] == pytest.approx(wanted)
    assert report.scores.rows["b"][0].values["brier"] is None
    assert report.scores.notes[-1].startswith("1 of 2 cases have no probability map")
    content = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert content["classes"]["liver"]["metrics"]["ece"]["n"] == 1
    assert content["definitions"]["metrics"]["brier"]["better"] == "lower"


def test_a_changed_map_is_scored_again_and_kept_otherwise(folders, tmp_path, probabilities):
    path = folders[0] / "maps" / "a_probabilities.npz"
    write_npz(path, probabilities)
    assert evaluate(folders, tmp_path / "s", ("ece", "instances")).scored == 2
    before = (tmp_path / "s" / "metrics.json").read_bytes()
    again = evaluate(folders, tmp_path / "s", ("ece", "instances"))
    assert (again.scored, again.kept) == (0, 2)
    assert (tmp_path / "s" / "metrics.json").read_bytes() == before
    pooled = json.loads(before)["lesions"]["classes"]["liver"]
    assert pooled["cases"] == 2
    assert pooled["froc"] is None  # of the second case's lesions nobody knows the confidence
    write_npz(path, probabilities / 2)
    assert evaluate(folders, tmp_path / "s", ("ece", "instances")).scored == 1


def test_maps_are_not_looked_at_for_other_metrics(folders, tmp_path, probabilities):
    write_npz(folders[0] / "maps" / "a_probabilities.npz", probabilities * 3)
    report = evaluate(folders, tmp_path / "s", ("cldice",))
    assert report.exit_code == 0
    assert report.scores.notes == ()


def test_a_map_that_does_not_fit_fails_its_case(folders, tmp_path, probabilities):
    write_npz(folders[0] / "maps" / "a_probabilities.npz", probabilities * 3)
    report = evaluate(folders, tmp_path / "s", ("brier",))
    assert report.exit_code == 4
    assert "expected 0 to 1" in report.scores.failed["a"]
