"""Whether a map tells of the network: it has to change when the weights are shuffled (Adebayo et al., NeurIPS 2018)."""

from __future__ import annotations

import copy
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def shuffled(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of a network in which the values within each weight tensor, and running statistics, have changed places.

    The distribution of every layer's weights stays; what they learned is gone.

    Args:
        network: left as it is.
        seed: of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    result = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (*result.parameters(), *(b for b in result.buffers() if b.is_floating_point())):
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))
    return result


def rank_correlation(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Spearman's correlation of two maps of one shape over all their voxels, equals sharing their rank.

    Returns:
        -1 to 1; 0 where a map is the same everywhere, for then nothing of the other is in it.
    """
    from scipy.stats import rankdata

    ranks = [np.asarray(rankdata(array.ravel()), np.float64) for array in (one, other)]
    centred = [own - own.mean() for own in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum()) * float((centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / scale if scale > 0 else 0.0
