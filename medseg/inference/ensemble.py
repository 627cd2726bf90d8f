"""Models of several configurations that answer together, such as one that goes slice by slice and one in 3D.

Models that prepare scans alike are averaged on their own grid by `Engine`. Others meet on the scan's own grid: each
configuration's class scores are resampled there, turned into probabilities, and averaged, every configuration with equal
weight, as nnU-Net does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from medseg.config.sections import InferSection
from medseg.config.series import rules_of_channels
from medseg.errors import ModelError, UsageError
from medseg.evaluation.postprocessing import Step, apply_steps
from medseg.imaging import AxisChange, Header, LabelMap, Volume, spacing_xyz_mm, undo_axes
from medseg.imaging.volume import Affine
from medseg.inference.cascade import CascadeEngine, first_stage, without_steps
from medseg.inference.engine import SHARED_BY_AN_ENSEMBLE, ClassArray, Engine, Scores
from medseg.inference.memory import MemoryPrediction, together
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
    def models(self) -> tuple[Model, ...]:
        """All that answer for the mask; a cascade's first stage is not among them."""

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

    def slabs(self, scores: Any, grid: Any) -> Iterator[tuple[slice, FloatArray]]:
        """Probabilities, slab by slab along axis 0 of the turned, cropped grid: (slice, (K, n, Y, Z) float32)."""

    def label_map(self, classes: ClassArray, *, affine: Affine, header: Header | None) -> LabelMap:
        """The classes as label values."""

    def peak_bytes(self, shape_xyz: Sequence[int], affine: Affine) -> MemoryPrediction:
        """What a scan of this grid would take at most."""

    def effort(self) -> dict[str, Any]:
        """What the last ``scores`` did: windows, those skipped, where scores were gathered."""


def build_engine(
    models: Sequence[Model],
    section: InferSection,
    *,
    device: torch.device,
    memory_bytes: int | None = None,
    scratch: Path | None = None,
) -> MaskMaker:
    """The engine for these models: a mixed one where they are of several configurations.

    Args:
        models: at least one.
        section: overlap, mirrors, batch, precision.
        device: where the networks are.
        memory_bytes: host memory that a scan may take; None is three quarters of what is free.
        scratch: folder for scores that do not fit in memory; None is the system's temporary folder.

    Raises:
        ModelError: there is none, or they can't answer together.
        ConfigError: the section's ``series`` is for a channel that a model has not.
    """
    groups: list[list[Model]] = []
    for model in models:
        rules_of_channels(section.series, [channel.name for channel in model.plan.channels], key="infer.series")
        alike = next((group for group in groups if _prepares_alike(group[0].plan, model.plan)), None)
        if alike is None:
            groups.append([model])
        else:
            alike.append(model)
    build = partial(build_engine, device=device, memory_bytes=memory_bytes, scratch=scratch)
    make = partial(_engine_class(section), section=section, device=device, memory_bytes=memory_bytes, scratch=scratch)
    if section.uncertainty == "disagreement" and len(groups) > 1:
        raise UsageError(
            "infer.uncertainty: is disagreement with models of several configurations, expected folds of one; take entropy"
        )
    engines = [_with_first_stage(make(group), build) for group in groups or [[]]]
    return engines[0] if len(engines) == 1 else MixedEngine(engines)


def _with_first_stage(engine: Engine, build: Callable[..., MaskMaker]) -> Engine | CascadeEngine:
    """The engine, behind its first stage where its models are a cascade's second."""
    if not engine.plan.previous_channels:
        return engine
    section = without_steps(engine.section).model_copy(update={"uncertainty": None})
    return CascadeEngine(build(first_stage(engine.models), section), engine)


def _engine_class(section: InferSection) -> type[Engine]:
    if section.uncertainty == "disagreement":
        if section.accumulate != "fp32":
            raise UsageError(
                "infer.uncertainty: is disagreement with infer.accumulate fp16, expected fp32; take entropy"
            )
        from medseg.inference.disagreement import VotingEngine

        return VotingEngine
    if section.accumulate == "fp32":
        return Engine
    from medseg.inference.reference import ReferenceEngine

    return ReferenceEngine


