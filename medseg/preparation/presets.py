"""What nnU-Net's four planners differ in, and a network fitted to memory by their rules.

Plain: Isensee et al., Nature Methods 18 (2021); residual-encoder presets M, L, XL: MICCAI 2024 (arXiv 2404.09556).
The numbers are those of nnU-Net 2.8.1's planners. ``small`` is our own, for minutes on few cores: learned on the shared sets
(benchmarks/results/small_budgets_2026-11-21.md), where many small steps beat few large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.errors import ConfigError
from medseg.preparation.plan import Preset
from medseg.preparation.topology import Topology, feature_map_values, plan_topology

Vector = npt.NDArray[np.float64]
_SMALLEST_BATCH = 2
_REFERENCE_BATCH = {2: 12, 3: 2}
_FIRST_PATCH_VOXELS = {2: 2048.0**2, 3: 256.0**3}
_MOST_FEATURES = {2: 512, 3: 320}
_RESIDUAL_BLOCKS = (1, 3, 4, 6)  # the last number holds for all further stages


@dataclass(frozen=True)
class PresetRules:
    """One planner.

    Attributes:
        title: for people.
        memory_gb: what ``values`` stand for.
        values: per number of dimensions, feature-map values of a reference batch (12 in 2D, 2 in 3D) in that memory.
        residual: residual encoder.
        largest_share: of the training voxels that a batch may cover.
        widths: per number of dimensions, features of the stages, the last one for all further stages; None is nnU-Net's.
        tight: the patch just holds the labelled structures, and the batch is the smallest.
    """

    title: str
    memory_gb: float
    values: dict[int, float]
    residual: bool
    largest_share: float
    widths: dict[int, tuple[int, ...]] | None = None
    tight: bool = False

    def features(self, stages: int, dimensions: int) -> tuple[int, ...]:
        """Per encoder stage."""
        if self.widths is None:
            return _features(stages, dimensions)
        widths = self.widths[dimensions]
        return tuple(widths[min(stage, len(widths) - 1)] for stage in range(stages))

    def convolutions(self, stages: int) -> tuple[int, ...]:
        """Per encoder stage."""
        if not self.residual:
            return (2,) * stages
        return tuple(_RESIDUAL_BLOCKS[min(stage, len(_RESIDUAL_BLOCKS) - 1)] for stage in range(stages))

    def decoder_convolutions(self, stages: int) -> tuple[int, ...]:
        """Per decoder stage, of a network with ``stages`` encoder stages."""
        return (1 if self.residual else 2,) * (stages - 1)


_THIN = {3: (16, 48, 96, 192), 2: (16, 32, 64, 128, 256)}

PRESETS: dict[Preset, PresetRules] = {
    "plain": PresetRules("nnU-Net's plain U-Net", 8.0, {3: 560e6, 2: 85e6}, False, 0.05),
    "small": PresetRules("the preset for small budgets", 8.0, {3: 560e6, 2: 85e6}, False, 0.05, _THIN, tight=True),
    "resenc_m": PresetRules("nnU-Net's ResEnc M", 8.0, {3: 680e6, 2: 135e6}, True, 1.0),
    "resenc_l": PresetRules("nnU-Net's ResEnc L", 24.0, {3: 2100e6, 2: 380e6}, True, 1.0),
    "resenc_xl": PresetRules("nnU-Net's ResEnc XL", 40.0, {3: 3600e6, 2: 560e6}, True, 1.0),
}


@dataclass(frozen=True)
class FittedNetwork:
    """A network with its patch and batch; sizes in (x, y, z), 1 along an axis it does not have.

    Attributes:
        values: feature-map values of one patch.
        budget: values of a reference batch that the memory stands for.
        shrunk: the patch was made smaller for the budget.
        capped: the batch was made smaller because it would cover too much of the data set.
        tightened: the patch was made smaller because the labelled structures need no more.
    """

    topology: Topology
    features: tuple[int, ...]
    convolutions: tuple[int, ...]
    decoder_convolutions: tuple[int, ...]
    batch_size: int
    values: int
    budget: float
    shrunk: bool
    capped: bool
    tightened: bool = False


def fit_network(
    preset: PresetRules,
    *,
    spacing_xyz_mm: Vector,
    median_shape_xyz: Vector,
    dataset_voxels: float,
    axes: Sequence[int],
    classes: int,
    memory_gb: float,
    patch_size_xyz: Sequence[int] | None = None,
    structure_xyz: Vector | None = None,
) -> FittedNetwork:
    """The largest patch, of the median scan's proportions, whose network fits the memory with a batch of 2; then the batch.

    Args:
        preset: the rules' numbers.
        spacing_xyz_mm: voxel size.
        median_shape_xyz: voxels of the median scan at that spacing; may be fractions.
        dataset_voxels: of all training cases together, at that spacing.
        axes: that the network has (0 is x), in the order in which ties are settled.
        classes: scores per voxel.
        memory_gb: to fit into.
        patch_size_xyz: a patch that is wished for; it stays, and an axis is halved only while it divides evenly.
        structure_xyz: voxels that the labelled structures span; a tight preset's patch holds just them.

    Raises:
        ConfigError: not even the smallest patch fits.
    """
    dimensions = len(axes)
    fit = _Fit(preset, spacing_xyz_mm[list(axes)], median_shape_xyz[list(axes)], classes)
    budget = preset.values[dimensions] * (memory_gb / preset.memory_gb)
    reference = _REFERENCE_BATCH[dimensions]
    if patch_size_xyz is None:
        topology, shrunk = fit.largest(budget if preset.residual else budget * reference / _SMALLEST_BATCH)
    else:
        topology, shrunk = fit.given([patch_size_xyz[axis] for axis in axes]), False
    tightened = False
    if preset.tight and patch_size_xyz is None and structure_xyz is not None:
        patch = _around(structure_xyz[list(axes)], topology)
        tightened = patch != list(topology.patch_size)
        topology = fit.given(patch) if tightened else topology
    values, stages = fit.values(topology), len(topology.strides)
    wanted = round(budget / values * reference)
    most = round(dataset_voxels * preset.largest_share / math.prod(topology.patch_size))
    return FittedNetwork(
        topology=_in_xyz(topology, axes),
        features=preset.features(stages, dimensions),
        convolutions=preset.convolutions(stages),
        decoder_convolutions=preset.decoder_convolutions(stages),
        batch_size=_SMALLEST_BATCH if preset.tight else max(min(wanted, most), _SMALLEST_BATCH),
        values=values,
        budget=budget,
        shrunk=shrunk,
        capped=most < wanted,
        tightened=tightened,
    )


def _around(structure: Vector, topology: Topology) -> list[int]:
    """The smallest patch that the strides divide and that holds a structure, at most the one there is."""
    return [
        min(size, math.ceil(round(float(needed), 6) / divisor) * divisor)
        for size, divisor, needed in zip(topology.patch_size, topology.divisors, structure, strict=True)
    ]


def most_features(dimensions: int) -> int:
    """Channels that no stage exceeds."""
    return _MOST_FEATURES[dimensions]


def _features(stages: int, dimensions: int) -> tuple[int, ...]:
    return tuple(min(32 * 2**stage, _MOST_FEATURES[dimensions]) for stage in range(stages))


def _in_xyz(topology: Topology, axes: Sequence[int]) -> Topology:
    def turned(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sizes[axes.index(axis)] if axis in axes else 1 for axis in range(3))

    return Topology(
        tuple(turned(stage) for stage in topology.strides),
        tuple(turned(stage) for stage in topology.kernel_sizes),
        turned(topology.patch_size),
    )


@dataclass(frozen=True)
class _Fit:
    """The search for a patch, on the network's own axes in planning order."""

    preset: PresetRules
    spacing_mm: Vector
    shape: Vector
    classes: int

    def given(self, patch: Sequence[int]) -> Topology:
        return plan_topology(spacing_mm=self.spacing_mm.tolist(), patch_size=patch, keep_patch=True)

    def largest(self, budget: float) -> tuple[Topology, bool]:
        dimensions = len(self.shape)
        per_mm = 1 / self.spacing_mm
        scale = (_FIRST_PATCH_VOXELS[dimensions] / np.prod(per_mm)) ** (1 / dimensions)
        first = [max(1, min(round(float(p * scale)), n)) for p, n in zip(per_mm, self.shape, strict=True)]
        topology, shrunk = plan_topology(spacing_mm=self.spacing_mm.tolist(), patch_size=first), False
        while self.values(topology) > budget:
            topology, shrunk = self._smaller(topology), True
        return topology, shrunk

    def _smaller(self, topology: Topology) -> Topology:
        """One step smaller along the axis that is longest relative to the median scan."""
        spacing, patch = self.spacing_mm.tolist(), list(topology.patch_size)
        axis = int(np.argsort([p / s for p, s in zip(patch, self.shape, strict=True)], kind="stable")[-1])
        # Taking the full divisor off could jump over a size that fits, because a shorter axis is halved less often.
        probe = list(patch)
        probe[axis] -= topology.divisors[axis]
        patch[axis] -= plan_topology(spacing_mm=spacing, patch_size=probe).divisors[axis]
        if min(*probe, *patch) <= 0:
            raise ConfigError(
                ["prepare.memory_gb: is too little for the smallest patch; give more, or a patch_size_xyz"]
            )
        return plan_topology(spacing_mm=spacing, patch_size=patch)

    def values(self, topology: Topology) -> int:
        stages = len(topology.strides)
        return feature_map_values(
            topology=topology,
            features=_features(stages, len(self.shape)),
            classes=self.classes,
            convolutions=self.preset.convolutions(stages),
            decoder_convolutions=self.preset.decoder_convolutions(stages),
            residual=self.preset.residual,
        )
