"""What a data set looks like, from its training cases only: spacings, shapes after the crop, foreground intensities."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.durable import sha256_json
from medseg.errors import InputError
from medseg.preparation.order import FixedOrder

FINGERPRINT_FORMAT = 1
SKETCH_POINTS = 1001
_MOST_VOXELS = 1_000_000


@dataclass(frozen=True, eq=False)
class IntensitySketch:
    """One channel's foreground intensities of one case: exact mean and SD, and 1001 evenly spaced quantiles (float32).

    Equal weight per case, as nnU-Net's equal number of drawn voxels per case gives, without keeping voxels.
    """

    mean: float
    std: float
    quantiles: npt.NDArray[np.float32]

    def plain(self) -> list[Any]:
        """As JSON-able values, the quantiles in base 64: a set of 10,000 cases is read in seconds that way."""
        return [self.mean, self.std, base64.b64encode(self.quantiles.astype("<f4").tobytes()).decode()]

    @classmethod
    def from_plain(cls, value: Sequence[Any]) -> IntensitySketch:
        """The inverse of `plain`."""
        mean, std, quantiles = value
        return cls(float(mean), float(std), np.frombuffer(base64.b64decode(quantiles), "<f4"))


@dataclass(frozen=True)
class Intensities:
    """One channel's foreground intensities over all cases. ``low`` and ``high`` are the 0.5 and 99.5 percentiles."""

    mean: float
    std: float
    median: float
    low: float
    high: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class CaseGeometry:
    """One case in the fingerprint: oriented shape after the crop, spacing, and the share of the scan that the crop keeps."""

    shape_xyz: tuple[int, int, int]
    spacing_xyz_mm: tuple[float, float, float]
    crop_share: float


