"""The training loop: a generator of epoch results that knows nothing of files, trackers or terminals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from medseg.config.train_sections import TrainSection
from medseg.errors import InputError
from medseg.training.batch import Batch
from medseg.training.losses import Loss, supervised_loss
from medseg.training.schedule import learning_rate
from medseg.training.state import TrainState

_LOG = logging.getLogger(__name__)
_MAX_SKIPPED = 20  # steps without a finite loss before a run is given up


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
        seconds: of training so far, over all starts.
    """

    step: int
    steps: int
    epoch: int
    complete: bool
    train_loss: float
    learning_rate: float
    validation: Mapping[str, float]
    seconds: float

    @property
    def last(self) -> bool:
        """Whether the run has ended with it."""
        return self.step >= self.steps

    def __str__(self) -> str:
        dice = ", ".join(f"{name} {value:.4f}" for name, value in self.validation.items())
        share = f"epoch {self.epoch}, step {self.step} of {self.steps}, {self.seconds / 60:.1f} min"
        return f"{share}: loss {self.train_loss:.4f}" + (f", validation Dice {dice}" if dice else "")

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
        return {name: value for name, value in values.items() if math.isfinite(value)}


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    section: TrainSection,
    loss: Loss,
    rate: float,
    seed: int,
    precision: torch.dtype | None,
) -> float:
    """One optimiser step on ``batch``; returns the loss. A loss that is not finite changes nothing."""
    progress = state.progress
    # Dropout draws from the global generator: seeded per step, a resumed run draws what an undisturbed one would.
    torch.manual_seed((seed * 1_000_003 + progress.step) % 2**63)
    with torch.autocast(batch.images.device.type, dtype=precision, enabled=precision is not None):
        outputs = state.network(batch.images)
    value = supervised_loss(outputs, batch.classes, loss)
    state.optimiser.zero_grad(set_to_none=True)
    if not bool(torch.isfinite(value)):
        return float("nan")
    value.backward()  # type: ignore[no-untyped-call]
    if section.optimiser.gradient_norm is not None:
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), section.optimiser.gradient_norm)
        if not bool(torch.isfinite(norm)):
            return float("nan")
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.step()
    _follow(state, section.optimiser.ema_decay)
    return float(value.detach())


@torch.no_grad()
def _follow(state: TrainState, decay: float) -> None:
    # The decay rises with the steps, so that a short run's average is not dominated by its untrained beginning.
    share = 1 - min(decay, (1 + state.progress.step) / (10 + state.progress.step)) if decay > 0 else 1.0
    own, average = dict(state.network.state_dict()), dict(state.average.state_dict())
    floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in floating], [own[n] for n in floating], share)
    for name in own.keys() - set(floating):
        average[name].copy_(own[name])


def fit(
    state: TrainState,
    batches: Callable[[int], Batch],
    *,
    section: TrainSection,
    loss: Loss,
    seed: int,
    precision: torch.dtype | None,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    stop: Callable[[], bool] = lambda: False,
    each_step: Callable[[int, int], None] = lambda _step, _steps: None,
) -> Iterator[EpochResult]:
    """Trains from ``state.progress.step`` to its end, changing ``state`` in place.

    Args:
        state: where to begin; the caller saves it whenever a result is yielded.
        batches: step to batch; a pure function, so any step can be made again.
        section: the config's ``train``.
        loss: of one resolution.
        seed: of everything drawn in a step.
        precision: autocast type, None for float32.
        validate: averaged network to Dice per class; called at the end of every ``validation.every_epochs``-th epoch and
            of the run. It never decides which weights are kept.
        stop: asked after each step; True ends the generator after one last, incomplete result.
        each_step: told (steps done, steps in all) after each step.

    Raises:
        InputError: the loss was not finite in more than 20 steps; the message names the last batch's cases.
    """
    progress, length = state.progress, section.budget.steps_per_epoch
    started, before, saved = time.monotonic(), progress.seconds, time.monotonic()
    rate = 0.0
    state.network.train()
    while progress.step < progress.steps:
        rate = learning_rate(section.optimiser, progress.step, progress.steps)
        batch = batches(progress.step)
        value = train_step(state, batch, section=section, loss=loss, rate=rate, seed=seed, precision=precision)
        _count(state, value, batch)
        progress.step += 1
        each_step(progress.step, progress.steps)
        progress.seconds = before + time.monotonic() - started
        ends_epoch = progress.step % length == 0 or progress.step == progress.steps
        stopping = stop()
        if ends_epoch:
            yield _end_epoch(state, section, rate, validate)
            state.network.train()
        elif stopping or time.monotonic() - saved > section.save_minutes * 60:
            yield _result(state, rate, complete=False, train_loss=float("nan"), validation={})
        else:
            continue
        saved = time.monotonic()
        progress.seconds = before + time.monotonic() - started
        if stopping:
            return


def _count(state: TrainState, value: float, batch: Batch) -> None:
    progress = state.progress
    if math.isfinite(value):
        progress.loss_sum += value
        progress.loss_count += 1
        return
    progress.skipped += 1
    cases = ", ".join(sorted(set(batch.case_ids)))
    _LOG.warning("step %d: loss is not finite, skipped (cases %s)", progress.step, cases)
    if progress.skipped > _MAX_SKIPPED:
        raise InputError(
            f"training: the loss was not finite in {progress.skipped} steps, last with cases {cases}; look at their "
            "intensities, or lower train.optimiser.learning_rate"
        )


def _end_epoch(
    state: TrainState,
    section: TrainSection,
    rate: float,
    validate: Callable[[nn.Module], Mapping[str, float]] | None,
) -> EpochResult:
    progress = state.progress
    epoch = -(-progress.step // section.budget.steps_per_epoch)
    due = epoch % section.validation.every_epochs == 0 or progress.step == progress.steps
    validation = dict(validate(state.average.eval())) if validate is not None and due else {}
    train_loss = progress.loss_sum / progress.loss_count if progress.loss_count else float("nan")
    progress.loss_sum, progress.loss_count = 0.0, 0
    return _result(state, rate, complete=True, train_loss=train_loss, validation=validation, epoch=epoch)


def _result(
    state: TrainState,
    rate: float,
    *,
    complete: bool,
    train_loss: float,
    validation: Mapping[str, float],
    epoch: int | None = None,
) -> EpochResult:
    progress = state.progress
    result = EpochResult(
        step=progress.step,
        steps=progress.steps,
        epoch=len(progress.history) if epoch is None else epoch,
        complete=complete,
        train_loss=train_loss,
        learning_rate=rate,
        validation=validation,
        seconds=progress.seconds,
    )
    if complete:
        record = {"epoch": result.epoch, "step": result.step, "learning_rate": rate, "validation": dict(validation)}
        progress.history.append(record | ({"train_loss": train_loss} if math.isfinite(train_loss) else {}))
    return result
