"""What has to be explained of a scan: each network that answers for its mask, with the input it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.explain.windows import BoolArray, FloatArray, Views, views_of
from medseg.imaging import Regions
from medseg.inference.cascade import CascadeEngine
from medseg.inference.engine import ClassArray, Engine
from medseg.inference.ensemble import MaskMaker, MixedEngine
from medseg.inference.model import Model
from medseg.preparation.case import prepare_labels
from medseg.preparation.grid import Grid
from medseg.preparation.previous import with_previous


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A network and its view of a scan.

    Attributes:
        model: whose network it is; members of an ensemble share it, so `Model.ready` comes first.
        array: (C, X, Y, Z) as it is given.
        grid: of ``array``.
        engine: that the model is of.
    """

    model: Model
    array: FloatArray
    grid: Grid
    engine: Engine

    def views(self, region: BoolArray) -> Views:
        """The windows that see a region (X, Y, Z) of the scan's own grid.

        Raises:
            ScanError: it has no voxel on the network's grid.
        """
        plan = self.model.plan
        return views_of(
            self.array,
            prepare_labels(region.astype(np.uint8), self.grid) > 0,
            patch_size_xyz=plan.patch_size_xyz,
            overlap=self.engine.section.overlap,
            slice_axis=plan.slice_axis,
            device=self.engine.device,
        )

    def filling(self, what: str) -> tuple[float, ...]:
        """What a covered box shows, per channel: its mean or its lowest value; a first stage's mask channels show nothing."""
        channels = len(self.model.plan.channels)
        own = [float(c.mean() if what == "mean" else c.min()) for c in self.array[:channels]]
        return (*own, *[0.0] * (len(self.array) - channels))


def members_of(maker: MaskMaker | Engine, array: Any, grid: Any) -> tuple[Member, ...]:
    """The members of what makes a mask, for what its ``prepare`` gave of a scan.

    Of a cascade it is the second stage, with the first one's mask as it is.
    """
    if isinstance(maker, MixedEngine):
        each = zip(maker.engines, array, grid, strict=True)
        return tuple(member for engine, own, one in each for member in members_of(engine, own, one))
    if isinstance(maker, CascadeEngine):
        mask = maker.first.classes(maker.first.scores(array.first), array.first_grid)
        previous = maker.second.previous_mask(mask, array.grid)
        whole = with_previous(array.image, previous, maker.plan.previous_channels)
        return members_of(maker.second, whole, array.grid)
    assert isinstance(maker, Engine)
    return tuple(Member(model=model, array=array, grid=grid, engine=maker) for model in maker.models)


def channel_of(name: str, class_names: tuple[str, ...], regions: Regions | None) -> int:
    """A class' place in the network's answer."""
    return class_names.index(name) if regions is None else regions.names.index(name)


def region_of_class(classes: ClassArray, name: str, class_names: tuple[str, ...], regions: Regions | None) -> BoolArray:
    """(X, Y, Z) bool: the voxels of a class in a mask of class indices."""
    if regions is None:
        return np.asarray(classes == class_names.index(name), bool)
    return np.isin(classes, regions.indices_of(name))
