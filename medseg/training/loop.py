"""The training loop: a generator of epoch results that knows nothing of files, trackers or terminals."""

from __future__ import annotations

import collections
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from medseg.config.train_sections import TrainSection
from medseg.errors import InputError
from medseg.training.batch import Batch
from medseg.training.budget import Pace, overrun, steps_that_fit
from medseg.training.course import add_leg, rate_at, shorten
from medseg.training.distributed import ALONE, Processes
from medseg.training.losses import Loss
from medseg.training.state import Progress, TrainState
from medseg.training.step import train_step
from medseg.training.validation import Interrupted

__all__ = ["EpochResult", "fit", "train_step"]

_LOG = logging.getLogger(__name__)
_MAX_SKIPPED = 20  # steps without a finite loss before a run is given up
_LATE = 0.05  # share of the budget a run may be late before it says so, or, with budget.hard, is shortened
_CHECKS = 50  # how often in a run the clock is looked at for that


@dataclass(frozen=True)
class EpochResult:
    """What ``fit`` yields.

    Attributes:
        step: steps done.
        steps: of the whole run.
        epoch: finished epochs.
        complete: False where this is only a moment to save the state, amid an epoch or before stopping.
        train_loss: mean loss of the epoch's steps; NaN where not complete.
        learning_rate: of the last step.
        validation: class name to mean Dice over the validated cases; empty where none were.
        seconds: of the budget so far, over all starts.
        inner: mean Dice over the training cases set aside for early stopping; None where none are.
    """

    step: int
    steps: int
    epoch: int
    complete: bool
    train_loss: float
    learning_rate: float
    validation: Mapping[str, float]
    seconds: float
    inner: float | None = None

    @property
    def last(self) -> bool:
        """Whether the run has ended with it."""
        return self.step >= self.steps

    def __str__(self) -> str:
        dice = ", ".join(f"{name} {value:.4f}" for name, value in self.validation.items())
        share = f"epoch {self.epoch}, step {self.step} of {self.steps}, {self.seconds / 60:.1f} min"
        inner = "" if self.inner is None else f", inner Dice {self.inner:.4f}"
        return f"{share}: loss {self.train_loss:.4f}" + (f", validation Dice {dice}" if dice else "") + inner

    def metrics(self) -> dict[str, float]:
        """What a tracker is told: metric name to value, finite values only."""
        values = {
            "train/loss": self.train_loss,
            "train/learning_rate": self.learning_rate,
            "train/seconds": self.seconds,
        }
        values |= {f"validation/dice/{name}": value for name, value in self.validation.items()}
        if self.validation:
            values["validation/dice"] = sum(self.validation.values()) / len(self.validation)
        if self.inner is not None:
            values["inner/dice"] = self.inner
        return {name: value for name, value in values.items() if math.isfinite(value)}


