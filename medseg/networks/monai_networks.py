"""MONAI's networks by name: an allow-list, arguments checked against the signature, and outputs brought to our form.

A network of MONAI's needs no line here but its name in ``MonaiName``: what is the same for all (dimensions, channels,
classes, patch) is filled in by parameter name, and everything else comes from the config's ``arguments``.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from medseg.config.network_sections import MonaiName
from medseg.errors import ConfigError

MONAI_NAMES: tuple[str, ...] = typing.get_args(MonaiName)
_GIVEN = {"spatial_dims": "dimensions", "in_channels": "channels", "out_channels": "classes"}
# pretrained downloads; the others take Python objects, which a config can't hold.
_REFUSED = {"pretrained": "use train.init_from with a file instead", "preprocess": "medseg prepares images itself"}
_VARIANTS = {"MedNeXtS", "MedNeXtB", "MedNeXtM", "MedNeXtL"}


class MonaiNetwork(nn.Module):
    """A network of MONAI's behind our contract: logits in eval mode, in training a list, finest first, where it has several.

    DynUNet registers its layers under two names each. The state dict keeps one of them: safetensors refuses two names for one
    tensor, and an average of weights would take such a tensor twice.

    Args:
        network: gives a tensor, a list or tuple of tensors, or DynUNet's stack (B, heads, K, ...).
        dimensions: 2 or 3.
    """

    def __init__(self, network: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.network, self.dimensions = network, dimensions
        self._aliases = _aliases(network)
        if self._aliases:
            self.register_state_dict_post_hook(_without_aliases)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_with_aliases)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, X, Y, Z), or (B, C, X, Y) in 2D, to logits (B, K, ...) or a list of them."""
        heads = finest_first(self.network(x), self.dimensions)
        return heads if self.training and len(heads) > 1 else heads[0]


def _aliases(network: nn.Module) -> dict[str, str]:
    """Further names of tensors in the state dict, to the first name."""
    first: dict[int, str] = {}
    return {
        f"network.{name}": f"network.{kept}"
        for name, tensor in network.state_dict(keep_vars=True).items()
        if (kept := first.setdefault(id(tensor), name)) != name
    }


def _without_aliases(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in cast(MonaiNetwork, module)._aliases:  # noqa: SLF001 - a hook of that class, outside it so that it can be copied
        state.pop(prefix + name, None)


def _with_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, kept in cast(MonaiNetwork, module)._aliases.items():  # noqa: SLF001 - as above
        if prefix + kept in state:
            state.setdefault(prefix + name, state[prefix + kept])


def finest_first(outputs: Tensor | Sequence[Tensor], dimensions: int) -> list[Tensor]:
    """The heads of a network's answer, finest first; of equal sizes the later first, as nested U-Nets end in their deepest."""
    if isinstance(outputs, Tensor):
        return list(outputs.unbind(dim=1)) if outputs.ndim == dimensions + 3 else [outputs]
    order = sorted(range(len(outputs)), key=lambda n: (-outputs[n][0, 0].numel(), -n))
    return [outputs[n] for n in order]


def monai_arguments(
    name: str,
    arguments: Mapping[str, Any],
    *,
    dimensions: int,
    patch_size: Sequence[int],
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """The config's arguments, with those that the plan knows and the config leaves out.

    Filled in where the signature has them: ``img_size`` and ``dropout_dim``; ``channels`` or ``filters`` with the plan's
    features; ``strides``, ``kernel_size`` and ``upsample_kernel_size`` where the network demands them.

    Args:
        name: of ``MonaiName``.
        arguments: the config's.
        dimensions: 2 or 3.
        patch_size: spatial sizes that the network sees, as many as ``dimensions``.
        features: the plan's, per stage.
        strides: the plan's, per stage.
        kernel_sizes: the plan's, per stage.

    Raises:
        ConfigError: an argument is unknown, refused, the plan's own, or missing.
    """
    parameters = _parameters(name)
    _check(name, arguments, parameters)
    steps, kernels = ([list(size[:dimensions]) for size in sizes] for sizes in (strides, kernel_sizes))
    whole = "upsample_kernel_size" in parameters  # DynUNet's strides begin with the first stage's ones, others' do not
    known: dict[str, Any] = {"img_size": list(patch_size), "dropout_dim": dimensions}
    known |= {"channels": list(features), "filters": list(features)}
    demanded = {"strides": steps if whole else steps[1:], "kernel_size": kernels, "upsample_kernel_size": steps[1:]}
    known |= {key: value for key, value in demanded.items() if _demanded(parameters.get(key))}
    filled = {key: value for key, value in known.items() if key in parameters} | dict(arguments)
    missing = [key for key, given in parameters.items() if _demanded(given) and key not in filled and key not in _GIVEN]
    if missing:
        raise ConfigError([f"network.arguments: {name} needs {', '.join(missing)}; add them"])
    return filled


def build_monai(*, name: str, dimensions: int, channels: int, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The network, freshly initialised.

    Raises:
        ConfigError: the name is not on the list, or MONAI refuses the arguments.
    """
    parameters = _parameters(name)
    _check(name, arguments, parameters)
    values = {"dimensions": dimensions, "channels": channels, "classes": classes}
    if "spatial_dims" not in parameters and dimensions == 2:
        raise ConfigError([f"network.name: {name} is for volumes, the plan is 2D; take another network"])
    given = {key: values[ours] for key, ours in _GIVEN.items() if key in parameters}
    try:
        network = _factory(name)(**given, **arguments)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError) as error:
        raise ConfigError([f"network.arguments: {name} refuses them: {_sentence(error)}"]) from error
    return MonaiNetwork(network, dimensions)


def _check(name: str, arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    faults = []
    for key in arguments:
        if key in _GIVEN:
            faults.append(f"network.arguments.{key}: is set by the plan and the manifest; leave it out")
        elif key in _REFUSED and key in parameters:
            faults.append(f"network.arguments.{key}: is not taken; {_REFUSED[key]}")
        elif key not in parameters:
            own = sorted(parameters.keys() - _GIVEN.keys() - _REFUSED.keys())
            close = difflib.get_close_matches(key, own, n=1, cutoff=0.6)
            hint = f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(own)}"
            faults.append(f"network.arguments.{key}: unknown argument of {name}{hint}")
    if faults:
        raise ConfigError(faults)


def _factory(name: str) -> Callable[..., nn.Module]:
    if name not in MONAI_NAMES:
        close = difflib.get_close_matches(name, MONAI_NAMES, n=1, cutoff=0.5)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ConfigError([f"network.name: is {name!r}, expected one of {', '.join(MONAI_NAMES)}{hint}"])
    from monai.networks import nets  # seconds to import, and only this kind needs it

    return cast(Callable[..., nn.Module], getattr(nets, name))


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    factory: Callable[..., Any] = _factory(name)
    if name in _VARIANTS:  # lambdas over this function
        from monai.networks.nets.mednext import create_mednext

        factory = create_mednext
    every = inspect.signature(factory).parameters
    return {key: value for key, value in every.items() if key != "variant" or name not in _VARIANTS}


def _demanded(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
