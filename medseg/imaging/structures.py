"""Files that hold named structures (DICOM-SEG, RTSTRUCT, .seg.nrrd) become label maps: by name, on the scan's grid.

A structure is of the class that is called as it is, letter case, spaces and punctuation aside, or that names it among its
aliases; a file with one structure and labels with one class without aliases need no such agreement. Structures of other
names are passed over, as a plan has dozens of them, and the label map's header says how many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError, LabelError
from medseg.imaging.labels import from_classes
from medseg.imaging.regions import Labels, regions_of
from medseg.imaging.volume import Affine, Header, LabelArray, LabelMap

Shape = tuple[int, int, int]
Place = tuple[slice, slice, slice]
# How far a frame's corners may lie from the scan's voxels, in voxels: positions are written with six digits or so.
_OFF_GRID = 0.1


class OnGrid(Protocol):
    """What lies on a grid: a Volume, LabelMap or Header."""

    @property
    def shape(self) -> Shape:
        """(X, Y, Z)."""

    @property
    def affine(self) -> Affine:
        """(4, 4) float64 RAS+ mm."""


@dataclass(frozen=True)
class Naming:
    """How structures of a file are named in the label map.

    Attributes:
        labels: class name to file values, background first; None numbers structures as the file does.
        aliases: class name to other names of it.
        numbers: class name to its number in the file, where that is known and names are not asked.
    """

    labels: Labels | None = None
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    numbers: Mapping[str, int] | None = None

    def match(self, found: Mapping[int, str], name: str) -> tuple[dict[str, tuple[int, ...]], int]:
        """Which of the file's structures each class is made of.

        Args:
            found: number in the file to name.
            name: of the file, for messages.

        Returns:
            (class name to numbers, in the order of the labels, only classes that are there; how many were passed over).

        Raises:
            LabelError: there are structures and none is of a class.
        """
        if self.labels is None:
            return {str(number): (number,) for number in sorted(found)}, 0
        classes = list(self.labels)[1:]
        if self.numbers is not None:
            return {one: (self.numbers[one],) for one in classes if self.numbers[one] in found}, 0
        if len(found) == 1 and len(classes) == 1 and not self.aliases.get(classes[0]):
            return {classes[0]: tuple(found)}, 0
        wanted = {_plain(alias): one for one in classes for alias in self.aliases.get(one, ())}
        wanted |= {_plain(one): one for one in classes}
        of_class: dict[str, list[int]] = {one: [] for one in classes}
        for number, text in found.items():
            if (one := text if text in classes else wanted.get(_plain(text))) is not None:
                of_class[one].append(number)
        matched = {one: tuple(numbers) for one, numbers in of_class.items() if numbers}
        if found and not matched:
            raise LabelError(
                f"{name}: none of its {len(found)} structures is called as a class, expected one of "
                f"{', '.join(classes[:8])}; name the classes so, or give aliases in the manifest's label_table"
            )
        return matched, len(found) - sum(len(numbers) for numbers in matched.values())


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


class Painter:
    """Puts structures into one label map, class after class in the order of the labels.

    Args:
        shape: (X, Y, Z).
        naming: where its labels overlap, a voxel of several structures gets the value of that combination; else a
            later class is painted over an earlier one and the voxels concerned are counted.
        name: of the file, for messages.
    """

    def __init__(self, shape: Shape, naming: Naming, name: str) -> None:
        self._labels, self._name = naming.labels, name
        self._regions = None if naming.labels is None else regions_of(naming.labels)
        self._array: LabelArray = np.zeros(shape, np.uint16, order="F")
        self._painted_over = 0

    def paint(self, class_name: str, place: Place, mask: npt.NDArray[np.bool_]) -> None:
        """Adds the voxels of ``mask`` at ``place`` (slices with positive steps) to a class."""
        target = self._array[place]
        if self._regions is not None:
            target[mask] |= np.uint16(1 << self._regions.names.index(class_name))
            return
        value = int(class_name) if self._labels is None else int(self._labels[class_name][0])
        if not 0 < value < 2**16:
            raise LabelError(f"{self._name}: would be written as {value}, expected 1 to 65535; change the labels")
        self._painted_over += int(np.count_nonzero(mask & (target != 0) & (target != value)))
        target[mask] = value

    def label_map(self, affine: Affine, header: Header, *, passed_over: int) -> LabelMap:
        """The finished map; what was painted over or passed over is in its header's warnings."""
        array = self._array
        if self._regions is not None:
            assert self._labels is not None
            array = from_classes(self._regions.join(array.astype(np.uint16)), self._labels)
        elif array.max(initial=0) < 256:
            array = array.astype(np.uint8)
        told = list(header.warnings)
        if passed_over:
            told.append(f"{passed_over} structures are of no class and were passed over")
        if self._painted_over:
            told.append(f"{self._painted_over:,} voxels are in two structures and count to the later class")
        return LabelMap(array, affine, replace(header, shape=array.shape, affine=affine, warnings=tuple(told)))


