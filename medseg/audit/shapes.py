"""The shape of each label in numbers, and what these numbers ask of a training, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

ClassArray = npt.NDArray[np.uint8]
_MOST_PROBES = 64
"""Places along a structure's middle at which its local form is looked at."""
_FEW_VOXELS = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One class of one case at full size.

    Attributes:
        voxels: its number; at least 1.
        volume_ml: in millilitres (of a picture, voxels count 1 mm where the file says nothing).
        share: of the scan's voxels.
        centre_xyz: centre of mass as a share of the scan's extent per axis, 0 to 1.
        centre_mm: centre of mass in mm from the scan's first corner, RAS order.
        components: connected pieces (touching faces, edges or corners).
        stray_share: share of its voxels outside its largest piece.
        stray_far_mm: distance of the farthest voxel outside the largest piece from that piece; 0 where it is one piece.
        thickness_mm: twice the median distance from its middle to its surface (the medial voxels' inner radius).
        thickness_voxels: the same in voxels of the finest axis.
        tube_share: share of the middle where it runs like a tube (long in one direction, thin in the others), 0 to 1.
        elongation: longest over second longest principal axis, at least 1.
    """

    voxels: int
    volume_ml: float
    share: float
    centre_xyz: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    components: int
    stray_share: float
    stray_far_mm: float
    thickness_mm: float
    thickness_voxels: float
    tube_share: float
    elongation: float

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def measure_shapes(
    classes: ClassArray, class_count: int, *, spacing_xyz_mm: tuple[float, float, float]
) -> dict[int, Shape]:
    """Measures each foreground class that occurs.

    Args:
        classes: (X, Y, Z) class indices.
        class_count: classes of the set, background included.
        spacing_xyz_mm: voxel size.

    Returns:
        Class index to its shape; a class without voxels is absent.
    """
    boxes = ndimage.find_objects(np.where(classes < class_count, classes, 0), max_label=max(1, class_count - 1))
    result = {}
    for index, box in enumerate(boxes, start=1):
        if box is not None:
            offset = [part.start for part in box]
            result[index] = _measure(classes[box] == index, offset, classes.shape, np.asarray(spacing_xyz_mm))
    return result


def _measure(
    mask: npt.NDArray[np.bool_], offset: Sequence[int], whole: Sequence[int], spacing: npt.NDArray[np.float64]
) -> Shape:
    points = np.argwhere(mask)
    centre = points.mean(axis=0) + offset + 0.5
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    largest = int(sizes.argmax()) + 1
    radius_mm, tubes = _middle(mask, spacing)
    solid = np.asarray(whole) > 1  # a picture has no thickness across its one slice
    share_xyz, centre_mm = centre / np.asarray(whole), centre * spacing
    return Shape(
        voxels=len(points),
        volume_ml=float(len(points) * spacing.prod() / 1000),
        share=float(len(points) / np.prod(whole)),
        centre_xyz=(float(share_xyz[0]), float(share_xyz[1]), float(share_xyz[2])),
        centre_mm=(float(centre_mm[0]), float(centre_mm[1]), float(centre_mm[2])),
        components=int(count),
        stray_share=float(1 - sizes.max() / sizes.sum()),
        stray_far_mm=_farthest(mask, pieces == largest, spacing) if count > 1 else 0.0,
        thickness_mm=2 * radius_mm,
        thickness_voxels=2 * radius_mm / float(spacing[solid].min() if solid.any() else spacing.min()),
        tube_share=tubes,
        elongation=_elongation(points * spacing),
    )


def _farthest(mask: npt.NDArray[np.bool_], largest: npt.NDArray[np.bool_], spacing: npt.NDArray[np.float64]) -> float:
    away = ndimage.distance_transform_edt(~largest, sampling=spacing)
    return float(away[mask & ~largest].max())


def _elongation(points_mm: npt.NDArray[np.float64]) -> float:
    lengths = _principal(points_mm)
    return float(max(1.0, lengths[0] / lengths[1])) if lengths[1] > 0 else 1.0


def _principal(points_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviations along the principal axes, longest first; 0 where there are too few points."""
    if len(points_mm) < _FEW_VOXELS:
        return np.zeros(3)
    centred = points_mm - points_mm.mean(axis=0)
    values = np.linalg.eigvalsh(centred.T @ centred / len(centred))[::-1]
    lengths: npt.NDArray[np.float64] = np.sqrt(np.maximum(values, 0))
    return lengths


def _middle(mask: npt.NDArray[np.bool_], spacing: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Median inner radius in mm along the middle of a mask, and the share of the middle that runs like a tube.

    The middle is where the distance to the surface has a local maximum. Around each place of it (64 at most, evenly
    taken) the mask within three radii is looked at: a tube's first principal axis is there at least twice its second.
    """
    solid = [axis for axis in range(3) if mask.shape[axis] > 1]  # a picture is solid across its one slice
    padded = np.pad(mask, [(1, 1) if axis in solid else (0, 0) for axis in range(3)])
    distance = ndimage.distance_transform_edt(padded, sampling=spacing)
    if not solid:
        return float(spacing.min() / 2), 0.0
    highest = ndimage.maximum_filter(distance, size=[3 if axis in solid else 1 for axis in range(3)])
    middle = np.argwhere(padded & (distance >= highest))
    radii = distance[tuple(middle.T)] - float(spacing[solid].min()) / 2  # to the voxel's face, not to the next centre
    radii = np.maximum(radii, float(spacing[solid].min()) / 2)
    probes = middle[:: max(1, len(middle) // _MOST_PROBES)]
    tubes = [_is_tube(padded, place, float(distance[tuple(place)]), spacing) for place in probes]
    return float(np.median(radii)), float(np.mean(tubes))


def _is_tube(
    mask: npt.NDArray[np.bool_], place: npt.NDArray[np.integer], radius_mm: float, spacing: npt.NDArray[np.float64]
) -> bool:
    reach = np.ceil(3 * radius_mm / spacing).astype(int)
    low = np.maximum(place - reach, 0)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, place + reach + 1, strict=True))
    lengths = _principal(np.argwhere(mask[box]) * spacing)
    return bool(lengths[0] > 2 * lengths[1] > 0)


@dataclass(frozen=True, kw_only=True)
class ClassShape:
    """A class over the set: in how many cases it occurs, medians of its measurements, and hints in plain words."""

    name: str
    cases: int
    present: int
    median: Mapping[str, float]
    hints: tuple[str, ...]


_MEDIANS = (
    "voxels", "volume_ml", "share", "components", "stray_share", "thickness_mm", "thickness_voxels", "tube_share",
    "elongation",
)  # fmt: skip


def class_shapes(names: Sequence[str], shapes: Sequence[Mapping[int, Shape]]) -> tuple[ClassShape, ...]:
    """Sums up the foreground classes of a set.

    Args:
        names: class names, background first.
        shapes: per labelled case, class index to shape.
    """
    result = []
    for index, name in enumerate(names[1:], start=1):
        found = [case[index] for case in shapes if index in case]
        median = {key: float(np.median([getattr(shape, key) for shape in found])) for key in _MEDIANS} if found else {}
        hints = shape_hints(median, present=len(found), cases=len(shapes))
        result.append(ClassShape(name=name, cases=len(shapes), present=len(found), median=median, hints=hints))
    return tuple(result)


def shape_hints(median: Mapping[str, float], *, present: int, cases: int) -> tuple[str, ...]:
    """What a class's median measurements ask of a training, as sentences; none where nothing stands out."""
    if not median:
        return ("occurs in no labelled case; take it out of the manifest's labels, or look for its values",)
    hints = []
    if median["thickness_voxels"] < 4 and median["tube_share"] > 0.5:
        if median["elongation"] > 6:
            hints.append("thin and long: Dice counts every voxel of the rim; report NSD as well")
        else:
            hints.append("thin and branching: consider clDice, and a patch at full resolution")
    elif median["thickness_voxels"] < 3:
        hints.append("two or three voxels thick: a finer spacing may pay, a coarser one loses it")
    if median["share"] < 1e-4 or median["voxels"] < 50:
        hints.append("tiny: most patches miss it; raise foreground oversampling, and report detection beside Dice")
    if median["components"] >= 4:
        hints.append("many pieces: don't keep the largest only; count objects as well as voxels")
    if present < 0.9 * cases:
        hints.append(
            f"absent in {cases - present} of {cases} cases: count false positives, and mind how empty masks score"
        )
    return tuple(hints)
