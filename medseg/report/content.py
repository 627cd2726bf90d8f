"""Everything a report says, gathered before a word of HTML is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import MedsegError
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.matching import CasePaths
from medseg.imaging import apply_axes, grid_difference, read_volume
from medseg.report.atlas import ShownCase, bytes_of, shown_case
from medseg.report.facts import Facts, gather_facts
from medseg.report.failures import Failure, failures_of, suspects
from medseg.report.judged import MOST_MAPS, Judged, Reliability, judge, map_path, read_lines, read_map
from medseg.report.masks import CaseMasks, index_names, read_masks
from medseg.report.scores import Row, ScoreTable, read_scores
from medseg.report.shown import Shown, encoded, shown_cases
from medseg.report.unsure import UnsureRow, read_unsure

_LOG = logging.getLogger(__name__)

_AIR_HU, _DEEPEST_HU = 900.0, 3200.0
MOST_SUSPECTS = 200
"""(case, class) rows whose masks are read again for the failure list, worst first."""
ATLAS_BYTES = 14_000_000
"""Of all slices together; a file of 20 MB keeps room for figures and tables."""


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What a report is made of.

    Attributes:
        scores: folder with ``metrics.json`` and ``cases.csv``; the report goes there too.
        cases: their files; None where only the scores are at hand.
        show_scans: whether slices of the scans may be shown.
        why_no_scans: a sentence for the report where they may not.
        hounsfield: whether the scans' intensities are HU.
        plan: ``plan.yaml``, or None.
        models: model folders.
    """

    scores: Path
    cases: CaseSet | None = None
    show_scans: bool = False
    why_no_scans: str = ""
    hounsfield: bool = False
    plan: Path | None = None
    models: Sequence[Path] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What a report says.

    Attributes:
        table: the scores.
        failures: kinds of failure, worst case first.
        suspects: how many (case, class) rows were to be looked into, and how many were.
        judged: what was said without the truth.
        facts: data, model and plan.
        shown: cases with slices.
        index_names: of the stored indices, from 1.
        left_out: sentences on what is not in the report.
        notes: sentences on how to read it.
        unsure: entropy where the masks are wrong and right; empty where there are no maps of it.
    """

    table: ScoreTable
    failures: Sequence[Failure]
    suspects: tuple[int, int]
    judged: Judged
    facts: Facts
    shown: Sequence[Shown]
    index_names: Sequence[str]
    left_out: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)
    unsure: Sequence[UnsureRow] = ()


def gather(inputs: ReportInputs, *, atlas_bytes: int = ATLAS_BYTES) -> Content:
    """Reads the scores, then the masks of the cases that are looked into or shown; what can't be read is told.

    Args:
        inputs: what the report is made of.
        atlas_bytes: for the slices. Every case gets an equal share of what the ones before it left; where its slices take
            more, they are left out evenly.

    Raises:
        InputError: the scores can't be read.
    """
    table = read_scores(inputs.scores)
    left_out: list[str] = []
    rows = suspects(table)
    if inputs.cases is None:
        left_out.append("Slices, kinds of failure and calibration: the masks were not given.")
        return Content(
            table=table, failures=(), suspects=(len(rows), 0), judged=Judged(),
            facts=gather_facts((), models=inputs.models, plan=inputs.plan), shown=(), index_names=(), left_out=left_out,
            unsure=read_unsure(inputs.scores),
        )  # fmt: skip
    reader = _Reader(inputs.cases, table, inputs.scores)
    failures, looked = _failures(reader, rows)
    if looked < len(rows):
        left_out.append(f"Kinds of failure of {len(rows) - looked} of {len(rows)} conspicuous structures.")
    judged = judge(table, read_lines(inputs.cases.pairs))
    shown, why = _shown(reader, inputs, shown_cases(table, failures), atlas_bytes)
    left_out += why
    return Content(
        table=table,
        failures=failures,
        suspects=(len(rows), looked),
        judged=_with_curves(judged, reader),
        facts=gather_facts(inputs.cases.pairs, models=inputs.models, plan=inputs.plan),
        shown=shown,
        index_names=index_names(inputs.cases.protocol),
        left_out=[*left_out, *reader.faults],
        unsure=read_unsure(inputs.scores),
    )


class _Reader:
    """Reads the masks of scored cases by id, and keeps a sentence on each that could not be read again."""

    def __init__(self, cases: CaseSet, table: ScoreTable, scores: Path) -> None:
        self.protocol, self._references = cases.protocol, scores / "references"
        self.scans, self.series = cases.scans, cases.series
        scored = {row.case for row in table.rows}
        self.pairs: dict[str, CasePaths] = {pair.case_id: pair for pair in cases.pairs if pair.case_id in scored}
        self._faulty: set[str] = set()

    @property
    def faults(self) -> list[str]:
        """One sentence where masks could not be read."""
        if not self._faulty:
            return []
        return [f"Masks that could not be read again: {', '.join(sorted(self._faulty))}."]

    def read(self, case_id: str) -> CaseMasks | None:
        """The case's masks, None where they can't be read."""
        pair = self.pairs.get(case_id)
        if pair is None or pair.prediction is None or pair.reference is None:
            return None
        # Of several references evaluate may have made one, and scored against that.
        consensus = self._references / f"{case_id}.nii.gz"
        try:
            return read_masks(replace(pair, reference=consensus) if consensus.is_file() else pair, self.protocol)
        except MedsegError as error:
            _LOG.warning("report: %s", error)
            self._faulty.add(case_id)
            return None

    def scan(self, masks: CaseMasks) -> npt.NDArray[np.float32] | None:
        """(X, Y, Z) or (X, Y, Z, 3) of the case's first channel or colours, on the masks' grid in RAS order."""
        path = self.scans.get(masks.case_id)
        if path is None:
            return None
        try:
            volume = read_volume(path, series=self.series)
        except MedsegError as error:
            _LOG.warning("report: %s", error)
            return None
        if grid_difference(volume.shape, volume.affine, masks.shape, masks.affine) is not None:
            return None
        colour = volume.array.shape[0] == 3
        turned = apply_axes(volume.array if colour else volume.array[:1], masks.change)
        return np.moveaxis(turned, 0, -1) if colour else turned[0]


def _failures(reader: _Reader, rows: Sequence[Row]) -> tuple[list[Failure], int]:
    """The failures of the worst suspects, and how many rows were looked into."""
    by_case: dict[str, list[Row]] = {}
    for row in rows[:MOST_SUSPECTS]:
        by_case.setdefault(row.case, []).append(row)
    found, looked = [], 0
    for case_id, own in by_case.items():
        masks = reader.read(case_id)
        if masks is not None:
            found += failures_of(masks, own)
            looked += len(own)
    return found, looked


def _shown(
    reader: _Reader, inputs: ReportInputs, ranks: Mapping[str, tuple[str, ...]], atlas_bytes: int
) -> tuple[list[Shown], list[str]]:
    """The shown cases, and sentences on what is missing of them."""
    found: list[Shown] = []
    without_scan, lost, left = [], [], atlas_bytes
    for number, (case_id, why_shown) in enumerate(ranks.items()):
        case = _cut(reader, inputs, case_id)
        if case is None:
            continue
        if inputs.show_scans and case.scan is None:
            without_scan.append(case_id)
        shown = encoded(case, why_shown, left // (len(ranks) - number))
        if shown is None:
            lost.append(case_id)
        else:
            found.append(shown)
            left -= bytes_of(shown.data)
    return found, _why(inputs, found, without_scan, lost)


def _cut(reader: _Reader, inputs: ReportInputs, case_id: str) -> ShownCase | None:
    """The case cut to what is shown, None where its masks can't be read."""
    masks = reader.read(case_id)
    if masks is None:
        return None
    scan = reader.scan(masks) if inputs.show_scans else None
    prediction = reader.pairs[case_id].prediction
    assert prediction is not None
    maps = (read_map(map_path(prediction, case_id, kind), masks) for kind in ("entropy", "disagreement"))
    unsure = next((found for found in maps if found is not None), None)
    return shown_case(
        masks,
        indices=len(index_names(reader.protocol)),
        scan=scan,
        entropy=None if unsure is None else unsure[0],
        hounsfield=inputs.hounsfield or (scan is not None and is_hounsfield_like(scan)),
    )


