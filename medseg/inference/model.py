"""A trained model's folder: weights, plan, labels, versions and hashes. Nothing outside it is needed to use it.

``model.json`` names every other file with its SHA-256; weights are safetensors, so loading a model runs no code of its own. The
weights' licence is one of them where the training's config gives its text (`licence`).
An ensemble's folder holds one such folder per member, and a ``model.json`` that names them with their SHA-256 and the
post-processing that is part of the model. Its members' weights stay on the disk and go, one after another, through one
network on the device: five folds need the memory of one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from medseg.durable import read_json, sha256_bytes, sha256_file, sha256_json, write_bytes, write_json, write_text
from medseg.errors import ConfigError, InputError, ModelError
from medseg.evaluation.postprocessing import Step, steps_from_plain
from medseg.inference.licence import LICENCE, joined_licences, licence_of, write_licence
from medseg.networks.build import build_network
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import plan_text

MODEL_FORMAT = 1
ENSEMBLE_FORMAT = 2
ONNX_FORMAT = 3
"""Of a single model's folder with an ONNX file in place of weights."""
_MEMBER_FILES = ("config.yaml", "plan.yaml", "weights.safetensors")
_PACKAGES = ("medseg", "monai", "numpy", "torch")


@dataclass(frozen=True, eq=False)
class Model:
    """A network ready to predict, and what it was trained for.

    Attributes:
        network: in eval mode on its device; (B, C, X, Y, Z) -> (B, K, X, Y, Z) logits, without Z where planar. Members of an
            ensemble share it: call :meth:`ready` for the one with this model's weights.
        plan: how a scan is brought to the network's grid and intensities.
        mirror_axes_xyz: axes that training mirrored (0 = x), along which predictions may be averaged.
        sha256: of the model folder as a whole.
        folder: where it was loaded from.
        info: ``model.json``: what it was trained on and with.
        postprocessing: what is done to its masks, in this order.
        stream: puts this member's weights into ``network``; None where they always are.
        previous: a cascade's first stage, whose masks are channels of this network's input; empty where there is none.
    """

    network: nn.Module
    plan: Plan
    mirror_axes_xyz: tuple[int, ...]
    sha256: str
    folder: Path
    info: Mapping[str, Any]
    postprocessing: tuple[Step, ...] = ()
    stream: Callable[[], None] | None = None
    previous: tuple[Model, ...] = ()

    def ready(self) -> nn.Module:
        """The network, with this model's weights in it until another member of its ensemble is made ready."""
        if self.stream is not None:
            self.stream()
        return self.network

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return tuple(self.plan.labels)


def save_model(  # noqa: PLR0913 - a model has that many parts
    folder: Path,
    network: nn.Module,
    *,
    architecture: Mapping[str, Any],
    plan: Plan,
    mirror_axes_xyz: tuple[int, ...],
    config_text: str,
    training: Mapping[str, Any],
    contract: Mapping[str, Any] | None = None,
    previous: Mapping[str, Path] | None = None,
    licence: bytes | None = None,
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
        contract: of the training scans (``InputContract.plain``), where it is known.
        previous: of a cascade's second stage, name to model folder of its first, copied into ``folder/previous``.
        licence: text of the weights' licence, which becomes ``LICENSE``; None where there is none.

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
        "files": files | write_licence(folder, licence),
    }
    if contract is not None:
        content["contract"] = dict(contract)
    write_json(folder / "model.json", content | _previous_models().save_previous(folder, previous))
    return sha256_file(folder / "model.json")


def load_model(folder: Path, *, device: torch.device | str = "cpu", alone: bool = False) -> Model:
    """Loads the folder of a single model onto ``device``, checking every file's hash first.

    Args:
        folder: of the model.
        device: for its network.
        alone: without a cascade's first stage, which lies in the ensemble's folder where this is a member of one.

    Raises:
        ModelError: no model there, an ensemble, a file is missing or damaged, or a newer medseg wrote it.
    """
    info = model_json(folder)
    if "members" in info:
        raise ModelError(f"{folder.name}: is an ensemble of {len(info['members'])} models, expected a single one")
    try:
        if "onnx" in info:
            model = _described(folder, info, _load_onnx(folder, info, device))
        else:
            network = _load(folder, info, build_network(info["architecture"]))
            model = _described(folder, info, network.to(device).eval())
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError, ConfigError) as error:
        raise _misfit(folder, error) from error
    return model if alone else _with_previous((model,), folder, info, device)[0]


