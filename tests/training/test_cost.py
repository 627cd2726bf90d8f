import math

import numpy as np
import pytest
import torch

from medseg.config.network_sections import UNetSection
from medseg.config.train_sections import BudgetSection, TrainSection, ValidationSection
from medseg.training.architecture import architecture_of
from medseg.training.budget import Pace
from medseg.training.cost import run_seconds, stand_ins, steps_of_run, time_training, timed
from medseg.training.distributed import ALONE
from medseg.training.inputs import TrainingInputs
from medseg.training.trainer import Trainer
from tests.training.test_memory import plan


class Clock:
    """A clock that only moves when a step is made."""

    def __init__(self, *durations):
        self.now, self.durations, self.steps = 0.0, list(durations), []

    def __call__(self):
        return self.now

    def step(self, number):
        self.steps.append(number)
        self.now += self.durations[min(number, len(self.durations) - 1)]


def test_warm_steps_are_left_out_and_no_step_ends_late():
    clock = Clock(5.0, 2.0, 1.0)
    assert timed(clock.step, seconds=12, clock=clock) == [1.0] * 5
    assert clock.now == 12


def test_one_slow_step_is_all_there_is():
    clock = Clock(30.0)
    assert timed(clock.step, seconds=20, clock=clock) == [30.0]
    assert clock.steps == [0]


def test_a_budget_in_steps_is_steps_validations_and_saves():
    section = TrainSection(
        budget=BudgetSection(epochs=4, steps_per_epoch=10), validation=ValidationSection(every_epochs=2)
    )
    pace = Pace(step=0.5, validation=3.0, save=1.0)
    assert steps_of_run(section, pace) == 40
    assert run_seconds(40, section, pace) == 40 * 0.5 + 2 * 3.0 + 5 * 1.0
    assert run_seconds(41, section, pace) == 41 * 0.5 + 3 * 3.0 + 6 * 1.0


def test_a_budget_in_minutes_buys_what_fits():
    section = TrainSection(budget=BudgetSection(minutes=1, steps_per_epoch=10))
    steps = steps_of_run(section, Pace(step=1.0, validation=2.0, save=0.0), spent_seconds=6)
    assert run_seconds(steps, section, Pace(1.0, 2.0, 0.0)) <= 54 < run_seconds(steps + 3, section, Pace(1.0, 2.0, 0.0))
    assert steps_of_run(section, Pace(1000.0, 0.0, 0.0)) == 1


@pytest.mark.parametrize("flat", [False, True], ids=["3d", "slices"])
def test_noise_stands_in_for_data_that_are_not_prepared(tmp_path, flat):
    made = plan()
    if flat:
        made = plan(
            dimensions=2, through_plane_axis=1, patch=(16, 1, 8), strides=((1, 1, 1), (2, 1, 2)),
            kernel_sizes=((3, 1, 3), (3, 1, 3)),
        )  # fmt: skip
    prepared = stand_ins(made, tmp_path)
    names = tuple(prepared.cases)
    image, labels = prepared.cases[names[0]].read_all()
    assert image.shape == (1, 16, 16, 8)
    assert set(np.unique(labels)) == {0, 1}
    section = TrainSection(validation=ValidationSection(cases=1), precision="float32")
    inputs = TrainingInputs(
        prepared=prepared, training=names, validation=names[:1], network=UNetSection(), section=section, seed=1, fold=0,
        config_text="", manifest_sha256="0" * 64,
    )  # fmt: skip
    trainer = Trainer(
        inputs, architecture_of(inputs.network, made), device=torch.device("cpu"), precision=None, processes=ALONE,
        stop=lambda: False,
    )  # fmt: skip
    timing = time_training(trainer, seconds=0.0, scratch=tmp_path)
    assert timing.steps == 1
    assert timing.spread == 0
    assert timing.windows == (16 if flat else 1)
    assert all(math.isfinite(value) and value > 0 for value in vars(timing.pace).values())
    assert timing.peak_bytes > 0
