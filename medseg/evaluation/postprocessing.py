"""Clean-up of label maps by connected components: keep the largest, drop the small, fill holes.

A :class:`Step` names what is done to which class; steps are plain values, so that a model folder can carry those that
cross-validation adopted. Components are joined over faces, edges and corners, as nnU-Net does; a hole is background that
no path over faces leads out of. What a step takes away becomes background, and holes are filled only where the mask has
background: a tumour inside an organ is no hole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.errors import ModelError
from medseg.imaging.regions import Regions

ClassArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Kind = Literal["largest_component", "largest_components", "minimum_size", "fill_holes"]
_KINDS: tuple[Kind, ...] = ("largest_component", "largest_components", "minimum_size", "fill_holes")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that is done to a label map.

    Attributes:
        kind: ``largest_component`` keeps the component with the most voxels, of equal ones the first in the array;
            ``largest_components`` all that have the most, as nnU-Net does; ``minimum_size`` those of at least
            ``minimum_mm3``; ``fill_holes`` gives enclosed background to the class.
        class_name: the class; None is all classes together, seen as one (not for ``fill_holes``).
        minimum_mm3: of ``minimum_size``; for a picture without physical size, in pixels.
    """

    kind: Kind
    class_name: str | None
    minimum_mm3: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        size = {"minimum_mm3": self.minimum_mm3} if self.kind == "minimum_size" else {}
        return {"kind": self.kind, "class": self.class_name, **size}

    def __str__(self) -> str:
        words = {
            "largest_component": "keep the largest component",
            "largest_components": "keep the largest components",
            "minimum_size": f"drop components below {self.minimum_mm3:g} mm³",
            "fill_holes": "fill holes",
        }
        return f"{'all classes together' if self.class_name is None else self.class_name}: {words[self.kind]}"


def steps_from_plain(values: Iterable[Mapping[str, Any]], class_names: Sequence[str]) -> tuple[Step, ...]:
    """The inverse of :meth:`Step.plain`.

    Args:
        values: of a model folder.
        class_names: background first.

    Raises:
        ModelError: a step is of an unknown kind, or for a class that the model does not have.
    """
    steps = []
    for value in values:
        kind, name = value.get("kind"), value.get("class")
        if kind not in _KINDS or (name is not None and name not in class_names[1:]):
            raise ModelError(
                f"model.json: post-processing step is {kind!r} for class {name!r}, expected one of {', '.join(_KINDS)} "
                f"for one of {', '.join(class_names[1:])}; update medseg"
            )
        steps.append(Step(kind=kind, class_name=name, minimum_mm3=float(value.get("minimum_mm3", 0.0))))
    return tuple(steps)


def apply_steps(
    classes: ClassArray,
    steps: Sequence[Step],
    *,
    class_names: Sequence[str],
    spacing_xyz_mm: Sequence[float],
    regions: Regions | None = None,
) -> ClassArray:
    """The label map after ``steps``, one after another.

    Args:
        classes: (X, Y, Z) class indices, 0 background; it is left as it is.
        steps: none gives ``classes`` itself.
        class_names: background first; class k is the k-th.
        spacing_xyz_mm: voxel size.
        regions: where classes overlap; the indices are combinations of them then, and a step sees every voxel that is in its
            region.

    Returns:
        (X, Y, Z) uint8. A class without a voxel stays so.
    """
    if not steps:
        return classes
    result = classes.copy(order="K")
    flat = result[flat_axes(result.shape)]
    voxel_mm3 = math.prod(spacing_xyz_mm)
    for step in steps:
        _apply(flat, step, _members(step, class_names, regions), voxel_mm3)
    return result


def _members(step: Step, class_names: Sequence[str], regions: Regions | None) -> tuple[int, ...]:
    """The indices that a step is for, its class' own first; none for all classes together."""
    if step.class_name is None:
        return ()
    if regions is None:
        return (list(class_names).index(step.class_name),)
    own = int(regions.join(np.array(1 << regions.names.index(step.class_name), np.uint16)))
    return own, *(index for index in regions.indices_of(step.class_name) if index != own)


def flat_axes(shape: Sequence[int]) -> tuple[slice | int, ...]:
    """The index that drops axes of one voxel, so that holes of a picture are holes in 2D; a single voxel keeps one axis."""
    kept = [axis for axis, size in enumerate(shape) if size != 1] or [0]
    return tuple(slice(None) if axis in kept else 0 for axis in range(len(shape)))


def _apply(classes: ClassArray, step: Step, members: tuple[int, ...], voxel_mm3: float) -> None:
    """One step, in place, within the bounding box of what it concerns."""
    mask = classes == members[0] if len(members) == 1 else np.isin(classes, members) if members else classes > 0
    box = bounding_box(mask)
    if box is None:
        return
    inside, mask = classes[box], mask[box]
    if step.kind == "fill_holes":
        assert members, "holes are filled class by class"
        inside[hole_voxels(mask) & (inside == 0)] = members[0]
        return
    numbers, sizes = components(mask)
    if step.kind == "largest_component":
        kept = np.zeros(len(sizes) + 1, bool)
        kept[1 + int(np.argmax(sizes))] = True
    elif step.kind == "largest_components":
        kept = np.concatenate([[False], sizes == sizes.max()])
    else:
        kept = np.concatenate([[False], sizes * voxel_mm3 >= step.minimum_mm3])
    inside[mask & ~kept[numbers]] = 0


def bounding_box(mask: BoolArray) -> tuple[slice, ...] | None:
    """The smallest box with every voxel of a mask of any rank; None where it is empty."""
    box = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not where.size:
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def components(mask: BoolArray) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.signedinteger]]:
    """(number of each voxel's component, 0 outside; voxels of component 1, 2, ...) of a mask of any rank."""
    from scipy import ndimage

    numbers, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    return numbers, sizes


def hole_voxels(mask: BoolArray) -> BoolArray:
    """Voxels outside ``mask`` from which no path over faces leads to the array's border; any rank."""
    from scipy import ndimage

    filled: BoolArray = ndimage.binary_fill_holes(mask)
    return filled & ~mask
