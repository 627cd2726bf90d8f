"""DICOM exports of many patients and series: one case a study, of the series that the config's rule means."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg.config.sections import SeriesSection
from medseg.errors import MedsegError
from medseg.imaging import Limits
from medseg.imaging.dicom_choice import Files, fitting_series, slice_count
from medseg.imaging.dicom_series import find_series, series_code
from medseg.imaging.opening import display_name

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChosenSeries:
    """The scan of one study.

    Attributes:
        folder: where its files lie.
        code: its short code.
        files: their names in the folder.
        shares_folder: the folder gives other cases too, so its name alone does not tell them apart.
        fault: why none could be chosen; "" where one was.
    """

    folder: Path
    code: str
    files: tuple[str, ...] = field(repr=False)
    shares_folder: bool = False
    fault: str = ""


def choose_series(
    folders: Sequence[Path], rule: SeriesSection, *, top: Path
) -> tuple[list[ChosenSeries], dict[Path, str]]:
    """One series for every study (of one patient, by DICOM's own identifiers) that lies in ``folders``.

    Args:
        folders: with DICOM files; a study may lie in several, and several in one.
        rule: which series.
        top: the folder that was asked for, which the log names.

    Returns:
        (chosen ones, sorted by folder and code; faults by folder whose files can't be read). Studies without a series that
        fits are left out, and the log says how many.
    """
    studies: dict[tuple[str, str], list[tuple[Path, Files]]] = defaultdict(list)
    unread: dict[Path, str] = {}
    for folder in folders:
        try:
            for files in find_series(folder, Limits(), allow_none=True).series.values():
                tags = files[0].tags
                studies[tags.text("PatientID"), tags.text("StudyInstanceUID")].append((folder, files))
        except MedsegError as error:
            unread[folder] = str(error)
    chosen = [one for series in studies.values() if (one := _of_study(series, rule)) is not None]
    if len(chosen) < len(studies):
        left = len(studies) - len(chosen)
        _LOG.warning(
            "%s: %d of %d studies have no series as the rule asks and are left out",
            display_name(top),
            left,
            len(studies),
        )
    return sorted(_told_apart(chosen), key=lambda one: (one.folder, one.code)), unread


def _of_study(series: Sequence[tuple[Path, Files]], rule: SeriesSection) -> ChosenSeries | None:
    fitting = fitting_series([files for _, files in series], rule)
    if not fitting:
        return None
    folder = next(place for place, files in series if files is fitting[0])
    code = series_code(fitting[0][0].series_uid)
    fault = ""
    if len(fitting) > 1:
        found = ", ".join(f"{series_code(files[0].series_uid)} ({slice_count(files)} slices)" for files in fitting)
        fault = (
            f"{display_name(folder)}: {len(fitting)} series of a study are as the rule asks, expected 1: {found}; "
            "say more in it"
        )
    return ChosenSeries(folder=folder, code=code, files=tuple(file.path.name for file in fitting[0]), fault=fault)


def _told_apart(chosen: Sequence[ChosenSeries]) -> list[ChosenSeries]:
    count: Mapping[Path, int] = {one.folder: sum(other.folder == one.folder for other in chosen) for one in chosen}
    return [
        ChosenSeries(
            folder=one.folder, code=one.code, files=one.files, shares_folder=count[one.folder] > 1, fault=one.fault
        )
        for one in chosen
    ]