def load_models(folder: Path, *, device: torch.device | str = "cpu") -> tuple[Model, ...]:
    """Loads a model folder: one model, or the members of an ensemble, which share a network per architecture.

    Members' weights are hashed here and read again from the disk (in practice from the system's cache) when they are used.

    Raises:
        ModelError: as :func:`load_model`, or a member is not the one that the ensemble was made of.
    """
    info = model_json(folder)
    if "members" not in info:
        return (load_model(folder, device=device),)
    shared: dict[str, _SharedNetwork] = {}
    licence_of(folder, info)  # checked, like every file
    try:
        members = [_load_member(folder, member, shared, device) for member in info["members"]]
        steps = steps_from_plain(info["postprocessing"], members[0].class_names)
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError, IndexError, ConfigError) as error:
        raise _misfit(folder, error) from error
    return _with_previous([replace(member, postprocessing=steps) for member in members], folder, info, device)


def _with_previous(
    models: Sequence[Model], folder: Path, info: Mapping[str, Any], device: torch.device | str
) -> tuple[Model, ...]:
    """The models, a cascade's second stages with the first stage that the folder carries."""
    if not any(model.plan.previous_channels for model in models):
        return tuple(models)
    first = _previous_models().load_previous(folder, info, device=device)
    return tuple(replace(model, previous=first) if model.plan.previous_channels else model for model in models)


def _previous_models() -> Any:
    # Imported here: a first stage is a model folder itself.
    from medseg.inference import previous_models

    return previous_models


