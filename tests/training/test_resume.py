"""Runs that are killed, and runs that go on with other processes: in processes of their own."""

import os
import random
import signal

import pytest
import torch

from medseg.config.train_sections import BudgetSection
from medseg.durable import read_json, sha256_file
from medseg.training.distributed import ALONE
from medseg.training.stage import run_training
from tests.training.processes import forkserver, run_together
from tests.training.small_run import CPU, inputs, with_section, write_prepared

STEPS = 24


def given_in(folder, workers=0, **changes):
    section = {"budget": BudgetSection(steps=STEPS, steps_per_epoch=5), "save_minutes": 1e-6, "workers": workers}
    return with_section(inputs(write_prepared(folder / "prepared")), **section | changes)


def train_and_tell(folder, run, workers, send):
    """Trains and sends each step's number."""
    torch.set_num_threads(1)
    os.fsync = lambda _descriptor: (
        None
    )  # a kill loses nothing that the kernel has; waiting for the disk is the power cut's test

    def told(step, _steps):
        send.send(step)

    given = given_in(folder, workers)
    list(run_training(given, folder / run, device=CPU, elapsed_seconds=lambda: 0.0, each_step=told))
    send.send(None)


def start(folder, run, workers):
    context = forkserver()
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=train_and_tell, args=(folder, run, workers, send), daemon=True)
    child.start()
    send.close()
    return child, receive


def train_to_the_end(folder, run, workers):
    child, receive = start(folder, run, workers)
    steps = list(iter(receive.recv, None))
    child.join()
    return steps


def kill_after(folder, run, workers, step, delay):
    """kill -9 ``delay`` seconds after the given step was told; the last step that was."""
    child, receive = start(folder, run, workers)
    told = 0
    while told is not None and told < step:
        told = receive.recv()
    assert told is not None
    receive.poll(delay)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return told


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_five_kills_end_in_the_weights_of_the_undisturbed_run(tmp_path, workers):
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(1, STEPS), 5))
    train_to_the_end(tmp_path, "whole", 0)
    for step in steps:
        kill_after(tmp_path, "killed", workers, step, rng.uniform(0, 0.02))
    rest = train_to_the_end(tmp_path, "killed", workers)
    assert rest[0] >= steps[-1] - 1, "it went on from the last state saved"
    for name in ("weights.safetensors", "model.json"):
        digests = {sha256_file(tmp_path / run / "model" / name) for run in ("whole", "killed")}
        assert len(digests) == 1, f"seed {seed}, kills after steps {steps}"


def train_part(processes, folder, run, until):
    os.fsync = lambda _descriptor: None
    done = []
    epochs = list(
        run_training(
            given_in(folder), folder / run, device=CPU, elapsed_seconds=lambda: 0.0, processes=processes,
            each_step=lambda step, _: done.append(step), stop=lambda: processes.first and done[-1:] == [until],
        )
    )  # fmt: skip
    return [epoch.step for epoch in epochs if epoch.complete], done


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, no_fsync):
    train_part(ALONE, tmp_path, "whole", None)
    first = run_together(2, train_part, tmp_path, "parts", 7)  # the stop comes to the first process alone
    assert first == [([5], [1, 2, 3, 4, 5, 6, 7])] * 2
    train_part(ALONE, tmp_path, "parts", 12)
    last = run_together(2, train_part, tmp_path, "parts", None)
    assert last == [([15, 20, 24], list(range(13, STEPS + 1)))] * 2
    histories = [
        read_json(tmp_path / run / "model" / "model.json")["training"]["history"] for run in ("whole", "parts")
    ]
    for one, other in zip(*histories, strict=True):
        assert other["step"] == one["step"]
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert other["validation"] == pytest.approx(one["validation"], abs=0.02)
    changes = read_json(tmp_path / "parts" / "run.json")["changes"]
    assert ["processes: was 2, is 1"] in changes
    assert list((tmp_path / "parts" / "state").glob(".tmp*")) == []
