"""The four stages one after the other, as people call them, on a small experiment in 3D and one in 2D."""

import csv
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from medseg.pipelines import evaluate, infer, prepare, train
from PIL import Image

from medseg.durable import sha256_file
from medseg.tracking.record import read_stage_record
from tests.experiment import write_experiment
from tests.reliability.stages import STAGES

MAIN = {"prepare": prepare.main, "train": train.main, "infer": infer.main, "evaluate": evaluate.main}
ONE_PROCESS = {"prepare": ("--processes", "1"), "evaluate": ("--processes", "1")}


@pytest.fixture(scope="module", autouse=True)
def untracked():
    """No sender; and no waiting for the disk, for these tests cut no power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEG_TRACKING", "off")
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def start(made, verb, *flags, work=None):
    return MAIN[verb]([*made.flags(work), *ONE_PROCESS.get(verb, ()), *flags])


def finished(folder, **arguments):
    """An experiment on which every stage has run once."""
    made = write_experiment(folder, **arguments)
    assert {verb: start(made, verb) for verb in MAIN} == dict.fromkeys(MAIN, 0)
    return made


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("pictures"), training=4, testing=1, steps=4, picture=True)


@pytest.fixture(params=["scans", "pictures"])
def made(request):
    """Both experiments; tests that use them leave them as they are."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def copied(scans, tmp_path):
    """The experiment in 3D, for a test that changes it."""
    shutil.copytree(scans.config.parent, tmp_path, dirs_exist_ok=True)
    return type(scans)(tmp_path / "small.yaml", tmp_path / "data", tmp_path / "work", scans.held_out, scans.testing)


def manifest_of(made):
    return json.loads((made.data / "dataset.json").read_text())


