"""What a mask says about itself without a reference: size and whether the scan cuts it off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Per class name but background: voxel count, millilitres, and whether it reaches a face of the scan."""

    voxels: dict[str, int] = field(default_factory=dict)
    volume_ml: dict[str, float] = field(default_factory=dict)
    touches_border: dict[str, bool] = field(default_factory=dict)


def measure_classes(
    classes: npt.NDArray[np.uint8], *, class_names: Sequence[str], affine: npt.NDArray[np.float64], planar: bool = False
) -> Measures:
    """Sizes of the classes of a label map, from one count.

    Args:
        classes: (X, Y, Z) class indices below ``len(class_names)``, 0 background.
        class_names: background first.
        affine: (4, 4), mm.
        planar: a picture has no depth, hence no volume.

    Returns:
        An entry per class but background; an absent class has 0 voxels, 0 ml and touches nothing. Axes with a single
        voxel have no faces that count: a slice's class would touch them always.
    """
    names = tuple(class_names)
    counts = np.bincount(classes.ravel(order="K"), minlength=len(names))
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    at_border: set[int] = set()
    for axis, size in enumerate(classes.shape):
        if size > 1:
            for face in (classes.take(0, axis), classes.take(-1, axis)):
                at_border.update(int(k) for k in np.unique(face))
    foreground = range(1, len(names))
    return Measures(
        voxels={names[k]: int(counts[k]) for k in foreground},
        volume_ml={} if planar else {names[k]: round(int(counts[k]) * voxel_ml, 6) for k in foreground},
        touches_border={names[k]: k in at_border for k in foreground},
    )
