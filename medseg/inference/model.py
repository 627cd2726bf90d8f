"""A trained model's folder: weights, plan, labels, versions and hashes. Nothing outside it is needed to use it.

``model.json`` names every other file with its SHA-256; weights are safetensors, so loading a model runs no code of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from medseg.durable import read_json, sha256_bytes, sha256_file, write_bytes, write_json, write_text
from medseg.errors import InputError, ModelError
from medseg.networks.build import build_network
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import plan_text

MODEL_FORMAT = 1
_PACKAGES = ("medseg", "monai", "numpy", "torch")


@dataclass(frozen=True, eq=False)
class Model:
    """A network ready to predict, and what it was trained for.

    Attributes:
        network: in eval mode on its device; (B, C, X, Y, Z) -> (B, K, X, Y, Z) logits, without Z where planar.
        plan: how a scan is brought to the network's grid and intensities.
        mirror_axes_xyz: axes that training mirrored (0 = x), along which predictions may be averaged.
        sha256: of the model folder as a whole.
        folder: where it was loaded from.
        info: ``model.json``: what it was trained on and with.
    """

    network: nn.Module
    plan: Plan
    mirror_axes_xyz: tuple[int, ...]
    sha256: str
    folder: Path
    info: Mapping[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return tuple(self.plan.labels)


def save_model(
    folder: Path,
    network: nn.Module,
    *,
    architecture: Mapping[str, Any],
    plan: Plan,
    mirror_axes_xyz: tuple[int, ...],
    config_text: str,
    training: Mapping[str, Any],
) -> str:
    """Writes a model folder; ``model.json`` comes last, so a folder with it is whole.

    Args:
        folder: made where it is missing.
        network: its state dict is saved in float32.
        architecture: what ``build_network`` rebuilds it from.
        plan: of the prepared data it was trained on.
        mirror_axes_xyz: axes that training mirrored.
        config_text: the resolved config as YAML.
        training: plain values about the training: manifest, prepared data, fold, steps, seed, precision, validation.

    Returns:
        The model's SHA-256.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(folder / "weights.safetensors", safetensors.torch.save(weights))
    write_text(folder / "plan.yaml", plan_text(plan))
    write_text(folder / "config.yaml", config_text)
    files = {name: sha256_file(folder / name) for name in ("config.yaml", "plan.yaml", "weights.safetensors")}
    content = {
        "format": MODEL_FORMAT,
        "kind": "medseg model",
        "architecture": dict(architecture),
        "labels": {name: list(values) for name, values in plan.labels.items()},
        "mirror_axes_xyz": list(mirror_axes_xyz),
        "plan": plan.model_dump(mode="json"),
        "training": dict(training),
        "versions": {name: version(name) for name in _PACKAGES},
        "files": files,
    }
    write_json(folder / "model.json", content)
    return sha256_file(folder / "model.json")


def load_model(folder: Path, *, device: torch.device | str = "cpu") -> Model:
    """Loads a model folder onto ``device``, checking every file's hash first.

    Raises:
        ModelError: no model there, a file is missing or damaged, or a newer medseg wrote it.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise ModelError(
            f"{folder.name}: holds no model.json, expected a model folder; finish training or check the path"
        )
    try:
        info = read_json(path)
    except InputError as error:
        raise ModelError(f"{folder.name}: {error}") from error
    if not isinstance(info, dict) or info.get("kind") != "medseg model":
        raise ModelError(f"{folder.name}: model.json describes no medseg model; check the path")
    if info.get("format") != MODEL_FORMAT:
        raise ModelError(
            f"{folder.name}: has model format {info.get('format')}, this medseg reads {MODEL_FORMAT}; update medseg"
        )
    try:
        data = _checked_files(folder, dict(info["files"]))
        plan = Plan.model_validate_json(json.dumps(info["plan"]), strict=True)
        network = build_network(info["architecture"])
        network.load_state_dict(safetensors.torch.load(data))
        axes = tuple(int(axis) for axis in info["mirror_axes_xyz"])
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        raise ModelError(
            f"{folder.name}: model.json and weights do not fit together ({type(error).__name__})"
        ) from error
    network = network.to(device).eval()
    return Model(network, plan, axes, sha256_file(path), folder, info)


def _checked_files(folder: Path, files: Mapping[str, str]) -> bytes:
    weights = b""
    for name in ("config.yaml", "plan.yaml", "weights.safetensors"):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ModelError(f"{folder.name}: {name} is missing or unreadable; copy the model folder again") from error
        if sha256_bytes(data) != files[name]:
            raise ModelError(f"{folder.name}: {name} does not have its checksum; copy the model folder again")
        weights = data
    return weights
