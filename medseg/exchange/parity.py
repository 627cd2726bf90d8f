"""The parity certificate of an export: how far its scores and masks are from ``medseg infer``'s on the same scans.

``parity.json`` in the exported folder. Scans are told apart by a checksum and a number, never by name: the folder travels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.durable import sha256_bytes, write_json
from medseg.evaluation.overlap import count_overlap, dice
from medseg.imaging import Volume, read_label_map
from medseg.imaging.labels import IGNORE, to_classes
from medseg.inference.ensemble import MaskMaker
from medseg.inference.scores import score_channels
from medseg.preparation.plan import Plan

PARITY_FILE = "parity.json"
PARITY_FORMAT = 1
LARGEST_SHARE = 1e-3
"""Largest difference of scores, as a share of the largest score, with which an export counts as the same."""
DIFFERING_SHARE = 1e-5
"""Voxels that may be of another class: a tie between two classes may fall either way."""
_SYNTHETIC_SEED = 20
_PACKAGES = ("medseg", "torch", "onnxruntime", "onnxruntime-gpu", "monai", "numpy")

ClassArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan to compare on.

    Attributes:
        volume: as read.
        sha256: of its voxels, which tells cases apart.
        reference: (X, Y, Z) true class indices on its grid, 255 where nobody labelled; None where there are none.
    """

    volume: Volume
    sha256: str
    reference: ClassArray | None = None


