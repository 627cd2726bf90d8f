"""Models of several configurations that answer together, such as one that goes slice by slice and one in 3D.

Models that prepare scans alike are averaged on their own grid by `Engine`. Others meet on the scan's own grid: each
configuration's class scores are resampled there, turned into probabilities, and averaged, every configuration with equal
weight, as nnU-Net does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch

from medseg.config.sections import InferSection
from medseg.errors import ModelError
from medseg.evaluation.postprocessing import Step, apply_steps
from medseg.imaging import AxisChange, Header, LabelMap, Volume, spacing_xyz_mm, undo_axes
from medseg.imaging.resampling import resampled_scores
from medseg.imaging.volume import Affine
from medseg.inference.engine import SHARED_BY_AN_ENSEMBLE, ClassArray, Engine
from medseg.inference.model import Model
from medseg.inference.sliding_window import FloatArray
from medseg.preparation.grid import Grid
from medseg.preparation.plan import Plan

# What the plans of several configurations have in common.
_SHARED = ("orientation", "channels", "labels", "of_pictures")


class MaskMaker(Protocol):
    """What turns scans into masks: an `Engine` or a `MixedEngine`. Their arrays, scores and grids are their own."""

    section: InferSection

    @property
    def plan(self) -> Plan:
        """Whose channels and labels hold for all models."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Post-processing of the masks."""

    def settings(self) -> dict[str, str]:
        """All that a mask depends on beside the scan."""

    def model_sha256s(self) -> dict[str, str]:
        """Checksum per model."""

    def versions(self) -> dict[str, str]:
        """What computed."""

    def prepare(self, volume: Volume) -> tuple[Any, Any]:
        """(arrays, grids) of a scan."""

    def scores(self, array: Any) -> Any:
        """Class scores of what ``prepare`` gave first."""

    def classes(self, scores: Any, grid: Any) -> ClassArray:
        """(X, Y, Z) uint8 class indices on the scan's own grid."""

    def label_map(self, classes: ClassArray, *, affine: Affine, header: Header | None) -> LabelMap:
        """The classes as label values."""


def build_engine(models: Sequence[Model], section: InferSection, *, device: torch.device) -> MaskMaker:
    """The engine for these models: a mixed one where they are of several configurations.

    Raises:
        ModelError: there is none, or they can't answer together.
    """
    groups: list[list[Model]] = []
    for model in models:
        alike = next((group for group in groups if _prepares_alike(group[0].plan, model.plan)), None)
        if alike is None:
            groups.append([model])
        else:
            alike.append(model)
    if len(groups) <= 1:
        return Engine(models, section, device=device)
    return MixedEngine([Engine(group, section, device=device) for group in groups])


def _prepares_alike(one: Plan, other: Plan) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in SHARED_BY_AN_ENSEMBLE)


class MixedEngine:
    """Engines whose probabilities are averaged on the scan's own grid.

    Args:
        engines: at least one, of one data set's configurations, in the order of their models.

    Raises:
        ModelError: they name classes, channels or axes differently, or bring other post-processing.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines, first = tuple(engines), engines[0]
        self.section = first.section
        for engine in engines[1:]:
            for name in _SHARED:
                own, wanted = getattr(engine.plan, name), getattr(first.plan, name)
                if own != wanted:
                    raise ModelError(
                        f"{engine.models[0].folder.name}: {name} of its plan is {own}, expected {wanted} as in "
                        f"{first.models[0].folder.name}; average only configurations of one data set"
                    )
            if engine.steps != first.steps:
                raise ModelError(
                    f"{engine.models[0].folder.name}: has other post-processing than {first.models[0].folder.name}, "
                    "expected the same; set infer.postprocess=false"
                )

    @property
    def plan(self) -> Plan:
        """The first engine's: all agree in channels and labels."""
        return self.engines[0].plan

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return self.engines[0].class_names

    @property
    def steps(self) -> tuple[Step, ...]:
        """Post-processing of the masks."""
        return self.engines[0].steps

    def settings(self) -> dict[str, str]:
        """All that a mask depends on beside the scan, as checksums and short texts."""
        # The bar parts configurations: the same models in one group would give other masks.
        models = " | ".join(engine.settings()["models"] for engine in self.engines)
        return self.engines[0].settings() | {"models": models}

    def model_sha256s(self) -> dict[str, str]:
        """Checksum per model, numbered in their order."""
        models = [model for engine in self.engines for model in engine.models]
        return {f"model_{number}": model.sha256 for number, model in enumerate(models)}

    def versions(self) -> dict[str, str]:
        """What computed, for the record."""
        return self.engines[0].versions()

    def prepare(self, volume: Volume) -> tuple[tuple[FloatArray, ...], tuple[Grid, ...]]:
        """The scan as each configuration sees it, (C, X, Y, Z) float32 each, and its ways back."""
        arrays, grids = zip(*(engine.prepare(volume) for engine in self.engines), strict=True)
        return tuple(arrays), tuple(grids)

    def scores(self, array: Sequence[FloatArray]) -> tuple[FloatArray, ...]:
        """Each configuration's (K, X, Y, Z) class scores on its own prepared grid."""
        return tuple(engine.scores(own) for engine, own in zip(self.engines, array, strict=True))

    def classes(self, scores: Sequence[FloatArray], grid: Sequence[Grid]) -> ClassArray:
        """(X, Y, Z) uint8 class indices on the scan's own grid, after post-processing; background outside the crop.

        Works through slabs, so K volumes of the full size never exist.
        """
        first, regions = grid[0], self.plan.regions
        oriented = np.zeros(first.oriented_shape, np.uint8)
        cropped = oriented[tuple(map(slice, first.crop_start, first.crop_stop))]
        slabs = [
            resampled_scores(own, one.cropped_shape, separate_axis=one.separate_axis_back)
            for own, one in zip(scores, grid, strict=True)
        ]
        start = 0
        for parts in zip(*slabs, strict=True):
            target = cropped[start : start + parts[0].shape[1]]
            if regions is None:
                target[...] = reduce(np.add, map(_softmax, parts)).argmax(axis=0)
            else:
                # Above 0 where the mean probability is above one half.
                target[...] = regions.decide(reduce(np.add, map(_sigmoid, parts)) - np.float32(len(parts) / 2))
            start += parts[0].shape[1]
        classes = undo_axes(oriented, AxisChange(first.permutation, first.flips))
        spacing = [float(size) for size in spacing_xyz_mm(np.array(first.original_affine))]
        return apply_steps(classes, self.steps, class_names=self.class_names, spacing_xyz_mm=spacing)

    def label_map(self, classes: ClassArray, *, affine: Affine, header: Header | None) -> LabelMap:
        """The classes as the label values of the models' manifest, on the scan's grid."""
        return self.engines[0].label_map(classes, affine=affine, header=header)


def _softmax(scores: FloatArray) -> FloatArray:
    powers = np.exp(scores - scores.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), np.float32)


def _sigmoid(scores: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * scores)), np.float32)
