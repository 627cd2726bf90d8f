"""The first stage that a cascade's model folder carries: in its subfolder ``previous``, itself a whole model folder.

``model.json`` names it with its SHA-256. An ensemble carries one for all of its members, with the first stages of all of
them in it, so that it is computed once a scan, as nnU-Net does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medseg.durable import sha256_file
from medseg.errors import ModelError
from medseg.inference.model import Model, load_models, model_json, save_ensemble

PREVIOUS = "previous"


def load_previous(folder: Path, info: Mapping[str, Any], *, device: torch.device | str) -> tuple[Model, ...]:
    """The first stage's models.

    Args:
        folder: of the second stage.
        info: its ``model.json``.
        device: for their networks.

    Raises:
        ModelError: there is none, it is another than the model was saved with, or it can't be loaded.
    """
    note = info.get(PREVIOUS)
    path = folder / PREVIOUS / "model.json"
    if not isinstance(note, Mapping) or not path.is_file():
        raise ModelError(
            f"{folder.name}: is a cascade's second stage and lacks the folder {PREVIOUS} with its first; copy the whole model "
            "folder again"
        )
    if sha256_file(path) != note.get("sha256"):
        raise ModelError(
            f"{folder.name}: {PREVIOUS} is not the first stage it was saved with; copy the model folder again"
        )
    return load_models(path.parent, device=device)


def save_previous(folder: Path, members: Mapping[str, Path] | None) -> dict[str, Any]:
    """Copies a first stage into ``folder/previous``, without post-processing; what is there already is kept.

    Args:
        folder: of the second stage.
        members: name to single model folder; none or empty writes nothing.

    Returns:
        What the second stage's ``model.json`` says about it; empty where there is no first stage.
    """
    if not members:
        return {}
    return {PREVIOUS: {"folder": PREVIOUS, "sha256": save_ensemble(folder / PREVIOUS, members)}}


def previous_of(members: Mapping[str, Path]) -> dict[str, Path]:
    """Name to model folder of all first stages that these second stages carry, each once.

    Args:
        members: name to model folder of an ensemble's members, which need not be second stages.

    Raises:
        ModelError: one lacks its first stage.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for name, path in members.items():
        if PREVIOUS not in model_json(path):
            continue
        own = path / PREVIOUS
        singles = model_json(own).get("members")
        folders = {name: own} if singles is None else {str(one["folder"]): own / str(one["folder"]) for one in singles}
        for single, place in folders.items():
            sha256 = sha256_file(place / "model.json")
            if sha256 not in seen:
                seen.add(sha256)
                found[single if single not in found else f"{name}-{single}"] = place
    return found
