"""What a run began with, kept in its folder, and what differs now."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medseg.durable import read_json, sha256_file, write_json
from medseg.errors import ChangedError, InputError
from medseg.networks.precision import precision_name
from medseg.training.inputs import TrainingInputs

_LOG = logging.getLogger(__name__)
RUN_FORMAT = 1
_BUDGET = ("train.budget.minutes", "train.budget.steps", "train.budget.epochs", "train.budget.hard")


def identity_of(
    inputs: TrainingInputs, architecture: Mapping[str, Any], precision: torch.dtype | None, *, processes: int = 1
) -> dict[str, Any]:
    """Everything the weights are a function of, as plain values; kept in ``run.json`` and compared on resume.

    The number of processes is among them for the record only: a run may go on with another one, at the price of rounding.
    """
    cases, plan = inputs.prepared.cases, inputs.prepared.plan
    unused = {"reasons", "fingerprint_sha256", "made_from_cases"}
    untrained: dict[str, Any] = {"save_minutes": True, "workers": True, "licence": True}
    cascade = {"previous": dict(inputs.prepared.previous)} if plan.previous_channels else {}
    if not cascade:  # what only a cascade has stays out, so that other runs' records are what they were
        unused.add("previous_channels")
        untrained["augmentation"] = {"previous_reshaped": True, "previous_removed": True}
    return cascade | {
        "medseg": version("medseg"),
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "processes": processes,
        "seed": inputs.seed,
        "fold": inputs.fold,
        "precision": precision_name(precision),
        "plan": plan.model_dump(mode="json", exclude=unused),
        "network": dict(architecture),
        "train": inputs.section.model_dump(mode="json", exclude=untrained),
        "init_from": sha256_of_weights(inputs.init_from) if inputs.init_from is not None else None,
        "training cases": {case: cases[case].path.stem for case in inputs.training},
        "validation cases": {case: cases[case].path.stem for case in inputs.validation},
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


def sha256_of_weights(path: Path) -> str:
    """SHA-256 of the weights that a run starts from.

    Args:
        path: of a .safetensors file or a model folder.

    Raises:
        InputError: there is no such file.
    """
    weights = path / "weights.safetensors" if path.is_dir() else path
    if not weights.is_file():
        raise InputError(
            f"train.init_from: {path.name} holds no weights, expected a model folder or a .safetensors file"
        )
    return sha256_file(weights)


def check_identity(folder: Path, identity: dict[str, Any], *, allow_changed: bool, extend: bool = False) -> bool:
    """Writes what a new run begins with into ``run.json``, or compares with what is there.

    Args:
        folder: of the run.
        identity: as ``identity_of`` gives it.
        allow_changed: record the differences and go on.
        extend: another budget is a wish to train on; the caller calls ``record_identity`` once the state knows of it.

    Returns:
        Whether the run is to be extended to another budget.

    Raises:
        ChangedError: something else differs; one line each.
    """
    path = folder / "run.json"
    if not path.exists():
        write_json(path, {"format": RUN_FORMAT, "identity": identity, "changes": []})
        return False
    before = dict(read_json(path)["identity"])
    changed = differences(before, identity)
    if not changed:
        return False
    budget = [line for line in changed if line.startswith(tuple(f"{name}:" for name in _BUDGET))] if extend else []
    refused = [line for line in changed if line not in budget and not _only_rounding(line, before, identity)]
    if refused and not allow_changed:
        raise ChangedError([f"{folder.name}: {line}" for line in [*refused, *budget]] + [_advice(folder, refused)])
    if refused:
        _LOG.warning("going on although %d values changed since the run began", len(refused))
    if budget:
        return True
    record_identity(folder, identity)
    return False


def record_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Puts ``identity`` in the place of what the run began with, and what changed on record."""
    path = folder / "run.json"
    record = read_json(path)
    changed = differences(record["identity"], identity)
    if changed:
        write_json(path, {**record, "identity": identity, "changes": [*record["changes"], changed]})


def record_start(folder: Path, report: Mapping[str, Any]) -> None:
    """Puts on record which weights of another model a run started with, and which it did not take."""
    write_json(folder / "run.json", {**read_json(folder / "run.json"), "started from": dict(report)})


def _only_rounding(line: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    # Another number of processes brings its own number of threads.
    others = before.get("processes", 1) != now["processes"]
    return line.startswith("processes:") or (others and line.startswith("threads:"))


def _advice(folder: Path, refused: list[str]) -> str:
    if all(line.startswith(tuple(f"{name}:" for name in _BUDGET)) for line in refused):
        return (
            f"{folder.name}: this run began with another budget; use --extend to train a finished run on to a larger one, "
            "--fresh for a new run, or --allow-changed to record the new value and keep the steps planned"
        )
    return (
        f"{folder.name}: this run began otherwise; use --fresh for a new run, or --allow-changed to go on and record it"
    )
