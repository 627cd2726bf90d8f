"""One sentence per value of a plan, saying where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from medseg.config.sections import PrepareSection
from medseg.preparation.presets import FittedNetwork, PresetRules, Vector, most_features

Name = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
Axis = Literal[0, 1, 2]
_AS_ASKED = "As the config asks"


@dataclass(frozen=True)
class Choice:
    """One configuration under the rules.

    Attributes:
        name: nnU-Net's.
        dimensions: of the network.
        through_plane_axis: that slices of volumes are stacked along.
        spacing, median: (x, y, z) mm; voxels of the median scan, before rounding.
        network: with patch and batch.
        batch_dice: Dice over the batch.
        percentile_axis: axis whose spacing is a 10th percentile.
        cascade: a full-resolution network may follow.
        share: of the median scan that a patch holds.
    """

    name: Name
    dimensions: Literal[2, 3]
    through_plane_axis: Axis | None
    spacing: Vector
    median: Vector
    network: FittedNetwork
    batch_dice: bool
    percentile_axis: int | None = None
    cascade: bool = False
    share: float = 1.0

    def changed(self, **changes: Any) -> Choice:
        """A copy with these attributes."""
        return replace(self, **changes)


def explain(
    choice: Choice,
    section: PrepareSection,
    *,
    preset: PresetRules,
    memory_gb: float,
    device_gb: float | None,
    cases: int,
) -> dict[str, str]:
    """Plan field to its reason, for every field but the channels."""
    pictures = choice.dimensions == 2 and choice.through_plane_axis is None
    return {
        "configuration": _configuration(section, pictures=pictures),
        "preset": "The default." if section.preset == "plain" else f"{_AS_ASKED}: {preset.title}.",
        "memory_gb": _memory(section, preset, memory_gb, device_gb),
        "dimensions": f"The configuration is {choice.name}.",
        "through_plane_axis": _through_plane(choice, pictures=pictures),
        "spacing_xyz_mm": _spacing(choice, section, cases),
        "median_shape_xyz": "Median of the training cases after cropping to nonzero and resampling.",
        "patch_size_xyz": _patch(choice, section, memory_gb),
        "batch_size": _batch(choice.network, section, preset, memory_gb),
        "features": _features(choice, preset),
        "strides": "Axes with 8 or more voxels left, of under twice the finest axis' size, are halved; an axis alone needs 12.",
        "kernel_sizes": "1 along an axis until its voxels are under twice the finest axis', 3 from then on.",
        "residual": f"The preset is {section.preset}.",
        "convolutions": "Residual blocks: 1, 3, 4, then 6 per stage." if preset.residual else "2 per stage.",
        "decoder_convolutions": f"{1 if preset.residual else 2} per stage.",
        "cascade": _cascade(choice),
        "previous_channels": _previous_channels(choice),
        "batch_dice": _batch_dice(choice, preset, pictures=pictures),
        **_storage(section),
        "alternatives": "The other configurations that the rules make; prepare.configuration chooses.",
    }


def text_of(values: Sequence[float] | Vector) -> str:
    """Numbers joined by x."""
    return " x ".join(f"{float(v):g}" for v in values)


def _configuration(section: PrepareSection, *, pictures: bool) -> str:
    if section.configuration != "auto":
        return f"{_AS_ASKED}."
    return "Every training case is a single picture." if pictures else "The training cases are volumes."


def _features(choice: Choice, preset: PresetRules) -> str:
    if preset.widths is not None:
        return "Of the preset: on few cores a thin network buys more steps than it loses by its width."
    return f"32, doubled per stage up to {most_features(choice.dimensions)}."


def _memory(section: PrepareSection, preset: PresetRules, memory_gb: float, device_gb: float | None) -> str:
    if section.memory_gb is not None:
        return f"{_AS_ASKED}; {preset.title} has {preset.memory_gb:g} GB as its reference."
    if memory_gb < preset.memory_gb:
        return (
            f"{preset.title} has {preset.memory_gb:g} GB as its reference, but the device has only {device_gb:.3g} GB."
        )
    return f"The reference of {preset.title}."


def _through_plane(choice: Choice, *, pictures: bool) -> str:
    if choice.through_plane_axis is not None:
        return (
            "The axis with the longest voxels, of equals the first of z, y, x; each case keeps its own spacing there."
        )
    return "None: the cases are pictures." if pictures else "None: the network is 3D."


def _spacing(choice: Choice, section: PrepareSection, cases: int) -> str:
    if section.spacing_xyz_mm is not None:
        return f"{_AS_ASKED}, instead of the median of the {cases} training cases."
    if choice.name == "3d_lowres":
        return "Coarser than the full resolution by steps of 3 %, until a patch holds a quarter of the median scan."
    if choice.percentile_axis is not None:
        axis = "xyz"[choice.percentile_axis]
        return (
            f"Median of {cases} training cases, but along {axis} their 10th percentile: voxels there are more than 3 times "
            "longer and slices few."
        )
    return f"Median of {cases} training cases."


def _patch(choice: Choice, section: PrepareSection, memory_gb: float) -> str:
    network = choice.network
    if section.patch_size_xyz is not None:
        return f"{_AS_ASKED}; an axis is halved only while it divides evenly."
    if network.tightened:
        return (
            "The smallest that the strides divide and that holds the labelled structures of nine in ten training cases."
        )
    if network.shrunk:
        return (
            f"Largest patch of the median scan's proportions whose network fits {memory_gb:g} GB with a batch of 2, as "
            "nnU-Net counts it."
        )
    axes = [a for a in range(3) if a != choice.through_plane_axis][: choice.dimensions]
    return f"The median scan ({text_of(choice.median[axes])}), at most nnU-Net's largest, rounded to what the strides divide."


def _batch(network: FittedNetwork, section: PrepareSection, preset: PresetRules, memory_gb: float) -> str:
    if section.batch_size is not None:
        return f"{_AS_ASKED}; the rules give {network.batch_size}."
    if preset.tight:
        return "The smallest: on few cores many small steps beat few large ones."
    if network.capped:
        return f"A batch covers at most {preset.largest_share:.0%} of the training voxels, and at least 2 patches."
    return f"What fits {memory_gb:g} GB as nnU-Net counts it ({network.values:,} values a patch), at least 2."


def _cascade(choice: Choice) -> str:
    if choice.cascade:
        return "nnU-Net would have a full-resolution network refine its masks (3d_cascade_fullres)."
    return "Only the low resolution has a next stage."


def _previous_channels(choice: Choice) -> str:
    if choice.name == "3d_cascade_fullres":
        return "The first stage's mask, one-hot without background, follows the image's channels."
    return "No first stage."


def _batch_dice(choice: Choice, preset: PresetRules, *, pictures: bool) -> str:
    if preset.tight and choice.dimensions == 2:
        return "A batch of 2 is too small to stand for a volume."
    if pictures:
        return "Pictures: a batch stands for a volume."
    if choice.dimensions == 2:
        return "Slices: a batch stands for a volume."
    if choice.name == "3d_lowres":
        return "A patch of the low resolution holds much of a scan, so Dice per patch is fair."
    over_batch = "few patches show a structure whole: Dice is taken over the batch"
    why = over_batch if choice.batch_dice else "Dice per patch is fair"
    return f"A patch holds {choice.share:.0%} of the median scan, so {why}."


def _storage(section: PrepareSection) -> dict[str, str]:
    half = section.dtype == "float16"
    ras = section.orientation == "RAS"
    return {
        "stored_dtype": "Half the bytes to read; normalised values change by less than 5e-4 of their size."
        if half
        else f"{_AS_ASKED}.",
        "orientation": "Axes are flipped and permuted to Right-Anterior-Superior, never interpolated."
        if ras
        else f"{_AS_ASKED}: axes stay as the files have them.",
    }
