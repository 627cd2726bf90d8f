"""Instance norms by a faster kernel of the same function, while a network only answers.

On CPUs PyTorch computes an instance norm through batch norm, one channel after another. Group norm with a group per channel
is the same function, and a U-Net with it took a tenth less time. Arrays stay in (B, C, X, Y, Z) order for it: for channels
last, group norm takes the variance as a difference of two sums, which loses three digits where mean and SD are far apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

_InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d


@contextmanager
def quick_norms(network: nn.Module) -> Iterator[None]:
    """Within the block, instance norms without running statistics compute as group norms. Weights stay where they are."""
    norms = [
        module for module in network.modules() if isinstance(module, _InstanceNorm) and not module.track_running_stats
    ]
    try:
        for norm in norms:
            norm.forward = partial(_by_groups, norm)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _by_groups(norm: _InstanceNorm, x: Tensor) -> Tensor:
    return functional.group_norm(x.contiguous(), x.shape[1], norm.weight, norm.bias, norm.eps)
