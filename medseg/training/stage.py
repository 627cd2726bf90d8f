"""One training run in its folder: what it began with, its state, and the model it ends in."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.durable import remove_stale_temporaries
from medseg.errors import InputError
from medseg.inference.model import save_model
from medseg.networks.build import build_network, parameter_count
from medseg.networks.precision import choose_precision, precision_name
from medseg.preparation.plan import Plan
from medseg.preparation.store import StoredCase
from medseg.training.augmentation import mirror_axes
from medseg.training.batch import Batch
from medseg.training.batches import BatchMaker, Prefetched
from medseg.training.budget import planned_steps
from medseg.training.identity import check_identity, identity_of
from medseg.training.inputs import TrainingInputs, architecture_of
from medseg.training.loop import EpochResult, fit, train_step
from medseg.training.losses import build_loss
from medseg.training.schedule import build_optimiser
from medseg.training.state import Progress, TrainState, load_state, save_state
from medseg.training.validation import validation_dice

_LOG = logging.getLogger(__name__)
_CUDA_LOADER_THREADS = 4


def run_training(
    inputs: TrainingInputs,
    folder: Path,
    *,
    device: torch.device,
    elapsed_seconds: Callable[[], float],
    allow_changed: bool = False,
    stop: Callable[[], bool] = lambda: False,
    each_step: Callable[[int, int], None] = lambda _step, _steps: None,
) -> Iterator[EpochResult]:
    """Trains in ``folder``, resuming what is there, and ends with ``folder/model``.

    Args:
        inputs: what the run is a function of.
        folder: run folder; holds ``run.json``, ``state/`` and, when finished, ``model/``.
        device: where to train.
        elapsed_seconds: since the command started, for a budget in minutes.
        allow_changed: go on although ``inputs`` differ from what the run began with.
        stop: asked after each step.
        each_step: told (steps done, steps in all) after each step.

    Yields:
        Epoch results, each after the state was saved. Nothing where the run is finished.

    Raises:
        ChangedError: the inputs differ.
        InputError: no training case, or the loss was not finite too often.
    """
    if not inputs.training:
        raise InputError("training: fold and manifest leave no case to train on; check data.fold")
    plan = inputs.prepared.plan
    precision = choose_precision(device, inputs.section.precision)
    architecture = architecture_of(inputs.network, plan)
    for written in (folder, folder / "model"):  # the state's folder clears up itself
        remove_stale_temporaries(written)
    check_identity(folder, identity_of(inputs, architecture, precision), allow_changed=allow_changed)
    if (folder / "model" / "model.json").exists():
        return
    trainer = _Trainer(inputs, plan, architecture, device, precision)
    state = trainer.state
    if load_state(folder / "state", state):
        _LOG.info("%s: goes on after step %d of %d", folder.name, state.progress.step, state.progress.steps)
    else:
        state.progress.steps = trainer.plan_steps(elapsed_seconds)
        save_state(folder / "state", state)
    for result in trainer.fit(stop, each_step):
        save_state(folder / "state", state)
        yield result
    if state.progress.step >= state.progress.steps:
        trainer.save(folder / "model")


class _Trainer:
    """The parts of a run put together: network, optimiser, batches, loss and validation."""

    def __init__(
        self,
        inputs: TrainingInputs,
        plan: Plan,
        architecture: dict[str, Any],
        device: torch.device,
        precision: torch.dtype | None,
    ) -> None:
        self.inputs, self.plan, self.architecture = inputs, plan, architecture
        self.device, self.precision = device, precision
        section = inputs.section
        cases = inputs.prepared.cases
        sources = [cases[case] for case in inputs.training]
        make = BatchMaker(sources, plan, section, inputs.seed, device)
        self.batches: Callable[[int], Batch] = Prefetched(make, _CUDA_LOADER_THREADS) if device.type == "cuda" else make
        self.loss = build_loss(section.loss, batch_dice=plan.batch_dice)
        self.validated: list[StoredCase] = [cases[c] for c in sorted(inputs.validation)[: section.validation.cases]]
        self.state = self._new_state()
        _LOG.info(
            "network: %s, %.2f M parameters; %d training cases, %d of %d held-out cases validated; %s on %s, %d threads",
            architecture["kind"],
            parameter_count(self.state.network) / 1e6,
            len(sources),
            len(self.validated),
            len(inputs.validation),
            precision_name(precision),
            device.type,
            torch.get_num_threads(),
        )

    def _new_state(self) -> TrainState:
        torch.manual_seed(self.inputs.seed)
        network = build_network(self.architecture).to(self.device)
        average = copy.deepcopy(network).eval()
        optimiser = build_optimiser(self.inputs.section.optimiser, network.parameters())
        return TrainState(network, average, optimiser, Progress(steps=0))

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        return validation_dice(
            network, self.validated, plan=self.plan, overlap=0.5, device=self.device, precision=self.precision
        )

    def plan_steps(self, elapsed_seconds: Callable[[], float]) -> int:
        trial = self._new_state()
        trial.network.train()
        section = self.inputs.section

        def step(number: int) -> float:
            return train_step(
                trial,
                self.batches(number),
                section=section,
                loss=self.loss,
                rate=section.optimiser.learning_rate,
                seed=self.inputs.seed,
                precision=self.precision,
            )

        return planned_steps(
            section.budget,
            section.validation,
            elapsed_seconds=elapsed_seconds,
            step=step,
            validate=partial(self.validate, trial.average) if self.validated else None,
        )

    def fit(self, stop: Callable[[], bool], each_step: Callable[[int, int], None]) -> Iterator[EpochResult]:
        return fit(
            self.state,
            self.batches,
            section=self.inputs.section,
            loss=self.loss,
            seed=self.inputs.seed,
            precision=self.precision,
            validate=self.validate if self.validated else None,
            stop=stop,
            each_step=each_step,
        )

    def save(self, folder: Path) -> None:
        progress = self.state.progress
        save_model(
            folder,
            self.state.average,
            architecture=self.architecture,
            plan=self.plan,
            mirror_axes_xyz=mirror_axes(self.inputs.section.augmentation, self.plan.dimensions),
            config_text=self.inputs.config_text,
            training={
                "fold": self.inputs.fold,
                "seed": self.inputs.seed,
                "steps": progress.steps,
                "skipped_steps": progress.skipped,
                "batch_size": self.plan.batch_size,
                "precision": precision_name(self.precision),
                "training_cases": len(self.inputs.training),
                "manifest_sha256": self.inputs.manifest_sha256,
                "prepared_sha256": self.inputs.prepared.sha256,
                "weights": "exponential moving average of the last steps; no checkpoint was picked by its score",
                "history": progress.history,
            },
        )
