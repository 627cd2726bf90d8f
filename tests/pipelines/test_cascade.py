"""A cascade from scans to scores: 3d_lowres on all folds, then 3d_cascade_fullres on its out-of-fold masks."""

import json

import numpy as np
import pytest
from medseg.pipelines import crossval, evaluate, infer, prepare, train

import medseg
from medseg.durable import read_json, sha256_file
from medseg.errors import ModelError
from medseg.imaging import read_label_map, to_classes
from medseg.inference.model import load_models
from medseg.manifest import load_manifest
from medseg.preparation.previous import prepare_previous
from medseg.preparation.store import PreparedData
from tests.pipelines.test_configurations import masks_lie_on_their_scans, mean_dice, write_config, write_volumes
from tests.synthetic import LABELS

FOLDS = (0, 1, 2)
NETWORK = {"strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 2}
FULL = {"configuration": "3d_cascade_fullres", "memory_gb": 0.02, "patch_size_xyz": [16, 16, 8], "batch_size": 2}


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    monkeypatch.setenv("MEDSEG_TRACKING", "off")
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def flags(config, work):
    return ["--config", str(config), "--work", str(work), "--device", "cpu"]


def write_stage(folder, section):
    config = write_config(folder, section, NETWORK, {"mirror": False})
    return config.rename(folder / f"{section['configuration']}.yaml")


def train_all(config, work, *sets):
    for fold in FOLDS:
        assert train.main([*flags(config, work), *sets, "--set", f"data.fold={fold}"]) == 0
    assert crossval.main(flags(config, work)) == 0


def refused(capsys, code, sentence, command, arguments):
    capsys.readouterr()
    assert command.main(arguments) == code
    assert sentence in capsys.readouterr().err


def prepared_cases_hold_out_of_fold_masks(data, low_work, work, models):
    prepared = PreparedData.open(work / "prepared")
    plan = prepared.plan
    assert (plan.configuration, plan.previous_channels, plan.input_count) == ("3d_cascade_fullres", 2, 3)
    assert prepared.previous == models
    for case in load_manifest(data / "dataset.json").training:
        stored = prepared.cases[case.id]
        mask = read_label_map(low_work / f"predictions/fold_{case.fold}/{case.id}.nii.gz")
        expected = prepare_previous(to_classes(mask, LABELS, ignore=None, name=case.id), stored.grid)
        np.testing.assert_array_equal(stored.read_previous((0, 0, 0), stored.shape_xyz), expected)
        assert expected.any()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cascade_end_to_end(tmp_path, capsys):
    write_volumes(tmp_path, 2, slices=24, across=48)
    low_work, work = tmp_path / "low", tmp_path / "cascade"
    low = write_stage(tmp_path, {**FULL, "configuration": "3d_lowres"})
    config = write_stage(tmp_path, {**FULL, "previous_work": "low"})
    first = [*flags(low, low_work), "--processes", "1"]
    second = [*flags(config, work), "--processes", "1"]
    refused(capsys, 3, "low holds no prepared/plan.yaml", prepare, second)
    assert prepare.main(first) == 0
    refused(capsys, 3, "low/fold_0, low/fold_1, low/fold_2 has no finished model", prepare, second)
    train_all(low, low_work)

    assert prepare.main(second) == 0
    models = {f"fold_{fold}": sha256_file(low_work / f"runs/fold_{fold}/model/model.json") for fold in FOLDS}
    prepared_cases_hold_out_of_fold_masks(tmp_path, low_work, work, models)
    before = {path: path.stat().st_mtime_ns for path in (work / "prepared" / "cases").iterdir()}
    assert prepare.main(second) == 0
    assert {path: path.stat().st_mtime_ns for path in (work / "prepared" / "cases").iterdir()} == before

    # On scans of 26 voxels nnU-Net's faults of up to 8 would wipe most masks out.
    train_all(config, work, "--set", "train.augmentation.previous_reshaped=0.1", "--set", "train.budget.steps=80")
    assert infer.main(flags(config, work)) == 0
    assert evaluate.main([*flags(config, work), "--processes", "1"]) == 0
    masks_lie_on_their_scans(work, tmp_path)
    assert mean_dice(work) > 0.6
    for fold in FOLDS:
        (member,) = load_models(work / f"runs/fold_{fold}/model/previous")
        assert member.sha256 == models[f"fold_{fold}"], "no held-out case is shown a mask of a model that trained on it"
    model = load_models(work / "crossvalidation" / "model")
    assert {one.sha256 for member in model for one in member.previous} == set(models.values())
    scan = tmp_path / "images" / "case_00.nii.gz"
    assert medseg.load(work / "crossvalidation" / "model").predict(scan).array.any()

    # Another first stage than the one that drew the masks is noticed at every step.
    path = low_work / "runs/fold_0/model/model.json"
    path.write_text(json.dumps(read_json(path)))
    refused(capsys, 2, "model of fold_0 is not the one that drew the masks", train, [*flags(config, work), "--fresh"])
    refused(capsys, 3, "its mask was drawn by another model than fold_0 has now", prepare, second)
    with pytest.raises(ModelError, match="is a cascade's second stage and lacks the folder previous"):
        load_models(work / "crossvalidation" / "model" / "fold_0")