@dataclass(frozen=True)
class Fingerprint:
    """See the module.

    ``intensities`` has None for a channel without any foreground. ``orders`` has per axis the classes that always lie in one
    order, or None. ``structure_xyz_mm`` is what nine of ten cases' foreground spans per axis, in mm (90th percentile); None
    where no case has any.
    """

    cases: Mapping[str, CaseGeometry]
    planar: bool
    intensities: tuple[Intensities | None, ...]
    orders: tuple[FixedOrder | None, FixedOrder | None, FixedOrder | None] = (None, None, None)
    structure_xyz_mm: tuple[float, float, float] | None = None

    def spacings(self) -> npt.NDArray[np.float64]:
        """(cases, 3) mm."""
        return np.array([c.spacing_xyz_mm for c in self.cases.values()], np.float64)

    def shapes(self) -> npt.NDArray[np.int64]:
        """(cases, 3) voxels after the crop."""
        return np.array([c.shape_xyz for c in self.cases.values()], np.int64)

    def resampled_shapes(self, spacing_xyz_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """(cases, 3) voxels once every case has this spacing."""
        return np.rint(self.spacings() / spacing_xyz_mm * self.shapes()).astype(np.int64)

    @property
    def median_crop_share(self) -> float:
        """Median over cases of the share of voxels that the crop to nonzero keeps."""
        return float(np.median([c.crop_share for c in self.cases.values()]))

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "format": FINGERPRINT_FORMAT,
            "planar": self.planar,
            "median_crop_share": self.median_crop_share,
            "median_spacing_xyz_mm": np.median(self.spacings(), axis=0).tolist(),
            "median_shape_xyz": np.median(self.shapes(), axis=0).tolist(),
            "intensities": [None if i is None else vars(i) for i in self.intensities],
            "orders": [None if order is None else vars(order) for order in self.orders],
            "structure_xyz_mm": None if self.structure_xyz_mm is None else list(self.structure_xyz_mm),
            "cases": {
                case_id: {
                    "shape_xyz": list(c.shape_xyz),
                    "spacing_xyz_mm": list(c.spacing_xyz_mm),
                    "crop_share": c.crop_share,
                }
                for case_id, c in self.cases.items()
            },
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `plain`.

        Raises:
            InputError: no fingerprint, or one of another format.
        """
        try:
            if value["format"] != FINGERPRINT_FORMAT:
                raise InputError(
                    f"fingerprint.json: has format {value['format']}, expected {FINGERPRINT_FORMAT}; use --replan"
                )
            cases = {
                case_id: CaseGeometry(_ints(c["shape_xyz"]), _floats(c["spacing_xyz_mm"]), float(c["crop_share"]))
                for case_id, c in value["cases"].items()
            }
            intensities = tuple(None if i is None else Intensities(**i) for i in value["intensities"])
            # A file from before the field says nothing of orders.
            x, y, z = (
                None if order is None else FixedOrder(**order) for order in value.get("orders", (None, None, None))
            )
            size = value.get("structure_xyz_mm")
            return cls(cases, bool(value["planar"]), intensities, (x, y, z), _floats(size) if size else None)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("fingerprint.json: is no fingerprint; prepare again with --replan") from error

    @cached_property
    def sha256(self) -> str:
        """Of everything in it."""
        return sha256_json(self.plain())


def _ints(values: Sequence[Any]) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)
    return x, y, z


def _floats(values: Sequence[Any]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def foreground_extent(classes: npt.NDArray[np.uint8]) -> tuple[int, int, int] | None:
    """Voxels per axis from the first to the last plane with foreground, all classes together.

    Args:
        classes: (X, Y, Z) class indices; 0 (background) and 255 (nobody labelled it) are left out.

    Returns:
        None where there is no foreground.
    """
    foreground = (classes > 0) & (classes < 255)
    if not foreground.any():
        return None
    planes = (np.flatnonzero(foreground.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    x, y, z = (int(found[-1] - found[0] + 1) for found in planes)
    return x, y, z


def structure_size(extents_mm: Sequence[Sequence[float]]) -> tuple[float, float, float] | None:
    """What nine of ten cases' foreground spans per axis: the 90th percentile of ``extents_mm``; None without any."""
    if not extents_mm:
        return None
    return _floats(np.percentile(np.asarray(extents_mm, np.float64), 90, axis=0).tolist())


def sketch_intensities(
    image: npt.NDArray[np.float32], classes: npt.NDArray[np.uint8], *, seed: int
) -> tuple[IntensitySketch | None, ...]:
    """Foreground intensities of one case, per channel.

    Args:
        image: (C, X, Y, Z), any intensities, finite.
        classes: (X, Y, Z) class indices; foreground is 1 to 254.
        seed: for the draw when there are more than a million foreground voxels.

    Returns:
        One sketch per channel, or None each where the case has no foreground.
    """
    where = np.flatnonzero((classes > 0) & (classes < 255))
    if where.size == 0:
        return tuple(None for _ in image)
    sampled = where
    if where.size > _MOST_VOXELS:
        sampled = np.random.default_rng(seed).choice(where, _MOST_VOXELS, replace=False, shuffle=False)
    sketches: list[IntensitySketch | None] = []
    for channel in image:
        values = channel.reshape(-1)
        all_values = values[where].astype(np.float64)
        quantiles = _quantiles(np.sort(values[sampled]))
        sketches.append(IntensitySketch(float(all_values.mean()), float(all_values.std()), quantiles))
    return tuple(sketches)


def _quantiles(rising: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    place = np.linspace(0, rising.size - 1, SKETCH_POINTS)
    return np.interp(place, np.arange(rising.size), rising.astype(np.float64)).astype(np.float32)


def merge_sketches(sketches: Sequence[IntensitySketch]) -> Intensities | None:
    """Intensities over all cases, each case with the same weight; None where there is no sketch.

    Mean and SD are exact for that mixture, percentiles are those of the cases' quantiles taken together.
    """
    if not sketches:
        return None
    means = np.array([s.mean for s in sketches])
    variance = float(np.mean([s.std**2 for s in sketches]) + means.var())
    values = np.concatenate([s.quantiles for s in sketches]).astype(np.float64)
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return Intensities(
        mean=float(means.mean()),
        std=variance**0.5,
        median=float(median),
        low=float(low),
        high=float(high),
        minimum=float(values.min()),
        maximum=float(values.max()),
    )


def fingerprint_drift(old: Fingerprint, new: Fingerprint) -> list[str]:
    """How far the training cases have moved from those a plan was made from.

    Returns:
        One sentence per thing that moved: cases added or removed, a median spacing or shape by more than 5 %, a channel's
        mean by more than a tenth of its SD, its SD by more than 10 %, the share that the crop keeps across the 75 % rule.
    """
    notes = []
    added, removed = len(new.cases.keys() - old.cases.keys()), len(old.cases.keys() - new.cases.keys())
    if added or removed:
        notes.append(f"{added} cases added, {removed} removed since the plan was made from {len(old.cases)}")
    for what, before, after in (
        ("spacing", old.spacings(), new.spacings()),
        ("shape", old.shapes(), new.shapes()),
    ):
        first, second = np.median(before, axis=0), np.median(after, axis=0)
        if (np.abs(second / first - 1) > 0.05).any():
            notes.append(f"median {what} moved from {_text(first)} to {_text(second)}")
    for index, (i, j) in enumerate(zip(old.intensities, new.intensities, strict=False)):
        if i and j and i.std > 0 and (abs(j.mean - i.mean) > 0.1 * i.std or abs(j.std / i.std - 1) > 0.1):
            notes.append(
                f"channel {index}: foreground mean and SD moved from {i.mean:.4g}, {i.std:.4g} to {j.mean:.4g}, {j.std:.4g}"
            )
    if (old.median_crop_share < 0.75) != (new.median_crop_share < 0.75):
        notes.append(f"the crop keeps {new.median_crop_share:.0%} of the median scan, was {old.median_crop_share:.0%}")
    return notes


def _text(values: npt.NDArray[Any]) -> str:
    return " x ".join(f"{float(v):.4g}" for v in values)
