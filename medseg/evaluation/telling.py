"""The worst, the median and the best case, and the slice of each that shows most, for pictures of results."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg.errors import MedsegError
from medseg.evaluation.case import ClassScores
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.review import by_dice
from medseg.imaging import apply_axes, ras_change, read_label_map, read_volume, to_classes

_LOG = logging.getLogger(__name__)


class TellingSlice(NamedTuple):
    """One slice in RAS order: ``image`` (X, Y) or (X, Y, 3), ``truth`` and ``prediction`` (X, Y) class indices.

    ``planar`` is True for a picture, whose axes are left as they are.
    """

    image: npt.NDArray[np.float32]
    truth: npt.NDArray[np.uint8]
    prediction: npt.NDArray[np.uint8]
    planar: bool


def telling_cases(rows: Mapping[str, Sequence[ClassScores]]) -> dict[str, str]:
    """The worst, the median and the best case by mean Dice over classes, as rank to case id; fewer where there are fewer."""
    order = [case_id for case_id, _ in by_dice(rows)]
    if not order:
        return {}
    picked = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    return {rank: case_id for rank, case_id in picked.items() if rank == "worst" or case_id != order[0]}


def ranked_cases(rows: Mapping[str, Sequence[ClassScores]], *, most: int) -> dict[str, str]:
    """At most so many cases from the worst to the best by mean Dice, as words for the rank to case id, evenly spread."""
    order = [case_id for case_id, _ in by_dice(rows)]
    count = min(most, len(order))
    places = [round(k * (len(order) - 1) / max(1, count - 1)) for k in range(count)]
    return {f"rank {place + 1} of {len(order)}": order[place] for place in places}


def telling_slices(
    cases: CaseSet, rows: Mapping[str, Sequence[ClassScores]], *, picked: Mapping[str, str] | None = None
) -> Iterator[tuple[str, TellingSlice]]:
    """(rank, slice) of the telling cases.

    Args:
        cases: what was scored; of ``scans`` the first channel or the colours are shown.
        rows: its scores.
        picked: rank to case id; None takes the worst, the median and the best (`telling_cases`).

    Yields:
        The rank and the slice with most of the structures; a case whose scan can't be read for it is left out.
    """
    pairs = {pair.case_id: pair for pair in cases.pairs}
    for rank, case_id in (telling_cases(rows) if picked is None else picked).items():
        try:
            yield rank, _slice(pairs[case_id], cases.scans[case_id], cases)
        except (MedsegError, KeyError) as error:
            _LOG.debug("no picture of the %s case: %s", rank, type(error).__name__)


def _slice(pair: CasePaths, scan: Path, cases: CaseSet) -> TellingSlice:
    assert pair.prediction is not None
    assert pair.reference is not None
    volume, name = read_volume(scan, series=cases.series), pair.case_id
    labels, ignore = cases.protocol.labels, cases.protocol.ignore
    naming = cases.protocol.naming
    truth = to_classes(read_label_map(pair.reference, naming=naming, like=volume), labels, ignore=ignore, name=name)
    prediction = to_classes(read_label_map(pair.prediction, naming=naming, like=volume), labels, ignore=None, name=name)
    planar = volume.header is not None and volume.header.planar
    image = volume.array if volume.array.shape[0] == 3 else volume.array[:1]
    if not planar:
        change = ras_change(volume.affine)
        image, truth, prediction = (apply_axes(array, change) for array in (image, truth, prediction))
    area = np.count_nonzero(truth, axis=(0, 1)) + np.count_nonzero(prediction, axis=(0, 1))
    z = int(area.argmax())
    shown = np.moveaxis(image[..., z], 0, -1)
    return TellingSlice(shown if shown.shape[-1] == 3 else shown[..., 0], truth[..., z], prediction[..., z], planar)
