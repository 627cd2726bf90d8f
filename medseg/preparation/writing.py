"""Writing one prepared case: a folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.durable import sha256_json
from medseg.durable.writing import temporary_name
from medseg.errors import EnvironmentFault
from medseg.preparation.chunks import ChunkLayout, balanced_chunk
from medseg.preparation.grid import Grid
from medseg.preparation.store import STORE_FORMAT, TABLE_DTYPE

CHUNK_XYZ = (32, 32, 32)
CHUNK_PLANAR_XYZ = (128, 128, 1)
_LARGEST_FLOAT16 = 65504.0


def write_case(
    folder: Path,
    *,
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8] | None,
    grid: Grid,
    locations: Mapping[int, npt.NDArray[np.int64]],
    dtype: str,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``folder`` durably; if it is there already it is replaced.

    Args:
        folder: ``<prepared>/cases/<id>/<key>``.
        image: (C, X, Y, Z) float32, finite.
        labels: (X, Y, Z) uint8 class indices, or None.
        grid: of the arrays.
        locations: class index to flat C-order voxel indices.
        dtype: "float16" (values are clipped to its finite range) or "float32".
        about: further plain values for ``case.json``.

    Raises:
        EnvironmentFault: the disk is full or the folder is not writable.
    """
    stage = temporary_name(folder.parent.parent / folder.name)
    try:
        stage.mkdir(parents=True)
        _write_files(stage, image=image, labels=labels, grid=grid, locations=locations, dtype=dtype, about=about or {})
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        stage.rename(folder)
        for made in (folder.parent, folder.parent.parent):
            _sync(made)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EnvironmentFault(
            f"{folder.parent.name}: can't be written to the store ({reason}); check the folder's permissions and disk"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(stage)


def _write_files(stage: Path, *, about: Mapping[str, Any], **parts: Any) -> None:
    with (stage / "voxels.bin").open("wb") as stream:
        described = _write_voxels(stream, **parts)
        stream.flush()
        os.fsync(stream.fileno())
    content: dict[str, Any] = {"format": STORE_FORMAT, **about, **described, "grid": parts["grid"].plain()}
    content["sha256"] = sha256_json(content)
    with (stage / "case.json").open("w", encoding="utf-8") as text:
        json.dump(content, text, indent=1, allow_nan=False)
        text.flush()
        os.fsync(text.fileno())
    _sync(stage)


def _write_voxels(
    stream: BinaryIO,
    *,
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8] | None,
    grid: Grid,
    locations: Mapping[int, npt.NDArray[np.int64]],
    dtype: str,
) -> dict[str, Any]:
    assert image.shape[1:] == grid.prepared_shape
    chunk = balanced_chunk(grid.prepared_shape, CHUNK_PLANAR_XYZ if grid.prepared_shape[2] == 1 else CHUNK_XYZ)
    table: list[tuple[int, int, int]] = []
    _write_chunks(stream, table, image, chunk, np.dtype(dtype))
    if labels is not None:
        assert labels.shape == grid.prepared_shape
        _write_chunks(stream, table, labels[np.newaxis], chunk, np.dtype(np.uint8))
    classes = sorted(locations)
    for index in classes:
        _write_block(stream, table, np.ascontiguousarray(locations[index], "<u4").tobytes())
    data = np.array(table, TABLE_DTYPE).tobytes()
    described = {"offset": stream.tell(), "count": len(table), "crc32": zlib.crc32(data)}
    stream.write(data)
    values, counts = (np.zeros(0), np.zeros(0)) if labels is None else np.unique(labels, return_counts=True)
    return {
        "channels": image.shape[0],
        "dtype": dtype,
        "chunk_xyz": list(chunk),
        "has_labels": labels is not None,
        "class_voxels": {str(int(v)): int(n) for v, n in zip(values, counts, strict=True)},
        "location_classes": classes,
        "table": described,
    }


def _write_chunks(
    stream: BinaryIO,
    table: list[tuple[int, int, int]],
    array: npt.NDArray[Any],
    chunk: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> None:
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


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
