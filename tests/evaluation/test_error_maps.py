"""What ``medseg evaluate`` writes beside the scores: error maps where asked, uncertainty where there are maps of it."""

import csv

import nibabel as nib
import numpy as np
import pytest
from medseg.pipelines.evaluate import main

from medseg.durable import sha256_file
from medseg.evaluation.error_maps import error_map
from medseg.imaging import write_label_map
from medseg.imaging.nifti import write_nifti
from medseg.imaging.volume import LabelMap

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("MEDSEG_TRACKING", "off")


def folders(tmp_path):
    """Two cases of predictions and references; the first has an entropy map."""
    reference = np.zeros((6, 5, 4), np.uint8)
    reference[1:4, 1:4, 1:3], reference[2, 2, 1:3] = 1, 2
    prediction = np.roll(reference, 1, axis=0)
    for case in ("a", "b"):
        for name, array in (("references", reference), ("predictions", prediction)):
            (tmp_path / name).mkdir(exist_ok=True)
            write_label_map(LabelMap(array, AFFINE), tmp_path / name / f"{case}.nii.gz", like=None)
    (tmp_path / "predictions" / "maps").mkdir()
    entropy = np.where(prediction != reference, 200, 20).astype(np.uint8)
    write_nifti(entropy, AFFINE, tmp_path / "predictions" / "maps" / "a_entropy.nii.gz", like=None, slope=1 / 255)
    return prediction, reference


def command(tmp_path, *more):
    paths = [f"--{name}={tmp_path / name}" for name in ("predictions", "references")]
    return [*paths, "--labels=organ=1,lesion=2", f"--output={tmp_path / 'scores'}", "--processes=1", *more]


def test_uncertainty_is_written_for_the_cases_that_have_maps(tmp_path):
    folders(tmp_path)
    assert main(command(tmp_path)) == 0
    with (tmp_path / "scores" / "uncertainty.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["class"]) for row in rows] == [("a", "organ"), ("a", "lesion")]
    # The map is high exactly where any class is wrong; of the lesion no voxel is right.
    assert float(rows[0]["auroc"]) == 1
    assert (rows[1]["auroc"], float(rows[1]["wrong_share"])) == ("", 1)
    assert float(rows[0]["entropy_wrong"]) == pytest.approx(200 / 255, abs=1e-5)
    assert float(rows[0]["entropy_right"]) == pytest.approx(20 / 255, abs=1e-5)
    assert {"mean_entropy", "auprc", "uce", "wrong_share", "voxels"} <= set(rows[0])
    assert not (tmp_path / "scores" / "errors").exists()


def test_error_maps_are_written_where_asked_and_kept(tmp_path):
    prediction, reference = folders(tmp_path)
    assert main(command(tmp_path, "--error-maps")) == 0
    errors = tmp_path / "scores" / "errors"
    assert sorted(path.name for path in errors.glob("*.nii.gz")) == [
        f"{case}_{name}.nii.gz" for case in "ab" for name in ("lesion", "organ")
    ]
    image = nib.load(errors / "a_lesion.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE)
    values = np.asarray(image.dataobj)
    assert ((values == 1) | (values == 2)).sum() == (prediction == 2).sum()
    assert ((values == 1) | (values == 3)).sum() == (reference == 2).sum()
    assert '"false negative"' in (errors / "itksnap_labels.txt").read_text()
    before = {path: path.stat().st_mtime_ns for path in errors.glob("*.nii.gz")}
    hashes = {path: sha256_file(path) for path in before}
    damaged = errors / "b_organ.nii.gz"
    damaged.write_bytes(b"")
    assert main(command(tmp_path, "--error-maps")) == 0
    assert {path: sha256_file(path) for path in before} == hashes
    assert [
        path for path, then in before.items() if path.stat().st_mtime_ns == then and path.name.startswith("b")
    ] == []
    assert (errors / "a_organ.nii.gz").stat().st_mtime_ns == before[errors / "a_organ.nii.gz"]


def test_a_map_on_another_grid_is_named_and_the_scores_stay(tmp_path, caplog):
    folders(tmp_path)
    path = tmp_path / "predictions" / "maps" / "a_entropy.nii.gz"
    write_nifti(np.zeros((5, 5, 4), np.uint8), AFFINE, path, like=None)
    assert main(command(tmp_path)) == 0
    assert "a: a_entropy.nii.gz lies on another grid than the reference" in caplog.text
    assert not (tmp_path / "scores" / "uncertainty.csv").exists()
    assert (tmp_path / "scores" / "cases.csv").exists()


def test_values_of_an_error_map():
    one, other = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert error_map(one, other).tolist() == [1, 2, 3, 0]
