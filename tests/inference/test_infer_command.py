"""``medseg infer`` as people call it: with an experiment's config, and with nothing but a model folder."""

import json
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from medseg.pipelines.infer import main

from medseg.config.sections import Config, DataSection, InferSection
from medseg.durable import FolderLock, sha256_file
from medseg.imaging import read_label_map
from medseg.inference.cases import find_cases
from medseg.inference.engine import Engine
from medseg.inference.stage import run_infer
from tests.inference.stand_ins import threshold_model, write_model
from tests.synthetic import scan, write_dataset, write_scan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def experiment(tmp_path):
    """(config file, work folder): six cases in three folds, and a model for folds 0 and 1."""
    manifest = write_dataset(tmp_path / "data", cases=6)
    plain = Config(name="synthetic", data=DataSection(manifest="data/dataset.json")).plain()
    plain["infer"] |= {"mirror": False, "precision": "float32"}
    config = tmp_path / "synthetic.yaml"
    config.write_text(yaml.safe_dump(plain))
    work = tmp_path / "work"
    for fold in (0, 1):
        write_model(work / "runs" / f"fold_{fold}" / "model", seed=fold)
    assert manifest.exists()
    return config, work


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("MEDSEG_TRACKING", "off")


def masks(folder):
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.nii.gz*"))}


