"""The tensors of an nnU-Net checkpoint, read without running what else it may hold.

A checkpoint is a pickle, and a pickle can name any function to be called. torch's restricted unpickler is used, which knows
tensors and plain containers, with numpy's scalars allowed beside them, because nnU-Net's training log holds some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.errors import ModelError

_ALLOWED: tuple[Any, ...] = (
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]  # noqa: SLF001
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]  # noqa: SLF001
    np.dtype,
    *(
        type(np.dtype(kind))
        for kind in (
            "float16",
            "float32",
            "float64",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "bool",
            "str",
        )
    ),
)


@dataclass(frozen=True)
class Checkpoint:
    """What of a checkpoint a model needs.

    Attributes:
        weights: ``network_weights`` by nnU-Net's names.
        trainer: name of the trainer class.
        configuration: name of the configuration it was trained as.
        mirror_axes: spatial axes of nnU-Net's arrays that predictions may be mirrored along.
        epoch: the epoch training was at.
    """

    weights: Mapping[str, Tensor]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    epoch: int | None


def read_checkpoint(path: Path, name: str) -> Checkpoint:
    """Reads a checkpoint; its tensors stay on the disk until they are used.

    Args:
        path: the file.
        name: what to call it in messages.

    Raises:
        ModelError: it is no nnU-Net v2 checkpoint, is damaged, or names code to run, which is named.
    """
    try:
        with torch.serialization.safe_globals(list(_ALLOWED)):
            _refuse_code(path, name)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ModelError:
        raise
    except Exception as error:  # a pickle that is damaged or forged can make the unpickler raise anything
        raise ModelError(
            f"{name}: is no whole checkpoint that torch can read safely ({type(error).__name__}); copy it again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{name}: holds no nnU-Net checkpoint; check the file")
    try:
        return _described(content)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"{name}: is no nnU-Net v2 checkpoint ({type(error).__name__} {error}); check the file"
        ) from error


def _refuse_code(path: Path, name: str) -> None:
    """Refuses by name whatever the file would call beside what is known to be harmless; nothing is loaded for it."""
    strangers = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if strangers:
        raise ModelError(
            f"{name}: would run {', '.join(sorted(strangers)[:4])} when it is loaded, expected tensors and numbers alone; "
            "don't use this file, or export its weights with nnU-Net itself"
        )


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose numbers are there, one after the other."""
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


def _described(content: Mapping[str, Any]) -> Checkpoint:
    weights = content["network_weights"]
    if not weights or not all(isinstance(k, str) and _is_plain(v) for k, v in weights.items()):
        raise ValueError("network_weights")
    axes, epoch = content.get("inference_allowed_mirroring_axes"), content.get("current_epoch")
    return Checkpoint(
        weights=weights,
        trainer=str(content["trainer_name"]),
        configuration=str(content["init_args"]["configuration"]),
        mirror_axes=tuple(int(axis) for axis in axes or ()),
        epoch=int(epoch) if isinstance(epoch, int | float) and math.isfinite(epoch) else None,
    )
