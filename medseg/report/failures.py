"""Kinds of failure, each found in the masks by a stated rule. docs/report.md gives the rules, thresholds and their reasons.

A failure list is read to find out what to do about a model: a side swapped asks for other augmentation, a structure cut off
for another field of view, a spurious one for negative cases. So every (case, class) that scored badly gets at least one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.evaluation.overlap import BoolArray
from medseg.report.masks import CaseMasks, bounding_box
from medseg.report.scores import Row, ScoreTable

POOR_DICE = 0.7
"""Zijdenbos et al. 1994 (doi 10.1109/42.363096) call overlap above it excellent, and most papers repeat it."""
FENCE = 1.5
"""Tukey's: below the lower quartile by more than so many interquartile ranges is an outlier of its class."""
FENCE_CASES = 8
"""Fewer cases give no quartiles to go by."""
GAIN = 0.15
"""How much Dice has to rise when a mask is moved, or two are swapped (mean of both), for that to be the reason."""
CUT_SHARE = 0.1
"""Share of the reference beyond the plane in which the prediction ends."""
CUT_FILL = 0.5
"""How much of the reference's section the prediction still fills there: a mask that tapers off was not cut."""
BORDER_CONTACT = 0.5
"""Area on the scan's face, over the structure's largest section along that axis, from which on the scan cuts it off."""
PART_SHARE = 0.1
"""Share of its mask from which on a connected part counts."""
SIZE_RATIO = 1.5
"""Predicted over reference volume, or the other way round."""

KINDS = {
    "missed": "the reference has voxels, the prediction has none",
    "spurious": "the prediction has voxels, the reference has none",
    "side swapped": f"two classes match better when their predictions are swapped: their mean Dice rises by more than {GAIN:g}",
    "shifted": f"Dice rises by more than {GAIN:g} when the prediction is moved by the difference of the centroids",
    "cut at the border": f"the prediction ends in a plane where it fills at least {CUT_FILL:.0%} of the reference's section "
    f"and at least {CUT_SHARE:.0%} of the reference lie beyond, less than half as much at the other end; or the scan's border "
    f"cuts a structure in one main part where it is at least {BORDER_CONTACT:.0%} of its largest section",
    "missed part": f"a connected part with at least {PART_SHARE:.0%} of the reference holds no predicted voxel",
    "spurious part": f"a connected part with at least {PART_SHARE:.0%} of the prediction holds no voxel of the reference",
    "merged": f"one connected part of the prediction covers several parts of the reference, each of at least {PART_SHARE:.0%}",
    "fragmented": f"one connected part of the reference is covered by several parts, each of at least {PART_SHARE:.0%} of "
    "the prediction",
    "too large": f"the prediction has more than {SIZE_RATIO:g} times the reference's volume",
    "too small": f"the reference has more than {SIZE_RATIO:g} times the prediction's volume",
    "inexact": "none of the above: size and place are about right, the outline is not",
}
"""Kind to its rule, in the order in which they are listed."""

