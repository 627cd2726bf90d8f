"""The U-Net computing in another order of the axes, for weights that were trained so.

A convolution adds up its products in an order that goes by the layout in memory. A network that is given (z, y, x) arrays and
one with turned kernels that is given (x, y, z) are the same function, but their last digits differ, and where two classes are
a hair apart, so do the masks. A network from elsewhere that has to answer as it did at home computes in its home's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medseg.networks.unet import UNet


class ReorderedUNet(UNet):
    """A U-Net for (x, y, z) windows that turns them, computes, and turns the answer back.

    From outside it is a `UNet`: arguments, state dict and what it answers have (x, y, z) order.

    Args:
        order: which of our axes is the first, second and third of the arrays that are computed on; (2, 1, 0) is (z, y, x).
            In 2D two of them, 0 and 1, of the two that the network sees.
        dimensions: 2 or 3.
        strides: per stage an (x, y, z) triple.
        kernel_sizes: per stage an (x, y, z) triple.
        others: of `UNet`.

    Raises:
        ValueError: the order is not one of the axes.
    """

    def __init__(
        self,
        *,
        order: Sequence[int],
        dimensions: int,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        **others: Any,
    ) -> None:
        if sorted(order) != list(range(dimensions)):
            raise ValueError(f"order is {list(order)}, expected each of the axes 0 to {dimensions - 1} once")
        turned = [[_turned(size, order) for size in sizes] for sizes in (strides, kernel_sizes)]
        super().__init__(dimensions=dimensions, strides=turned[0], kernel_sizes=turned[1], **others)
        self.order = tuple(order)
        self._back = tuple(self.order.index(axis) for axis in range(dimensions))
        self.register_state_dict_post_hook(_outwards)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_inwards)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See `UNet`; the answer may be a view whose memory is not in (x, y, z) order."""
        answer = super().forward(_permuted(x, self.order).contiguous())
        if isinstance(answer, list):
            return [_permuted(head, self._back) for head in answer]
        return _permuted(answer, self._back)


def _turned(size: Sequence[int], order: Sequence[int]) -> list[int]:
    return [size[axis] for axis in order] + list(size[len(order) :])


def _permuted(tensor: Tensor, order: Sequence[int]) -> Tensor:
    return tensor.permute(0, 1, *(2 + axis for axis in order))


def _kernels(weights: Mapping[str, Tensor], prefix: str, order: Sequence[int]) -> dict[str, Tensor]:
    return {
        name: _permuted(tensor, order).contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix) and tensor.ndim == 2 + len(order)
    }


def _outwards(module: torch.nn.Module, weights: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    assert isinstance(module, ReorderedUNet)
    weights.update(_kernels(weights, prefix, module._back))  # noqa: SLF001 - a hook of the class


def _inwards(module: torch.nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    assert isinstance(module, ReorderedUNet)
    weights.update(_kernels(weights, prefix, module.order))


def build_unet(*, order: Sequence[int] | None = None, **arguments: Any) -> UNet:
    """A `UNet`, or one that computes in another ``order`` of the axes where that is given."""
    return UNet(**arguments) if order is None else ReorderedUNet(order=order, **arguments)
