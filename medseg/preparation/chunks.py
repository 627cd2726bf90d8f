"""How an array is cut into chunks, and which of them a box meets. Pure arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

Triple = tuple[int, int, int]
Slices = tuple[slice, slice, slice]


def balanced_chunk(shape: Triple, largest: Triple) -> Triple:
    """The chunk size at most ``largest`` that cuts each axis of ``shape`` into equal parts, the last a little smaller.

    An axis of 70 voxels with ``largest`` 64 gives 35, not 64 + 6.
    """
    x, y, z = (-(-length // max(1, -(-length // most))) for length, most in zip(shape, largest, strict=True))
    return x, y, z


@dataclass(frozen=True)
class ChunkLayout:
    """An array (channels, X, Y, Z) in chunks of ``chunk`` voxels, numbered in C order; border chunks are cut, not padded."""

    shape: Triple
    chunk: Triple
    channels: int

    @property
    def grid(self) -> Triple:
        """Chunks per axis."""
        x, y, z = (-(-length // size) for length, size in zip(self.shape, self.chunk, strict=True))
        return x, y, z

    @property
    def count(self) -> int:
        """How many chunks there are."""
        x, y, z = self.grid
        return x * y * z

    def box(self, index: int) -> Slices:
        """Voxels of chunk ``index``."""
        _, ny, nz = self.grid
        position = (index // (ny * nz), index // nz % ny, index % nz)
        x, y, z = (
            slice(p * size, min((p + 1) * size, length))
            for p, size, length in zip(position, self.chunk, self.shape, strict=True)
        )
        return x, y, z

    def runs(self, start: Triple, size: Triple) -> Iterator[range]:
        """Numbers of the chunks that a box meets, as runs that lie one after the other in the file.

        Args:
            start: first voxel of the box, may be negative.
            size: voxels per axis.
        """
        spans = []
        for first, length, chunk, limit in zip(start, size, self.chunk, self.shape, strict=True):
            low, high = max(first, 0), min(first + length, limit)
            if low >= high:
                return
            spans.append(range(low // chunk, (high - 1) // chunk + 1))
        _, ny, nz = self.grid
        pending: range | None = None
        for x, y in itertools.product(spans[0], spans[1]):
            begin = (x * ny + y) * nz + spans[2].start
            run = range(begin, begin + len(spans[2]))
            if pending is not None and pending.stop == run.start:
                pending = range(pending.start, run.stop)
                continue
            if pending is not None:
                yield pending
            pending = run
        if pending is not None:
            yield pending


def chunk_slices(layout: ChunkLayout, index: int, start: Triple, size: Triple) -> tuple[Slices, Slices, Triple]:
    """Where chunk ``index`` and a box overlap.

    Returns:
        The overlap inside the chunk, the same inside the box, and the chunk's own (X, Y, Z).
    """
    here, there, lengths = [], [], []
    for chunk, first, length in zip(layout.box(index), start, size, strict=True):
        low, high = max(chunk.start, first), min(chunk.stop, first + length)
        here.append(slice(low - chunk.start, high - chunk.start))
        there.append(slice(low - first, high - first))
        lengths.append(chunk.stop - chunk.start)
    return (here[0], here[1], here[2]), (there[0], there[1], there[2]), (lengths[0], lengths[1], lengths[2])
