"""The input contract: what a model was trained on, and how far a scan is from that.

The contract is made of the facts of the training cases and lies in the model folder (``model.json``, "contract"). A scan that
differs is warned about; one that the model can't make sense of, such as MR for a CT model or voxels of metres, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from medseg.errors import ModelError
from medseg.imaging import Volume, changed_affine, spacing_xyz_mm
from medseg.imaging.geometry import AxisChange
from medseg.preparation.case import axis_change
from medseg.preparation.plan import Plan
from medseg.preparation.scan_facts import ScanFacts, scan_facts

CONTRACT_FORMAT = 1
SIZE_LEEWAY = 1.25
"""Voxel sizes and fields of view may leave the training range by this factor without a word."""
SIZE_REFUSED = 4.0
"""Voxel sizes beyond the training range by more than this factor are refused, as are fields of view smaller by it."""
INTENSITY_LEEWAY = 0.25
"""Percentiles of intensities may leave the training range by this share of the training scans' whole span."""
OBLIQUE_LEEWAY_DEGREES = 10.0

Span = tuple[float, float]
Status = Literal["ok", "warn", "refuse"]
_NAMES = "xyz"
_PERCENTILE_NAMES = ("0.5 % of voxels are below", "the median is", "99.5 % of voxels are below")
_TINY = 0.1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the contract says of a scan.

    Attributes:
        status: "ok", "warn" (segmented, the mask is to be looked at) or "refuse" (not to be segmented).
        reasons: one sentence per difference, those that refuse first; none where it is ok.
    """

    status: Status = "ok"
    reasons: tuple[str, ...] = ()

    def softened(self) -> Verdict:
        """The same with a warning in place of a refusal."""
        return replace(self, status="warn") if self.status == "refuse" else self


@dataclass(frozen=True, kw_only=True)
class ChannelContract:
    """One channel of the training scans.

    Attributes:
        name: as the manifest calls it.
        absolute: whether the network sees intensities on the scanner's own scale (CT, SUV, colours), so that a scan on
            another scale means nothing to it; otherwise each scan is normalised by its own values.
        percentiles: lowest and highest 0.5, 50 and 99.5 percentile of the training scans; None where unknown.
    """

    name: str
    absolute: bool
    percentiles: tuple[Span, Span, Span] | None = None


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """What the training scans were like. None or empty means unknown, and is not checked.

    Attributes:
        cases: how many there were.
        planar: whether they were pictures.
        orientation: "RAS" where axes are turned before the network sees them, else "native".
        channels: in their order.
        spacing_xyz_mm: smallest and largest voxel size per oriented axis; None for pictures.
        extent_xyz_mm: smallest and largest field of view per oriented axis (in pixels for pictures).
        axes: the orientations that occurred ("RAS", "LPS" ...).
        oblique_degrees: the largest obliqueness.
        oriented: whether every file said where its axes run.
        modalities: DICOM modalities that occurred.
        volume_ml: per class the smallest and largest volume of the cases that have it (pixels / 1000 for pictures).
        present: per class the share of labelled cases that have it.
    """

    cases: int
    planar: bool
    orientation: Literal["RAS", "native"]
    channels: tuple[ChannelContract, ...]
    spacing_xyz_mm: tuple[Span, Span, Span] | None = None
    extent_xyz_mm: tuple[Span, Span, Span] | None = None
    axes: tuple[str, ...] = ()
    oblique_degrees: float | None = None
    oriented: bool | None = None
    modalities: tuple[str, ...] = ()
    volume_ml: Mapping[str, Span] = field(default_factory=dict)
    present: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        plain: dict[str, Any] = {"format": CONTRACT_FORMAT, **json.loads(json.dumps(asdict(self)))}
        return plain

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> InputContract:
        """The inverse of `plain`.

        Raises:
            ModelError: it is no contract, or a newer medseg wrote it.
        """
        if value.get("format") != CONTRACT_FORMAT:
            raise ModelError(
                f"model.json: contract has format {value.get('format')}, expected {CONTRACT_FORMAT}; update medseg"
            )
        try:
            rest = {name: own for name, own in value.items() if name != "format"}
            channels = tuple(
                ChannelContract(**{**channel, "percentiles": _spans(channel["percentiles"])})
                for channel in rest.pop("channels")
            )
            volumes = {name: _span(span) for name, span in rest.pop("volume_ml").items()}
            for name in ("spacing_xyz_mm", "extent_xyz_mm"):
                rest[name] = _spans(rest[name])
            for name in ("axes", "modalities"):
                rest[name] = tuple(str(text) for text in rest[name])
            return cls(channels=channels, volume_ml=volumes, **rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError("model.json: its contract can't be read; copy the model folder again") from error


def _span(value: Sequence[Any]) -> Span:
    low, high = (float(one) for one in value)
    return low, high


def _spans(values: Sequence[Sequence[Any]] | None) -> tuple[Span, Span, Span] | None:
    if values is None:
        return None
    first, second, third = (_span(value) for value in values)
    return first, second, third


def least_contract(plan: Plan) -> InputContract:
    """What a plan alone says of the scans that its models were trained on, for models that carry no contract."""
    channels = tuple(ChannelContract(name=channel.name, absolute=False) for channel in plan.channels)
    return InputContract(cases=0, planar=plan.of_pictures, orientation=plan.orientation, channels=channels)


def check_scan(volume: Volume, contract: InputContract | None) -> Verdict:
    """How a scan, as it was read, compares with what the model was trained on.

    Args:
        volume: (C, X, Y, Z) in its own axis order.
        contract: of the model; None (a model of before there were contracts) makes everything ok.

    Raises:
        GeometryError: the affine is singular.
    """
    if contract is None:
        return Verdict()
    found = _kind(volume, contract)
    if not found:  # a scan of another kind differs in everything else too
        facts = scan_facts(volume)
        found = [
            *_sizes(volume, contract),
            *_orientation(facts, contract),
            *_intensities(facts, contract),
        ]
    found.sort(key=lambda one: one.status == "warn")
    statuses = {one.status for one in found}
    status: Status = "refuse" if "refuse" in statuses else "warn" if statuses else "ok"
    return Verdict(status=status, reasons=tuple(reason for one in found for reason in one.reasons))


def check_volumes(
    volume_ml: Mapping[str, float], contract: InputContract | None, *, pixels: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """What is odd about the sizes of a mask's structures.

    Args:
        volume_ml: per class without background; empty for a picture.
        contract: of the model; None finds nothing but what is empty.
        pixels: of a picture, in place of volumes.

    Returns:
        One sentence per structure that is empty although training cases have it, tiny (less than a tenth of the smallest
        one there), or outside the training range.
    """
    unit = "ml" if pixels is None else "thousand pixels"
    sizes = volume_ml if pixels is None else {name: count / 1000 for name, count in pixels.items()}
    found = []
    for name, size in sizes.items():
        span = contract.volume_ml.get(name) if contract is not None else None
        if size == 0:
            share = contract.present.get(name) if contract is not None else None
            if share is None or share == 1:
                found.append(f"{name}: is empty" + (", all training cases have it" if share else ""))
            elif share > 0:
                found.append(f"{name}: is empty, {share:.0%} of training cases have it")
        elif span is not None and not span[0] <= size <= span[1]:
            word = "tiny, " if size < _TINY * span[0] else ""
            found.append(f"{name}: is {word}{size:.3g} {unit}, training cases have {span[0]:.3g} to {span[1]:.3g}")
    return tuple(found)


def _warn(reason: str) -> Verdict:
    return Verdict(status="warn", reasons=(reason,))


def _refuse(reason: str) -> Verdict:
    return Verdict(status="refuse", reasons=(reason,))


def _kind(volume: Volume, contract: InputContract) -> list[Verdict]:
    """What makes it another kind of scan: channels, pictures for volumes, another modality, no content."""
    header, channels = volume.header, contract.channels
    found = []
    if len(volume.array) != len(channels):
        names = ", ".join(channel.name for channel in channels)
        found.append(_refuse(f"scan: has {len(volume.array)} channels, expected {len(channels)} ({names})"))
    if contract.planar and volume.shape[2] > 1:
        found.append(_refuse(f"scan: has {volume.shape[2]} slices, expected a picture as in training"))
    if not contract.planar and header is not None and header.planar:
        found.append(_refuse("scan: is a picture, expected a volume as in training"))
    modality = header.modality if header is not None else ""
    if modality and contract.modalities and modality not in contract.modalities:
        found.append(
            _refuse(f"scan: has modality {modality}, expected {' or '.join(contract.modalities)} as in training")
        )
    if not np.isfinite(volume.array).all():
        found.append(_refuse("scan: has voxels that are NaN or infinite, expected none; correct the file"))
    elif volume.array.size > 1 and all(channel.min() == channel.max() for channel in volume.array):
        found.append(_refuse(f"scan: every voxel is {volume.array.flat[0]:g}, expected an image"))
    return found


def _sizes(volume: Volume, contract: InputContract) -> list[Verdict]:
    """Voxel sizes and fields of view, per oriented axis."""
    spacing, extent = sizes_xyz_mm(volume, orientation=contract.orientation, planar=contract.planar)
    unit = "pixels" if contract.planar else "mm"
    found = []
    for axis, name in enumerate(_NAMES):
        if contract.spacing_xyz_mm is not None:
            low, high = contract.spacing_xyz_mm[axis]
            wrong = _outside(spacing[axis], low, high)
            if wrong > SIZE_LEEWAY:
                say = _refuse if wrong > SIZE_REFUSED else _warn
                found.append(say(_range_text(f"voxel size along {name}", spacing[axis], low, high, "mm")))
        if contract.extent_xyz_mm is not None and (not contract.planar or axis < 2):
            low, high = contract.extent_xyz_mm[axis]
            wrong = _outside(extent[axis], low, high)
            if wrong > SIZE_LEEWAY:
                # What is too large may still hold the structures; what is much too small can't.
                say = _refuse if wrong > SIZE_REFUSED and extent[axis] < low and not contract.planar else _warn
                found.append(say(_range_text(f"field of view along {name}", extent[axis], low, high, unit)))
    return found


def sizes_xyz_mm(
    volume: Volume, *, orientation: Literal["RAS", "native"], planar: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(voxel size, field of view) per oriented axis in mm; a picture's field of view is in pixels."""
    change: AxisChange = axis_change(volume.affine, orientation=orientation, picture=planar)
    spacing = tuple(float(size) for size in spacing_xyz_mm(changed_affine(volume.affine, volume.shape, change)))
    counts = [volume.shape[axis] for axis in change.permutation]
    extent = tuple(count if planar else count * size for count, size in zip(counts, spacing, strict=True))
    return spacing, extent


