"""Everything a report says, gathered before a word of HTML is written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import MedsegError
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.matching import CasePaths
from medseg.imaging import apply_axes, grid_difference, read_volume
from medseg.report.atlas import ShownCase, shown_case
from medseg.report.facts import Facts, gather_facts
from medseg.report.failures import KINDS, Failure, failures_of, suspects
from medseg.report.judged import MOST_MAPS, Judged, Reliability, judge, map_path, read_lines, read_map
from medseg.report.masks import CaseMasks, index_names, read_masks
from medseg.report.scores import ScoreTable, read_scores

_LOG = logging.getLogger(__name__)

_AIR_HU, _DEEPEST_HU = 900.0, 3200.0
MOST_SUSPECTS = 200
"""(case, class) rows whose masks are read again for the failure list, worst first."""
WORST_CASES = 3
EXAMPLES = 4
"""Cases shown as examples of kinds of failure that the worst ones do not have."""


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
class Shown:
    """A case with slices: ``ranks`` says why it is shown ("worst", "median", "shifted" ...)."""

    case: ShownCase
    ranks: tuple[str, ...]


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


def gather(inputs: ReportInputs) -> Content:
    """Reads the scores, then the masks of the cases that are looked into or shown; what can't be read is told.

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
        )  # fmt: skip
    reader = _Reader(inputs.cases, table)
    failures, looked = _failures(reader, rows)
    if looked < len(rows):
        left_out.append(f"Kinds of failure of {len(rows) - looked} of {len(rows)} conspicuous structures.")
    judged = judge(table, read_lines(inputs.cases.pairs))
    shown, why = _shown(reader, inputs, failures)
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
    )


class _Reader:
    """Reads the masks of scored cases by id, and keeps a sentence on each that could not be read again."""

    def __init__(self, cases: CaseSet, table: ScoreTable) -> None:
        self.protocol, self._table = cases.protocol, table
        self.scans = cases.scans
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
        try:
            return read_masks(pair, self.protocol)
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
            volume = read_volume(path)
        except MedsegError as error:
            _LOG.warning("report: %s", error)
            return None
        if grid_difference(volume.shape, volume.affine, masks.shape, masks.affine) is not None:
            return None
        colour = volume.array.shape[0] == 3
        turned = apply_axes(volume.array if colour else volume.array[:1], masks.change)
        return np.moveaxis(turned, 0, -1) if colour else turned[0]

    def is_hounsfield(self, scan: npt.NDArray[np.float32]) -> bool:
        """Whether intensities look like HU where nobody said so: only CT reaches down to air's -1000. For the window alone."""
        return -_DEEPEST_HU <= float(scan.min()) <= -_AIR_HU


def _failures(reader: _Reader, rows: Sequence[object]) -> tuple[list[Failure], int]:
    """The failures of the worst suspects, and how many rows were looked into."""
    by_case: dict[str, list] = {}  # type: ignore[type-arg]
    for row in rows[:MOST_SUSPECTS]:
        by_case.setdefault(row.case, []).append(row)  # type: ignore[attr-defined]
    found, looked = [], 0
    for case_id, own in by_case.items():
        masks = reader.read(case_id)
        if masks is not None:
            found += failures_of(masks, own)
            looked += len(own)
    return found, looked


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


def _shown(reader: _Reader, inputs: ReportInputs, failures: Sequence[Failure]) -> tuple[list[Shown], list[str]]:
    """The shown cases, and sentences on what is missing of them."""
    found, without_scan = [], []
    for case_id, ranks in shown_cases(reader._table, failures).items():  # noqa: SLF001
        masks = reader.read(case_id)
        if masks is None:
            continue
        scan = reader.scan(masks) if inputs.show_scans else None
        if inputs.show_scans and scan is None:
            without_scan.append(case_id)
        pair = reader.pairs[case_id]
        assert pair.prediction is not None
        entropy = read_map(map_path(pair.prediction, case_id, "entropy"), masks)
        case = shown_case(
            masks,
            indices=len(index_names(reader.protocol)),
            scan=scan,
            entropy=None if entropy is None else entropy[0],
            hounsfield=inputs.hounsfield or (scan is not None and reader.is_hounsfield(scan)),
        )
        found.append(Shown(case=case, ranks=ranks))
    why = []
    if not inputs.show_scans:
        why.append(
            f"Slices of the scans: {inputs.why_no_scans or 'they may not be shown'}. Masks are shown on blank ground."
        )
    elif without_scan:
        why.append(f"Scans of {', '.join(without_scan)}: there is none on the masks' grid that can be read.")
    return found, why


def _with_curves(judged: Judged, reader: _Reader) -> Judged:
    """With the reliability of the probabilities, where inference wrote maps of them."""
    from dataclasses import replace

    with_maps = [
        (case_id, path)
        for case_id, pair in reader.pairs.items()
        if pair.prediction is not None and (path := map_path(pair.prediction, case_id, "probabilities")).is_file()
    ]
    step = -(-len(with_maps) // MOST_MAPS)
    counts = Reliability(reader.protocol.class_names)
    for case_id, path in with_maps[:: step or 1]:
        masks = reader.read(case_id)
        found = None if masks is None else read_map(path, masks)
        if masks is not None and found is not None:
            counts.add(masks, found)
    return replace(judged, curves=counts.curves(), mapped=counts.cases) if counts.cases else judged
