"""From a fingerprint to a plan, by nnU-Net's rules; every value with the sentence that says why.

The rules: Isensee et al., nnU-Net (Nature Methods 2021) and its version 2. A plan is a pure function of the fingerprint, the
manifest's channels and labels, and the ``prepare`` section's overrides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medseg.config.sections import PrepareSection
from medseg.errors import ConfigError, InputError
from medseg.manifest.cases import Channel
from medseg.preparation.fingerprint import Fingerprint
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.preparation.topology import Topology, feature_map_values, plan_topology

_ANISOTROPIC = 3.0
_MASK_BELOW = 0.75
_LARGEST_SHARE = 0.05
_SMALLEST_BATCH = 2
_LOW_RESOLUTION_BELOW = 0.25
_LOW_RESOLUTION_STEP = 1.03
_RGB_NAMES = frozenset({"rgb", "rgb_to_0_1", "r", "g", "b", "red", "green", "blue"})
_PLAIN_NAMES = frozenset({"nonorm", "none"})


@dataclass(frozen=True)
class _Budget:
    """What a network of this many dimensions may cost: values kept for a batch of ``reference_batch`` in 8 GB."""

    values: float
    reference_batch: int
    first_patch_voxels: float
    most_features: int


_BUDGETS = {3: _Budget(560e6, 2, 256.0**3, 320), 2: _Budget(85e6, 12, 2048.0**2, 512)}


@dataclass(frozen=True)
class _Network:
    """One configuration: topology, widths, batch and what they cost."""

    topology: Topology
    features: tuple[int, ...]
    batch_size: int
    values: int
    shrunk: bool
    capped: bool


def make_plan(
    fingerprint: Fingerprint,
    *,
    channels: Sequence[Channel],
    labels: Mapping[str, tuple[int, ...]],
    ignore: int | None,
    section: PrepareSection,
) -> Plan:
    """The plan for a data set.

    Args:
        fingerprint: of the training cases, at least one.
        channels: the manifest's.
        labels: class name to file values, background first.
        ignore: file value of voxels nobody labelled, or None.
        section: overrides; what it leaves null or "auto" follows the rules.

    Raises:
        InputError: the fingerprint has no case.
        ConfigError: an override can't be used with these data.
    """
    if not fingerprint.cases:
        raise InputError("training: has 0 usable cases, expected at least 1; correct the manifest or the cases")
    dimensions = 2 if fingerprint.planar else 3
    reasons: dict[str, str] = {}
    reasons["dimensions"] = (
        "Every training case is a single picture." if dimensions == 2 else "The training cases are volumes."
    )
    spacing = _target_spacing(fingerprint, section, reasons)
    median = np.median(fingerprint.resampled_shapes(spacing), axis=0)
    voxels = float(np.prod(median)) * len(fingerprint.cases)
    network = _choose_network(
        spacing, median, voxels, dimensions=dimensions, classes=len(labels), section=section, reasons=reasons
    )
    _explain_storage(section, reasons)
    return Plan(
        dimensions=dimensions,  # type: ignore[arg-type]
        orientation=section.orientation,
        spacing_xyz_mm=_floats(spacing),
        median_shape_xyz=_ints(np.maximum(1, np.round(median))),
        patch_size_xyz=_ints(network.topology.patch_size),
        batch_size=network.batch_size,
        channels=_channel_plans(fingerprint, channels, section, reasons),
        labels=dict(labels),
        ignore=ignore,
        features=network.features,
        strides=tuple(_ints(stage) for stage in network.topology.strides),
        kernel_sizes=tuple(_ints(stage) for stage in network.topology.kernel_sizes),
        batch_dice=_batch_dice(spacing, median, network, dimensions, len(labels), reasons),
        stored_dtype=section.dtype,
        fingerprint_sha256=fingerprint.sha256,
        reasons=reasons,
        made_from_cases=len(fingerprint.cases),
    )


def _explain_storage(section: PrepareSection, reasons: dict[str, str]) -> None:
    reasons["stored_dtype"] = (
        "Half the bytes to read; normalised values change by less than 5e-4 of their size."
        if section.dtype == "float16"
        else "As the config asks."
    )
    reasons["orientation"] = (
        "Axes are flipped and permuted to Right-Anterior-Superior, never interpolated."
        if section.orientation == "RAS"
        else "As the config asks: axes stay as the files have them."
    )


def _floats(values: npt.ArrayLike) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in np.asarray(values, np.float64))
    return x, y, z


def _ints(values: npt.ArrayLike) -> tuple[int, int, int]:
    three = [int(v) for v in np.asarray(values)] + [1]
    return three[0], three[1], three[2]


def _text(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{float(v):g}" for v in values)


def _target_spacing(
    fingerprint: Fingerprint, section: PrepareSection, reasons: dict[str, str]
) -> npt.NDArray[np.float64]:
    spacings = fingerprint.spacings()
    median = np.percentile(spacings, 50, axis=0)
    if section.spacing_xyz_mm is not None:
        reasons["spacing_xyz_mm"] = f"As the config asks; the training cases' median is {_text(median)} mm."
        return np.array(section.spacing_xyz_mm)
    reasons["spacing_xyz_mm"] = f"Median of {len(spacings)} training cases."
    if fingerprint.planar:
        return median
    sizes = np.percentile(fingerprint.shapes(), 50, axis=0)
    worst = _worst_axis(median)
    others = [axis for axis in range(3) if axis != worst]
    coarsest_other = float(median[others].max())
    few_slices = sizes[worst] * _ANISOTROPIC < sizes[others].min()
    if median[worst] > _ANISOTROPIC * coarsest_other and few_slices:
        tenth = float(np.percentile(spacings[:, worst], 10))
        reasons["spacing_xyz_mm"] = (
            f"Median of {len(spacings)} training cases, but along {'xyz'[worst]} their 10th percentile, not their median of "
            f"{median[worst]:g} mm: voxels there are more than 3 times longer and slices few."
        )
        median[worst] = tenth if tenth >= coarsest_other else coarsest_other + 1e-5
    return median


def _worst_axis(spacing: npt.NDArray[np.float64]) -> int:
    # nnU-Net counts axes (z, y, x) and takes the first of equals.
    return 2 - int(np.argmax(spacing[::-1]))


def _planning_order(spacing: npt.NDArray[np.float64], dimensions: int) -> list[int]:
    """Axes in the order in which nnU-Net looks at them, which settles ties: coarsest first, then z, y, x."""
    if dimensions == 2:
        return [1, 0]
    worst = _worst_axis(spacing)
    return [worst, *(axis for axis in (2, 1, 0) if axis != worst)]


def _choose_network(
    spacing: npt.NDArray[np.float64],
    median: npt.NDArray[np.float64],
    dataset_voxels: float,
    *,
    dimensions: int,
    classes: int,
    section: PrepareSection,
    reasons: dict[str, str],
) -> _Network:
    given = section.patch_size_xyz
    if given is not None and dimensions == 2 and given[2] != 1:
        raise ConfigError([f"prepare.patch_size_xyz: is {list(given)}, expected 1 along z; the scans are pictures"])
    network = _fit_network(spacing, median, dataset_voxels, dimensions=dimensions, classes=classes, given=given)
    if section.batch_size is not None:
        network = replace(network, batch_size=section.batch_size)
    _explain_network(network, median, section, dimensions, reasons)
    return network


def _fit_network(
    spacing: npt.NDArray[np.float64],
    median: npt.NDArray[np.float64],
    dataset_voxels: float,
    *,
    dimensions: int,
    classes: int,
    given: Sequence[int] | None = None,
) -> _Network:
    """Largest patch whose network fits the budget, with its batch; everything in (x, y[, z])."""
    budget = _BUDGETS[dimensions]
    order = _planning_order(spacing, dimensions)
    fine, shape = spacing[order], median[order]
    if given is not None:
        topology = plan_topology(spacing_mm=fine.tolist(), patch_size=[given[a] for a in order], keep_patch=True)
    else:
        scale = (budget.first_patch_voxels * np.prod(fine)) ** (1 / dimensions)
        first = [max(1, min(round(scale / s), n)) for s, n in zip(fine, shape, strict=True)]
        topology = plan_topology(spacing_mm=fine.tolist(), patch_size=first)
    values, shrunk = _values(topology, classes, budget), False
    while given is None and values / budget.reference_batch * _SMALLEST_BATCH > budget.values:
        topology, shrunk = _shrink(topology, fine, shape), True
        values = _values(topology, classes, budget)
    wanted = round(budget.values / values * budget.reference_batch)
    most = round(dataset_voxels * _LARGEST_SHARE / math.prod(topology.patch_size))
    batch = max(min(wanted, most), _SMALLEST_BATCH)
    back = [order.index(axis) for axis in range(dimensions)]
    ordered = Topology(
        tuple(tuple(stage[i] for i in back) + (1,) * (3 - dimensions) for stage in topology.strides),
        tuple(tuple(stage[i] for i in back) + (1,) * (3 - dimensions) for stage in topology.kernel_sizes),
        tuple(topology.patch_size[i] for i in back) + (1,) * (3 - dimensions),
    )
    return _Network(ordered, _features(topology, budget), batch, values, shrunk, most < wanted)


def _features(topology: Topology, budget: _Budget) -> tuple[int, ...]:
    return tuple(min(32 * 2**stage, budget.most_features) for stage in range(len(topology.strides)))


def _values(topology: Topology, classes: int, budget: _Budget) -> int:
    return feature_map_values(topology=topology, features=_features(topology, budget), classes=classes)


def _shrink(topology: Topology, spacing: npt.NDArray[np.float64], shape: npt.NDArray[np.float64]) -> Topology:
    """One step smaller along the axis that is longest relative to the median scan."""
    patch = list(topology.patch_size)
    axis = int(np.argsort([p / s for p, s in zip(patch, shape, strict=True)], kind="stable")[-1])
    # Taking the full divisor off could jump over a size that fits, because a shorter axis is halved less often.
    probe = list(patch)
    probe[axis] -= topology.divisors[axis]
    patch[axis] -= plan_topology(spacing_mm=spacing.tolist(), patch_size=probe).divisors[axis]
    return plan_topology(spacing_mm=spacing.tolist(), patch_size=patch)


def _explain_network(
    network: _Network,
    median: npt.NDArray[np.float64],
    section: PrepareSection,
    dimensions: int,
    reasons: dict[str, str],
) -> None:
    budget = _BUDGETS[dimensions]
    reasons["median_shape_xyz"] = "Median of the training cases after cropping to nonzero and resampling."
    if section.patch_size_xyz is not None:
        reasons["patch_size_xyz"] = "As the config asks; an axis is halved only while it divides evenly."
    elif network.shrunk:
        reasons["patch_size_xyz"] = (
            f"Largest patch of the median scan's proportions whose network fits the budget of {budget.values:g} values."
        )
    else:
        reasons["patch_size_xyz"] = (
            f"The median scan ({_text(median[:dimensions])}), rounded up to what the strides divide."
        )
    if section.batch_size is not None:
        reasons["batch_size"] = "As the config asks."
    elif network.capped:
        reasons["batch_size"] = "A batch covers at most 5 % of the training voxels, and at least 2 patches."
    else:
        reasons["batch_size"] = (
            f"What fits the budget of {budget.values:g} values ({network.values:,} a patch), at least 2."
        )
    reasons["features"] = f"32, doubled per stage up to {budget.most_features}."
    reasons["strides"] = (
        "Axes with at least 8 voxels left and voxels under twice the finest axis' are halved; an axis alone needs 12."
    )
    reasons["kernel_sizes"] = "1 along an axis until its voxels are under twice the finest axis', 3 from then on."


def _batch_dice(
    spacing: npt.NDArray[np.float64],
    median: npt.NDArray[np.float64],
    network: _Network,
    dimensions: int,
    classes: int,
    reasons: dict[str, str],
) -> bool:
    """True for pictures, and for volumes that are so much larger than a patch that nnU-Net would add a low resolution."""
    if dimensions == 2:
        reasons["batch_dice"] = "Pictures: a batch stands for a volume."
        return True
    patch_voxels, scan_voxels = math.prod(network.topology.patch_size), float(np.prod(median))
    share = patch_voxels / scan_voxels
    coarse, coarse_voxels = spacing.copy(), scan_voxels
    while patch_voxels / coarse_voxels < _LOW_RESOLUTION_BELOW:
        finer = coarse.max() / coarse > 2
        coarse[finer if finer.any() else slice(None)] *= _LOW_RESOLUTION_STEP
        shape = spacing / coarse * median
        coarse_voxels = float(np.prod(shape))
        low = _fit_network(coarse, np.round(shape), coarse_voxels, dimensions=3, classes=classes)
        patch_voxels = math.prod(low.topology.patch_size)
    small_patches = scan_voxels / coarse_voxels >= 2
    reasons["batch_dice"] = f"A patch holds {share:.0%} of the median scan, so " + (
        "few patches show a structure whole: Dice is taken over the batch."
        if small_patches
        else "Dice per patch is fair."
    )
    return small_patches


def _channel_plans(
    fingerprint: Fingerprint, channels: Sequence[Channel], section: PrepareSection, reasons: dict[str, str]
) -> tuple[ChannelPlan, ...]:
    masked = fingerprint.median_crop_share < _MASK_BELOW
    plans, sentences = [], []
    for channel, intensities in zip(channels, fingerprint.intensities, strict=True):
        scheme = _scheme(channel.name) if section.normalisation == "auto" else section.normalisation
        use_mask = masked and scheme in ("zscore", "percentile")
        known = intensities if scheme == "ct" else None
        if scheme == "ct" and intensities is None:
            raise InputError(f"{channel.name}: has no foreground voxels to take CT statistics from; check the labels")
        plans.append(
            ChannelPlan(
                name=channel.name,
                unit=channel.unit,
                scheme=scheme,  # type: ignore[arg-type]
                use_mask=use_mask,
                low=known.low if known else 0.0,
                high=known.high if known else 0.0,
                mean=known.mean if known else 0.0,
                std=known.std if known else 1.0,
            )
        )
        origin = "by its name" if section.normalisation == "auto" else "as the config asks"
        sentences.append(f"{channel.name}: {scheme} {origin}")
    share = f"the crop to nonzero keeps {fingerprint.median_crop_share:.0%} of the median scan"
    reasons["channels"] = "; ".join(sentences) + (
        f"; statistics inside the nonzero mask, because {share}." if any(p.use_mask for p in plans) else f"; {share}."
    )
    return tuple(plans)


def _scheme(channel_name: str) -> str:
    name = channel_name.casefold()
    if name == "ct":
        return "ct"
    if name in _RGB_NAMES:
        return "rgb"
    return "none" if name in _PLAIN_NAMES else "zscore"
