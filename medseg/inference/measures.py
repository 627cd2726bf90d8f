"""What a mask says about itself without a reference: size and whether the scan cuts it off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medseg.imaging import Regions


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Per class name but background: voxel count, millilitres, and whether it reaches a face of the scan."""

    voxels: dict[str, int] = field(default_factory=dict)
    volume_ml: dict[str, float] = field(default_factory=dict)
    touches_border: dict[str, bool] = field(default_factory=dict)


def measure_classes(
    classes: npt.NDArray[np.uint8],
    *,
    class_names: Sequence[str],
    affine: npt.NDArray[np.float64],
    planar: bool = False,
    regions: Regions | None = None,
) -> Measures:
    """Sizes of the classes of a label map, from one count.

    Args:
        classes: (X, Y, Z) class indices, 0 background.
        class_names: background first.
        affine: (4, 4), mm.
        planar: a picture has no depth, hence no volume.
        regions: where classes overlap; indices are combinations of them then, and each region counts as a whole.

    Returns:
        An entry per class but background; an absent class has 0 voxels, 0 ml and touches nothing. Axes with a single
        voxel have no faces that count: a slice's class would touch them always.
    """
    indices = {
        name: (k,) if regions is None else regions.indices_of(name) for k, name in enumerate(class_names[1:], start=1)
    }
    counts = np.bincount(classes.ravel(order="K"), minlength=256)
    voxels = {name: int(sum(counts[k] for k in own)) for name, own in indices.items()}
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    at_border: set[int] = set()
    for axis, size in enumerate(classes.shape):
        if size > 1:
            for face in (classes.take(0, axis), classes.take(-1, axis)):
                at_border.update(int(k) for k in np.unique(face))
    return Measures(
        voxels=voxels,
        volume_ml={} if planar else {name: round(count * voxel_ml, 6) for name, count in voxels.items()},
        touches_border={name: not at_border.isdisjoint(own) for name, own in indices.items()},
    )
