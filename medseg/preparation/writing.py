"""Writing one prepared case: a file that is there whole or not at all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.durable import atomic_path
from medseg.preparation.chunks import ChunkLayout, balanced_chunk
from medseg.preparation.grid import Grid
from medseg.preparation.store import FOOTER, MARK, STORE_FORMAT, TABLE_DTYPE

CHUNK_XYZ = (32, 32, 32)
CHUNK_PLANAR_XYZ = (128, 128, 1)
"""Of pictures, and of volumes that are read slice by slice, whose chunks have their one voxel along the slices' axis."""
WHOLE_BELOW_VOXELS = 64**3
"""A case with fewer voxels is one chunk: its patches are most of it anyway."""
_LARGEST_FLOAT16 = 65504.0


def write_case(
    path: Path,
    *,
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8] | None,
    grid: Grid,
    locations: Mapping[int, npt.NDArray[np.int64]],
    dtype: str,
    slice_axis: int | None = None,
    labelled: Sequence[str] | None = None,
    previous: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Writes a case's file atomically and durably. Equal values give equal bytes.

    Args:
        path: from `case_path`.
        image: (C, X, Y, Z) float32, finite.
        labels: (X, Y, Z) uint8 class indices, or None.
        grid: of the arrays.
        locations: class index to flat C-order voxel indices, below 2^32.
        dtype: "float16" (values are clipped to its finite range) or "float32".
        slice_axis: axis along which patches have one voxel; a chunk then lies in one slice.
        labelled: names of the classes that were looked for; None where all were.
        previous: (X, Y, Z) uint8 class indices of a cascade's first stage, or None.

    Raises:
        EnvironmentFault: the disk is full or the folder is not writable.
    """
    assert image.shape[1:] == grid.prepared_shape
    assert labels is None or labels.shape == grid.prepared_shape
    chunk = chunk_for(grid.prepared_shape, slice_axis)
    table: list[tuple[int, int, int]] = []
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        _write_chunks(stream, table, image, chunk, np.dtype(dtype))
        if labels is not None:
            _write_chunks(stream, table, labels[np.newaxis], chunk, np.dtype(np.uint8))
        if previous is not None:
            _write_chunks(stream, table, previous[np.newaxis], chunk, np.dtype(np.uint8))
        for index in sorted(locations):
            _write_block(stream, table, np.ascontiguousarray(locations[index], "<u4").tobytes())
        data = np.array(table, TABLE_DTYPE).tobytes()
        about: dict[str, Any] = {
            "format": STORE_FORMAT,
            "channels": image.shape[0],
            "dtype": dtype,
            "chunk_xyz": list(chunk),
            "has_labels": labels is not None,
            "class_voxels": {} if labels is None else _class_voxels(labels),
            "location_classes": sorted(locations),
            "table": {"offset": stream.tell(), "count": len(table), "crc32": zlib.crc32(data)},
            "grid": grid.plain(),
        }
        if labelled is not None:
            about["labelled"] = list(labelled)
        if previous is not None:
            about["has_previous"] = True
        stream.write(data)
        text = json.dumps(about, indent=1, allow_nan=False).encode()
        footer = FOOTER.pack(stream.tell(), len(text), zlib.crc32(text), MARK)
        stream.write(text + footer)


def chunk_for(shape: tuple[int, int, int], slice_axis: int | None = None) -> tuple[int, int, int]:
    """The chunk size for an array of ``shape`` (X, Y, Z), whose patches are slices across ``slice_axis`` if it is given."""
    if slice_axis is not None:
        x, y, z = (1 if axis == slice_axis else CHUNK_PLANAR_XYZ[0] for axis in range(3))
        return balanced_chunk(shape, (x, y, z))
    if shape[2] == 1:
        return balanced_chunk(shape, CHUNK_PLANAR_XYZ)
    return shape if shape[0] * shape[1] * shape[2] < WHOLE_BELOW_VOXELS else balanced_chunk(shape, CHUNK_XYZ)


def _class_voxels(labels: npt.NDArray[np.uint8]) -> dict[str, int]:
    counts = np.bincount(labels.reshape(-1), minlength=256)
    return {str(index): int(counts[index]) for index in np.flatnonzero(counts)}


def _write_chunks(
    stream: BinaryIO,
    table: list[tuple[int, int, int]],
    array: npt.NDArray[Any],
    chunk: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> None:
    """Appends the chunks of ``array`` (C, X, Y, Z); one that has a single value per channel is that value."""
    layout = ChunkLayout((array.shape[1], array.shape[2], array.shape[3]), chunk, array.shape[0])
    for index in range(layout.count):
        part = array[(slice(None), *layout.box(index))]
        if dtype == np.float16:
            part = np.clip(part, -_LARGEST_FLOAT16, _LARGEST_FLOAT16)
        part = np.ascontiguousarray(part, dtype)
        firsts = part[:, :1, :1, :1]
        constant = bool((part == firsts).all())
        _write_block(stream, table, (np.ascontiguousarray(firsts) if constant else part).tobytes())


def _write_block(stream: BinaryIO, table: list[tuple[int, int, int]], data: bytes) -> None:
    table.append((stream.tell(), len(data), zlib.crc32(data)))
    stream.write(data)
