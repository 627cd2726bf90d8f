"""One training run in its folder: what it began with, its state, and the model it ends in."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.config.loading import config_text
from medseg.config.sections import Config, NetworkSection, PrepareSection, TrainSection
from medseg.durable import read_json, write_json
from medseg.errors import ChangedError, InputError
from medseg.inference.model import save_model
from medseg.manifest.cases import Case, Manifest
from medseg.networks.build import build_network, parameter_count
from medseg.networks.precision import choose_precision, precision_name
from medseg.preparation.plan import Plan
from medseg.preparation.store import PreparedData, StoredCase
from medseg.training.augmentation import mirror_axes
from medseg.training.batches import BatchMaker, Prefetched
from medseg.training.budget import planned_steps
from medseg.training.loop import Batch, EpochResult, fit, train_step
from medseg.training.losses import build_loss
from medseg.training.schedule import build_optimiser
from medseg.training.state import Progress, TrainState, load_state, save_state
from medseg.training.validation import validation_dice

_LOG = logging.getLogger(__name__)
RUN_FORMAT = 1
_CUDA_LOADER_THREADS = 4


@dataclass(frozen=True)
class TrainingInputs:
    """What a run is a function of.

    Attributes:
        prepared: the prepared data.
        training, validation: case ids.
        network, section: the config's sections.
        seed: of everything drawn.
        fold: for the record.
        config_text: the resolved config as YAML, kept beside the weights.
        manifest_sha256: for the record.
    """

    prepared: PreparedData
    training: tuple[str, ...]
    validation: tuple[str, ...]
    network: NetworkSection
    section: TrainSection
    seed: int
    fold: int | None
    config_text: str
    manifest_sha256: str


def training_inputs(config: Config, manifest: Manifest, prepared: PreparedData) -> TrainingInputs:
    """What the config's fold is trained on.

    Raises:
        InputError: a case of the manifest was not prepared, and skipping bad cases was not asked for.
    """
    fold, skip = config.data.fold, config.prepare.on_bad_case == "skip"
    kept, held_out = manifest.fold_cases(fold) if fold is not None else (manifest.training, ())
    return TrainingInputs(
        prepared=with_overrides(prepared, config.prepare),
        training=prepared_ids(prepared, kept, skip=skip),
        validation=prepared_ids(prepared, held_out, skip=skip),
        network=config.network,
        section=config.train,
        seed=config.seed,
        fold=fold,
        config_text=config_text(config),
        manifest_sha256=manifest.sha256,
    )


def prepared_ids(prepared: PreparedData, cases: Sequence[Case], *, skip: bool) -> tuple[str, ...]:
    """Ids of those of ``cases`` that can be trained on: prepared and with labels.

    Raises:
        InputError: a case was not prepared, and skipping bad cases was not asked for.
    """
    missing = [case.id for case in cases if case.id not in prepared.cases]
    if missing and not skip:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"prepared data: {len(missing)} of {len(cases)} cases of the manifest are not in it ({shown}); run medseg prepare "
            "again, with prepare.on_bad_case: skip if bad cases are to be left out"
        )
    present = [case.id for case in cases if case.id in prepared.cases]
    return tuple(case for case in present if prepared.cases[case].has_labels)


def with_overrides(prepared: PreparedData, section: PrepareSection) -> PreparedData:
    """The prepared data under the config's own patch and batch size, which a plan made before does not know yet."""
    own = {"patch_size_xyz": section.patch_size_xyz, "batch_size": section.batch_size}
    changes = {name: value for name, value in own.items() if value is not None}
    return replace(prepared, plan=prepared.plan.model_copy(update=changes))


def architecture_of(section: NetworkSection, plan: Plan) -> dict[str, Any]:
    """Plain values that rebuild the network: the config's where it has them, the plan's elsewhere."""
    values: dict[str, Any] = {
        "dimensions": plan.dimensions,
        "channels": len(plan.channels),
        "classes": plan.class_count,
        "features": list(plan.features),
        "strides": [list(size) for size in plan.strides],
        "kernel_sizes": [list(size) for size in plan.kernel_sizes],
    }
    own = {name: value for name, value in section.model_dump(mode="json").items() if value is not None}
    features = own.get("features", values["features"])
    if "strides" not in own and len(features) != len(values["strides"]):
        raise InputError(
            f"network: features has {len(features)} stages, the plan {len(values['strides'])}; give strides and "
            "kernel_sizes too, or as many features as the plan has stages"
        )
    return values | own


def identity_of(
    inputs: TrainingInputs, architecture: Mapping[str, Any], precision: torch.dtype | None
) -> dict[str, Any]:
    """Everything the weights are a function of, as plain values; kept in ``run.json`` and compared on resume."""
    cases = inputs.prepared.cases
    return {
        "medseg": version("medseg"),
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "seed": inputs.seed,
        "fold": inputs.fold,
        "precision": precision_name(precision),
        "plan": inputs.prepared.plan.model_dump(
            mode="json", exclude={"reasons", "fingerprint_sha256", "made_from_cases"}
        ),
        "network": dict(architecture),
        "train": inputs.section.model_dump(mode="json", exclude={"save_minutes"}),
        "training cases": {case: cases[case].folder.name for case in inputs.training},
        "validation cases": {case: cases[case].folder.name for case in inputs.validation},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence per value that is not what the run began with."""
    result = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            result += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new:
            result.append(f"{key}: was {_short(old)}, is {_short(new)}")
    return result


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_identity(folder: Path, identity: dict[str, Any], *, allow_changed: bool) -> None:
    path = folder / "run.json"
    if not path.exists():
        write_json(path, {"format": RUN_FORMAT, "identity": identity, "changes": []})
        return
    record = read_json(path)
    changed = differences(record["identity"], identity)
    if not changed:
        return
    if not allow_changed:
        raise ChangedError(
            [f"{folder.name}: {line}" for line in changed]
            + [
                f"{folder.name}: this run began otherwise; use --fresh for a new run, or --allow-changed to go on and record it"
            ]
        )
    _LOG.warning("going on although %d values changed since the run began", len(changed))
    write_json(path, {**record, "identity": identity, "changes": [*record["changes"], changed]})


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
    _check_identity(folder, identity_of(inputs, architecture, precision), allow_changed=allow_changed)
    if (folder / "model" / "model.json").exists():
        _LOG.info("%s: finished before, nothing left to do", folder.name)
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


def write_untrained_model(inputs: TrainingInputs, folder: Path) -> str:
    """Writes the model folder of the network as it is before the first step: the floor that training is measured against."""
    architecture = architecture_of(inputs.network, inputs.prepared.plan)
    torch.manual_seed(inputs.seed)
    return save_model(
        folder,
        build_network(architecture),
        architecture=architecture,
        plan=inputs.prepared.plan,
        mirror_axes_xyz=(),
        config_text=inputs.config_text,
        training={"steps": 0, "seed": inputs.seed},
    )
