import itertools

import pytest

from medseg.config.train_sections import BudgetSection, TrainSection, ValidationSection
from medseg.training.budget import Pace, overrun, planned_steps, steps_that_fit


class Machine:
    """A clock that steps, validations and saves move on."""

    def __init__(self, step, validation=0.0, save=0.0, start=0.0):
        self.now, self.paces = start, itertools.cycle(step if isinstance(step, (list, tuple)) else [step])
        self.validation, self.saving, self.steps = validation, save, 0

    def clock(self):
        return self.now

    def step(self, _number):
        self.now += next(self.paces)
        self.steps += 1

    def validate(self):
        self.now += self.validation
        return 1.0

    def save(self):
        self.now += self.saving

    def train(self, section, steps):
        """What a run of so many steps takes, end of epochs and model folder included."""
        length, every = section.budget.steps_per_epoch, section.validation.every_epochs
        for step in range(1, steps + 1):
            self.step(step)
            if step % length == 0 or step == steps:
                self.save()
                if -(-step // length) % every == 0 or step == steps:
                    self.validate()
        self.save()


def plan(section, machine, **arguments):
    return planned_steps(
        section, spent_seconds=machine.clock, step=machine.step, validate=machine.validate, save=machine.save,
        clock=machine.clock, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("minutes", "step", "validation", "save", "per_epoch", "every"),
    [
        (5, 0.05, 3.0, 0.2, 250, 1),
        (10, 1.0, 20.0, 1.0, 100, 1),
        (20, [0.5, 0.6, 0.4, 0.9], 45.0, 2.0, 250, 2),
        (5, 4.0, 30.0, 0.0, 250, 1),
        (20, 0.3, 0.0, 0.0, 1000, 5),
    ],
)
def test_minutes_are_kept_within_two_in_a_hundred(minutes, step, validation, save, per_epoch, every):
    section = TrainSection(
        budget=BudgetSection(minutes=minutes, steps_per_epoch=per_epoch),
        validation=ValidationSection(every_epochs=every),
        save_minutes=1000.0,
    )
    machine = Machine(step, validation, save, start=4.0)  # seconds the command took to start
    forecast = plan(section, machine)
    machine.train(section, forecast.steps)
    assert 0.98 * minutes * 60 <= machine.now <= 1.0 * minutes * 60


def test_a_hiccup_while_timing_does_not_halve_the_run():
    section = TrainSection(budget=BudgetSection(minutes=10, steps_per_epoch=100))
    paces = [1.0] * 8 + [30.0] + [1.0] * 5
    forecast = plan(section, Machine(paces))
    assert forecast.pace.step < 1.35


def test_the_warm_steps_do_not_count():
    section = TrainSection(budget=BudgetSection(minutes=5))
    machine = Machine([9.0, 9.0, *[0.5] * 1000])
    assert plan(section, machine).pace.step == pytest.approx(0.5)


def test_too_short_a_budget_is_one_step(caplog):
    section = TrainSection(budget=BudgetSection(minutes=0.1))
    assert plan(section, Machine(1.0, validation=30.0)).steps == 1
    assert "too few for one step" in caplog.text


def test_steps_and_epochs_are_taken_as_they_are():
    def never(*_):
        raise AssertionError

    for budget, steps in ((BudgetSection(steps=7), 7), (BudgetSection(epochs=3, steps_per_epoch=5), 15)):
        section = TrainSection(budget=budget)
        arguments = {"spent_seconds": never, "step": never, "validate": never, "save": never}
        assert planned_steps(section, **arguments).steps == steps
        assert planned_steps(section, done=5, **arguments).steps == steps - 5


def test_an_extension_of_spent_minutes_buys_nothing_and_times_nothing():
    machine = Machine(1.0, start=700.0)
    assert plan(TrainSection(budget=BudgetSection(minutes=10)), machine, done=100).steps == 0
    assert machine.steps == 0


def test_steps_that_fit_worked_out_on_paper():
    section = TrainSection(budget=BudgetSection(minutes=1, steps_per_epoch=10), save_minutes=1e9)
    # 25 steps: 25 s, validations and saves after 10, 20, 25 (3 * 2 + 3 * 1 s), the model 1 s: 35 s
    assert steps_that_fit(35.01, Pace(1.0, 2.0, 1.0), section) == 25
    assert steps_that_fit(34.9, Pace(1.0, 2.0, 1.0), section) == 24
    # from step 5 on the epochs end after 5 and 15 more
    assert steps_that_fit(15 + 2 * 3 + 1.01, Pace(1.0, 2.0, 1.0), section, done=5) == 15
    assert steps_that_fit(1.0, Pace(1.0, 2.0, 1.0), section) == 0


def test_overrun_is_a_share_of_the_budget():
    assert overrun(300.0, BudgetSection(minutes=10), Pace(1.0, 0, 0), 360) == pytest.approx(0.1)