@dataclass(frozen=True, kw_only=True)
class CaseParity:
    """One scan's comparison.

    Attributes:
        scan_sha256: first 16 characters of the checksum of its voxels.
        voxels: of the scan.
        differing_voxels: of them, with another class.
        dice: per class, between the two masks; 1 where both are empty.
        largest_score: the largest absolute score of infer's; None where scores were not compared.
        score_difference: the largest absolute difference of a score, likewise.
        reference_dice: per class with a reference, infer's Dice and the export's.
    """

    scan_sha256: str
    voxels: int
    differing_voxels: int
    dice: dict[str, float]
    largest_score: float | None = None
    score_difference: float | None = None
    reference_dice: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether scores and masks agree within the limits."""
        few = self.differing_voxels <= DIFFERING_SHARE * self.voxels
        if self.score_difference is None or self.largest_score is None:
            return few
        return few and self.score_difference <= LARGEST_SHARE * max(self.largest_score, 1e-6)

    @property
    def dice_lost(self) -> float | None:
        """Mean over classes of infer's Dice less the export's; None without a reference."""
        if not self.reference_dice:
            return None
        return float(np.mean([own - other for own, other in self.reference_dice.values()]))


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What an export was found to be.

    Attributes:
        what: "bundle", "onnx" or "int8".
        model_sha256: of the model it was made of.
        cases: at least one.
        scans: "given" or "synthetic".
        limited: whether it is meant to be the same; a light model is not, its figures are its price.
        facts: further plain values, such as shapes that a network was tried with.
    """

    what: str
    model_sha256: str
    cases: tuple[CaseParity, ...]
    scans: str
    limited: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every case agrees within the limits; always where nothing is promised."""
        return not self.limited or all(case.same for case in self.cases)

    def summary(self) -> dict[str, Any]:
        """Over all cases: counts, largest differences, lowest Dice and the mean Dice lost."""
        differences = [case.score_difference for case in self.cases if case.score_difference is not None]
        lost = [case.dice_lost for case in self.cases if case.dice_lost is not None]
        return {
            "cases": len(self.cases),
            "differing_voxels": sum(case.differing_voxels for case in self.cases),
            "voxels": sum(case.voxels for case in self.cases),
            "least_dice": min(min(case.dice.values()) for case in self.cases),
            "largest_score_difference": max(differences) if differences else None,
            "mean_dice_lost": float(np.mean(lost)) if lost else None,
        }

    def write(self, folder: Path) -> None:
        """Writes ``parity.json``."""
        limits = {"score_share": LARGEST_SHARE, "differing_voxel_share": DIFFERING_SHARE} if self.limited else None
        content = {
            "format": PARITY_FORMAT,
            "kind": "medseg parity certificate",
            "what": self.what,
            "model_sha256": self.model_sha256,
            "scans": self.scans,
            "limits": limits,
            "passed": self.passed,
            **self.summary(),
            **self.facts,
            "versions": dict(_versions()),
            "each": [_plain(case) for case in self.cases],
        }
        write_json(folder / PARITY_FILE, content)

    def sentence(self) -> str:
        """The summary in one line."""
        found = self.summary()
        difference = found["largest_score_difference"]
        scores = "" if difference is None else f", scores differ by {difference:.2g} at most"
        lost = "" if found["mean_dice_lost"] is None else f", Dice lost {found['mean_dice_lost']:.4f}"
        return (
            f"{found['differing_voxels']} of {found['voxels']} voxels differ on {found['cases']} {self.scans} scans, "
            f"lowest Dice between the masks {found['least_dice']:.4f}{scores}{lost}"
        )


def _plain(case: CaseParity) -> dict[str, Any]:
    pairs = {name: {"infer": own, "export": other} for name, (own, other) in case.reference_dice.items()}
    return {
        "scan_sha256": case.scan_sha256,
        "voxels": case.voxels,
        "differing_voxels": case.differing_voxels,
        "largest_score": case.largest_score,
        "score_difference": case.score_difference,
        "dice": case.dice,
        **({"reference_dice": pairs} if pairs else {}),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def compare_engines(infer: MaskMaker, export: MaskMaker, scan: Scan) -> CaseParity:
    """Runs one scan through both, from the same prepared array, and compares scores and masks."""
    array, grid = infer.prepare(scan.volume)
    own = infer.scores(array)
    other = export.scores(array)
    largest, difference = compare_scores(own, other)
    return compare_masks(
        infer.classes(own, grid),
        export.classes(other, grid),
        scan,
        class_names=infer.class_names,
        plan=infer.plan,
        largest_score=largest,
        score_difference=difference,
    )


def compare_scores(infer: Any, export: Any) -> tuple[float, float]:
    """(largest absolute score of infer's, largest absolute difference from the export's), class by class.

    Args:
        infer: what an engine's ``scores`` gave, whatever it is kept as; a tuple of several configurations'.
        export: likewise, of as many classes.
    """
    largest, difference = 0.0, 0.0
    for own, other in zip(_channels(infer), _channels(export), strict=True):
        largest = max(largest, float(np.abs(own).max()))
        difference = max(difference, float(np.abs(own - other).max()))
    return largest, difference


def _channels(scores: Any) -> Iterator[npt.NDArray[np.float32]]:
    for part in scores if isinstance(scores, tuple) else (scores,):
        yield from score_channels(part)


def compare_masks(
    infer: ClassArray,
    export: ClassArray,
    scan: Scan,
    *,
    class_names: Sequence[str],
    plan: Plan,
    largest_score: float | None = None,
    score_difference: float | None = None,
) -> CaseParity:
    """Compares two masks (X, Y, Z) of class indices of one scan, and both with its reference where it has one."""
    regions = plan.regions
    dice, against = {}, {}
    for index, name in enumerate(class_names[1:], start=1):
        members = (index,) if regions is None else regions.indices_of(name)
        own, other = np.isin(infer, members), np.isin(export, members)
        dice[name] = _dice(own, other)
        if scan.reference is not None:
            known = scan.reference != IGNORE
            truth = np.isin(scan.reference, members) & known
            against[name] = (_dice(own & known, truth), _dice(other & known, truth))
    return CaseParity(
        scan_sha256=scan.sha256[:16],
        voxels=int(infer.size),
        differing_voxels=int(np.count_nonzero(infer != export)),
        dice=dice,
        largest_score=largest_score,
        score_difference=score_difference,
        reference_dice=against,
    )


def _dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    value = dice(count_overlap(one, other))
    return 1.0 if math.isnan(value) else value


def given_scan(volume: Volume, *, label: Path | None, plan: Plan) -> Scan:
    """A scan as it was read, with its label file where there is one."""
    reference = None
    if label is not None:
        reference = to_classes(read_label_map(label), plan.labels, ignore=plan.ignore, name=label.name)
    return Scan(volume=volume, sha256=sha256_bytes(np.ascontiguousarray(volume.array).tobytes()), reference=reference)


def synthetic_scans(plan: Plan, *, count: int = 2) -> Iterable[Scan]:
    """Blobs of bright noise in the plan's voxel size, a bit larger than its patch, the same every time."""
    from scipy import ndimage

    draw = np.random.default_rng(_SYNTHETIC_SEED)
    affine = np.diag([*plan.spacing_xyz_mm, 1.0])
    for number in range(count):
        shape = _synthetic_shape(plan, 1.0 + 0.3 * number)
        smooth = [ndimage.gaussian_filter(draw.standard_normal(shape), 2.0) for _ in plan.channels]
        unit = [noise / (noise.std() or 1.0) for noise in smooth]
        array = np.stack([_in_units(noise, c) for noise, c in zip(unit, plan.channels, strict=True)])
        volume = Volume(array.astype(np.float32), affine)
        yield Scan(volume=volume, sha256=sha256_bytes(volume.array.tobytes()))


def _synthetic_shape(plan: Plan, factor: float) -> tuple[int, ...]:
    sizes = [max(4, round(factor * size)) for size in plan.patch_size_xyz]
    if plan.slice_axis is not None:
        sizes[plan.slice_axis] = 1 if plan.of_pictures else 4
    return tuple(sizes)


def _in_units(noise: npt.NDArray[np.float64], channel: Any) -> npt.NDArray[np.float64]:
    if channel.scheme == "ct":
        values: npt.NDArray[np.float64] = channel.mean + 2 * channel.std * noise
        return values
    return np.clip(128.0 + 40.0 * noise, 1.0, 255.0)
