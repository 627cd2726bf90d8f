"""Minutes into steps, once, from the first timed steps."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

from medseg.config.train_sections import BudgetSection, ValidationSection

_LOG = logging.getLogger(__name__)
_WARM_STEPS = 2
_TIMED_STEPS = 10
_TIMED_SECONDS = 20.0
_RESERVE = 0.01  # share of the budget for saving states and the model folder


def planned_steps(
    budget: BudgetSection,
    validation: ValidationSection,
    *,
    elapsed_seconds: Callable[[], float],
    step: Callable[[int], object],
    validate: Callable[[], object] | None,
) -> int:
    """How many steps the budget buys.

    ``steps`` and ``epochs`` are taken as they are. ``minutes`` is what is left of them after the start, at the median pace of
    up to 10 steps (20 s at most) after 2 warm ones, less one validation per ``every_epochs`` epochs at the pace of one. The
    caller undoes the timed steps, so that training is a function of the step alone.

    Args:
        budget: the config's section.
        validation: the config's section.
        elapsed_seconds: since the command started.
        step: runs a step of the given number.
        validate: runs one validation; None where there is none.

    Returns:
        At least 1.
    """
    if budget.steps is not None:
        return budget.steps
    if budget.epochs is not None:
        return budget.epochs * budget.steps_per_epoch
    assert budget.minutes is not None
    times: list[float] = []
    while len(times) < _WARM_STEPS + _TIMED_STEPS and sum(times) < _TIMED_SECONDS:
        began = time.monotonic()
        step(len(times))
        times.append(time.monotonic() - began)
    pace = statistics.median(times[_WARM_STEPS:] or times)
    pause = 0.0
    if validate is not None:
        began = time.monotonic()
        validate()
        pause = time.monotonic() - began
    left = budget.minutes * 60 * (1 - _RESERVE) - elapsed_seconds() - pause
    per_step = pace + pause / (budget.steps_per_epoch * validation.every_epochs)
    steps = max(1, int(left / per_step))
    _LOG.info(
        "budget: %.4g minutes are %d steps, at %.3f s a step and %.1f s a validation",
        budget.minutes,
        steps,
        pace,
        pause,
    )
    return steps
