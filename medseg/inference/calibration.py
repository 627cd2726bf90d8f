"""From the evidence of a mask to the Dice it is expected to have: a small model fitted on out-of-fold masks.

Per class, the logarithm of the error, log(1 - Dice), is a weighted sum of a few logarithms that can be read off the mask and
its probabilities. The bound is conformal: below it lies the Dice of at most one in ten masks (coverage 0.9), if the new scans
are like those of the calibration. All of it is in ``quality.json`` of the model folder; ``docs/quality.md`` says more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medseg.durable import read_json, sha256_file, sha256_json, write_json
from medseg.errors import InputError, ModelError
from medseg.inference.appearance import APPEARANCE

QUALITY_FORMAT = 2
"""2 may use what the scan looks like; 1, which did not, is read as well."""
_READ = (1, 2)
QUALITY_FILE = "quality.json"
FLOOR = 0.005
"""Added to errors before the logarithm is taken, so that a perfect mask does not weigh without limit."""

Structures = Mapping[str, Mapping[str, float]]
"""Class name to its features, as `uncertainty.Evidence` has them."""


def describe(structures: Structures, name: str, *, typical_ml: Mapping[str, float]) -> dict[str, float]:
    """What the model of a class is given: logarithms of a structure's features.

    Args:
        structures: of one mask.
        name: of a class that is in it.
        typical_ml: class to its median volume in the calibration.

    Returns:
        ``doubt`` (1 - soft Dice), ``entropy``, ``rim``, ``outside``, ``volume``, ``compactness``, ``contact`` and the lengths
        ``x``, ``y``, ``z`` of the structure; ``unusual``, how far its volume is from the typical one, either way; ``others``,
        the mean ``doubt`` of all structures of the mask; ``others_volume``, the mean over the other structures of volume over
        typical volume; and ``brightness``, ``spread``, ``texture`` and ``edge`` where they were measured.
    """
    own = structures[name]
    there = {other: values for other, values in structures.items() if values["volume_ml"] > 0}
    ratios = {
        other: math.log(values["volume_ml"] / typical_ml[other])
        for other, values in there.items()
        if other in typical_ml
    }
    others = [ratio for other, ratio in ratios.items() if other != name]
    return {
        "doubt": _doubt(own),
        "entropy": math.log(own["entropy"] + 1e-4),
        "rim": math.log(own["rim_mm"] + 1e-3),
        "outside": math.log(own["outside"] + 1e-4),
        "volume": math.log(own["volume_ml"]),
        "compactness": math.log(own["compactness"]),
        "contact": math.log(own["contact"] + 1e-2),
        **{axis: math.log(own[f"length_{axis}_mm"]) for axis in "xyz"},
        "unusual": abs(ratios.get(name, 0.0)),
        "others": sum(map(_doubt, there.values())) / len(there),
        "others_volume": sum(others) / len(others) if others else 0.0,
        **{name: own[name] for name in APPEARANCE if name in own},
    }


def _doubt(features: Mapping[str, float]) -> float:
    return math.log(max(0.0, 1 - features["soft_dice"]) + 1e-3)


@dataclass(frozen=True, kw_only=True)
class ClassCalibration:
    """One class: log(1 - Dice + 0.005) = intercept + Σ weight asinh((x - centre) / scale).

    The asinh lets a mask far from all of the calibration count as far, without its estimate running away.

    Attributes:
        names: of the features of `describe` that it uses.
        centres, scales, weights: one each.
        intercept: mean log error.
        smear: mean of exp(residual), by which the mean error exceeds exp(mean log error) (Duan 1983).
        margin: conformal quantile of the residuals; None where there were too few cases, and the bound is 0 then.
        cases: it was fitted on.
    """

    names: tuple[str, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    smear: float
    margin: float | None
    cases: int

    def log_error(self, described: Mapping[str, float]) -> float:
        """Expected log(1 - Dice + 0.005)."""
        terms = zip(self.names, self.centres, self.scales, self.weights, strict=True)
        return self.intercept + math.fsum(
            weight * math.asinh((described[name] - centre) / scale) for name, centre, scale, weight in terms
        )

    def expected(self, described: Mapping[str, float]) -> float:
        """Expected Dice, 0 to 1."""
        return _dice(math.exp(self.log_error(described)) * self.smear)

    def bound(self, described: Mapping[str, float]) -> float:
        """What the Dice exceeds with the calibration's coverage, 0 to 1."""
        return 0.0 if self.margin is None else _dice(math.exp(self.log_error(described) + self.margin))


