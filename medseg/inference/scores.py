"""What one scan's class scores are kept as, between the network and the mask: in memory, in a file, or one layer earlier.

The last layer of a U-Net is a 1 x 1 x 1 convolution, blending and resampling are linear too, and the shares of the windows
add up to 1: they may change places. Where a network has more classes than features before its last layer, the features are
blended and resampled, and the last layer is applied slab by slab at the very end: the same scores but for rounding, with
the memory of 8 features in place of 40 classes.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medseg.errors import EnvironmentFault
from medseg.imaging.resampling import ScoreRows
from medseg.networks.unet import SkipDecoder

FloatArray = npt.NDArray[np.float32]
_COLUMNS = 1 << 16


@dataclass(frozen=True, eq=False)
class Features:
    """Blended features whose last layer is still to be applied.

    Attributes:
        array: (F, X, Y, Z) float32, the features of all models one after the other.
        weight: (K, F) float32.
        bias: (K, 1) float32.
    """

    array: ScoreRows
    weight: FloatArray
    bias: FloatArray

    @classmethod
    def of(cls, parts: Sequence[ScoreRows], layers: Sequence[tuple[FloatArray, FloatArray]]) -> Features:
        """Of several models; the mean of their scores.

        Args:
            parts: each model's features.
            layers: each model's `last_layer`.
        """
        share = np.float32(1 / len(layers))
        weight = np.asarray(share * np.concatenate([weight for weight, _ in layers], axis=1), np.float32)
        bias = np.asarray(share * np.sum([bias for _, bias in layers], axis=0), np.float32)
        return cls(parts[0] if len(parts) == 1 else _Stacked(tuple(parts)), weight, bias)

    @property
    def nbytes(self) -> int:
        """Of the features, wherever they are."""
        return 4 * math.prod(self.array.shape)

    def scores(self, slab: FloatArray) -> FloatArray:
        """(K, n, Y, Z) float32 scores of a slab (F, n, Y, Z) of features."""
        flat = self.weight @ slab.reshape(len(slab), -1)
        flat += self.bias
        return np.asarray(flat.reshape(-1, *slab.shape[1:]), np.float32)

    def winners(self, slab: FloatArray) -> npt.NDArray[np.uint8]:
        """(n, Y, Z) uint8: the class with the highest score, of equal ones the lowest; a few voxels at a time."""
        flat = slab.reshape(len(slab), -1)
        result = np.zeros(flat.shape[1], np.uint8)
        for start in range(0, flat.shape[1], _COLUMNS):
            scores = self.weight @ flat[:, start : start + _COLUMNS]
            scores += self.bias
            winner = result[start : start + _COLUMNS]
            best = scores[0]
            for value, own in enumerate(scores[1:], start=1):
                winner[own > best] = value
                np.maximum(best, own, out=best)
        return result.reshape(slab.shape[1:])


@dataclass(frozen=True)
class _Stacked:
    """Features of several models as one array."""

    parts: tuple[ScoreRows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(map(len, self.parts)), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.parts)


def score_channels(scores: FloatArray | ScoreFile | Features) -> Iterator[FloatArray]:
    """Class scores one class after another, (X, Y, Z) float32 each, whatever they are kept as."""
    rows = scores.array if isinstance(scores, Features) else scores
    if not isinstance(scores, Features):
        yield from (np.asarray(channel[: rows.shape[1]], np.float32) for channel in rows)
        return
    features = np.stack([np.asarray(channel[: rows.shape[1]], np.float32) for channel in rows])
    flat = features.reshape(len(features), -1)
    for weight, bias in zip(scores.weight, scores.bias, strict=True):
        yield np.asarray((weight @ flat + bias).reshape(rows.shape[1:]), np.float32)


def stacked(parts: Sequence[Features]) -> Features:
    """Features of several models, each with its last layer, as `Features.of` puts them together."""
    return Features.of([part.array for part in parts], [(part.weight, part.bias) for part in parts])


def mean_of(total: FloatArray | ScoreFile, models: int) -> FloatArray | ScoreFile:
    """The mean of scores that were added up, in place."""
    if isinstance(total, ScoreFile):
        total.finish()
    elif models > 1:
        total /= np.float32(models)
    return total


def last_layer(network: nn.Module) -> tuple[FloatArray, FloatArray] | None:
    """(weight (K, F), bias (K, 1)) of a network's last layer, or None where it is not one that can be applied afterwards."""
    head = network.heads[-1] if isinstance(network, SkipDecoder) else None
    if not isinstance(head, nn.Conv2d | nn.Conv3d):
        return None
    weight = head.weight.detach().float().cpu().numpy()
    bias = np.zeros(len(weight), np.float32) if head.bias is None else head.bias.detach().float().cpu().numpy()
    return weight.reshape(len(weight), -1), bias[:, None]