def test_every_stage_leaves_what_it_promises(made):
    work, manifest = made.work, manifest_of(made)
    ids = [case["id"] for case in manifest["training"]]
    index = json.loads((work / "prepared" / "index.json").read_text())
    assert list(index["cases"]) == ids
    assert len(list((work / "prepared" / "cases").iterdir())) == len(ids)
    model = work / "runs" / "fold_0" / "model"
    assert {path.name for path in model.iterdir()} == {"config.yaml", "model.json", "plan.yaml", "weights.safetensors"}
    files = json.loads((model / "model.json").read_text())["files"]
    assert files == {name: sha256_file(model / name) for name in files}
    for name, cases in made.predicted.items():
        with (work / "scores" / name / "cases.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [(row["case"], row["class"]) for row in rows] == [(c, k) for c in cases for k in ("organ", "lesion")]
        metrics = json.loads((work / "scores" / name / "metrics.json").read_text())
        assert metrics["cases"] == {
            "expected": len(cases),
            "scored": len(cases),
            "patients": len(cases),
            "missing": [],
            "extra": [],
            "failed": {},
        }
        dice = metrics["classes"]["organ"]["metrics"]["dice"]["mean"]
        assert dice == pytest.approx(np.mean([float(row["dice"]) for row in rows if row["class"] == "organ"]))
    assert not list(work.rglob(".tmp-*"))
    assert not list(work.rglob(".lock"))


def test_every_stage_is_recorded(made):
    folders = {"prepare": ["prepared"], "train": ["runs/fold_0"]}
    folders |= {"infer": ["predictions/fold_0", "predictions/testing"], "evaluate": ["scores/fold_0", "scores/testing"]}
    spools = [path.read_text().splitlines() for path in (made.work / "tracking").glob("*/spool.jsonl")]
    for stage, names in folders.items():
        for name in names:
            record = read_stage_record(made.work / name)
            assert (record["stage"], record["config"]["name"]) == (stage, "small")
            assert str(made.work) not in json.dumps(record)
        runs = [lines for lines in spools if json.loads(lines[0])["stage"] == stage]
        assert len(runs) == len(names)
        assert all('"end"' in lines[-1] and "FINISHED" in lines[-1] for lines in runs)


def test_masks_lie_on_the_scans_own_grids(scans):
    for name, cases in scans.predicted.items():
        for case in cases:
            scan, mask = (
                nib.load(folder / f"{case}.nii.gz")
                for folder in (scans.data / "images", scans.work / "predictions" / name)
            )
            assert mask.shape == scan.shape
            np.testing.assert_array_equal(mask.affine, scan.affine)
            assert [int(mask.header[c]) for c in ("qform_code", "sform_code")] == [1, 1]
            assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def test_masks_of_pictures_are_pictures(pictures):
    for name, cases in pictures.predicted.items():
        for case in cases:
            with Image.open(pictures.work / "predictions" / name / f"{case}.png") as mask:
                assert mask.size == (32, 28)


def test_a_second_start_does_nothing(made, capsys, caplog):
    kept = sum(map(len, made.predicted.values()))
    before = {path: path.stat().st_mtime_ns for verb in STAGES for path in _equal_files(made.work, verb)}
    counted = {}
    for verb in MAIN:
        caplog.clear()
        assert start(made, verb) == 0
        counted[verb] = STAGES[verb].counted(capsys.readouterr().out + caplog.text)
    assert counted == {
        "prepare": {"scans read": 0, "cases written": 0},
        "train": {"finished": 1, "step": 0},
        "infer": {"kept": kept, "done": 0},
        "evaluate": {"kept": kept, "done": 0},
    }
    rewritten = {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert not {name for name in rewritten if name.endswith((".bin", ".gz", ".png", ".safetensors"))}


def _equal_files(work, verb):
    return [work / name for name in STAGES[verb].hashes(work)]


def test_a_changed_config_stops_train_and_fresh_starts_a_new_run(copied, capsys):
    before = STAGES["train"].hashes(copied.work)
    changed = ("--set", "train.optimiser.learning_rate=0.02", "--set", "seed=7")
    assert start(copied, "train", *changed) == 2
    said = capsys.readouterr().err
    assert "fold_0: seed: was 12345, is 7\n" in said
    assert "fold_0: train.optimiser.learning_rate: was 0.01, is 0.02\n" in said
    assert "--allow-changed" in said
    assert start(copied, "train", *changed, "--set", "train.budget.steps=1", "--fresh") == 0
    after = STAGES["train"].hashes(copied.work)
    assert {name: after[name] for name in before} == before
    assert (copied.work / "runs" / "fold_0-2" / "model" / "model.json").exists()


def test_train_leaves_out_bad_cases_that_prepare_was_told_to_skip(copied, capsys, caplog):
    broken = copied.data / "images" / "case_01.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    assert start(copied, "prepare") == 3
    assert start(copied, "prepare", "--skip-bad") == 4
    assert "prepared: 7 cases, 0 written now" in capsys.readouterr().out
    assert start(copied, "train", "--fresh", "--set", "train.budget.steps=1") == 0
    assert "case_01: was left out by prepare, so it is not trained on" in caplog.text


def test_what_is_lacking_is_named_and_the_rest_is_done(copied, capsys, caplog):
    masks, scores = copied.work / "predictions" / "testing", copied.work / "scores" / "testing"
    broken = copied.data / "images" / "test_00.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    for mask in masks.glob("test_0*.nii.gz"):
        mask.unlink()
    assert start(copied, "infer", "--set", "infer.cases=testing") == 4
    assert re.search(r"test_00.nii.gz: .+", caplog.text)
    assert [path.name for path in sorted(masks.glob("*.nii.gz"))] == ["test_01.nii.gz"]
    caplog.clear()
    assert start(copied, "evaluate", "--set", "infer.cases=testing") == 4
    assert "test_00: has no prediction, expected one for every reference" in caplog.text
    cases = json.loads((scores / "metrics.json").read_text())["cases"]
    assert (cases["expected"], cases["scored"], cases["missing"]) == (2, 1, ["test_00"])
    assert "1 of 2 cases scored" in capsys.readouterr().out
