"""The prepared data on disk: one file per case, read patch by patch.

``<prepared>/cases/<id>.<key>.bin`` holds, one after the other: the image in chunks, the labels in chunks, in a cascade the mask
of its first stage in chunks, a bounded sample of voxels per class, a table with offset, length and CRC-32 of each of these
blocks, a JSON object that says what the case is, and a footer that finds it. A patch is read with one ``pread`` per run of
neighbouring chunks, and every block that is read is checked. Why this and not blosc2: ``docs/store.md``.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from medseg.durable import read_json, sha256_json
from medseg.errors import DamagedFileError, InputError
from medseg.preparation.chunks import ChunkLayout, chunk_slices
from medseg.preparation.grid import Grid
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import read_plan

STORE_FORMAT = 1
FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
TABLE_DTYPE = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])
FOOTER = struct.Struct("<QII8s")
"""Offset, length and CRC-32 of the JSON object, and the mark below; the last bytes of a case's file."""
MARK = b"medseg\x01\n"


class Patch(NamedTuple):
    """``image`` (C, X, Y, Z) float32 and ``labels`` (X, Y, Z) uint8 class indices (255: nobody labelled the voxel)."""

    image: FloatArray
    labels: LabelArray


@dataclass(frozen=True, eq=False)
class StoredCase:
    """One prepared case; making it reads nothing, and no file stays open.

    It may be pickled and used by several processes at once.

    Attributes:
        id: the manifest's case id.
        path: its file.
    """

    id: str
    path: Path

    @cached_property
    def _about(self) -> dict[str, Any]:
        with self._open() as reader:
            return reader.about()

    def damaged(self, what: str) -> DamagedFileError:
        """The error for a fault of this case's file."""
        return DamagedFileError(f"{self.id}: prepared data is damaged, {what}; run prepare again with --repair")

    @cached_property
    def _table(self) -> npt.NDArray[np.void]:
        table = self._about["table"]
        with self._open() as reader:
            data = reader.read_at(table["offset"], table["count"] * TABLE_DTYPE.itemsize)
        if zlib.crc32(data) != table["crc32"]:
            raise self.damaged("its table does not have its checksum")
        return np.frombuffer(data, TABLE_DTYPE)

    def _open(self) -> _Reader:
        return _Reader(self)

    @property
    def shape_xyz(self) -> tuple[int, int, int]:
        """(X, Y, Z) voxels."""
        return self.grid.prepared_shape

    @cached_property
    def grid(self) -> Grid:
        """Where the array lies in its scan."""
        return Grid.from_plain(self._about["grid"])

    @property
    def channels(self) -> int:
        """Image channels C."""
        return int(self._about["channels"])

    @property
    def has_labels(self) -> bool:
        """Whether the case has a label map; without one `read_patch` gives labels of 0."""
        return bool(self._about["has_labels"])

    @property
    def has_previous(self) -> bool:
        """Whether the case holds the mask of a cascade's first stage."""
        return bool(self._about.get("has_previous", False))

    @property
    def labelled(self) -> tuple[str, ...] | None:
        """Names of the classes that were looked for in the case, without background; None where all were."""
        names = self._about.get("labelled")
        return None if names is None else tuple(names)

    @property
    def class_voxels(self) -> dict[int, int]:
        """Class index to its number of prepared voxels, of the classes that occur, background and 255 included."""
        return {int(k): int(v) for k, v in self._about["class_voxels"].items()}

    @property
    def classes_present(self) -> tuple[int, ...]:
        """Indices of the foreground classes that occur, rising."""
        return tuple(sorted(k for k in self.class_voxels if 0 < k < 255))

    @cached_property
    def _image_layout(self) -> ChunkLayout:
        return ChunkLayout(self.shape_xyz, _three(self._about["chunk_xyz"]), self.channels)

    @cached_property
    def _label_layout(self) -> ChunkLayout:
        return ChunkLayout(self.shape_xyz, _three(self._about["chunk_xyz"]), 1)

    def read_patch(self, start_xyz: tuple[int, int, int], size_xyz: tuple[int, int, int]) -> Patch:
        """The box of ``size_xyz`` voxels whose first voxel is ``start_xyz``.

        The box may hang over the border anywhere, also lie wholly outside: there the image and the labels are 0. Only
        chunks that the box meets are read, and each is checked against its CRC-32.

        Args:
            start_xyz: voxel index, may be negative.
            size_xyz: voxels per axis, at least 1 each.

        Returns:
            Image (C, X, Y, Z) float32 and labels (X, Y, Z) uint8, both new and C-contiguous.

        Raises:
            DamagedFileError: a chunk does not have its checksum, or the file is cut.
        """
        image = np.zeros((self.channels, *size_xyz), np.float32)
        labels = np.zeros(size_xyz, np.uint8)
        dtype = np.dtype(self._about["dtype"])
        with self._open() as reader:
            self._fill(reader, self._image_layout, 0, dtype, start_xyz, image)
            if self.has_labels:
                first = self._image_layout.count
                self._fill(reader, self._label_layout, first, np.dtype(np.uint8), start_xyz, labels[np.newaxis])
        return Patch(image, labels)

    def read_all(self) -> Patch:
        """The whole case, as `read_patch` gives it."""
        return self.read_patch((0, 0, 0), self.shape_xyz)

    def read_previous(self, start_xyz: tuple[int, int, int], size_xyz: tuple[int, int, int]) -> LabelArray:
        """The box of the first stage's mask: (X, Y, Z) uint8 class indices, 0 beyond the border; as `read_patch`.

        Raises:
            DamagedFileError: a chunk does not have its checksum, the file is cut, or it holds no such mask.
        """
        if not self.has_previous:
            raise self.damaged("it holds no mask of the first stage")
        mask = np.zeros(size_xyz, np.uint8)
        first = self._image_layout.count + (self._label_layout.count if self.has_labels else 0)
        with self._open() as reader:
            self._fill(reader, self._label_layout, first, np.dtype(np.uint8), start_xyz, mask[np.newaxis])
        return mask

    def _fill(
        self,
        reader: _Reader,
        layout: ChunkLayout,
        first_block: int,
        dtype: np.dtype[Any],
        start_xyz: tuple[int, int, int],
        out: npt.NDArray[Any],
    ) -> None:
        for run in layout.runs(start_xyz, _three(out.shape[1:])):
            blocks = self._table[first_block + run.start : first_block + run.stop]
            for index, data in zip(run, reader.blocks(blocks), strict=True):
                here, there, shape = chunk_slices(layout, index, start_xyz, _three(out.shape[1:]))
                out[(slice(None), *there)] = _as_chunk(data, dtype, (layout.channels, *shape))[(slice(None), *here)]

    def locations(self, class_index: int) -> npt.NDArray[np.int64]:
        """A bounded random sample of the class's voxels, fixed for the case.

        Args:
            class_index: a class; 0 has locations only where the case has voxels that nobody labelled.

        Returns:
            (N, 3) int64 voxel indices in (x, y, z), sorted; (0, 3) where the class does not occur.
        """
        order: list[int] = self._about["location_classes"]
        if class_index not in order:
            return np.zeros((0, 3), np.int64)
        label_maps = int(self.has_labels) + int(self.has_previous)
        block = self._image_layout.count + label_maps * self._label_layout.count + order.index(class_index)
        with self._open() as reader:
            flat = np.frombuffer(next(reader.blocks(self._table[block : block + 1])), "<u4").astype(np.int64)
        return np.stack(np.unravel_index(flat, self.shape_xyz), axis=1)

    def verify(self) -> None:
        """Reads every block once and checks it.

        Raises:
            DamagedFileError: a block does not have its checksum.
        """
        with self._open() as reader:
            for block in range(len(self._table)):
                next(reader.blocks(self._table[block : block + 1]))


