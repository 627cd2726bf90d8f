"""3D convolutions by Winograd's minimal filtering along one axis: F(4, 3), half the multiplications of the direct sum.

Lavin and Gray, CVPR 2016 (arXiv 1509.09308), section 4.1.3: four outputs of a 3 wide filter take six products in place of
twelve. Along the first axis planes are combined (additions of whole planes, which run at the speed of the cache), the other
two axes go through a 2D convolution as they are, and its planes are combined again. The sum is the same but for rounding: in
float32 2e-6 of the result's size over 256 channels, a thousandth of bfloat16's. In bfloat16 itself the larger terms that cancel
cost a factor of five (1.2e-2 for 2.3e-3), so it is for float32 only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

TILE = 4
# Combined planes at a time: what a convolution leaves in the second and third level of cache for the next one.
_CHUNK_BYTES = 6 << 20
_FILTERS = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / 24  # fmt: skip


def filter_planes(weight: Tensor) -> list[Tensor]:
    """(K, C, 3, h, w) to the six (K, C, h, w) float32 filters of :func:`convolve`, channels last; computed in float64."""
    planes = torch.einsum("tj,kcjhw->tkchw", _FILTERS.to(weight.device), weight.double())
    return [plane.float().contiguous(memory_format=torch.channels_last) for plane in planes]


def convolve(x: Tensor, filters: Sequence[Tensor], padding: Sequence[int]) -> Tensor:
    """The convolution of (B, C, X, Y, Z) with a 3 wide kernel along x, stride 1 and zeros around, without a bias.

    Args:
        x: float32, channels last.
        filters: of :func:`filter_planes`.
        padding: along y and z.

    Returns:
        (B, K, X, ..., ...), channels last.
    """
    x = x.permute(0, 2, 3, 4, 1)
    size, plane = x.shape[1], x.shape[2:]
    tiles = -(-size // TILE)
    step = max(1, _CHUNK_BYTES // (6 * x.element_size() * len(x) * plane.numel()))
    out = None
    for start in range(0, tiles, step):
        count = min(step, tiles - start)
        combined = _combined(_planes(x, TILE * start - 1, TILE * count + 2), count)
        parts = []
        for own, kernel in zip(combined, filters, strict=True):
            part = functional.conv2d(own.flatten(0, 1).permute(0, 3, 1, 2), kernel, padding=tuple(padding))
            parts.append(part.permute(0, 2, 3, 1).reshape(*own.shape[:4], -1))
        if out is None:
            out = x.new_empty((x.shape[0], size, *parts[0].shape[2:]))
        whole = out[:, TILE * start : TILE * (start + count)]
        if whole.shape[1] == TILE * count:
            _join(parts, whole)
        else:
            target = whole.new_empty((len(x), TILE * count, *whole.shape[2:]))
            _join(parts, target)
            whole.copy_(target[:, : whole.shape[1]])
    assert out is not None
    return out.permute(0, 4, 1, 2, 3)


def _planes(x: Tensor, start: int, count: int) -> Tensor:
    """Planes ``start`` to ``start + count`` of (B, X, Y, Z, C), zeros beyond both ends."""
    size = x.shape[1]
    if start >= 0 and start + count <= size:
        return x[:, start : start + count]
    low, high = max(start, 0), min(start + count, size)
    padded = x.new_zeros((x.shape[0], count, *x.shape[2:]))
    padded[:, low - start : high - start] = x[:, low:high]
    return padded


def _combined(planes: Tensor, tiles: int) -> Tensor:
    """(B, 4 tiles + 2, Y, Z, C) to (6, B, tiles, Y, Z, C): the transposed B of the paper's F(4, 3) over six planes each."""
    d = [planes[:, j : j + TILE * (tiles - 1) + 1 : TILE] for j in range(6)]
    out = planes.new_empty((6, *d[0].shape))
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(d[2], d[0], out=out[0])
    torch.sub(even, out[0], alpha=4, out=out[0])
    torch.sub(d[5], d[3], out=out[5])
    out[5].sub_(odd, alpha=4)
    return out


def _join(parts: list[Tensor], out: Tensor) -> None:
    """Six (B, tiles, Y, Z, K) into (B, 4 tiles, Y, Z, K): the transposed A of the paper's F(4, 3). Writes into ``parts``."""
    near, near_odd = parts[1] + parts[2], parts[1].sub_(parts[2])
    far, far_odd = torch.add(parts[3], parts[4], out=parts[2]), parts[3].sub_(parts[4])
    torch.add(parts[0].add_(near), far, out=out[:, 0::TILE])
    torch.add(near_odd, far_odd, alpha=2, out=out[:, 1::TILE])
    torch.add(near, far, alpha=4, out=out[:, 2::TILE])
    torch.add(near_odd.add_(parts[5]), far_odd, alpha=8, out=out[:, 3::TILE])
