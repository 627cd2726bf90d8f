"""Starting a network from weights that something else was trained with: what fits is taken, the rest is named.

Files are safetensors, so no code runs. Names are matched as they are, below a prefix, or through ``foreign_names``; kernels
trained on pictures are turned, inflated and adapted to the number of channels, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from medseg.durable import read_json, sha256_file
from medseg.errors import InputError
from medseg.networks.foreign_names import Naming, best_naming

_SHOWN = 4  # names in a summary before "and N more"


@dataclass(frozen=True)
class LoadReport:
    """What ``load_matching`` did.

    Attributes:
        sha256: of the file.
        loaded: the network's tensors that were set.
        adapted: those of them that were changed on the way, and how.
        skipped: tensors of the file that were not used, and why.
        untouched: the network's tensors that keep their first values.
    """

    sha256: str
    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    skipped: Mapping[str, str]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} of {len(self.loaded) + len(self.untouched)} tensors of the network set"]
        parts += [f"{_some(names)} {how}" for how, names in _by_reason(self.adapted).items()]
        parts += [f"skipped {_some(names)} ({why})" for why, names in _by_reason(self.skipped).items()]
        if self.untouched:
            parts.append(f"left as they were: {_some(self.untouched)}")
        return "; ".join(parts)

    def record(self) -> dict[str, object]:
        """Plain values for a run's record."""
        return {
            "sha256": self.sha256,
            "loaded": len(self.loaded),
            "adapted": dict(self.adapted),
            "skipped": dict(self.skipped),
            "untouched": list(self.untouched),
        }


def load_matching(network: nn.Module, path: Path) -> LoadReport:
    """Sets those tensors of ``network`` that the file has, by name and shape, in place.

    Understood are names of our own, also of another network that shares some (an encoder, another number of classes);
    torchvision's and timm's of ResNet, VGG and EfficientNet encoders; nnU-Net's for our U-Net. Kernels of the three encoders
    run (row, column) and are turned to our (x, y). A 2D kernel for a 3D one is repeated along z and divided by its width there
    (Carreira and Zisserman, CVPR 2017), so that a volume of equal slices gives what the slice gave. The first convolution's
    channels are summed for one channel, and repeated with their sum kept for others.

    Args:
        network: changed only where the whole file was read and something fits.
        path: a model folder or a .safetensors file.

    Raises:
        InputError: there are no such weights, they can't be read or are not finite, or nothing fits.
    """
    file = _weights_file(path)
    weights = _read(file, path.name)
    own = network.state_dict()
    naming = best_naming(weights, network)
    first = next((name for name, p in network.named_parameters() if p.ndim in (4, 5)), None)
    taken: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for key, tensor in weights.items():
        name = naming.names.get(key)
        if name is None or name not in own:
            skipped[key] = "the network has no such tensor"
            continue
        fitted, how = _fitted(tensor, own[name], naming, is_first=name == first)
        if fitted is None:
            skipped[key] = f"has shape {list(tensor.shape)}, the network's {list(own[name].shape)}"
            continue
        taken[name] = fitted
        if how:
            adapted[name] = how
    if not taken:
        raise InputError(
            f"{path.name}: none of its {len(weights)} tensors fits the network by name and shape, expected at least an "
            "encoder's; check train.init_from and network"
        )
    network.load_state_dict(taken, strict=False)
    untouched = tuple(name for name in own if name not in taken)
    return LoadReport(sha256_file(file), tuple(taken), adapted, skipped, untouched)


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        file = path / "weights.safetensors"
        if not file.is_file():
            raise InputError(
                f"{path.name}: holds no weights.safetensors, expected the folder of one trained model; of an ensemble, name "
                "a member's folder"
            )
        described = path / "model.json"
        known = read_json(described) if described.is_file() else None
        files = known.get("files") if isinstance(known, dict) else None
        if isinstance(files, dict) and files.get("weights.safetensors") not in (None, sha256_file(file)):
            raise InputError(
                f"{path.name}: weights.safetensors does not have its checksum; copy the model folder again"
            )
        return file
    if not path.is_file():
        raise InputError(
            f"{path.name}: is no file, expected a model folder or a .safetensors file; check train.init_from"
        )
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path.name}: has suffix {path.suffix!r}, expected .safetensors, which runs no code; convert it with "
            "safetensors.torch.save_file"
        )
    return path


def _read(file: Path, name: str) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{name}: is no whole safetensors file ({type(error).__name__}); get it again") from error
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: {key} holds values that are not finite, expected trained weights; get it again")
    return weights


def _fitted(tensor: Tensor, own: Tensor, naming: Naming, *, is_first: bool) -> tuple[Tensor | None, str]:
    """``tensor`` as the network's, or None where it can't be made so; and what was done to it."""
    done = []
    if naming.reversed_axes and tensor.ndim in (4, 5):
        tensor = tensor.permute(0, 1, *range(tensor.ndim - 1, 1, -1))
    if tensor.ndim == 4 and own.ndim == 5:
        depth = own.shape[4]
        tensor = tensor.unsqueeze(4).expand(*tensor.shape, depth) / depth
        done.append("inflated to 3D")
    if is_first and tensor.ndim == own.ndim and tensor.shape[1] != own.shape[1]:
        done.append(f"adapted from {tensor.shape[1]} to {own.shape[1]} channels")
        tensor = _with_channels(tensor, own.shape[1])
    if tensor.shape != own.shape:
        return None, ""
    return tensor.to(own.dtype).contiguous(), " and ".join(done)


def _with_channels(kernel: Tensor, wanted: int) -> Tensor:
    """A kernel for another number of input channels whose answer to equal channels is the same."""
    had = kernel.shape[1]
    if wanted == 1:
        return kernel.sum(dim=1, keepdim=True)
    return kernel[:, [n % had for n in range(wanted)]] * (had / wanted)


def _by_reason(names: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, reason in names.items():
        grouped.setdefault(reason, []).append(name)
    return grouped


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
