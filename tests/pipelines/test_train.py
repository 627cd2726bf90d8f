"""`medseg train` as a command: signals, several processes under torchrun, extension."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.durable import read_json, sha256_file
from tests.experiment import write_experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    experiment = write_experiment(folder, training=4, testing=0, steps=STEPS)
    assert run(experiment, "prepare", experiment.work).returncode == 0
    return experiment


def arguments(made, verb, work, *more):
    return [
        "medseg", verb, "--config", str(made.config), "--data-root", str(made.data), "--work", str(work), "--device", "cpu",
        "--set", "tracking.enabled=false", "--set", "train.save_minutes=5.0", *more,
    ]  # fmt: skip


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(made, verb, work, *more, launcher=()):
    command = [*launcher, *arguments(made, verb, work, *more)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def work_beside(made, name):
    """A work folder of its own over the same prepared data."""
    work = made.work.with_name(name)
    work.mkdir()
    (work / "prepared").symlink_to(made.work / "prepared")
    return work


def start_and_wait_for_an_epoch(made, work):
    process = subprocess.Popen(
        arguments(made, "train", work), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert any("epoch 2, step 8" in line for line in process.stderr)
    return process


def digest(work):
    return sha256_file(work / "runs" / "fold_0" / "model" / "weights.safetensors")


@pytest.fixture(scope="module")
def whole(made):
    """The work folder of a run that nothing disturbed."""
    work = work_beside(made, "whole")
    assert run(made, "train", work).returncode == 0
    return work


def test_a_signal_ends_with_143_and_the_run_goes_on_to_the_same_weights(made, whole):
    parts = work_beside(made, "parts")
    process = start_and_wait_for_an_epoch(made, parts)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not (parts / "runs" / "fold_0" / "model").exists()
    assert run(made, "train", parts).returncode == 0
    assert digest(parts) == digest(whole)


def test_two_processes_of_torchrun_train_one_run(made, whole):
    two = work_beside(made, "two")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")
    result = run(made, "train", two, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": trained") == 1
    assert result.stderr.count("epoch 1, step 4") == 1
    one, other = (
        read_json(work / "runs" / "fold_0" / "model" / "model.json")["training"]["history"] for work in (whole, two)
    )
    assert [entry["train_loss"] for entry in other] == pytest.approx([entry["train_loss"] for entry in one], rel=1e-3)


def test_a_finished_run_says_so_and_is_extended_by_the_flag(made, whole):
    again = run(made, "train", whole)
    assert (again.returncode, "nothing left to do" in again.stdout) == (0, True)
    longer = ("--set", f"train.budget.steps={STEPS + 6}")
    refused = run(made, "train", whole, *longer)
    assert (refused.returncode, "use --extend" in refused.stderr) == (2, True)
    extended = run(made, "train", whole, *longer, "--extend")
    assert (extended.returncode, ": trained\n" in extended.stdout) == (0, True)
