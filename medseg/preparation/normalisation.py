"""Intensities to the range a network likes: one function per scheme, one line per scheme in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from medseg.preparation.plan import ChannelPlan

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_SMALLEST_STD = 1e-8


def normalise(image: FloatArray, channels: Sequence[ChannelPlan], mask: Mask | None) -> None:
    """Normalises every channel in place.

    Args:
        image: (C, X, Y, Z) float32, finite, cropped to nonzero.
        channels: one per channel.
        mask: (X, Y, Z) nonzero voxels with holes filled; needed where a channel says ``use_mask``. Voxels outside keep
            their value there, which is 0.
    """
    for values, channel in zip(image, channels, strict=True):
        inside = mask if channel.use_mask else None
        assert not channel.use_mask or inside is not None
        _SCHEMES[channel.scheme](values, channel, inside)


def needs_mask(channels: Sequence[ChannelPlan]) -> bool:
    """Whether `normalise` needs the nonzero mask."""
    return any(channel.use_mask for channel in channels)


def _ct(values: FloatArray, channel: ChannelPlan, _mask: Mask | None) -> None:
    np.clip(values, channel.low, channel.high, out=values)
    values -= np.float32(channel.mean)
    values /= np.float32(max(channel.std, _SMALLEST_STD))


def _zscore(values: FloatArray, _channel: ChannelPlan, mask: Mask | None) -> None:
    # Sums in float64: intensities go up to millions, and float32 sums of many of them lose digits.
    chosen = values if mask is None else values[mask]
    if chosen.size == 0:
        return
    mean = np.float32(chosen.mean(dtype=np.float64))
    std = np.float32(max(float(chosen.std(dtype=np.float64)), _SMALLEST_STD))
    if mask is None:
        values -= mean
        values /= std
    else:
        values[mask] = (chosen - mean) / std


def _percentile(values: FloatArray, channel: ChannelPlan, mask: Mask | None) -> None:
    chosen = values if mask is None else values[mask]
    if chosen.size == 0:
        return
    low, high = np.percentile(chosen, (0.5, 99.5)).astype(np.float32)
    if mask is None:
        np.clip(values, low, high, out=values)
    else:
        values[mask] = np.clip(chosen, low, high)
    _zscore(values, channel, mask)


def _range(values: FloatArray, _channel: ChannelPlan, _mask: Mask | None) -> None:
    low, high = values.min(), values.max()
    values -= low
    values /= max(high - low, np.float32(_SMALLEST_STD))


def _rgb(values: FloatArray, _channel: ChannelPlan, _mask: Mask | None) -> None:
    values /= np.float32(255)


def _none(_values: FloatArray, _channel: ChannelPlan, _mask: Mask | None) -> None:
    pass


_SCHEMES: dict[str, Callable[[FloatArray, ChannelPlan, Mask | None], None]] = {
    "ct": _ct,
    "zscore": _zscore,
    "percentile": _percentile,
    "range": _range,
    "rgb": _rgb,
    "none": _none,
}