def lines(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def test_a_file_without_config(tmp_path, model, capsys):
    image, _ = write_scan(scan("oblique"), tmp_path)
    out = tmp_path / "masks"
    assert main([str(image), "--model", str(model), "--output", str(out), "--device", "cpu"]) == 0
    assert read_label_map(out / "case.nii.gz").shape == scan("oblique").shape
    assert "1 ok of 1 cases" in capsys.readouterr().out
    (line,) = lines(out)
    assert (line["id"], line["status"], line["reason"]) == ("case", "ok", None)
    assert json.loads((out / "stage.json").read_text())["stage"] == "infer"

    assert main([str(image), "--model", str(model), "--output", str(out), "--device", "cpu"]) == 0
    assert "1 kept of 1 cases" in capsys.readouterr().out
    assert lines(out) == [line]


def test_a_bad_case_gives_4_and_nothing_but_bad_cases_gives_3(tmp_path, model, capsys):
    good, _ = write_scan(scan("ras"), tmp_path)
    bad = tmp_path / "images" / "broken.nii.gz"
    bad.write_bytes(good.read_bytes()[:5000])
    shared = ["--model", str(model), "--device", "cpu"]
    assert main([str(tmp_path / "images"), *shared, "--output", str(tmp_path / "both")]) == 4
    assert [line["status"] for line in lines(tmp_path / "both")] == ["refused", "ok"]
    assert "1 ok, 1 refused of 2 cases" in capsys.readouterr().out
    assert main([str(bad), *shared, "--output", str(tmp_path / "one")]) == 3


def test_with_a_config_the_held_out_cases_are_predicted(experiment, capsys):
    config, work = experiment
    assert main(["--config", str(config), "--work", str(work), "--device", "cpu"]) == 0
    folder = work / "predictions" / "fold_0"
    assert [path.name for path in sorted(folder.glob("*.nii.gz"))] == ["case_00.nii.gz", "case_03.nii.gz"]
    assert "2 ok of 2 cases" in capsys.readouterr().out


def test_a_missing_file_of_a_manifest_is_that_cases_fault(experiment):
    config, work = experiment
    (config.parent / "data" / "images" / "case_03.nii.gz").unlink()
    assert main(["--config", str(config), "--work", str(work), "--device", "cpu"]) == 4
    good, bad = lines(work / "predictions" / "fold_0")
    assert (good["id"], good["status"], bad["id"], bad["status"]) == ("case_00", "ok", "case_03", "refused")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected INPUT --model DIR --output DIR, or --config FILE"),
        (["scan.nii.gz", "--output", "out"], "expected INPUT --model DIR"),
        (["scan.nii.gz", "--model", "MODEL"], "expected INPUT --model DIR"),
        (["none.nii.gz", "--model", "MODEL", "--output", "out"], "none.nii.gz: no such file or folder"),
    ],
)
def test_a_senseless_command_line_gives_2(tmp_path, model, capsys, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("MODEL", str(model)) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_ensemble_that_saw_the_cases_is_refused(experiment, capsys):
    config, work = experiment
    assert main(["--config", str(config), "--work", str(work), "--set", "infer.ensemble=[0, 1]"]) == 2
    assert "were trained on the held-out cases of fold 0" in capsys.readouterr().err


def test_a_folder_that_is_no_model_gives_3(tmp_path, capsys):
    image, _ = write_scan(scan("ras"), tmp_path)
    assert main([str(image), "--model", str(tmp_path), "--output", str(tmp_path / "out")]) == 3
    assert "holds no model.json" in capsys.readouterr().err


def test_an_output_that_is_written_by_another_gives_6(tmp_path, model, capsys):
    image, _ = write_scan(scan("ras"), tmp_path)
    with FolderLock(tmp_path / "out"):
        assert main([str(image), "--model", str(model), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 6
    assert "is being written by process" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path, model, capsys):
    write_scan(scan("ras"), tmp_path)
    images, out = str(tmp_path / "images"), tmp_path / "out"
    assert main([images, "--model", str(model), "--output", str(out), "--device", "cpu", "--dry-run"]) == 0
    assert "1 cases: 1 to do, 0 have their mask" in capsys.readouterr().out
    assert not out.exists()


def infer_command(images, model):
    """The command in a process of its own; the output folder comes next."""
    code = "import sys; from medseg.pipelines.infer import main; sys.exit(main())"
    return [sys.executable, "-c", code, str(images), "--model", str(model), "--device", "cpu", "--output"]


@pytest.mark.slow
def test_shards_at_the_same_time_make_the_same_folder(tmp_path, model):
    for number in range(9):
        write_scan(scan("ras", seed=number), tmp_path, case_id=f"case_{number}")
    command = infer_command(tmp_path / "images", model)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    shards = [
        subprocess.Popen(
            [*command, str(tmp_path / "shards"), "--shard", "auto"], env=environment | {"SLURM_ARRAY_TASK_ID": task}
        )
        for task in "123"
    ]
    assert [shard.wait(240) for shard in shards] == [0, 0, 0]
    subprocess.run([*command, str(tmp_path / "straight")], check=True, env=environment, capture_output=True)
    assert masks(tmp_path / "shards") == masks(tmp_path / "straight")
    assert [line["id"] for line in lines(tmp_path / "shards")] == [f"case_{n}" for n in range(9)]
    left = {path.name for path in (tmp_path / "shards").iterdir()} ^ {
        path.name for path in (tmp_path / "straight").iterdir()
    }
    assert not left


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_in_the_same_bytes(tmp_path, model):
    for number in range(6):
        write_scan(scan("ras", seed=number), tmp_path, case_id=f"case_{number}")
    command = infer_command(tmp_path / "images", model)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "straight")], check=True, env=environment, capture_output=True)
    whole = time.monotonic() - began
    rng = np.random.default_rng(20240611)
    for moment in rng.uniform(0.3, 1.0, 4) * whole:
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")],
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    assert masks(tmp_path / "killed") == masks(tmp_path / "straight")
    assert [line["id"] for line in lines(tmp_path / "killed")] == [f"case_{n}" for n in range(6)]
    assert not list((tmp_path / "killed").glob(".tmp-*"))


@pytest.mark.real
def test_dicom_series_give_masks_on_their_own_grids(tmp_path, shared_data):
    study = shared_data / "dicom" / "STS_002"
    engine = Engine([threshold_model((4.0, 4.0, 4.0), patch=(64, 64, 64))], InferSection(mirror=False), device=CPU)
    found = find_cases([study], channels=engine.plan.channels)
    series = [case for case in found if case.images[0].is_dir()]
    assert [case.id for case in series] == ["CT_image", "MR_T1_image", "PET_image"]
    reports = list(run_infer(engine, series, output=tmp_path))
    assert [report.status for report in reports] == ["ok"] * 3
    for case in series:
        expected, mask = nib.load(study / "expected" / case.output_name), nib.load(tmp_path / case.output_name)
        # The twin may count an axis the other way round; the voxels must be the same places.
        change = nib.orientations.ornt_transform(nib.io_orientation(mask.affine), nib.io_orientation(expected.affine))
        turned = mask.as_reoriented(change)
        assert turned.shape == expected.shape
        np.testing.assert_allclose(turned.affine, expected.affine, atol=1e-3)