def _three(values: Any) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)
    return x, y, z


def _as_chunk(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    values = np.frombuffer(data, dtype)
    if values.size == shape[0] != int(np.prod(shape)):  # one value per channel: the chunk is constant
        return np.broadcast_to(values.reshape(-1, 1, 1, 1), shape)
    return values.reshape(shape)


class _Reader:
    """A case's file, open for the length of a ``with`` block."""

    def __init__(self, case: StoredCase) -> None:
        self._case = case
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self._case.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._case.damaged(f"its file can't be opened ({error.strerror})") from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def about(self) -> dict[str, Any]:
        """The JSON object."""
        end = os.fstat(self._descriptor).st_size - FOOTER.size
        if end < 0:
            raise self._case.damaged("its file is cut short")
        offset, length, crc, mark = FOOTER.unpack(self.read_at(end, FOOTER.size))
        if mark != MARK or offset + length != end:
            raise self._case.damaged("its file has no footer of this format")
        data = self.read_at(offset, length)
        if zlib.crc32(data) != crc:
            raise self._case.damaged("its description does not have its checksum")
        about: dict[str, Any] = json.loads(data)
        return about

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes; fewer are an error."""
        parts: list[bytes] = []
        try:
            while length > 0 and (data := os.pread(self._descriptor, length, offset)):
                parts.append(data)
                offset, length = offset + len(data), length - len(data)
        except OSError as error:
            raise self._case.damaged(f"its file can't be read ({error.strerror})") from error
        if length:
            raise self._case.damaged("its file is cut short")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def blocks(self, rows: npt.NDArray[np.void]) -> Iterator[memoryview]:
        """Neighbouring blocks, read in one go and checked one by one."""
        begin = int(rows[0]["offset"])
        end = int(rows[-1]["offset"]) + int(rows[-1]["bytes"])
        data = memoryview(self.read_at(begin, end - begin))
        for offset, length, crc in rows.tolist():
            block = data[offset - begin : offset - begin + length]
            if zlib.crc32(block) != crc:
                raise self._case.damaged("a block does not have its checksum")
            yield block


def case_path(folder: Path, case_id: str, key: str) -> Path:
    """The file of a case in the prepared ``folder``. A key has no dot, so the name tells id and key apart."""
    return folder / "cases" / f"{case_id}.{key}.bin"


def index_content(
    keys: Mapping[str, str], skipped: Sequence[str], previous: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What ``index.json`` holds.

    Args:
        keys: case id to key.
        skipped: ids of cases that were left out because they are bad.
        previous: in a cascade, fold name to checksum of the first-stage model whose masks the cases hold.
    """
    content: dict[str, Any] = {
        "format": STORE_FORMAT,
        "cases": dict(sorted(keys.items())),
        "skipped": sorted(skipped),
    }
    return content | ({"previous": dict(sorted(previous.items()))} if previous else {})


class _Cases(Mapping[str, StoredCase]):
    """Case id to `StoredCase`, made when first asked for."""

    def __init__(self, folder: Path, keys: Mapping[str, str]) -> None:
        self._folder, self._keys = folder, dict(keys)
        self._made: dict[str, StoredCase] = {}

    def __getitem__(self, case_id: str) -> StoredCase:
        if case_id not in self._made:
            self._made[case_id] = StoredCase(case_id, case_path(self._folder, case_id, self._keys[case_id]))
        return self._made[case_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A prepared data set.

    Attributes:
        folder: ``<work>/prepared``.
        plan: of all cases.
        cases: by id, sorted.
        sha256: of which cases it holds in which version.
        skipped: ids of cases of the manifest that were left out because they are bad.
        previous: in a cascade, fold name to checksum of the first-stage model whose masks the cases hold.
    """

    folder: Path
    plan: Plan
    cases: Mapping[str, StoredCase]
    sha256: str
    skipped: tuple[str, ...] = ()
    previous: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return tuple(self.plan.labels)

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """Opens ``<work>/prepared``; reads the plan and the index, no case.

        Raises:
            InputError: nothing was prepared there, or by a newer medseg.
        """
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder.name}: holds no prepared data; run medseg prepare first")
        index = read_json(folder / "index.json")
        if not isinstance(index, dict) or index.get("format") != STORE_FORMAT:
            found = index.get("format") if isinstance(index, dict) else None
            raise InputError(
                f"index.json: has store format {found}, expected {STORE_FORMAT}; update medseg or prepare again"
            )
        keys: dict[str, str] = index["cases"]
        return cls(
            folder,
            read_plan(folder / "plan.yaml"),
            _Cases(folder, keys),
            sha256_json(index),
            tuple(index["skipped"]),
            index.get("previous", {}),
        )