def _outside(value: float, low: float, high: float) -> float:
    """By which factor a value lies outside a range; at most 1 inside."""
    return max(low / value, value / high)


def _orientation(facts: ScanFacts, contract: InputContract) -> list[Verdict]:
    if contract.planar:
        return []
    found = []
    if contract.oriented and not facts.oriented:
        found.append(
            _warn("orientation: the file does not say how its axes lie, all training files did; check left and right")
        )
    if contract.orientation == "native" and contract.axes and facts.axes not in contract.axes:
        listed = ", ".join(contract.axes)
        found.append(
            _refuse(f"orientation: axes are {facts.axes}, expected {listed} as in training; turn the scan's axes first")
        )
    most = contract.oblique_degrees
    if most is not None and facts.oblique_degrees > most + OBLIQUE_LEEWAY_DEGREES:
        found.append(
            _warn(f"orientation: axes are {facts.oblique_degrees:.0f}° oblique, training scans at most {most:.0f}°")
        )
    return found


def _intensities(facts: ScanFacts, contract: InputContract) -> list[Verdict]:
    found = []
    for own, channel in zip(facts.percentiles, contract.channels, strict=True):
        if channel.percentiles is None:
            continue
        lowest, highest = channel.percentiles[0][0], channel.percentiles[2][1]
        leeway = INTENSITY_LEEWAY * (highest - lowest)
        # Not one voxel in a hundred as bright (or dark) as any of training's: the network's answer would be noise.
        if channel.absolute and (own[2] < lowest - leeway or own[0] > highest + leeway):
            text = f"runs from {own[0]:.4g} to {own[2]:.4g}, training scans from {lowest:.4g} to {highest:.4g}"
            found.append(_refuse(f"intensity of {channel.name}: {text}; check its unit"))
            continue
        for value, (low, high), what in zip(own, channel.percentiles, _PERCENTILE_NAMES, strict=True):
            if not low - leeway <= value <= high + leeway:
                text = f"{what} {value:.4g}, in training {low:.4g} to {high:.4g}"
                found.append(_warn(f"intensity of {channel.name}: {text}"))
    return found


def _range_text(what: str, value: float, low: float, high: float, unit: str) -> str:
    return f"{what}: is {value:.3g} {unit}, training scans have {low:.3g} to {high:.3g}"
