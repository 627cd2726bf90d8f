"""MONAI's random transforms inside medseg's augmentation: by name, arguments checked beforehand, seeded per sample."""

from __future__ import annotations

import difflib
import inspect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import monai.transforms
import torch
from torch import Tensor

from medseg.errors import ConfigError

_BENDING = ("Rand2DElastic", "Rand3DElastic", "RandGridDistortion")
# What is not the config's to say: the patch keeps its shape, type and device, labels their values.
_OURS = ("keys", "mode", "dtype", "device", "allow_missing_keys")


class ExtraTransforms:
    """Random transforms of MONAI's, one after the other.

    It may be called by several threads at once: each has transforms of its own, since they keep what they last drew.

    Args:
        wanted: (name, arguments) of each, as the config's ``train.augmentation.extra`` has them.
        slice_axis: the axis that 2D slices are stacked along, None in 3D.

    Raises:
        ConfigError: arguments that a transform does not know, lacks or refuses, and transforms of other dimensions; all faults
            at once.
    """

    def __init__(self, wanted: Sequence[tuple[str, Mapping[str, Any]]], *, slice_axis: int | None) -> None:
        self._wanted = [(name, dict(arguments)) for name, arguments in wanted]
        self._slice_axis = slice_axis
        self._local = threading.local()
        faults = [
            f"train.augmentation.extra[{i}]: {fault}"
            for i, (name, arguments) in enumerate(self._wanted)
            for fault in _faults(name, arguments, planar=slice_axis is not None)
        ]
        if faults:
            raise ConfigError(faults)

    def __call__(self, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Changes one sample.

        Args:
            image: (C, X, Y, Z) float32.
            labels: (X, Y, Z) uint8.
            seed: of everything drawn, below 2^32; each transform gets its own from it.

        Returns:
            Both in the same shapes and types; where nothing happened they may be the arguments themselves.
        """
        if not hasattr(self._local, "transforms"):
            self._local.transforms = [_built(name, arguments) for name, arguments in self._wanted]
        axis = self._slice_axis
        if axis is not None:
            image, labels = image.squeeze(axis + 1), labels.squeeze(axis)
        for number, transform in enumerate(self._local.transforms):
            image, labels = _applied(transform, image, labels, (seed + number * 0x9E3779B1) % 2**32)
        if axis is not None:
            image, labels = image.unsqueeze(axis + 1), labels.unsqueeze(axis)
        return image, labels


def _applied(transform: Any, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    transform.set_random_state(seed=seed)
    if isinstance(transform, monai.transforms.MapTransform):
        found = transform({"image": image, "label": labels[None].float()})
        return _plain(found["image"]), _plain(found["label"])[0].round().to(torch.uint8)
    return _plain(transform(image)), labels


def _plain(values: Any) -> Tensor:
    tensor = torch.as_tensor(values)
    return tensor.as_subclass(torch.Tensor).float()


def _built(name: str, arguments: Mapping[str, Any]) -> Any:
    # YAML has lists where MONAI looks for tuples.
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    if name not in _BENDING:
        return getattr(monai.transforms, name)(**values)
    kind = getattr(monai.transforms, f"{name}d")
    return kind(keys=("image", "label"), mode=("bilinear", "nearest"), **values)


def _faults(name: str, arguments: Mapping[str, Any], *, planar: bool) -> list[str]:
    kind = getattr(monai.transforms, f"{name}d" if name in _BENDING else name)
    parameters = {key: p for key, p in inspect.signature(kind).parameters.items() if key not in _OURS}
    if name in _BENDING:
        parameters.pop("spatial_size", None)
    faults = []
    for key in arguments.keys() - parameters.keys():
        close = difflib.get_close_matches(key, parameters, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else "remove it"
        faults.append(f"{name} has no argument {key}, expected one of {', '.join(parameters)}; {hint}")
    needed = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty]
    faults += [f"{name} lacks the argument {key}, expected a value; add it" for key in needed if key not in arguments]
    if (name == "Rand2DElastic" and not planar) or (name == "Rand3DElastic" and planar):
        faults.append(
            f"{name} is for other dimensions than the plan's, expected one for {2 if planar else 3}D; remove it"
        )
    return faults or _trial_faults(name, arguments, planar=planar)


def _trial_faults(name: str, arguments: Mapping[str, Any], *, planar: bool) -> list[str]:
    # Wrong values show only when a transform is made, or used.
    image = torch.linspace(-1, 1, 2 * 16**3).view(2, 16, 16, 16)
    labels = torch.zeros(16, 16, 16, dtype=torch.uint8)
    if planar:
        image, labels = image[..., 0], labels[..., 0]
    try:
        changed, _ = _applied(_built(name, {**arguments, "prob": 1.0}), image, labels, 0)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [f"{name} refuses its arguments ({sentence}), expected values that MONAI takes; correct them"]
    if changed.shape != image.shape:
        return [f"{name} changes the shape of a patch, expected one that keeps it; remove it"]
    return []