def fit(  # noqa: PLR0913 - a run has that many parts
    state: TrainState,
    batches: Callable[[int], Batch],
    *,
    section: TrainSection,
    loss: Loss,
    seed: int,
    precision: torch.dtype | None,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    judge: Callable[[nn.Module], float] | None = None,
    stop: Callable[[], bool] = lambda: False,
    each_step: Callable[[int, int], None] = lambda _step, _steps: None,
    processes: Processes = ALONE,
) -> Iterator[EpochResult]:
    """Trains from ``state.progress.step`` to its end, changing ``state`` in place.

    Args:
        state: where to begin; the caller saves it whenever a result is yielded.
        batches: step to this process's share of its batch; a pure function, so any step can be made again.
        section: the config's ``train``.
        loss: of one resolution.
        seed: of everything drawn in a step.
        precision: autocast type, None for float32.
        validate: averaged network to Dice per class; called at the end of every ``validation.every_epochs``-th epoch and
            of the run. It never decides which weights are kept, or when a run ends.
        judge: averaged network to mean Dice over training cases set aside; called at the end of each epoch, it decides on
            early stopping.
        stop: asked after each step; True ends the generator after one last, incomplete result. ``validate`` and ``judge``
            may raise ``Interrupted`` for it; the end of that epoch is then made up for after the next start.
        each_step: told (steps done, steps in all) after each step.
        processes: those that train together; all of them must call.

    Raises:
        InputError: the loss was not finite in more than 20 steps; the message names the cases.
    """
    run = _Run(state, section, validate, judge, processes)
    progress = state.progress
    state.network.train()
    while True:
        if run.epoch_end_is_due():
            if run.save_is_due():  # a validation can take longer than the time between saves
                yield run.result()
                run.saved()
            try:
                result = run.end_epoch()
            except Interrupted:
                yield run.result()
                return
            yield result
            run.saved()
            if processes.any(stop()):
                return
        if progress.step >= progress.steps:
            return
        rate = rate_at(section.optimiser, progress, progress.step)
        batch = batches(progress.step)
        value = train_step(
            state, batch, section=section, loss=loss, rate=rate, seed=seed, precision=precision, processes=processes
        )
        run.count(value, batch, rate)
        each_step(progress.step, progress.steps)
        stopping = processes.any(stop())
        if not run.epoch_end_is_due() and (stopping or run.save_is_due()):
            yield run.result()
            run.saved()
        if stopping and not run.epoch_end_is_due():
            return