@contextmanager
def features_only(network: nn.Module) -> Iterator[None]:
    """Within the block the network answers with the features before its last layer."""
    assert isinstance(network, SkipDecoder)
    network.features_only = True
    try:
        yield
    finally:
        network.features_only = False


class ScoreFile:
    """Scores (K, X, Y, Z) float32 in a temporary file that is gone when this object or the process is.

    Takes finished planes along ``axis``, the first model's, then adds each further one's. Behaves as an array where scores
    are resampled: ``shape``, ``len``, channels that are sliced along x.

    Args:
        shape: (K, X, Y, Z).
        axis: along which planes come (0 = x).
        folder: for the file; None is the system's temporary folder.

    Raises:
        EnvironmentFault: the disk has no room for it.
    """

    def __init__(self, shape: Sequence[int], *, axis: int, folder: Path | None = None) -> None:
        self.shape, self.axis = tuple(shape), axis
        self.models = 0
        """Whose planes are all in it."""
        needed = 4 * math.prod(shape)
        # Without a name nothing is left of it, however the process ends; the page cache holds what there is room for.
        self._file, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
        weakref.finalize(self, os.close, self._file)
        try:
            os.posix_fallocate(self._file, 0, needed)
        except OSError as error:
            raise EnvironmentFault(
                f"temporary scores: need {needed / 1e9:.1f} GB, expected that much room in the temporary folder "
                "(TMPDIR) or the output's; make room there"
            ) from error

    def take(self, planes: torch.Tensor, start: int) -> None:
        """See `medseg.networks.blending.Sink`."""
        # (n, K, the other two): one run of bytes for all planes that come at once.
        order = (1 + self.axis, 0, *(1 + axis for axis in range(3) if axis != self.axis))
        block = planes.permute(order).cpu().contiguous().numpy()
        offset = start * self._plane_bytes
        if self.models:
            block = block + np.frombuffer(self._read(block.nbytes, offset), np.float32).reshape(block.shape)
        self._write(block, offset)

    @property
    def nbytes(self) -> int:
        """On the disk."""
        return 4 * math.prod(self.shape)

    def finish(self) -> None:
        """Takes the mean of what was added up."""
        if self.models > 1:
            for start in range(self.shape[1 + self.axis]):
                plane = np.frombuffer(self._read(self._plane_bytes, start * self._plane_bytes), np.float32)
                self._write(plane / np.float32(self.models), start * self._plane_bytes)

    @property
    def _plane_bytes(self) -> int:
        return 4 * math.prod(self.shape) // self.shape[1 + self.axis]

    def _read(self, count: int, offset: int) -> bytearray:
        data = bytearray(count)
        done = 0
        while done < count:
            got = os.preadv(self._file, [memoryview(data)[done:]], offset + done)
            if got <= 0:
                raise EnvironmentFault("temporary scores: can't be read back; check the disk of the temporary folder")
            done += got
        return data

    def _write(self, block: FloatArray, offset: int) -> None:
        view, done = memoryview(np.ascontiguousarray(block).tobytes()), 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], offset + done)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[_FileChannel]:
        return (_FileChannel(self, channel) for channel in range(self.shape[0]))

    def rows(self, channel: int, low: int, high: int) -> FloatArray:
        """(high - low, Y, Z) of one channel."""
        _, x, y, z = self.shape
        plane = self._plane_bytes // self.shape[0]  # of one channel
        result = np.empty((high - low, y, z), np.float32)
        if self.axis == 0:
            for index in range(low, high):
                data = self._read(plane, index * self._plane_bytes + channel * plane)
                result[index - low] = np.frombuffer(data, np.float32).reshape(y, z)
            return result
        across = y if self.axis == 1 else z
        for index in range(across):
            row = plane // x
            data = self._read(row * (high - low), index * self._plane_bytes + channel * plane + row * low)
            values = np.frombuffer(data, np.float32).reshape(high - low, -1)
            if self.axis == 1:
                result[:, index, :] = values
            else:
                result[:, :, index] = values
        return result


@dataclass(frozen=True)
class _FileChannel:
    file: ScoreFile
    channel: int

    def __getitem__(self, where: slice) -> FloatArray:
        low, high, _ = where.indices(self.file.shape[1])
        return self.file.rows(self.channel, low, high)
