"""From a fingerprint to a plan, by nnU-Net's rules; every value with the sentence that says why.

The rules: Isensee et al., nnU-Net (Nature Methods 2021) and its version 2 (checked field by field against 2.8.1 by
``benchmarks/compare_plans.py``). A plan is a pure function of the fingerprint, the manifest's channels and labels, the
``prepare`` section's overrides and, where that leaves the memory open, the device's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from medseg.config.sections import PrepareSection
from medseg.errors import ConfigError, InputError
from medseg.imaging import index_labels
from medseg.manifest.cases import Channel
from medseg.preparation.channel_planning import plan_channels
from medseg.preparation.fingerprint import Fingerprint
from medseg.preparation.order import FixedOrder
from medseg.preparation.plan import Alternative, Plan
from medseg.preparation.plan_reasons import Axis, Choice, Name, explain
from medseg.preparation.presets import PRESETS, FittedNetwork, PresetRules, Vector, fit_network

CASCADE: Final = "3d_cascade_fullres"
"""The full resolution with the mask of another configuration, mostly 3d_lowres, as further channels."""
_ANISOTROPIC = 3.0
_LOW_RESOLUTION_BELOW = 0.25
_LOW_RESOLUTION_STEP = 1.03
_LOW_RESOLUTION_GAIN = 2.0


def make_plan(
    fingerprint: Fingerprint,
    *,
    channels: Sequence[Channel],
    labels: Mapping[str, tuple[int, ...]],
    ignore: int | None,
    section: PrepareSection,
    device_gb: float | None = None,
) -> Plan:
    """The plan for a data set.

    Args:
        fingerprint: of the training cases, at least one.
        channels: the manifest's, those named RGB expanded.
        labels: class name to file values, background first.
        ignore: file value of voxels nobody labelled, or None.
        section: overrides; what it leaves null or "auto" follows the rules.
        device_gb: memory of the device that will train, 10^9 bytes; None does not look at it.

    Raises:
        InputError: the fingerprint has no case, or a CT channel no foreground.
        ConfigError: an override can't be used with these data.
    """
    if not fingerprint.cases:
        raise InputError("training: has 0 usable cases, expected at least 1; correct the manifest or the cases")
    # nnU-Net counts an ignored label among the scores when it estimates memory, so we do.
    data = _DataSet(fingerprint, section, len(labels) + (ignore is not None), device_gb)
    chosen = data.chosen()
    channel_plans, channel_reason = plan_channels(fingerprint, channels, section)
    reasons = explain(
        chosen, section, preset=data.preset, memory_gb=data.memory_gb, device_gb=device_gb, cases=len(fingerprint.cases)
    )
    mirrored, mirror_reason = plan_mirrors(fingerprint.orders, labels)
    network = chosen.network
    return Plan(
        configuration=chosen.name,
        preset=section.preset,
        memory_gb=data.memory_gb,
        dimensions=chosen.dimensions,
        through_plane_axis=chosen.through_plane_axis,
        orientation=section.orientation,
        spacing_xyz_mm=_floats(chosen.spacing),
        median_shape_xyz=_ints(np.maximum(1, np.round(chosen.median))),
        patch_size_xyz=_ints(network.topology.patch_size),
        batch_size=section.batch_size or network.batch_size,
        channels=channel_plans,
        labels=dict(labels),
        ignore=ignore,
        features=network.features,
        strides=tuple(_ints(stage) for stage in network.topology.strides),
        kernel_sizes=tuple(_ints(stage) for stage in network.topology.kernel_sizes),
        residual=data.preset.residual,
        convolutions=network.convolutions,
        decoder_convolutions=network.decoder_convolutions,
        cascade=chosen.cascade,
        previous_channels=len(index_labels(labels)) - 1 if chosen.name == CASCADE else 0,
        batch_dice=chosen.batch_dice,
        mirror_axes=mirrored,
        stored_dtype=section.dtype,
        fingerprint_sha256=fingerprint.sha256,
        reasons=reasons | {"channels": channel_reason, "mirror_axes": mirror_reason},
        made_from_cases=len(fingerprint.cases),
        alternatives={c.name: _alternative(c) for c in data.by_the_rules() if c.name != chosen.name},
    )


def plan_mirrors(
    orders: Sequence[FixedOrder | None], labels: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Literal["x", "y", "z"], ...], str]:
    """Axes that may be mirrored, and why: those along which no two classes always lie in one order.

    nnU-Net mirrors all axes, which exchanges sides and takes the cue of position away.
    """
    names = list(index_labels(labels))
    axes: tuple[Literal["x"], Literal["y"], Literal["z"]] = ("x", "y", "z")
    hidden = []
    for axis, order in zip(axes, orders, strict=True):
        if order is not None:
            pair = f"{names[order.first]} lies before {names[order.second]} along {axis}"
            hidden.append(f"{pair} in {order.agreeing} of {order.cases} training cases")
    fixed = {axis for axis, order in zip(axes, orders, strict=True) if order is not None}
    kept = tuple(axis for axis in axes if axis not in fixed)
    if not hidden:
        return kept, "No two classes always lie in the same order along an axis."
    return kept, f"Mirroring would hide that {' and '.join(hidden)}."


def _alternative(choice: Choice) -> Alternative:
    network = choice.network
    return Alternative(
        spacing_xyz_mm=_floats(choice.spacing),
        through_plane_axis=choice.through_plane_axis,
        median_shape_xyz=_ints(np.maximum(1, np.round(choice.median))),
        patch_size_xyz=_ints(network.topology.patch_size),
        batch_size=network.batch_size,
        features=network.features,
        strides=tuple(_ints(stage) for stage in network.topology.strides),
        kernel_sizes=tuple(_ints(stage) for stage in network.topology.kernel_sizes),
        batch_dice=choice.batch_dice,
        cascade=choice.cascade,
    )


def _floats(values: npt.ArrayLike) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in np.asarray(values, np.float64))
    return x, y, z


def _ints(values: npt.ArrayLike) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in np.asarray(values))
    return x, y, z


def worst_axis(spacing_xyz_mm: Vector) -> int:
    """The axis with the longest voxels (0 is x); of equals the first in nnU-Net's (z, y, x)."""
    return 2 - int(np.argmax(spacing_xyz_mm[::-1]))