@dataclass
class _Run:
    """What ``fit`` keeps in mind between steps; all that outlives a stop is in ``state``."""

    state: TrainState
    section: TrainSection
    validate: Callable[[nn.Module], Mapping[str, float]] | None
    judge: Callable[[nn.Module], float] | None
    processes: Processes
    rate: float = 0.0
    warned_late: float = _LATE
    recent: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=50))

    def __post_init__(self) -> None:
        progress = self.state.progress
        self.before = progress.seconds
        if progress.step:
            self.rate = rate_at(self.section.optimiser, progress, progress.step - 1)
        self.started = self.last_save = self.last_step = time.monotonic()

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def epoch_end_is_due(self) -> bool:
        """Whether the last step done ends an epoch that has no record yet: also after a stop amid its validation."""
        progress = self.progress
        ends = progress.step % self.section.budget.steps_per_epoch == 0 or progress.step == progress.steps
        recorded = progress.history[-1]["step"] if progress.history else 0
        return ends and progress.step > recorded

    def save_is_due(self) -> bool:
        return time.monotonic() - self.last_save > self.section.save_minutes * 60

    def saved(self) -> None:
        self._spend()
        self.last_save = self.last_step = time.monotonic()

    def _spend(self) -> None:
        self.progress.seconds = self.before + time.monotonic() - self.started

    def count(self, value: float, batch: Batch, rate: float) -> None:
        """After each step."""
        progress, self.rate = self.progress, rate
        now = time.monotonic()
        self.recent.append(now - self.last_step)
        self.last_step = now
        if math.isfinite(value):
            progress.loss_sum += value
            progress.loss_count += 1
        else:
            _skip(progress, [case for share in self.processes.gather(batch.case_ids) for case in share])
        progress.step += 1
        self._spend()
        if self.section.budget.minutes is not None and progress.pace:
            self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        progress = self.progress
        if progress.step % max(1, progress.steps // _CHECKS) or progress.step >= progress.steps or len(self.recent) < 5:
            return
        pace = Pace(statistics.fmean(self.recent), progress.pace["validation"], progress.pace["save"])
        late = overrun(progress.seconds, self.section.budget, pace, progress.steps - progress.step)
        if self.section.budget.hard:
            self._keep_to_the_budget(pace)
        elif late > self.warned_late:
            self.warned_late = late + _LATE
            _LOG.warning(
                "this machine is slower than when the budget was planned: %.3f s a step in place of %.3f; the run will take "
                "about %.0f %% longer than its %.4g minutes",
                pace.step, progress.pace["step"], 100 * late, self.section.budget.minutes,
            )  # fmt: skip

    def _keep_to_the_budget(self, pace: Pace) -> None:
        progress, minutes = self.progress, self.section.budget.minutes or 0.0
        fitting = steps_that_fit(minutes * 60 - progress.seconds, pace, self.section, done=progress.step)
        steps = self.processes.from_first(progress.step + max(1, fitting))
        if steps > progress.steps - max(1, (progress.steps - progress.step) // 50):
            return  # within 2 % of the steps left: timing is no better than that
        event = f"step {progress.step}: budget.hard cut the run from {progress.steps} to {steps} steps, not repeatable in bits"
        shorten(progress, steps)
        progress.events.append(event)
        _LOG.warning("%s", event)

    def end_epoch(self) -> EpochResult:
        """Validates where it is due and puts the epoch on record.

        Raises:
            Interrupted: as ``validate`` and ``judge`` raise it; nothing was put on record.
        """
        progress, section = self.progress, self.section
        epoch = -(-progress.step // section.budget.steps_per_epoch)
        due = epoch % section.validation.every_epochs == 0 or progress.step == progress.steps
        average = self.state.average.eval()
        validation = dict(self.validate(average)) if self.validate is not None and due else {}
        inner = self.judge(average) if self.judge is not None else None
        self.state.network.train()
        train_loss = progress.loss_sum / progress.loss_count if progress.loss_count else float("nan")
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._spend()
        result = self.result(complete=True, train_loss=train_loss, validation=validation, epoch=epoch, inner=inner)
        record = {"epoch": epoch, "step": result.step, "learning_rate": self.rate, "validation": validation}
        record |= {"train_loss": train_loss} if math.isfinite(train_loss) else {}
        progress.history.append(record | ({"inner": inner} if inner is not None else {}))
        if inner is not None:
            self._stop_early(inner, epoch)
        return result

    def _stop_early(self, inner: float, epoch: int) -> None:
        progress, early = self.progress, self.section.early_stopping
        if inner >= progress.best + early.gain or not progress.best_epoch:
            progress.best, progress.best_epoch = inner, epoch
            return
        cooling = progress.legs[-1][2] is not None
        if early.patience_epochs is None or epoch - progress.best_epoch < early.patience_epochs or cooling:
            return
        steps = round(progress.step * early.cooldown)
        if progress.step + steps >= progress.steps:
            return
        add_leg(progress, steps, cool_down_from=self.rate)
        event = f"step {progress.step}: no gain on set-aside cases since epoch {progress.best_epoch}; ends at {progress.steps}"
        progress.events.append(event)
        _LOG.info("early stopping, %s", event)

    def result(
        self,
        *,
        complete: bool = False,
        train_loss: float = float("nan"),
        validation: Mapping[str, float] | None = None,
        epoch: int | None = None,
        inner: float | None = None,
    ) -> EpochResult:
        """Of this moment."""
        progress = self.progress
        return EpochResult(
            step=progress.step,
            steps=progress.steps,
            epoch=len(progress.history) if epoch is None else epoch,
            complete=complete,
            train_loss=train_loss,
            learning_rate=self.rate,
            validation=validation or {},
            seconds=progress.seconds,
            inner=inner,
        )


def _skip(progress: Progress, case_ids: list[str]) -> None:
    cases = sorted(set(case_ids))
    progress.skipped += 1
    for case in cases:
        progress.skipped_cases[case] = progress.skipped_cases.get(case, 0) + 1
    _LOG.warning("step %d: loss or gradient is not finite, skipped (cases %s)", progress.step + 1, ", ".join(cases))
    if progress.skipped > _MAX_SKIPPED:
        counts = sorted(progress.skipped_cases.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{case} in {count}" for case, count in counts[:5])
        raise InputError(
            f"training: the loss was not finite in {progress.skipped} steps, most often with cases {shown}; look at their "
            "intensities, or lower train.optimiser.learning_rate. The weights are still those of the last good step"
        )
