"""One training run in its folder: what it began with, its state, and the model it ends in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.durable import read_json, remove_stale_temporaries, sha256_bytes
from medseg.errors import InputError, UsageError
from medseg.inference.licence import LICENCE
from medseg.networks.precision import choose_precision
from medseg.training.architecture import architecture_of
from medseg.training.course import add_leg
from medseg.training.distributed import ALONE, Processes
from medseg.training.identity import check_identity, identity_of, record_identity, record_start
from medseg.training.inputs import TrainingInputs
from medseg.training.loop import EpochResult
from medseg.training.state import TrainState, save_state
from medseg.training.trainer import Trainer
from medseg.training.validation import Interrupted

_LOG = logging.getLogger(__name__)


def run_training(  # noqa: PLR0913 - the one way to train a fold, called by four commands
    inputs: TrainingInputs,
    folder: Path,
    *,
    device: torch.device,
    elapsed_seconds: Callable[[], float],
    allow_changed: bool = False,
    extend: bool = False,
    stop: Callable[[], bool] = lambda: False,
    each_step: Callable[[int, int], None] = lambda _step, _steps: None,
    processes: Processes = ALONE,
    make_trainer: Callable[..., Trainer] = Trainer,
) -> Iterator[EpochResult]:
    """Trains in ``folder``, resuming what is there, and ends with ``folder/model``.

    Args:
        inputs: what the run is a function of.
        folder: run folder; holds ``run.json``, ``state/`` and, when finished, ``model/``.
        device: where to train.
        elapsed_seconds: since the command started, for a budget in minutes.
        allow_changed: go on although ``inputs`` differ from what the run began with.
        extend: train a finished run on where ``inputs`` have a larger budget than it had; its model moves to
            ``model_<steps>_steps``.
        stop: asked after each step, and amid a validation.
        each_step: told (steps done, steps in all) after each step.
        processes: those that train together; all of them must call, and only the first writes.
        make_trainer: what puts the run's parts together; pretraining has its own.

    Yields:
        Epoch results, each after the state was saved. Nothing where the run is finished.

    Raises:
        ChangedError: the inputs differ.
        InputError: no training case, or the loss was not finite too often.
        UsageError: the run can't be extended, or there are more processes than samples in a batch.
    """
    _check(inputs, processes)
    precision = choose_precision(device, inputs.section.precision)
    architecture = architecture_of(inputs.network, inputs.prepared.plan)

    def begin() -> tuple[dict[str, Any], bool, bool]:
        for written in (folder, folder / "model"):  # the state's folder clears up itself
            remove_stale_temporaries(written)
        identity = identity_of(inputs, architecture, precision, processes=processes.count)
        extending = check_identity(folder, identity, allow_changed=allow_changed, extend=extend)
        return identity, extending, (folder / "model" / "model.json").exists()

    identity, extending, finished = processes.only_first(begin)
    if finished and not extending:
        _warn_of_licence(inputs, folder)
        return
    with contextlib.closing(
        make_trainer(inputs, architecture, device=device, precision=precision, processes=processes, stop=stop)
    ) as trainer:
        try:
            state = _begun(trainer, folder, elapsed_seconds, extending=extending)
        except Interrupted:
            return
        if extending:
            processes.only_first(lambda: record_identity(folder, identity))
        for result in trainer.fit(state, each_step):
            if processes.first:
                save_state(folder / "state", state)
            yield result
        if state.progress.step >= state.progress.steps and not _epoch_end_missing(state):
            processes.only_first(lambda: trainer.save_model(folder / "model", state))


def _warn_of_licence(inputs: TrainingInputs, folder: Path) -> None:
    known = read_json(folder / "model" / "model.json").get("files", {}).get(LICENCE)
    if known != (None if inputs.licence is None else sha256_bytes(inputs.licence)):
        _LOG.warning(
            "%s: train.licence is not the one the model was saved with, which it keeps; --fresh trains a new one",
            folder.name,
        )


def _check(inputs: TrainingInputs, processes: Processes) -> None:
    if not inputs.training:
        raise InputError("training: fold and manifest leave no case to train on; check data.fold")
    size = inputs.prepared.plan.batch_size
    if processes.count > size:
        raise UsageError(
            f"training: {processes.count} processes share batches of {size} samples, expected one sample each at least; start "
            "fewer, or raise prepare.batch_size"
        )


def _epoch_end_missing(state: TrainState) -> bool:
    # A stop amid the last validation leaves the last step done and its epoch off the record.
    history = state.progress.history
    return not history or history[-1]["step"] < state.progress.step


def _begun(trainer: Trainer, folder: Path, elapsed_seconds: Callable[[], float], *, extending: bool) -> TrainState:
    """The state to train from: what lies in ``folder``, or a new one, with its number of steps settled."""
    state = trainer.new_state()
    trainer.describe(state)
    loaded = trainer.load(folder / "state", state)
    if loaded and extending:
        _check_extension(state, trainer.inputs, folder)
    budget = trainer.inputs.section.budget.model_dump(mode="json")
    if loaded and (not extending or state.progress.budget == budget):
        _LOG.info("%s: goes on after step %d of %d", folder.name, state.progress.step, state.progress.steps)
        return state
    spent = state.progress.seconds
    forecast = trainer.plan_steps(state, folder / "timing", lambda: spent + elapsed_seconds())
    if loaded:
        state = trainer.new_state()  # undoes the timed steps
        trainer.load(folder / "state", state)
    else:
        state = trainer.new_state(partial(_load_start_weights, trainer.inputs.init_from, trainer.processes, folder))
    progress = state.progress
    if forecast.steps < 1:
        raise UsageError(
            f"{folder.name}: has {progress.step} steps and {spent / 60:.1f} minutes behind it, expected a budget beyond that; "
            "raise train.budget to extend it"
        )
    if loaded:
        progress.events.append(f"step {progress.step}: extended by {forecast.steps} steps")
        _LOG.info("%s, %s", folder.name, progress.events[-1])
    add_leg(progress, forecast.steps)
    progress.budget, progress.best_epoch = budget, 0
    progress.pace = vars(forecast.pace) if forecast.pace is not None else {}
    progress.seconds = spent + elapsed_seconds()
    if trainer.processes.first:
        _set_model_aside(folder, progress.step)
        save_state(folder / "state", state)
    return state


def _check_extension(state: TrainState, inputs: TrainingInputs, folder: Path) -> None:
    progress = state.progress
    done = progress.step >= progress.steps and not _epoch_end_missing(state)
    if not done and progress.budget != inputs.section.budget.model_dump(mode="json"):
        raise UsageError(
            f"{folder.name}: is at step {progress.step} of {progress.steps}, expected a finished run to extend; run the "
            "command with its former budget first"
        )


def _set_model_aside(folder: Path, step: int) -> None:
    # Before the state knows of more steps: a run with model/model.json counts as finished.
    if (folder / "model" / "model.json").exists():
        (folder / "model").rename(folder / f"model_{step}_steps")


def _load_start_weights(path: Path | None, processes: Processes, folder: Path, network: nn.Module) -> None:
    if path is None:
        return
    from medseg.networks.weights import load_matching

    report = load_matching(network, path)
    if processes.first:
        _LOG.info("%s: starts from %s: %s", folder.name, path.name, report)
        record_start(folder, report.record())
