import pytest

from medseg.config.train_sections import OptimiserSection
from medseg.training.course import add_leg, rate_at, shorten
from medseg.training.schedule import learning_rate
from medseg.training.state import Progress

SECTION = OptimiserSection(learning_rate=1.0, warmup_fraction=0.1)


def test_one_leg_is_the_configs_schedule():
    progress = Progress(steps=100)
    assert progress.legs == [(0, 100, None)]
    assert [rate_at(SECTION, progress, s) for s in (0, 9, 55, 99)] == [
        learning_rate(SECTION, s, 100) for s in (0, 9, 55, 99)
    ]


def test_an_extension_starts_the_schedule_anew():
    progress = Progress(steps=100, step=100)
    add_leg(progress, 50)
    assert progress.steps == 150
    assert rate_at(SECTION, progress, 99) == learning_rate(SECTION, 99, 100)
    assert [rate_at(SECTION, progress, 100 + s) for s in range(50)] == [
        learning_rate(SECTION, s, 50) for s in range(50)
    ]


def test_a_cool_down_falls_straight_to_nothing():
    progress = Progress(steps=100, step=40)
    add_leg(progress, 4, cool_down_from=0.8)
    assert progress.steps == 44
    assert [rate_at(SECTION, progress, s) for s in (40, 41, 42, 43)] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert rate_at(SECTION, progress, 39) == learning_rate(SECTION, 39, 100)


def test_a_shortened_run_still_ends_at_rate_nothing():
    progress = Progress(steps=100, step=50)
    shorten(progress, 80)
    assert progress.steps == 80
    assert rate_at(SECTION, progress, 50) == learning_rate(SECTION, 50, 80)
    assert rate_at(SECTION, progress, 79) < 0.01
    shorten(progress, 10)  # never behind what is done
    assert progress.steps == 51


def test_legs_survive_json():
    progress = Progress(steps=10, legs=[[0, 5, None], [5, 10, 0.5]])
    assert progress.legs == [(0, 5, None), (5, 10, 0.5)]