class _SharedNetwork:
    """A network on the device that holds the weights of one member at a time."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._held: object = None

    def hold(self, folder: Path, weights: Any) -> None:
        """Copies a member's weights, an open safetensors file, into the network, unless they are there."""
        if self._held is weights:
            return
        self._held = None
        try:
            self.network.load_state_dict({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise _misfit(folder, error) from error
        self._held = weights


def _load_member(
    folder: Path, member: Mapping[str, Any], shared: dict[str, _SharedNetwork], device: torch.device | str
) -> Model:
    path = folder / str(member["folder"])
    if path.parent != folder or path.name in (".", ".."):
        raise ModelError(f"{folder.name}: has member {member['folder']!r}, expected the name of a folder inside")
    info = model_json(path)
    if sha256_file(path / "model.json") != member["sha256"]:
        raise ModelError(f"{folder.name}: {path.name} is not the member it was made of; copy the model folder again")
    if "onnx" in info:
        return _described(path, info, _load_onnx(path, info, device))
    for name in _MEMBER_FILES:
        _checked_file(path, name, info["files"])
    weights = safetensors.safe_open(path / "weights.safetensors", framework="pt")
    key = sha256_json(info["architecture"])
    if key not in shared:
        shared[key] = _SharedNetwork(build_network(info["architecture"]).to(device).eval())
    one = shared[key]
    return replace(_described(path, info, one.network), stream=lambda: one.hold(path, weights))


def model_json(folder: Path) -> dict[str, Any]:
    """``model.json`` of a model folder.

    Raises:
        ModelError: there is none, or a newer medseg wrote it.
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
    expected = ENSEMBLE_FORMAT if "members" in info else ONNX_FORMAT if "onnx" in info else MODEL_FORMAT
    if info.get("format") != expected:
        raise ModelError(
            f"{folder.name}: has model format {info.get('format')}, this medseg reads {expected}; update medseg"
        )
    return info


def _described(folder: Path, info: Mapping[str, Any], network: nn.Module) -> Model:
    plan = Plan.model_validate_json(json.dumps(info["plan"]), strict=True)
    axes = tuple(int(axis) for axis in info["mirror_axes_xyz"])
    licence_of(folder, info)  # checked, like every file
    return Model(network, plan, axes, sha256_file(folder / "model.json"), folder, info)


def _load(folder: Path, info: Mapping[str, Any], network: nn.Module) -> nn.Module:
    weights = b""
    for name in _MEMBER_FILES:  # the weights come last; each file is read once, so what is hashed is what is used
        weights = _checked_file(folder, name, info["files"])
    network.load_state_dict(safetensors.torch.load(weights))
    return network


def _load_onnx(folder: Path, info: Mapping[str, Any], device: torch.device | str) -> nn.Module:
    from medseg.inference.onnx_network import ONNX_FILE, OnnxNetwork

    for name in ("config.yaml", "plan.yaml"):
        _checked_file(folder, name, info["files"])
    return OnnxNetwork(_checked_file(folder, ONNX_FILE, info["files"]), device=device).eval()


def _misfit(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"{folder.name}: model.json and weights do not fit together ({type(error).__name__})")


def _checked_file(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder.name}: {name} is missing or unreadable; copy the model folder again") from error
    if sha256_bytes(data) != files[name]:
        raise ModelError(f"{folder.name}: {name} does not have its checksum; copy the model folder again")
    return data


def save_ensemble(
    folder: Path,
    members: Mapping[str, Path],
    *,
    postprocessing: Sequence[Step] = (),
    evidence: Mapping[str, Any] | None = None,
) -> str:
    """Writes an ensemble's folder: copies of its members, and ``model.json`` last.

    The first stages of members that are a cascade's second come together in one ensemble, in ``folder/previous``.

    Where the folder is this ensemble already, nothing is written. While it is made anew it holds no ``model.json``, so it is
    never taken for a whole one.

    Args:
        folder: made where it is missing.
        members: name of its subfolder to each member's model folder; at least one.
        postprocessing: what is done to the ensemble's masks.
        evidence: plain values: what the members and steps were chosen by.

    Returns:
        The ensemble's SHA-256.

    Raises:
        ModelError: there is no member, or one is no single model.
    """
    if not members:
        raise ModelError("ensemble: has no member, expected at least one model folder")
    infos = {name: model_json(source) for name, source in members.items()}
    for name, info in infos.items():
        if "members" in info:
            raise ModelError(f"{name}: is an ensemble itself, expected a single model; name its members")
    first = next(iter(infos.values()))
    licences = {name: licence_of(source, infos[name]) for name, source in members.items()}
    licence = joined_licences(licences)
    content: dict[str, Any] = {
        "format": ENSEMBLE_FORMAT,
        "kind": "medseg model",
        "members": [{"folder": name, "sha256": sha256_file(path / "model.json")} for name, path in members.items()],
        "labels": first["labels"],
        "postprocessing": [step.plain() for step in postprocessing],
        "evidence": dict(evidence or {}),
        "versions": {name: version(name) for name in _PACKAGES},
    }
    first = _previous_models().save_previous(folder, _previous_models().previous_of(members))
    content |= first
    if licence is not None:
        content["files"] = {LICENCE: sha256_bytes(licence)}
    if not _is_written(folder, content):
        with contextlib.suppress(FileNotFoundError):
            (folder / "model.json").unlink()
        for name, source in members.items():
            for file in _MEMBER_FILES:
                write_bytes(folder / name / file, _checked_file(source, file, infos[name]["files"]))
            write_licence(folder / name, licences[name])
            write_bytes(folder / name / "model.json", (source / "model.json").read_bytes())
        for stale in folder.iterdir():
            if stale.is_dir() and stale.name not in (*members, *first) and (stale / "model.json").is_file():
                shutil.rmtree(stale)
        write_licence(folder, licence)
        write_json(folder / "model.json", content)
    return sha256_file(folder / "model.json")


def _is_written(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether the folder holds this ensemble and its members are whole."""
    try:
        if read_json(folder / "model.json") != json.loads(json.dumps(content)):
            return False
        licence_of(folder, content)
        for member in content["members"]:
            path = folder / member["folder"]
            if sha256_file(path / "model.json") != member["sha256"]:
                return False
            info = read_json(path / "model.json")
            licence_of(path, info)
            for file in _MEMBER_FILES:
                _checked_file(path, file, info["files"])
    except (OSError, InputError):
        return False
    return True
