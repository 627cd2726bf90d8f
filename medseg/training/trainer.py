"""The parts of a run put together: network, optimiser, batches, loss, validation."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.augmentation.drawing import mirror_axes
from medseg.inference.model import save_model
from medseg.networks.build import build_network, parameter_count
from medseg.networks.precision import precision_name
from medseg.preparation.plan import Plan
from medseg.preparation.store import StoredCase
from medseg.training.batch import Batch
from medseg.training.batches import BatchMaker, open_batches
from medseg.training.budget import Forecast, planned_steps
from medseg.training.contract import training_contract
from medseg.training.distributed import Processes, share_batch_norms
from medseg.training.inputs import TrainingInputs, partly_labelled
from medseg.training.loop import EpochResult, fit, train_step
from medseg.training.losses import build_loss
from medseg.training.schedule import build_optimiser
from medseg.training.state import Progress, TrainState, load_state, save_state
from medseg.training.validation import Interrupted, timing_sample, validation_dice

_LOG = logging.getLogger(__name__)
_TIMING_RATE = 1e-3  # of the learning rate: steps that are only timed need not diverge


class Trainer:
    """One run's network and what it is trained with, in one of its processes.

    Args:
        inputs: what the run is a function of.
        architecture: of the network.
        device: where to train.
        precision: autocast type, None for float32.
        processes: those that train together.
        stop: whether the run was asked to stop.
    """

    def __init__(
        self,
        inputs: TrainingInputs,
        architecture: dict[str, Any],
        *,
        device: torch.device,
        precision: torch.dtype | None,
        processes: Processes,
        stop: Callable[[], bool],
    ) -> None:
        self.inputs, self.architecture = inputs, architecture
        self.device, self.precision, self.processes, self.stop = device, precision, processes, stop
        plan, section, cases = inputs.prepared.plan, inputs.section, inputs.prepared.cases
        self.plan: Plan = plan
        sources = [cases[case] for case in inputs.training]
        share = (processes.rank, processes.count)
        partly = partly_labelled(sources, plan)
        make = BatchMaker(sources, plan, section, inputs.seed, device, share, partly)
        self.batches: Callable[[int], Batch] = open_batches(make, section.workers)
        spacing = [size for axis, size in enumerate(plan.spacing_xyz_mm) if axis != plan.slice_axis]
        self.loss = build_loss(
            section.loss, class_count=len(plan.labels), batch_dice=plan.batch_dice, class_names=tuple(plan.labels),
            regions=None if plan.regions is None else plan.regions.members, spacing=spacing,
        )  # fmt: skip
        self.validated: list[StoredCase] = [cases[c] for c in sorted(inputs.validation)[: section.validation.cases]]
        self.judged: list[StoredCase] = [cases[c] for c in sorted(inputs.inner)]

    def close(self) -> None:
        """Ends what makes batches ahead."""
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()

    def new_state(self, start_weights: Callable[[nn.Module], None] | None = None) -> TrainState:
        """A state before the first step.

        Args:
            start_weights: changes the freshly initialised network in place.
        """
        torch.manual_seed(self.inputs.seed)
        network = build_network(self.architecture)
        if start_weights is not None:
            start_weights(network)
        network = share_batch_norms(network, self.processes).to(self.device)
        average = copy.deepcopy(network).eval()
        optimiser = build_optimiser(self.inputs.section.optimiser, network.parameters())
        return TrainState(network, average, optimiser, Progress(steps=0))

    def load(self, folder: Path, state: TrainState) -> bool:
        """Loads the newest whole state of ``folder``, in every process the same; False where there is none."""
        step = self.processes.only_first(lambda: state.progress.step if load_state(folder, state) else None)
        if step is not None and not self.processes.first:
            load_state(folder, state, at_step=step)
        return step is not None

    def plan_steps(self, trial: TrainState, folder: Path, spent_seconds: Callable[[], float]) -> Forecast:
        """How many more steps the budget buys; ``trial`` is spoilt by the steps that are timed.

        Args:
            trial: a state to take timed steps from.
            folder: for a state that is saved to see how long it takes; removed afterwards.
            spent_seconds: of the budget so far, in this process.

        Raises:
            Interrupted: the run was asked to stop.
        """
        section, processes = self.inputs.section, self.processes
        trial.network.train()

        def step(number: int) -> None:
            if processes.any(self.stop()):
                raise Interrupted
            rate = section.optimiser.learning_rate * _TIMING_RATE
            train_step(
                trial, self.batches(number), section=section, loss=self.loss, rate=rate, seed=self.inputs.seed,
                precision=self.precision, processes=processes,
            )  # fmt: skip

        def save() -> None:
            if processes.first:
                save_state(folder, trial)

        try:
            return planned_steps(
                section, done=trial.progress.step, spent_seconds=lambda: processes.from_first(spent_seconds()), step=step,
                validate=self._validation(trial), save=save, clock=processes.clock,
            )  # fmt: skip
        finally:
            if processes.first:
                shutil.rmtree(folder, ignore_errors=True)

    def _validation(self, trial: TrainState) -> Callable[[], float] | None:
        if not (self.validated or self.judged):
            return None
        cases, share = timing_sample([*self.validated, *self.judged], self.plan)

        def validate() -> float:
            self._dice(trial.average.eval(), cases)
            return share

        return validate

    def _dice(self, network: nn.Module, cases: Sequence[StoredCase]) -> dict[str, float]:
        return validation_dice(
            network, cases, plan=self.plan, overlap=0.5, device=self.device, precision=self.precision,
            processes=self.processes, stop=self.stop,
        )  # fmt: skip

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Dice per class over the held-out cases that are validated."""
        return self._dice(network, self.validated)

    def judge(self, network: nn.Module) -> float:
        """Mean Dice over the training cases set aside; decides on early stopping."""
        dice = self._dice(network, self.judged)
        return sum(dice.values()) / len(dice) if dice else 0.0

    def fit(self, state: TrainState, each_step: Callable[[int, int], None]) -> Iterator[EpochResult]:
        """``medseg.training.loop.fit`` with this run's parts."""
        return fit(
            state,
            self.batches,
            section=self.inputs.section,
            loss=self.loss,
            seed=self.inputs.seed,
            precision=self.precision,
            validate=self.validate if self.validated else None,
            judge=self.judge if self.judged else None,
            stop=self.stop,
            each_step=each_step,
            processes=self.processes,
        )

    def describe(self, state: TrainState) -> None:
        """Says once what is trained on what."""
        inputs, count = self.inputs, self.processes.count
        _LOG.info(
            "network: %s, %.2f M parameters; %d training cases, %d of %d held-out cases validated%s; %s on %s, %s%d threads",
            self.architecture["kind"],
            parameter_count(state.network) / 1e6,
            len(inputs.training),
            len(self.validated),
            len(inputs.validation),
            f", {len(self.judged)} set aside for early stopping" if self.judged else "",
            precision_name(self.precision),
            self.device.type,
            f"{count} processes of " if count > 1 else "",
            torch.get_num_threads(),
        )

    def save_model(self, folder: Path, state: TrainState) -> None:
        """Writes the averaged network's model folder."""
        inputs, progress = self.inputs, state.progress
        contract = training_contract(inputs.prepared)
        save_model(
            folder,
            state.average,
            architecture=self.architecture,
            plan=self.plan,
            mirror_axes_xyz=mirror_axes(inputs.section.augmentation, self.plan.slice_axis, self.plan.mirror_axes),
            config_text=inputs.config_text,
            training={
                "fold": inputs.fold,
                "seed": inputs.seed,
                "steps": progress.steps,
                "skipped_steps": progress.skipped,
                "batch_size": self.plan.batch_size,
                "precision": precision_name(self.precision),
                "training_cases": len(inputs.training),
                "set_aside_cases": list(inputs.inner),
                "manifest_sha256": inputs.manifest_sha256,
                **({"data_licence": inputs.data_licence} if inputs.data_licence else {}),
                "prepared_sha256": inputs.prepared.sha256,
                "weights": "exponential moving average of the last steps; no checkpoint was picked by its score",
                "events": progress.events,
                "history": progress.history,
            },
            contract=None if contract is None else contract.plain(),
            previous=inputs.previous,
            licence=inputs.licence,
        )