class Way:
    """From the pixels of frames to the voxels of a grid whose axes are those of the frames in any order and sense.

    Args:
        frame: affine of one frame's (column, row, normal) axes; the others are parallel to it.
        shape, affine: of the grid.
        name: of the file, for messages.
    """

    def __init__(self, frame: Affine, shape: Shape, affine: Affine, name: str) -> None:
        self._shape, self._inverse, self._name = shape, inverse(affine), name
        steps = np.asarray(self._inverse @ frame)[:3, :3]
        axes = [int(axis) for axis in np.abs(steps[:, :2]).argmax(axis=0)]
        self._axes = (axes[0], axes[1], 3 - axes[0] - axes[1]) if axes[0] != axes[1] else (0, 1, 2)
        self._signs = [1 if steps[axis, number] > 0 else -1 for number, axis in enumerate(self._axes[:2])]

    def onto(self, frame: Affine, mask: npt.NDArray[np.bool_], what: str) -> tuple[Place, npt.NDArray[np.bool_]]:
        """Where on the grid the pixels that are set lie, as a box and the mask in it.

        Args:
            frame: affine of ``mask``'s plane.
            mask: (columns, rows), with a pixel set.
            what: the plane, for messages.

        Raises:
            GeometryError: its pixels are not the grid's, or one that is set lies outside.
        """
        to_grid = self._inverse @ frame
        corners = np.array([[x, y, 0, 1] for x in (0, mask.shape[0] - 1) for y in (0, mask.shape[1] - 1)], np.float64)
        exact = corners @ to_grid.T[:, :3]
        start = np.rint(exact[0])
        wanted = np.tile(start, (4, 1))
        for number, axis in enumerate(self._axes[:2]):
            wanted[:, axis] += corners[:, number] * self._signs[number]
        off = float(np.abs(exact - wanted).max())
        if off > _OFF_GRID:
            raise GeometryError(
                f"{self._name}: {what} lies up to {off:.3g} voxels off the scan's voxels, expected "
                f"{_OFF_GRID:g} at most; give the scan that it was made on, or resample it"
            )
        box, turned = self._box(start.astype(int), mask)
        if any(part.start < 0 or part.stop > size for part, size in zip(box, self._shape, strict=True)):
            raise GeometryError(f"{self._name}: {what} has voxels outside the scan; give the scan that it was made on")
        return box, turned

    def _box(self, start: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> tuple[Place, npt.NDArray[np.bool_]]:
        """The box of the set pixels alone, so that a frame may reach beyond the scan where it is empty."""
        parts, kept = [slice(0, 0)] * 3, [slice(0, 0)] * 2
        for number, (axis, sign) in enumerate(zip(self._axes[:2], self._signs, strict=True)):
            set_places = np.flatnonzero(mask.any(axis=1 - number))
            low, high = int(set_places[0]), int(set_places[-1])
            kept[number] = slice(low, high + 1)
            first, last = sorted((int(start[axis]) + sign * low, int(start[axis]) + sign * high))
            parts[axis] = slice(first, last + 1)
        across = int(start[self._axes[2]])
        parts[self._axes[2]] = slice(across, across + 1)
        cut = mask[tuple(kept)][:: self._signs[0], :: self._signs[1], None]
        return (parts[0], parts[1], parts[2]), cut.transpose(np.argsort(self._axes))


def inverse(affine: Affine) -> npt.NDArray[Any]:
    """World to voxel."""
    return np.asarray(np.linalg.inv(np.asarray(affine, np.float64)))
