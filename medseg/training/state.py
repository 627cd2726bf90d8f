"""What a run needs to go on as if it had never stopped, and its place on disk.

``state/<step>.safetensors`` holds weights, EMA weights and optimiser moments; ``state/<step>.json``, written after it, holds
the rest and the other's SHA-256: only where both are whole does the step count. A flipped bit in weights is noticed by
nothing else (torch and safetensors load it silently). The step before is kept until the new one has been read back.
Random numbers need no saving: sample k and step s draw from generators that are functions of (seed, k) and (seed, s).
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from medseg.durable import read_json, remove_stale_temporaries, sha256_bytes, sha256_file, write_bytes, write_json
from medseg.errors import DamagedFileError, InputError, MedsegError

_LOG = logging.getLogger(__name__)
STATE_FORMAT = 2
_READS = (1, 2)  # 1 knew one leg and no early stopping
Leg = tuple[int, int, float | None]
"""First step, last step, and the rate that falls to 0 over them; None there for the config's own schedule."""


@dataclass
class Progress:
    """The part of the state that is plain values.

    Attributes:
        steps: how many the run has; fixed once, 0 before. Early stopping, ``budget.hard`` and an extension change it.
        step: how many are done.
        loss_sum, loss_count: of the unfinished epoch, for its mean.
        skipped: steps left out because their loss was not finite.
        skipped_cases: case to how many of them it took part in.
        history: one record per finished epoch.
        seconds: of the budget spent so far, over all starts: from the command's start, less what kills cost.
        legs: of the learning rate's course; see ``medseg.training.course``.
        budget: the config's section that ``steps`` was reckoned from.
        pace: seconds a step, a validation and a save were reckoned at; empty where nothing was timed.
        best, best_epoch: highest Dice over the cases set aside for early stopping, and when; -1 and 0 before.
        events: what changed ``steps`` on the way, in words.
    """

    steps: int
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: int = 0
    skipped_cases: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    legs: list[Leg] = field(default_factory=list)
    budget: dict[str, Any] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    best_epoch: int = 0
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # JSON knows no tuples; a state of format 1 has no legs.
        self.legs = [(first, last, peak) for first, last, peak in self.legs]
        if not self.legs and self.steps:
            self.legs = [(0, self.steps, None)]


@dataclass
class TrainState:
    """Everything that changes while training."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    progress: Progress


def _tensors(state: TrainState) -> dict[str, Tensor]:
    result = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    result |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    for index, values in state.optimiser.state_dict()["state"].items():
        result |= {f"optimiser.{index}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    return {k: v.detach().cpu().contiguous() for k, v in result.items()}


def save_state(folder: Path, state: TrainState) -> None:
    """Saves the state of ``state.progress.step`` into ``folder`` and removes all but the step before.

    Raises:
        EnvironmentFault: it can't be written, or what was written does not read back.
    """
    name = f"{state.progress.step:08d}"
    data = safetensors.torch.save(_tensors(state))
    digest = sha256_bytes(data)
    weights, record = folder / f"{name}.safetensors", folder / f"{name}.json"
    write_bytes(weights, data)
    write_json(record, {"format": STATE_FORMAT, "sha256": digest, "progress": asdict(state.progress)})
    if sha256_file(weights) != digest:
        raise DamagedFileError(f"{weights.name}: does not read back as written; check the disk")
    for old in _steps(folder)[:-2]:
        for suffix in (".json", ".safetensors"):  # the record first: without it the step no longer counts
            with contextlib.suppress(FileNotFoundError):
                old.with_suffix(suffix).unlink()


def history_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric name to (step, value) pairs of the newest state's finished epochs; empty where there is no state."""
    records = _steps(folder)
    history = read_json(records[-1])["progress"]["history"] if records else []
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in history:
        values = {f"validation Dice {name}": value for name, value in record["validation"].items()}
        if "inner" in record:
            values["inner Dice"] = record["inner"]
        if "train_loss" in record:
            values["training loss"] = record["train_loss"]
        for name, value in values.items():
            curves.setdefault(name, []).append((record["step"], value))
    return curves


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.stem.isdigit())


def load_state(folder: Path, state: TrainState, *, at_step: int | None = None) -> bool:
    """Loads the newest whole state of ``folder`` into ``state``; a damaged one is passed over with a warning.

    Args:
        folder: of the states.
        state: of the same network and optimiser; changed in place.
        at_step: take the state of this step and no other (the one that another process has loaded).

    Returns:
        False where there is none at all.

    Raises:
        DamagedFileError: there are states, and none of them is whole.
        InputError: the state was written by a newer medseg.
    """
    remove_stale_temporaries(folder)
    records = _steps(folder)
    if at_step is not None:
        _load_one(folder / f"{at_step:08d}.json", state)
        return True
    for record in reversed(records):
        try:
            _load_one(record, state)
        except DamagedFileError as error:
            _LOG.warning("%s; going back to the state before", error)
            continue
        return True
    if records:
        raise DamagedFileError(f"{folder.parent.name}: no saved state is whole; start again with --fresh")
    return False


def _load_one(record: Path, state: TrainState) -> None:
    try:
        content = read_json(record)
        version, digest = content["format"], content["sha256"]
    except (MedsegError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{record.name}: is no state record") from error
    if version not in _READS:
        raise InputError(f"{record.name}: has state format {version}, this medseg reads 1 and 2; update medseg")
    try:
        progress = Progress(**content["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{record.name}: is no state record") from error
    path = record.with_suffix(".safetensors")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path.name}: is missing or unreadable") from error
    if sha256_bytes(data) != digest:
        raise DamagedFileError(f"{path.name}: does not have its checksum")
    tensors = safetensors.torch.load(data)
    state.network.load_state_dict(_part(tensors, "network."))
    state.average.load_state_dict(_part(tensors, "average."))
    optimiser = state.optimiser.state_dict()
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimiser.").items():
        index, key = name.split(".", 1)
        values.setdefault(int(index), {})[key] = tensor
    state.optimiser.load_state_dict({"state": values, "param_groups": optimiser["param_groups"]})
    state.progress = progress


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
