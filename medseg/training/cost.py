"""What a training will cost before it is begun: seconds a step and in all, from a few timed steps of the real thing."""

from __future__ import annotations

import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medseg.config.train_sections import TrainSection
from medseg.inference.sliding_window import predict_scores
from medseg.preparation.grid import Grid, rows_of
from medseg.preparation.plan import Plan
from medseg.preparation.store import PreparedData, StoredCase, case_path
from medseg.preparation.writing import write_case
from medseg.training.budget import Pace, steps_that_fit
from medseg.training.loop import train_step
from medseg.training.previous import whole_case
from medseg.training.state import TrainState, save_state
from medseg.training.trainer import Trainer
from medseg.training.validation import window_count

_WARM_STEPS = 2
_MOST_WINDOWS_TIMED = 8
_STAND_INS = 4


@dataclass(frozen=True)
class Timing:
    """What was timed.

    Attributes:
        pace: seconds a step, a validation and a save.
        steps: how many were timed, after warm ones.
        spread: standard deviation of a step over its mean; 0 for one step.
        windows: of one validation.
        peak_bytes: memory that was taken while timing: of the process, on CUDA of the device's allocator.
    """

    pace: Pace
    steps: int
    spread: float
    windows: int
    peak_bytes: int


def time_training(trainer: Trainer, *, seconds: float, scratch: Path) -> Timing:
    """Times steps on the real batches for at most ``seconds`` (one step at least), then a few validation windows and a save.

    Nothing of it lasts: the network that is stepped is a new one.

    Args:
        trainer: of the run that is asked about.
        seconds: for the steps.
        scratch: folder for a state that is saved and removed.
    """
    state = trainer.new_state()
    state.network.train()
    section = trainer.inputs.section

    def step(number: int) -> None:
        train_step(
            state, trainer.batches(number), section=section, loss=trainer.loss, rate=1e-3 * section.optimiser.learning_rate,
            seed=trainer.inputs.seed, precision=trainer.precision,
        )  # fmt: skip

    times = timed(step, seconds=seconds)
    windows, validation = _validation_seconds(trainer, state)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        began = time.monotonic()
        save_state(Path(folder), state)
        save = time.monotonic() - began
    mean = statistics.fmean(times)
    spread = statistics.stdev(times) / mean if len(times) > 1 else 0.0
    return Timing(Pace(mean, validation, save), len(times), spread, windows, _peak_bytes(trainer.device))


def timed(step: Callable[[int], object], *, seconds: float, clock: Callable[[], float] = time.monotonic) -> list[float]:
    """Seconds of each step, warm ones left out where there is time for more; at least one.

    Args:
        step: runs a step of the given number.
        seconds: after which no step is begun.
        clock: seconds.
    """
    began = last = clock()
    times: list[float] = []
    while not times or last - began + times[-1] <= seconds:
        step(len(times))
        now = clock()
        times.append(now - last)
        last = now
    return times[_WARM_STEPS:] or times[-1:]


def _validation_seconds(trainer: Trainer, state: TrainState) -> tuple[int, float]:
    """(windows, seconds) of one validation, from a few windows of its smallest case."""
    cases = [*trainer.validated, *trainer.judged]
    if not cases:
        return 0, 0.0
    plan = trainer.plan
    windows = [window_count(case.shape_xyz, plan) for case in cases]
    image, _ = whole_case(cases[int(np.argmin(windows))], plan)
    while (count := window_count(image.shape[1:], plan)) > _MOST_WINDOWS_TIMED:
        longest = int(np.argmax([n / p for n, p in zip(image.shape[1:], plan.patch_size_xyz, strict=True)]))
        kept = max(plan.patch_size_xyz[longest], image.shape[1 + longest] // 2)
        image = image[tuple(slice(kept) if axis == longest + 1 else slice(None) for axis in range(4))]
    network = state.average.eval()

    def predict() -> None:
        predict_scores(
            np.ascontiguousarray(image), network, patch_size_xyz=plan.patch_size_xyz, class_count=plan.output_count,
            overlap=0.5, slice_axis=plan.slice_axis, device=trainer.device, precision=trainer.precision,
        )  # fmt: skip

    predict()
    began = time.monotonic()
    predict()
    return sum(windows), (time.monotonic() - began) / count * sum(windows)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def steps_of_run(section: TrainSection, pace: Pace, *, spent_seconds: float = 0.0) -> int:
    """How many steps the budget buys at a pace, at least 1."""
    budget = section.budget
    if budget.minutes is None:
        return budget.steps if budget.steps is not None else (budget.epochs or 0) * budget.steps_per_epoch
    return max(1, steps_that_fit(budget.minutes * 60 - spent_seconds, pace, section))


def run_seconds(steps: int, section: TrainSection, pace: Pace) -> float:
    """Seconds from the first step to the last weights: steps, a validation every so many epochs and at the end, saves."""
    per_epoch = section.budget.steps_per_epoch
    epochs = math.ceil(steps / per_epoch)
    validations = math.ceil(epochs / section.validation.every_epochs)
    return steps * pace.step + validations * pace.validation + (epochs + 1) * pace.save


def stand_ins(plan: Plan, folder: Path, *, seed: int = 0) -> PreparedData:
    """Noise in the shape of the median case, written into a store of its own: steps can be timed before data are prepared.

    Args:
        plan: made, its cases not stored yet.
        folder: for the files.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    shape = plan.median_shape_xyz
    unit = rows_of(np.diag([*plan.spacing_xyz_mm, 1.0]))
    grid = Grid(
        original_shape=shape, original_affine=unit, permutation=(0, 1, 2), flips=(False, False, False),
        crop_start=(0, 0, 0), crop_stop=shape, spacing_xyz_mm=plan.spacing_xyz_mm, prepared_shape=shape,
        prepared_affine=unit, prepared_spacing_xyz_mm=plan.spacing_xyz_mm,
    )  # fmt: skip
    cases = {}
    for number in range(_STAND_INS):
        name = f"noise_{number}"
        image = rng.standard_normal((len(plan.channels), *shape), np.float32)
        labels = (rng.random(shape, np.float32) * plan.class_count).astype(np.uint8)
        locations = {k: np.flatnonzero(labels == k)[:1000] for k in range(1, plan.class_count)}
        path = case_path(folder, name, "0" * 16)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_case(
            path, image=image, labels=labels, grid=grid, locations=locations, dtype=plan.stored_dtype,
            slice_axis=plan.slice_axis, previous=labels if plan.previous_channels else None,
        )  # fmt: skip
        cases[name] = StoredCase(name, path)
    return PreparedData(folder, plan, cases, "0" * 64)
