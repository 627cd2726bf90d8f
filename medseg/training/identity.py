"""What a run began with, kept in its folder, and what differs now."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medseg.durable import read_json, write_json
from medseg.errors import ChangedError
from medseg.networks.precision import precision_name
from medseg.training.inputs import TrainingInputs

_LOG = logging.getLogger(__name__)
RUN_FORMAT = 1


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


def check_identity(folder: Path, identity: dict[str, Any], *, allow_changed: bool) -> None:
    """Writes what a new run begins with into ``run.json``, or compares with what is there.

    Args:
        folder: of the run.
        identity: as ``identity_of`` gives it.
        allow_changed: record the differences and go on.

    Raises:
        ChangedError: something differs; one line each.
    """
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
