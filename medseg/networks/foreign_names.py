"""Which tensor of a file is which of a network: our names, and those of torchvision, timm and nnU-Net."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from medseg.networks.nnunet_names import nnunet_names
from medseg.networks.unet import UNet

_WRAPPERS = ("", "backbone.", "encoder.", "model.", "network.", "net.")


@dataclass(frozen=True)
class Naming:
    """How a file's names relate to a network's.

    Attributes:
        names: key in the file to the network's name; keys that have none are left out.
        reversed_axes: whether kernels run (row, column), or (z, y, x), and have to be turned to our (x, y, z).
    """

    names: Mapping[str, str]
    reversed_axes: bool


def best_naming(weights: Mapping[str, Tensor], network: nn.Module) -> Naming:
    """The reading of the file's names under which most of its tensors have a place in the network.

    Tried are the names as they are and translated, without a wrapper's prefix (``backbone.``, ``model.`` ...), below each
    module of the network. Between equals the plainer reading wins.
    """
    own = set(network.state_dict())
    prefixes = [f"{path}." if path else "" for path, _ in network.named_modules()]
    bare = {key: key.replace("_orig_mod.", "").removeprefix("module.") for key in weights}
    best = Naming({}, reversed_axes=False)
    for translate in _translations(network):
        for wrapper in _WRAPPERS:
            stripped = {key: name.removeprefix(wrapper) for key, name in bare.items() if name.startswith(wrapper)}
            translated = translate(stripped, weights) if stripped else {}
            for prefix in prefixes if translated else ():
                names = {key: prefix + name for key, name in translated.items() if prefix + name in own}
                if len(names) > len(best.names):
                    best = Naming(names, _trained_on_rows(translate, translated, prefix))
    return best


Names = Mapping[str, str]
_Translation = Callable[[Names, Mapping[str, Tensor]], Names]


def _translations(network: nn.Module) -> list[_Translation]:
    found: list[_Translation] = [_as_they_are, _plain_vgg, _timm_efficientnet, _torchvision_efficientnet]
    if isinstance(network, UNet):
        ours = {theirs: own for own, theirs in nnunet_names(network).items()}
        found.append(lambda names, _: {key: ours[name] for key, name in names.items() if name in ours})
    return found


def _trained_on_rows(translate: _Translation, names: Names, prefix: str) -> bool:
    """Whether it is torchvision's, timm's or nnU-Net's way to name things, whose arrays begin with the last axis."""
    if translate is not _as_they_are:
        return True
    encoder = prefix.endswith("encoder.")
    return encoder and any(name in ("layer1.0.conv1.weight", "features.0.weight") for name in names.values())


def _as_they_are(names: Names, _: Mapping[str, Tensor]) -> Names:
    return names


def _plain_vgg(names: Names, weights: Mapping[str, Tensor]) -> Names:
    """VGG of torchvision and timm without batch norm: a norm sits after each of our convolutions, so indices move on."""
    place = re.compile(r"features\.(\d+)\.(weight|bias)")
    found = {key: match for key, name in names.items() if (match := place.fullmatch(name))}
    kernels = sorted(int(m[1]) for key, m in found.items() if m[2] == "weight" and weights[key].ndim == 4)
    norms = [key for key, m in found.items() if m[2] == "weight" and weights[key].ndim == 1]
    if not kernels or norms:
        return {}
    moved = {index: index + number for number, index in enumerate(kernels)}
    return {key: f"features.{moved[int(m[1])]}.{m[2]}" for key, m in found.items() if int(m[1]) in moved}


_STEM_AND_HEAD = {
    "timm": {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"},
    "torchvision": {
        "features.0.0": "_conv_stem",
        "features.0.1": "_bn0",
        "features.8.0": "_conv_head",
        "features.8.1": "_bn1",
    },
}
_EXPANDING = {  # part of a block in timm and in torchvision, and MONAI's name of it
    "timm": ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"),
    "torchvision": (
        "block.0.0",
        "block.0.1",
        "block.1.0",
        "block.1.1",
        "block.2.fc1",
        "block.2.fc2",
        "block.3.0",
        "block.3.1",
    ),
    "monai": ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"),
}
_PLAIN = {  # blocks of the first stage do not expand, and are numbered otherwise
    "timm": ("conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"),
    "torchvision": ("block.0.0", "block.0.1", "block.1.fc1", "block.1.fc2", "block.2.0", "block.2.1"),
    "monai": _EXPANDING["monai"][2:],
}
_BLOCK = {
    "timm": re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)\.(\w+)"),
    "torchvision": re.compile(r"features\.([1-7])\.(\d+)\.(.+)\.(\w+)"),
}


def _timm_efficientnet(names: Names, _: Mapping[str, Tensor]) -> Names:
    return _efficientnet(names, "timm", first_stage=0)


def _torchvision_efficientnet(names: Names, _: Mapping[str, Tensor]) -> Names:
    return _efficientnet(names, "torchvision", first_stage=1)


def _efficientnet(names: Names, library: str, *, first_stage: int) -> Names:
    """To MONAI's names, whose blocks are numbered through all stages."""
    blocks = {key: match for key, name in names.items() if (match := _BLOCK[library].fullmatch(name))}
    places = sorted({(int(match[1]), int(match[2])) for match in blocks.values()})
    number = {place: n for n, place in enumerate(places)}
    result = {}
    for key, name in names.items():
        module, _, leaf = name.rpartition(".")
        if module in _STEM_AND_HEAD[library]:
            result[key] = f"{_STEM_AND_HEAD[library][module]}.{leaf}"
    for key, match in blocks.items():
        stage, within = int(match[1]), int(match[2])
        parts = _PLAIN if stage == first_stage else _EXPANDING
        if match[3] in parts[library]:
            part = parts["monai"][parts[library].index(match[3])]
            result[key] = f"_blocks.{stage - first_stage}.{number[stage, within]}.{part}.{match[4]}"
    return result if blocks else {}