def _prepares_alike(one: Plan, other: Plan) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in SHARED_BY_AN_ENSEMBLE)


class MixedEngine:
    """Engines whose probabilities are averaged on the scan's own grid.

    Args:
        engines: at least one, of one data set's configurations, in the order of their models.

    Raises:
        ModelError: they name classes, channels or axes differently, or bring other post-processing.
    """

    def __init__(self, engines: Sequence[Engine | CascadeEngine]) -> None:
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
    def models(self) -> tuple[Model, ...]:
        """Of all configurations, in their order."""
        return tuple(model for engine in self.engines for model in engine.models)

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
        first = {f"previous_model_{one.sha256[:8]}": one.sha256 for model in models for one in model.previous}
        return {f"model_{number}": model.sha256 for number, model in enumerate(models)} | first

    def versions(self) -> dict[str, str]:
        """What computed, for the record."""
        return self.engines[0].versions()

    def prepare(self, volume: Volume) -> tuple[tuple[Any, ...], tuple[Grid, ...]]:
        """The scan as each configuration sees it, (C, X, Y, Z) float32 each or `CascadeArrays`, and its ways back."""
        arrays, grids = zip(*(engine.prepare(volume) for engine in self.engines), strict=True)
        return tuple(arrays), tuple(grids)

    def scores(self, array: Sequence[Any]) -> tuple[Scores, ...]:
        """Each configuration's (K, X, Y, Z) class scores on its own prepared grid."""
        return tuple(engine.scores(own) for engine, own in zip(self.engines, array, strict=True))

    def classes(self, scores: Sequence[Scores], grid: Sequence[Grid]) -> ClassArray:
        """(X, Y, Z) uint8 class indices on the scan's own grid, after post-processing; background outside the crop.

        Works through slabs, so K volumes of the full size never exist.
        """
        first, regions = grid[0], self.plan.regions
        oriented = np.zeros(first.oriented_shape, np.uint8)
        cropped = oriented[tuple(map(slice, first.crop_start, first.crop_stop))]
        for where, mean in self.slabs(scores, grid):
            cropped[where] = mean.argmax(axis=0) if regions is None else regions.decide(mean - np.float32(0.5))
        classes = undo_axes(oriented, AxisChange(first.permutation, first.flips))
        spacing = [float(size) for size in spacing_xyz_mm(np.array(first.original_affine))]
        names = self.class_names
        return apply_steps(classes, self.steps, class_names=names, spacing_xyz_mm=spacing, regions=regions)

    def slabs(self, scores: Sequence[Scores], grid: Sequence[Grid]) -> Iterator[tuple[slice, FloatArray]]:
        """The configurations' mean probabilities, as `Engine.slabs` gives them."""
        each = [engine.slabs(own, one) for engine, own, one in zip(self.engines, scores, grid, strict=True)]
        for parts in zip(*each, strict=True):
            mean = reduce(np.add, (probabilities for _, probabilities in parts))
            mean /= np.float32(len(parts))
            yield parts[0][0], mean

    def peak_bytes(self, shape_xyz: Sequence[int], affine: Affine) -> MemoryPrediction:
        """What a scan of this grid would take at most: all configurations' scores are there at once."""
        return together([engine.peak_bytes(shape_xyz, affine) for engine in self.engines])

    def effort(self) -> dict[str, Any]:
        """What the last ``scores`` did: windows of all configurations, where scores were gathered."""
        each = [engine.effort() for engine in self.engines]
        counts = {name: sum(one.get(name, 0) for one in each) for name in ("windows", "skipped_windows")}
        return counts | {"way": " ".join(dict.fromkeys(str(one.get("way", "")) for one in each))}

    def label_map(self, classes: ClassArray, *, affine: Affine, header: Header | None) -> LabelMap:
        """The classes as the label values of the models' manifest, on the scan's grid."""
        return self.engines[0].label_map(classes, affine=affine, header=header)
