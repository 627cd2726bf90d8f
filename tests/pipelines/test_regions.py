"""Overlapping and partly labelled cases through the four stages."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from medseg.pipelines import evaluate, infer, prepare, train

from medseg.inference.model import load_model
from medseg.preparation.store import PreparedData
from tests.experiment import write_experiment

STAGES = {"prepare": prepare.main, "train": train.main, "infer": infer.main, "evaluate": evaluate.main}


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    monkeypatch.setenv("MEDSEG_TRACKING", "off")
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def experiment(folder, labels, labelled):
    made = write_experiment(folder, training=4, testing=1, steps=4)
    path = made.data / "dataset.json"
    manifest = json.loads(path.read_text()) | {"labels": labels}
    for case in manifest["training"]:
        if case["id"] in labelled:
            case["labelled"] = labelled[case["id"]]
    path.write_text(json.dumps(manifest))
    return made


def run(made, *verbs):
    flags = {"prepare": ("--processes", "1"), "evaluate": ("--processes", "1")}
    return {verb: STAGES[verb]([*made.flags(), *flags.get(verb, ())]) for verb in verbs}


def scored(made):
    with (made.work / "scores" / "fold_0" / "cases.csv").open() as stream:
        return [(row["case"], row["class"]) for row in csv.DictReader(stream)]


def test_overlapping_labels(tmp_path):
    """The lesion is part of the organ: value 2 belongs to both."""
    made = experiment(tmp_path, {"organ": [1, 2], "lesion": 2}, {"case_01": ["organ"], "case_02": ["organ"]})
    assert run(made, *STAGES) == dict.fromkeys(STAGES, 0)
    stored = PreparedData.open(made.work / "prepared").cases["case_00"]
    assert set(stored.class_voxels) == {0, 1, 2}
    model = load_model(made.work / "runs" / "fold_0" / "model")
    assert (model.plan.output_count, model.plan.class_count) == (2, 3)
    for case_id in made.held_out:
        mask = np.asarray(nib.load(made.work / "predictions" / "fold_0" / f"{case_id}.nii.gz").dataobj)
        assert set(np.unique(mask)) <= {0, 1, 2}
        report = json.loads((made.work / "predictions" / "fold_0" / f"{case_id}.nii.gz.sidecar.json").read_text())
        assert report["extra"]["voxels"] == {"organ": int((mask > 0).sum()), "lesion": int((mask == 2).sum())}
    # case_02 was labelled for the organ only: nothing is said about its lesion.
    assert scored(made) == [("case_00", "organ"), ("case_00", "lesion"), ("case_02", "organ")]


def test_partly_labelled_cases(tmp_path, capsys):
    made = experiment(tmp_path, {"organ": 1, "lesion": 2}, {"case_01": ["organ"], "case_02": ["organ"]})
    assert run(made, "prepare")["prepare"] == 3
    assert "voxels of lesion, which the manifest's labelled leaves out" in capsys.readouterr().err
    for case_id in ("case_01", "case_02"):
        path = made.data / "labels" / f"{case_id}.nii.gz"
        old = nib.load(path)
        nib.save(
            nib.Nifti1Image(np.where(np.asarray(old.dataobj) == 2, 0, old.dataobj).astype(np.uint8), old.affine), path
        )
    assert run(made, *STAGES) == dict.fromkeys(STAGES, 0)
    cases = PreparedData.open(made.work / "prepared").cases
    assert [cases[case].labelled for case in ("case_00", "case_01")] == [None, ("organ",)]
    assert scored(made) == [("case_00", "organ"), ("case_00", "lesion"), ("case_02", "organ")]
