import pytest
import torch

from medseg.config.train_sections import BudgetSection, OptimiserSection, ValidationSection
from medseg.training.budget import planned_steps
from medseg.training.schedule import build_optimiser, learning_rate


def test_cosine_worked_out_on_paper():
    section = OptimiserSection(learning_rate=1.0, warmup_fraction=0.1)
    assert [learning_rate(section, step, 100) for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert learning_rate(section, 55, 100) == pytest.approx(0.5)
    assert learning_rate(section, 99, 100) < 0.001


def test_poly_ends_near_zero():
    section = OptimiserSection(kind="sgd", learning_rate=0.01, schedule="poly", warmup_fraction=0.0)
    assert learning_rate(section, 500, 1000) == pytest.approx(0.01 * 0.5**0.9)


def test_norms_and_biases_do_not_decay():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.InstanceNorm2d(2, affine=True))
    decays = {
        g["weight_decay"]: len(g["params"])
        for g in build_optimiser(OptimiserSection(), network.parameters()).param_groups
    }
    assert decays == {0.01: 1, 0.0: 3}


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("medseg.training.budget.time.monotonic", lambda: now[0])
    return now


def test_minutes_become_steps_at_the_timed_pace(clock):
    def spend(seconds):
        def run(*_):
            clock[0] += seconds

        return run

    steps = planned_steps(
        BudgetSection(minutes=10, steps_per_epoch=100),
        ValidationSection(),
        elapsed_seconds=lambda: clock[0],
        step=spend(1.0),
        validate=spend(20.0),
    )
    # 594 s less 12 timed steps, the timed validation and the last one: 542 s at 1 + 20 / 100 s a step
    assert steps == int((600 * 0.99 - 12 - 20 - 20) / 1.2)


def test_steps_and_epochs_are_taken_as_they_are():
    def never(*_):
        raise AssertionError

    for budget, steps in ((BudgetSection(steps=7), 7), (BudgetSection(epochs=3, steps_per_epoch=5), 15)):
        assert planned_steps(budget, ValidationSection(), elapsed_seconds=never, step=never, validate=never) == steps