def _dice(error: float) -> float:
    return round(min(1.0, max(0.0, 1 + FLOOR - error)), 4)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What ``quality.json`` of a model folder holds.

    Attributes:
        model_sha256: of the model that it is for.
        coverage: share of masks whose Dice is to lie above the bound.
        classes: class name to its calibration; a class that too few cases have is left out.
        typical_ml: class name to its median volume.
        temperature: by which logits are divided, so that probabilities are as often right as they say.
        evidence: plain values: how well it did on folds that it was not fitted on.
    """

    model_sha256: str
    coverage: float
    classes: Mapping[str, ClassCalibration]
    typical_ml: Mapping[str, float]
    temperature: float = 1.0
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def estimate(self, structures: Structures, name: str) -> tuple[float, float] | None:
        """(expected Dice, its bound) of a structure.

        None where it is empty, its class has no calibration, or its mask was made by a medseg that did not measure all that
        the calibration needs (``--overwrite`` does).
        """
        own = self.classes.get(name)
        if own is None or structures.get(name, {}).get("volume_ml", 0) <= 0:
            return None
        described = describe(structures, name, typical_ml=self.typical_ml)
        if not set(own.names) <= described.keys():
            return None
        return own.expected(described), own.bound(described)

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Calibration:
        """The inverse of `plain`."""
        classes = {name: _class_from_plain(own) for name, own in value["classes"].items()}
        return cls(**{**value, "classes": classes})


def _class_from_plain(value: Mapping[str, Any]) -> ClassCalibration:
    listed = {name: tuple(value[name]) for name in ("names", "centres", "scales", "weights")}
    return ClassCalibration(**{**value, **listed})


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Writes ``quality.json`` into a model folder, atomically. The model's own files and checksum stay as they are."""
    content = calibration.plain()
    write_json(folder / QUALITY_FILE, {"format": QUALITY_FORMAT, "sha256": sha256_json(content), **content})


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration of a model folder; None where there is none.

    Raises:
        ModelError: it is damaged, of a newer medseg, or of another model than the folder's.
    """
    path = folder / QUALITY_FILE
    if not path.is_file():
        return None
    try:
        content = dict(read_json(path))
        version, sha256 = content.pop("format"), content.pop("sha256")
        calibration = Calibration.from_plain(content) if version in _READ else None
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder.name}: {QUALITY_FILE} can't be read; calibrate again") from error
    if calibration is None:
        raise ModelError(
            f"{folder.name}: {QUALITY_FILE} has format {version}, this medseg reads {QUALITY_FORMAT}; update medseg"
        )
    if sha256_json(content) != sha256:
        raise ModelError(f"{folder.name}: {QUALITY_FILE} does not have its checksum; calibrate again")
    if calibration.model_sha256 != sha256_file(folder / "model.json"):
        raise ModelError(f"{folder.name}: {QUALITY_FILE} is of another model; remove it, or calibrate again")
    return calibration


def risk_of(expected: Mapping[str, float | None], uncertainty: Mapping[str, float | None]) -> float | None:
    """How much a mask should be looked at, 0 to 1: 1 minus the mean expected Dice; where that is unknown, mean entropy.

    Args:
        expected: Dice per class; classes without one do not count.
        uncertainty: entropy per class.

    Returns:
        None where nothing is known.
    """
    known: Sequence[float] = [value for value in expected.values() if value is not None]
    if known:
        return round(1 - math.fsum(known) / len(known), 4)
    doubtful: Sequence[float] = [value for value in uncertainty.values() if value is not None]
    return round(math.fsum(doubtful) / len(doubtful), 4) if doubtful else None