def _why(inputs: ReportInputs, found: Sequence[Shown], without_scan: Sequence[str], lost: Sequence[str]) -> list[str]:
    words = []
    if not inputs.show_scans:
        reason = inputs.why_no_scans or "they may not be shown"
        words.append(f"Slices of the scans: {reason}. Masks are shown on blank ground.")
    elif without_scan:
        words.append(f"Scans of {', '.join(without_scan)}: there is none on the masks' grid that can be read.")
    if thinned := [f"{one.case_id} {one.thinned}" for one in found if one.thinned]:
        words.append(f"Slices, evenly, so that the file stays small; there are: {'; '.join(thinned)}.")
    if lost:
        words.append(f"Slices of {', '.join(lost)}: they would have made the file too large.")
    return words


def is_hounsfield_like(scan: npt.NDArray[np.float32]) -> bool:
    """Whether intensities look like HU where nobody said so: only CT reaches down to air's -1000. For the window alone."""
    return -_DEEPEST_HU <= float(scan.min()) <= -_AIR_HU


def _with_curves(judged: Judged, reader: _Reader) -> Judged:
    """With the reliability of the probabilities, where inference wrote maps of them."""
    with_maps = [
        (case_id, path)
        for case_id, pair in reader.pairs.items()
        if pair.prediction is not None and (path := map_path(pair.prediction, case_id, "probabilities")).is_file()
    ]
    step = -(-len(with_maps) // MOST_MAPS)
    counts = Reliability(reader.protocol.class_names)
    for case_id, path in with_maps[:: step or 1]:
        masks = reader.read(case_id)
        found = None if masks is None else read_map(path, masks, channels=len(reader.protocol.class_names))
        if masks is not None and found is not None:
            counts.add(masks, found)
    return replace(judged, curves=counts.curves(), mapped=counts.cases) if counts.cases else judged