_BEYOND = (("left of", "right of"), ("behind", "in front of"), ("below", "above"))
_FACES = (("left", "right"), ("back", "front"), ("lower", "upper"))
_PICTURE_BEYOND = (("left of", "right of"), ("above", "below"), ("", ""))
_PICTURE_FACES = (("left", "right"), ("upper", "lower"), ("", ""))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One kind of failure of one class of one case; ``reason`` is a sentence with its numbers."""

    case: str
    class_name: str
    kind: str
    reason: str
    dice: float | None


def suspects(table: ScoreTable) -> list[Row]:
    """The rows to look into, worst first: a mask empty without its partner, Dice below 0.7, or an outlier of its class."""
    fences = {name: _fence(table.values(name, "dice")) for name in table.class_names}
    found = [row for row in table.rows if row.situation in ("missed", "spurious") or _is_low(row, fences)]
    return sorted(found, key=lambda row: (row.dice if row.dice is not None else 0.0, row.case, row.class_name))


def _is_low(row: Row, fences: dict[str, float]) -> bool:
    return row.dice is not None and row.dice < max(POOR_DICE, fences.get(row.class_name, 0.0))


def _fence(values: Sequence[float]) -> float:
    if len(values) < FENCE_CASES:
        return 0.0
    low, high = np.percentile(values, (25, 75))
    return float(low - FENCE * (high - low))


def failures_of(masks: CaseMasks, rows: Sequence[Row]) -> list[Failure]:
    """What went wrong in one case.

    Args:
        masks: of the case.
        rows: its suspects.

    Returns:
        At least one failure per row, in the rows' order, kinds in the order of `KINDS`.
    """
    swapped = _swapped_pairs(masks, {row.class_name for row in rows})
    found = []
    for row in rows:
        kinds = dict(_kinds(masks, row.class_name, swapped.get(row.class_name)))
        found += [
            Failure(case=row.case, class_name=row.class_name, kind=kind, reason=kinds[kind], dice=row.dice)
            for kind in KINDS
            if kind in kinds
        ]
    return found


def _kinds(masks: CaseMasks, name: str, swapped: str | None) -> Iterator[tuple[str, str]]:
    prediction, truth = masks.of_class(name)
    sizes = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    ml = [f"{size * masks.millilitres:.3g} ml" if not masks.planar else f"{size:,} pixels" for size in sizes]
    if swapped is not None:
        yield "side swapped", swapped
    if not all(sizes):
        if sizes[1]:
            yield "missed", f"the reference has {ml[1]}"
        elif sizes[0]:
            yield "spurious", f"the prediction has {ml[0]}"
        return
    if swapped is not None:
        return
    found = list(_placed(masks, prediction, truth))
    yield from found
    ratio = sizes[0] / sizes[1]
    size = "too large" if ratio > SIZE_RATIO else "too small" if ratio * SIZE_RATIO < 1 else "inexact"
    if not found or size != "inexact":
        yield size, f"{ml[0]} predicted, {ml[1]} in the reference (x {ratio:.2f})"


def _dice(a: BoolArray, b: BoolArray) -> float:
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else 1.0


def _swapped_pairs(masks: CaseMasks, names: set[str]) -> dict[str, str]:
    """Class to the sentence on the class it was swapped with.

    All is worked out from how many voxels have each pair of indices: masks of a hundred classes at a time would take gigabytes.
    """
    asked = [name for name in masks.members if name in names]
    if len(asked) < 2:
        return {}
    shared = _shared_voxels(masks)
    of = {name: list(masks.members[name]) for name in asked}
    predicted = {name: int(shared[of[name], :].sum()) for name in asked}
    wanted = {name: int(shared[:, of[name]].sum()) for name in asked}

    def dice(mine: str, theirs: str) -> float:
        total = predicted[mine] + wanted[theirs]
        return 2.0 * int(shared[np.ix_(of[mine], of[theirs])].sum()) / total if total else 1.0

    found: dict[str, str] = {}
    for one, other in combinations(asked, 2):
        if not (wanted[one] and wanted[other]) or set(of[one]) & set(of[other]):
            continue
        straight = (dice(one, one) + dice(other, other)) / 2
        crossed = (dice(one, other) + dice(other, one)) / 2
        if crossed > straight + GAIN:
            for name, partner in ((one, other), (other, one)):
                found[name] = f"swapped with {partner}: mean Dice of the two {straight:.2f}, swapped back {crossed:.2f}"
    return found


def _shared_voxels(masks: CaseMasks) -> npt.NDArray[np.int64]:
    """(A, A) voxels with each pair of predicted and true index."""
    size = 1 + max(index for own in masks.members.values() for index in own)
    inside = (masks.prediction > 0) | (masks.truth > 0)
    pairs = masks.prediction[inside].astype(np.int64) * size + masks.truth[inside]
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def _placed(masks: CaseMasks, prediction: BoolArray, truth: BoolArray) -> Iterator[tuple[str, str]]:
    if (reason := _shift(masks, prediction, truth)) is not None:
        yield "shifted", reason  # which leaves ends and parts uncovered by itself
        return
    reasons = [*_cut_short(masks, prediction, truth), *_cut_by_scan(masks, prediction, truth)]
    if reasons:
        yield "cut at the border", "; ".join(reasons)
    yield from _parts(prediction, truth)


def _shift(masks: CaseMasks, prediction: BoolArray, truth: BoolArray) -> str | None:
    step = np.rint(_centroid(truth) - _centroid(prediction)).astype(int)
    if not step.any():
        return None
    shape = truth.shape
    here = tuple(slice(max(0, -s), min(size, size - s)) for s, size in zip(step, shape, strict=True))
    there = tuple(slice(max(0, s), min(size, size + s)) for s, size in zip(step, shape, strict=True))
    shared = int(np.count_nonzero(prediction[here] & truth[there]))
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    before, after = _dice(prediction, truth), 2.0 * shared / total
    if after <= before + GAIN:
        return None
    # The prediction lies where the reference would be moved to: against the step.
    return f"lies {_offset(-step, masks)} the reference; Dice {before:.2f}, moved back {after:.2f}"


def _centroid(mask: BoolArray) -> npt.NDArray[np.float64]:
    """(3,) voxels; from the counts along each axis, so that no list of all voxels is made."""
    counts = [np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return np.array([np.average(np.arange(len(count)), weights=count) for count in counts])


def _offset(step: npt.NDArray[Any], masks: CaseMasks) -> str:
    words = _PICTURE_BEYOND if masks.planar else _BEYOND
    unit = "pixels" if masks.planar else "mm"
    parts = []
    for axis in range(3):
        length = abs(int(step[axis])) * (1.0 if masks.planar else masks.spacing_xyz_mm[axis])
        if length:
            parts.append(f"{length:.3g} {unit} {words[axis][int(step[axis] > 0)]}")
    return " and ".join(parts)


def _cut_short(masks: CaseMasks, prediction: BoolArray, truth: BoolArray) -> Iterator[str]:
    """Planes in which the prediction ends although the reference goes on."""
    size = int(np.count_nonzero(truth))
    for axis in range(3):
        if truth.shape[axis] == 1:
            continue
        others = tuple(a for a in range(3) if a != axis)
        filled = np.count_nonzero(prediction & truth, axis=others)
        wanted = np.count_nonzero(truth, axis=others)
        planes = np.flatnonzero(np.count_nonzero(prediction, axis=others))
        ends = int(planes[0]), int(planes[-1])
        missing = int(wanted[: ends[0]].sum()), int(wanted[ends[1] + 1 :].sum())
        for high, end in enumerate(ends):
            beyond, opposite = missing[high], missing[1 - high]
            # What is short at both ends is small, not cut.
            is_cut = beyond >= CUT_SHARE * size and 2 * opposite < beyond
            if is_cut and wanted[end] and filled[end] >= CUT_FILL * wanted[end]:
                words = _PICTURE_BEYOND if masks.planar else _BEYOND
                yield f"{beyond / size:.0%} of the reference lie {words[axis][high]} the plane where the prediction ends"


def _cut_by_scan(masks: CaseMasks, prediction: BoolArray, truth: BoolArray) -> Iterator[str]:
    """Faces of the scan that cut the structure off where it is wide."""
    either = prediction | truth
    if not _in_one_part(either):
        return
    for axis in range(3):
        if truth.shape[axis] == 1:
            continue
        sections = np.count_nonzero(either, axis=tuple(a for a in range(3) if a != axis))
        for high, plane in ((False, 0), (True, -1)):
            if sections[plane] >= BORDER_CONTACT * sections.max():
                faces = _PICTURE_FACES if masks.planar else _FACES
                yield f"the {'picture' if masks.planar else 'scan'}'s {faces[axis][int(high)]} border cuts it off"


def _in_one_part(mask: BoolArray) -> bool:
    """Whether one connected part holds most of the mask: of many small ones, some lie at a border by chance."""
    from scipy.ndimage import label

    box = bounding_box(mask)
    assert box is not None
    sizes = np.bincount(label(mask[box], structure=np.ones((3, 3, 3), np.bool_))[0].ravel())[1:]
    return bool(2 * sizes.max() > sizes.sum())


def _parts(prediction: BoolArray, truth: BoolArray) -> Iterator[tuple[str, str]]:
    from scipy.ndimage import label

    box = bounding_box(prediction | truth)
    assert box is not None
    whole = np.ones((3, 3, 3), np.bool_)
    p_parts, _ = label(prediction[box], structure=whole)
    t_parts, t_count = label(truth[box], structure=whole)
    p_size, t_size = np.bincount(p_parts.ravel()), np.bincount(t_parts.ravel())
    both = (p_parts > 0) & (t_parts > 0)
    # Pairs of parts that share a voxel; a matrix of all of them would not fit where a mask is salt.
    pairs = np.unique(p_parts[both].astype(np.int64) * (t_count + 1) + t_parts[both])
    p_of, t_of = pairs // (t_count + 1), pairs % (t_count + 1)
    p_large, t_large = (size >= PART_SHARE * size[1:].sum() for size in (p_size, t_size))
    for kind, size, large, of in (("missed part", t_size, t_large, t_of), ("spurious part", p_size, p_large, p_of)):
        alone = large & ~np.isin(np.arange(len(size)), of)
        alone[0] = False
        if alone.any():
            mask = "reference" if kind == "missed part" else "prediction"
            count, share = int(np.count_nonzero(alone)), size[alone].sum() / size[1:].sum()
            yield kind, f"{_count(count, 'part')} with {share:.0%} of the {mask}"
    merged, split = np.bincount(p_of[t_large[t_of]]), np.bincount(t_of[p_large[p_of]])
    if merged.max(initial=0) > 1:
        yield "merged", f"one predicted part covers {merged.max()} parts of the reference"
    if split.max(initial=0) > 1:
        yield "fragmented", f"{split.max()} predicted parts in one part of the reference"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
