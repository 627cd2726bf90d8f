"""Minutes into steps, once, from the first timed steps."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from medseg.config.train_sections import BudgetSection, TrainSection

_LOG = logging.getLogger(__name__)
_WARM_STEPS = 2
_FEWEST_STEPS = 3
_TIMED_SHARE = 0.03  # of the budget goes into timing steps that are then undone ...
_TIMED_SECONDS = 20.0  # ... and no more than this
_RESERVE = 0.005  # share of the budget that nothing is planned for


@dataclass(frozen=True)
class Pace:
    """Seconds that a step, a validation and a save of the state take."""

    step: float
    validation: float
    save: float


@dataclass(frozen=True)
class Forecast:
    """How many steps a budget buys; ``pace`` is what it was reckoned from, None where nothing had to be timed."""

    steps: int
    pace: Pace | None = None


def planned_steps(
    section: TrainSection,
    *,
    done: int = 0,
    spent_seconds: Callable[[], float],
    step: Callable[[int], object],
    validate: Callable[[], float] | None,
    save: Callable[[], object],
    clock: Callable[[], float] = time.monotonic,
) -> Forecast:
    """How many more steps the budget buys.

    ``steps`` and ``epochs`` are taken as they are, less the steps done. ``minutes`` is what is left of them, at the mean pace
    of steps timed for 3 % of the budget (20 s at most) after 2 warm ones, with one validation per ``every_epochs`` epochs and
    one at the end, and one save of the state an epoch, each at the pace of one. The caller undoes the timed steps, so that
    training is a function of the step alone.

    Args:
        section: the config's ``train``.
        done: steps the run has behind it; above 0 where a finished run is extended.
        spent_seconds: of the budget so far, this command's start included.
        step: runs a step of the given number.
        validate: validates and returns which share of a whole validation that was; None where there is none.
        save: saves the state once.
        clock: seconds; that of the first process where there are several.

    Returns:
        At least 1 step where ``done`` is 0; 0 or fewer where the budget is spent already.
    """
    budget = section.budget
    if budget.minutes is None:
        wanted = budget.steps if budget.steps is not None else (budget.epochs or 0) * budget.steps_per_epoch
        return Forecast(wanted - done)
    seconds = budget.minutes * 60
    if done and spent_seconds() >= seconds:
        return Forecast(0)
    pace = measured_pace(min(_TIMED_SECONDS, _TIMED_SHARE * seconds), step, validate, save, clock)
    steps = steps_that_fit(seconds * (1 - _RESERVE) - spent_seconds(), pace, section, done=done)
    if steps < 1:
        _LOG.warning("budget: %.4g minutes are too few for one step and its validation", budget.minutes)
    _LOG.info(
        "budget: %.4g minutes are %d steps, at %.3f s a step, %.1f s a validation and %.2f s a save",
        budget.minutes,
        max(1, steps),
        pace.step,
        pace.validation,
        pace.save,
    )
    return Forecast(max(1, steps), pace)


def measured_pace(
    seconds_at_most: float,
    step: Callable[[int], object],
    validate: Callable[[], float] | None,
    save: Callable[[], object],
    clock: Callable[[], float],
) -> Pace:
    """Times steps for about ``seconds_at_most`` (3 of them at least, after 2 warm ones), a validation and a save."""
    times: list[float] = []
    began = clock()
    for number in range(_WARM_STEPS):
        step(number)
    last = clock()
    while len(times) < _FEWEST_STEPS or last - began < seconds_at_most:
        step(_WARM_STEPS + len(times))
        now = clock()
        times.append(now - last)
        last = now
    # The mean, since it is the sum that has to fit: augmentation makes steps uneven. A hiccup counts as three steps.
    longest = 3 * statistics.median(times)
    pace = statistics.fmean(min(value, longest) for value in times)
    share = validate() if validate is not None else 1.0
    validated = clock()
    save()
    return Pace(pace, (validated - last) / share, clock() - validated)


def steps_that_fit(left_seconds: float, pace: Pace, section: TrainSection, *, done: int = 0) -> int:
    """The most steps after step ``done`` that end, last validation and last weights included, in ``left_seconds``; may be 0."""
    per_epoch = section.budget.steps_per_epoch
    between = per_epoch * section.validation.every_epochs
    left = left_seconds / (1 + pace.save / (section.save_minutes * 60))  # saves amid long epochs

    def seconds(steps: int) -> float:
        end = done + steps
        validations = end // between - done // between + (end % between > 0)
        saves = (
            end // per_epoch - done // per_epoch + (end % per_epoch > 0) + 1
        )  # the last one stands for the model folder
        return steps * pace.step + validations * pace.validation + saves * pace.save

    low, high = 0, max(1, int(left / max(pace.step, 1e-9)) + 1)
    while high - low > 1:  # seconds(low) fits or low is 0; seconds(high) does not fit
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= left else (low, middle)
    return low


def overrun(spent_seconds: float, budget: BudgetSection, pace: Pace, steps_left: int) -> float:
    """By which share of the budget in minutes a run will end late at ``pace`` for its steps left; negative where early."""
    assert budget.minutes is not None
    return (spent_seconds + steps_left * pace.step) / (budget.minutes * 60) - 1