def _planning_order(spacing: Vector) -> list[int]:
    """Axes in the order in which nnU-Net looks at them, which settles ties: coarsest first, then z, y, x."""
    worst = worst_axis(spacing)
    return [worst, *(axis for axis in (2, 1, 0) if axis != worst)]


def target_spacing(fingerprint: Fingerprint) -> tuple[Vector, int | None]:
    """Full resolution: the median, but the 10th percentile along an axis with few and long voxels.

    Returns:
        Voxel size (x, y, z) in mm, and that axis or None.
    """
    spacings = fingerprint.spacings()
    median: Vector = np.percentile(spacings, 50, axis=0)
    if fingerprint.planar:
        return median, None
    sizes = np.percentile(fingerprint.shapes(), 50, axis=0)
    worst = worst_axis(median)
    others = [axis for axis in range(3) if axis != worst]
    coarsest_other = float(median[others].max())
    few_slices = sizes[worst] * _ANISOTROPIC < sizes[others].min()
    if not (median[worst] > _ANISOTROPIC * coarsest_other and few_slices):
        return median, None
    tenth = float(np.percentile(spacings[:, worst], 10))
    median[worst] = tenth if tenth >= coarsest_other else coarsest_other + 1e-5
    return median, worst


@dataclass(frozen=True)
class _DataSet:
    """One data set under the rules and the config's overrides."""

    fingerprint: Fingerprint
    section: PrepareSection
    classes: int
    device_gb: float | None

    @property
    def preset(self) -> PresetRules:
        return PRESETS[self.section.preset]

    @property
    def memory_gb(self) -> float:
        """The config's, else the preset's reference, or the device's where it has less."""
        if self.section.memory_gb is not None:
            return self.section.memory_gb
        reference = self.preset.memory_gb
        return reference if self.device_gb is None else min(reference, self.device_gb)

    def chosen(self) -> Choice:
        """The configuration that the config asks for, with its overrides.

        Raises:
            ConfigError: these data do not have it, or an override can't be used with it.
        """
        wished, patch = self.section.configuration, self.section.patch_size_xyz
        planar = self.fingerprint.planar
        if planar and wished in ("3d_fullres", "3d_lowres", CASCADE):
            raise ConfigError([f"prepare.configuration: is {wished}, expected 2d or auto; the scans are pictures"])
        if planar or wished == "2d":
            return self._flat(patch)
        if wished != "3d_lowres":
            full = self._full(patch)
            return full.changed(name=CASCADE) if wished == CASCADE else full
        if self.section.spacing_xyz_mm is not None:
            return self._fitted("3d_lowres", self._spacing()[0], patch=patch)
        low = self._low(self._full(None))
        if low is None:
            why = "a full-resolution patch holds much of the median scan, expected under a quarter, and half its voxels to gain"
            raise ConfigError(
                [f"prepare.configuration: is 3d_lowres, but {why}; use 3d_fullres, or give spacing_xyz_mm"]
            )
        return low if patch is None else self._fitted("3d_lowres", low.spacing, patch=patch, cascade=True)

    def by_the_rules(self) -> list[Choice]:
        """Every configuration that nnU-Net would make."""
        if self.fingerprint.planar:
            return [self._flat(None)]
        full = self._full(None)
        low = self._low(full)
        return [self._flat(None), full, *([low] if low else [])]

    def _spacing(self) -> tuple[Vector, int | None]:
        given = self.section.spacing_xyz_mm
        return target_spacing(self.fingerprint) if given is None else (np.array(given), None)

    def _median_shape(self, spacing: Vector) -> Vector:
        median: Vector = np.median(self.fingerprint.resampled_shapes(spacing), axis=0)
        return median

    def _full(self, patch: Sequence[int] | None) -> Choice:
        spacing, percentile_axis = self._spacing()
        choice = self._fitted("3d_fullres", spacing, patch=patch, percentile_axis=percentile_axis)
        low = self._low(choice)
        return choice.changed(batch_dice=low is not None, share=self._share(choice))

    def _share(self, choice: Choice) -> float:
        return math.prod(choice.network.topology.patch_size) / float(np.prod(choice.median))

    def _flat(self, patch: Sequence[int] | None) -> Choice:
        spacing, percentile_axis = self._spacing()
        through = 2 if self.fingerprint.planar else worst_axis(spacing)
        if patch is not None and patch[through] != 1:
            what = "the scans are pictures" if self.fingerprint.planar else "slices are stacked along it"
            raise ConfigError([f"prepare.patch_size_xyz: is {list(patch)}, expected 1 along {'xyz'[through]}; {what}"])
        median, voxels = self._median_and_voxels(spacing)
        network = self._network(spacing, median, voxels, _planning_order(spacing)[1:], patch)
        over_batch = not self.preset.tight
        if self.fingerprint.planar:
            return Choice("2d", 2, None, spacing, median, network, batch_dice=over_batch)
        # Slices are never resampled along their stack: each case keeps its own spacing there.
        spacing, median = spacing.copy(), median.copy()
        spacing[through] = np.median(self.fingerprint.spacings()[:, through])
        median[through] = np.median(self.fingerprint.shapes()[:, through])
        axis = None if percentile_axis == through else percentile_axis
        return Choice(
            "2d", 2, cast("Axis", through), spacing, median, network, batch_dice=over_batch, percentile_axis=axis
        )

    def _median_and_voxels(self, spacing: Vector) -> tuple[Vector, float]:
        median = self._median_shape(spacing)
        return median, float(np.prod(median)) * len(self.fingerprint.cases)

    def _fitted(
        self,
        name: Name,
        spacing: Vector,
        *,
        patch: Sequence[int] | None,
        percentile_axis: int | None = None,
        cascade: bool = False,
    ) -> Choice:
        median, voxels = self._median_and_voxels(spacing)
        network = self._network(spacing, median, voxels, _planning_order(spacing), patch)
        return Choice(
            name, 3, None, spacing, median, network, batch_dice=False, percentile_axis=percentile_axis, cascade=cascade
        )

    def _low(self, full: Choice) -> Choice | None:
        """nnU-Net's low resolution: coarser by 3 % steps until a patch holds a quarter of the median scan.

        None where a patch holds that much at full resolution, or the scan would have lost less than half its voxels.
        """
        order = _planning_order(full.spacing)
        scan_voxels = voxels = float(np.prod(full.median))
        patch_voxels, spacing, found = math.prod(full.network.topology.patch_size), full.spacing.copy(), None
        while patch_voxels / voxels < _LOW_RESOLUTION_BELOW:
            finer = spacing.max() / spacing > 2
            spacing = spacing.copy()
            spacing[finer if finer.any() else slice(None)] *= _LOW_RESOLUTION_STEP
            shape = full.spacing / spacing * full.median
            voxels = float(np.prod(shape))
            rounded = np.round(shape)
            network = self._network(spacing, rounded, voxels * len(self.fingerprint.cases), order, None)
            patch_voxels = math.prod(network.topology.patch_size)
            found = Choice("3d_lowres", 3, None, spacing, rounded, network, batch_dice=False, cascade=True)
        if found is None or scan_voxels / voxels < _LOW_RESOLUTION_GAIN:
            return None
        return found

    def _network(
        self, spacing: Vector, median: Vector, voxels: float, axes: Sequence[int], patch: Sequence[int] | None
    ) -> FittedNetwork:
        structure = self.fingerprint.structure_xyz_mm
        return fit_network(
            self.preset,
            spacing_xyz_mm=spacing,
            median_shape_xyz=median,
            dataset_voxels=voxels,
            axes=axes,
            classes=self.classes,
            memory_gb=self.memory_gb,
            patch_size_xyz=patch,
            structure_xyz=None if structure is None else np.array(structure) / spacing,
        )
