"""The course of the learning rate over a run's legs.

A run has one leg, from step 0 to its last. An extension adds a leg with the config's whole schedule; early stopping adds one
on which the rate falls to 0. A leg holds from its first step on, whatever the leg before still had before it.
"""

from __future__ import annotations

from medseg.config.train_sections import OptimiserSection
from medseg.training.schedule import learning_rate
from medseg.training.state import Progress


def rate_at(section: OptimiserSection, progress: Progress, step: int) -> float:
    """Learning rate of step ``step`` (0-based) of the run."""
    first, last, peak = next((leg for leg in reversed(progress.legs) if leg[0] <= step), (0, progress.steps, None))
    if peak is None:
        return learning_rate(section, step - first, last - first)
    return peak * (last - step) / (last - first)


def add_leg(progress: Progress, steps: int, *, cool_down_from: float | None = None) -> None:
    """Adds ``steps`` more steps (at least 1) from here: the config's whole schedule, or a straight fall from a rate to 0."""
    progress.steps = progress.step + max(1, steps)
    progress.legs.append((progress.step, progress.steps, cool_down_from))


def shorten(progress: Progress, steps: int) -> None:
    """Ends the run's last leg with step ``steps``, its schedule drawn together so that it still ends at rate 0."""
    progress.steps = max(progress.step + 1, steps)
    first, _, peak = progress.legs.pop()
    progress.legs.append((first, progress.steps, peak))
