"""The cases that are shown with slices: which they are, and each one's atlases within its share of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.report.atlas import ShownCase, bytes_of, case_json, pixels_of, still_png
from medseg.report.failures import KINDS, Failure
from medseg.report.scores import ScoreTable

PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (34, 189, 146),
    (240, 228, 66),
    (142, 166, 255),
    (242, 122, 69),
    (224, 141, 190),
)
"""Okabe and Ito's colours, the dark ones lighter: they lie on black. Class k has colour k - 1, in the charts too."""
WORST_CASES = 3
EXAMPLES = 4
"""Cases shown as examples of kinds of failure that the worst ones do not have."""
LEAST_SLICES = 12
"""Of a plane: with fewer a case says too little, and is left out instead."""
_LEAST_SCAN_BYTES, _LEAST_MASK_BYTES = 0.35, 0.01
"""What a pixel takes at the very least in base64; grey slices of real scans took 0.5 to 0.9, masks 0.02."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A case with slices; the voxels themselves are let go.

    Attributes:
        case_id: names it.
        ranks: why it is shown ("worst", "median", "example: shifted" ...).
        data: for the page's script.
        still: PNG for readers without scripts.
        indices: stored indices that are seen.
        spacing_xyz_mm: voxel size.
        window: intensities shown as black and white; None where there is no scan.
        thinned: how many of the slices are there, as a sentence's part; None where all are.
    """

    case_id: str
    ranks: tuple[str, ...]
    data: Mapping[str, Any]
    still: bytes
    indices: Sequence[int]
    spacing_xyz_mm: tuple[float, float, float]
    window: tuple[float, float] | None
    thinned: str | None

    @property
    def planar(self) -> bool:
        """A picture."""
        return bool(self.data["planar"])

    def has(self, layer: str) -> bool:
        """Whether there are slices of "scan" or "entropy"."""
        return any(plane[layer] is not None for plane in self.data["planes"])


def shown_cases(table: ScoreTable, failures: Sequence[Failure]) -> dict[str, tuple[str, ...]]:
    """Case id to why it is shown: the three worst, the median and the best by mean Dice, and an example of each other kind."""
    order = list(table.mean_dice)
    ranks: dict[str, list[str]] = {}
    for number, case in enumerate(order[:WORST_CASES]):
        ranks.setdefault(case, []).append("worst" if number == 0 else f"{_ordinal(number + 1)} worst")
    if order:
        ranks.setdefault(order[len(order) // 2], []).append("median")
        ranks.setdefault(order[-1], []).append("best")
    kinds_of: dict[str, list[str]] = {}
    for failure in failures:
        kinds_of.setdefault(failure.case, []).append(failure.kind)
    covered = {kind for case in ranks for kind in kinds_of.get(case, ())}
    examples = 0
    for kind in KINDS:
        example = next((case for case, kinds in kinds_of.items() if kind in kinds), None)
        if kind not in covered and example is not None and examples < EXAMPLES:
            ranks.setdefault(example, []).append(f"example: {kind}")
            covered |= set(kinds_of[example])
            examples += 1
    return {case: tuple(own) for case, own in ranks.items()}


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def encoded(case: ShownCase, ranks: tuple[str, ...], share: int) -> Shown | None:
    """The case with as many slices as fit into ``share`` bytes, left out evenly; None where 12 a plane do not fit."""
    data = _fitted(case, share)
    if data is None:
        return None
    there = [case.truth.shape[plane["through"]] for plane in data["planes"]]
    kept = [len(plane["slices"]) for plane in data["planes"]]
    return Shown(
        case_id=case.case_id,
        ranks=ranks,
        data=data,
        still=still_png(case, PALETTE),
        indices=sorted({int(i) for array in (case.truth, case.prediction) for i in np.unique(array)}),
        spacing_xyz_mm=case.spacing_xyz_mm,
        window=case.window,
        thinned=None if kept == there else f"{' + '.join(map(str, kept))} of {' + '.join(map(str, there))}",
    )


def _fitted(case: ShownCase, share: int) -> dict[str, Any] | None:
    most = _most_to_try(case, share)
    while True:
        data = case_json(case, most=most)
        size = bytes_of(data)
        if size <= share:
            return data
        longest = max(len(plane["slices"]) for plane in data["planes"])
        if longest <= LEAST_SLICES:
            return None
        most = max(LEAST_SLICES, min(longest - 1, int(longest * share / size)))


def _most_to_try(case: ShownCase, share: int) -> int:
    """Slices a plane that may fit, so that a large case is not encoded whole only to find that it does not."""
    most = int(max(case.truth.shape))
    least_per_pixel = _LEAST_SCAN_BYTES if case.scan is not None else _LEAST_MASK_BYTES
    while most > LEAST_SLICES and pixels_of(case, most=most) * least_per_pixel > share:
        most = max(LEAST_SLICES, most * 9 // 10)
    return most
