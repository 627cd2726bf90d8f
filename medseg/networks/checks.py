"""Whether a network can take a patch, found out from shapes alone: nothing is computed and no memory is used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.build import Architecture, build_network

_MULTIPLES = (2, 4, 8, 16, 32, 64, 128)


def check_network(architecture: Architecture, patch_size: Sequence[int]) -> None:
    """Sends the shapes of two patches through the network in training mode, and of one in eval mode.

    Args:
        architecture: see ``build_network``.
        patch_size: the patch's sizes that the network sees: two in 2D, three in 3D.

    Raises:
        ConfigError: the values do not make a network, or it can't take this patch; then the message names one it can take.
    """
    with torch.random.fork_rng(devices=[]):
        network = _shapes_only(architecture)
    channels, classes = int(architecture["channels"]), int(architecture["classes"])
    fault = _fault(network, channels, classes, patch_size)
    if fault is None:
        return
    name = str(architecture.get("name", architecture["kind"]))
    for multiple in _MULTIPLES:
        larger = [-(-size // multiple) * multiple for size in patch_size]
        if _fault(network, channels, classes, larger) is None:
            hint = f"{larger} would do; set prepare.patch_size_xyz"
            break
    else:
        hint = "no larger patch helps; change the network's values"
    raise ConfigError([f"network: {name} can't take patches of {list(patch_size)} ({fault}); {hint}"])


def _shapes_only(architecture: Architecture) -> nn.Module:
    try:
        with torch.device("meta"):
            return build_network(architecture)
    except RuntimeError:
        # SwinUNETR computes numbers for itself while it is built, so it has to be built for real.
        return build_network(architecture).to("meta")
    except ValueError as error:
        raise ConfigError([f"network: {error}; change it in the config"]) from error


def _fault(network: nn.Module, channels: int, classes: int, patch_size: Sequence[int]) -> str | None:
    pair, single = (torch.empty(n, channels, *patch_size, device="meta") for n in (2, 1))
    wanted = (classes, *patch_size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # MONAI's own; the real network gives them again
            heads = network.train()(pair)
            # One window alone, as the last of a scan may be: some norms need more values than that has at the coarsest.
            answers = [heads if isinstance(heads, Tensor) else heads[0], network.eval()(single)]
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        return " ".join(str(error).split())[:160] or type(error).__name__
    got = next((tuple(answer.shape[1:]) for answer in answers if tuple(answer.shape[1:]) != wanted), None)
    return None if got is None else f"answers with {list(got)}, expected {list(wanted)}"
