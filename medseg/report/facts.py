"""Where scores come from: data, model, plan and training, as far as the files at hand tell. No paths and no times."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.durable import read_json, sha256_file
from medseg.errors import InputError
from medseg.evaluation.matching import CasePaths
from medseg.runner.sidecar import read_sidecar

_DAMAGED = (InputError, OSError, KeyError, TypeError, ValueError, AttributeError)
"""What reading files of ours that somebody changed may raise: the report leaves them out and goes on."""
Curves = Mapping[str, Sequence[tuple[int, float]]]
_TRAINING = (
    ("fold", "fold"), ("seed", "seed"), ("steps", "steps"), ("batch_size", "batch size"), ("precision", "precision"),
    ("training_cases", "training cases"), ("weights", "weights"), ("manifest_sha256", "manifest"),
    ("prepared_sha256", "prepared data"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of where the scores come from.

    Attributes:
        predictions: (term, value) pairs on what made the masks, from their sidecars.
        models: per model folder its (term, value) pairs.
        plan: (field, value, reason) of the plan.
        histories: per model folder that holds one, name and learning curves.
        notes: sentences on what does not fit together.
    """

    predictions: Sequence[tuple[str, str]] = ()
    models: Sequence[Sequence[tuple[str, str]]] = ()
    plan: Sequence[tuple[str, str, str]] = ()
    histories: Sequence[tuple[str, Curves]] = field(default_factory=tuple)
    notes: Sequence[str] = ()


def gather_facts(pairs: Sequence[CasePaths], *, models: Sequence[Path], plan: Path | None) -> Facts:
    """Reads what there is; what is missing or damaged is left out.

    Args:
        pairs: of the cases; their predictions' sidecars tell what made them.
        models: model folders that are said to have made them.
        plan: ``plan.yaml`` of the prepared data, or None: then the first model's.
    """
    predictions, made_by = _predictions(pairs)
    described, histories, notes, own = [], [], [], []
    for folder in models:
        with contextlib.suppress(*_DAMAGED):
            info, sha256 = read_json(folder / "model.json"), sha256_file(folder / "model.json")
            described.append(_model(info, sha256))
            own += [str(one["sha256"]) for one in info.get("members", ())] or [sha256]
        with contextlib.suppress(*_DAMAGED):
            histories += _histories(folder, read_json(folder / "model.json"))
    if made_by and own and not any(sha256 in text for text in made_by for sha256 in own):
        notes.append(
            "The masks were made by another model than the one described here: its checksum is not among theirs."
        )
    return Facts(
        predictions=predictions,
        models=described,
        plan=_plan(plan, models),
        histories=histories,
        notes=notes,
    )


def _predictions(pairs: Sequence[CasePaths]) -> tuple[list[tuple[str, str]], set[str]]:
    """What the sidecars say, each value with the number of masks that say it where they differ."""
    said: dict[str, dict[str, int]] = {}
    with_sidecar = 0
    for pair in pairs:
        sidecar = None
        with contextlib.suppress(InputError):
            sidecar = read_sidecar(pair.prediction) if pair.prediction is not None else None
        if sidecar is None:
            continue
        with_sidecar += 1
        for name, value in {**sidecar.origin.settings, **sidecar.versions}.items():
            counts = said.setdefault(str(name), {})
            counts[str(value)] = counts.get(str(value), 0) + 1
    found = [
        (name, "; ".join(value if len(counts) == 1 else f"{value} ({count} masks)" for value, count in counts.items()))
        for name, counts in said.items()
    ]
    total = sum(pair.prediction is not None for pair in pairs)
    if with_sidecar:
        found.insert(0, ("masks with a record of their making", f"{with_sidecar} of {total}"))
    return found, set(said.get("models", ()))


def _model(info: Mapping[str, Any], sha256: str) -> list[tuple[str, str]]:
    facts = [("model.json sha256", sha256)]
    if "members" in info:
        facts.append(("members", "; ".join(f"{one['folder']} {one['sha256']}" for one in info["members"])))
        steps = info.get("postprocessing") or []
        facts.append(("post-processing", "; ".join(map(str, steps)) or "none"))
        return facts
    architecture = info.get("architecture", {})
    facts.append(("network", str(architecture.get("kind", "unknown"))))
    training = info.get("training", {})
    facts += [(word, str(training[key])) for key, word in _TRAINING if training.get(key) is not None]
    if training.get("fold", 0) is None:
        facts.append(("fold", "none held out"))
    versions = info.get("versions", {})
    facts.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return facts


def _histories(folder: Path, info: Mapping[str, Any]) -> list[tuple[str, Curves]]:
    found = []
    for member in info.get("members", ()):
        with contextlib.suppress(*_DAMAGED):
            place = folder / Path(str(member["folder"])).name
            info_of_member = read_json(place / "model.json")
            if "members" not in info_of_member:  # an ensemble has none below it: one that names itself would never end
                found += _histories(place, info_of_member)
    training = info.get("training", {})
    if curves := learning_curves(training.get("history") or ()):
        fold = training.get("fold")
        found.append(("all cases" if fold is None else f"fold {fold}", curves))
    return found


def learning_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Name to (step, value) pairs of a training's epochs, as ``model.json`` keeps them."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in history:
        values = {f"Dice {name}": value for name, value in (record.get("validation") or {}).items()}
        values |= {"inner Dice": record["inner"]} if "inner" in record else {}
        values |= {"training loss": record["train_loss"]} if "train_loss" in record else {}
        for name, value in values.items():
            if isinstance(value, int | float):
                curves.setdefault(name, []).append((int(record["step"]), float(value)))
    return curves


def _plan(path: Path | None, models: Sequence[Path]) -> list[tuple[str, str, str]]:
    from medseg.preparation.plan_file import read_plan

    for candidate in [path, *(folder / "plan.yaml" for folder in models)]:
        if candidate is None or not candidate.is_file():
            continue
        with contextlib.suppress(InputError):
            plan = read_plan(candidate)
            values = plan.model_dump(mode="json", exclude={"reasons", "alternatives", "label_table"})
            return [(name, plain_text(value), plan.reasons.get(name, "")) for name, value in values.items()]
    return []


def plain_text(value: Any) -> str:
    """A plain value as a reader writes it: lists with ``x`` between numbers, mappings as ``name=value``."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain_text(one)}" for key, one in value.items()) or "-"
    if isinstance(value, list):
        if value and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value):
            return " x ".join(plain_text(one) for one in value)
        return "; ".join(plain_text(one) for one in value) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)
