"""DICOM exports of many patients and series: one case a study, of the series that the model's rules mean."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg.config.series import SeriesSection
from medseg.errors import MedsegError
from medseg.imaging import Limits
from medseg.imaging.dicom_choice import Files, fitting_series, listing, said
from medseg.imaging.dicom_series import find_series, series_code
from medseg.imaging.opening import display_name
from medseg.inference.infer_case import InferCase, case_name
from medseg.preparation.plan import ChannelPlan

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Series:
    """One series: the folder where its files lie, and their headers."""

    folder: Path
    files: Files = field(repr=False)

    @property
    def code(self) -> str:
        return series_code(self.files[0].series_uid)


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What was chosen of a study: a series per channel; where ``fault`` says why it can't be, whatever was found."""

    series: tuple[_Series, ...]
    fault: str = ""

    @property
    def home(self) -> Path:
        """The deepest folder that holds all of it."""
        return Path(os.path.commonpath([one.folder for one in self.series]))


def study_cases(folders: Sequence[Path], channels: Sequence[ChannelPlan], *, top: Path) -> list[InferCase]:
    """A case for every study (of one patient, by DICOM's own identifiers) that lies in ``folders``.

    A case is called after the deepest folder that holds all of its series; where several cases' series lie there, after
    the first channel's series' own folder, and that series' code where they share even that.

    Args:
        folders: with DICOM files; a study may lie in several, and several in one.
        channels: one or more, each with the rule of its series; of several, every one is to be found.
        top: the folder that was asked for, which names are relative to.

    Returns:
        Cases, sorted by folder and name. Studies that no channel's rule fits are left out, and the log says how many; one
        where not every channel has one series carries that as its fault, and so does a folder whose files can't be read.
    """
    studies: dict[tuple[str, str], list[_Series]] = defaultdict(list)
    unread: dict[Path, str] = {}
    for folder in folders:
        try:
            for files in find_series(folder, Limits(), allow_none=True).series.values():
                tags = files[0].tags
                study = tags.text("PatientID"), tags.text("StudyInstanceUID")
                studies[study].append(_Series(folder=folder, files=files))
        except MedsegError as error:
            unread[folder] = str(error)
    scans = [scan for series in studies.values() if (scan := _of_study(series, channels)) is not None]
    if len(scans) < len(studies):
        left = len(studies) - len(scans)
        _LOG.warning(
            "%s: %d of %d studies have no series as the rule asks and are left out",
            display_name(top),
            left,
            len(studies),
        )
    cases = _named(scans, top) + [
        InferCase(id=_name(folder, top), images=(folder,), fault=fault) for folder, fault in unread.items()
    ]
    return sorted(cases, key=lambda case: (case.images[0], case.id))


def _named(scans: Sequence[_Scan], top: Path) -> list[InferCase]:
    homes = Counter(scan.home for scan in scans)
    folders = Counter(scan.series[0].folder for scan in scans)
    cases = []
    for scan in scans:
        first = scan.series[0]
        name, shown = _name(scan.home, top), display_name(scan.home.resolve())
        if homes[scan.home] > 1:
            shown = name = _name(first.folder, top, *([first.code] if folders[first.folder] > 1 else []))
        if scan.fault:
            cases.append(InferCase(id=name, images=(scan.home,), fault=f"{shown}: {scan.fault}"))
            continue
        cases.append(
            InferCase(
                id=name,
                images=tuple(one.folder for one in scan.series),
                series=tuple(one.code for one in scan.series),
                files=tuple(tuple(file.path.name for file in one.files) for one in scan.series),
            )
        )
    return cases


def _name(folder: Path, top: Path, *more: str) -> str:
    return case_name("_".join((*(folder.relative_to(top).parts or (top.resolve().name,)), *more)))


def _of_study(series: Sequence[_Series], channels: Sequence[ChannelPlan]) -> _Scan | None:
    found = {channel.name: _fitting(series, channel.series) for channel in channels}
    if not any(found[channel.name] for channel in channels if channel.series is not None):
        return None
    any_of_it = [one for fitting in found.values() for one in fitting]
    faults = [
        _not_one(found[channel.name], series, channel, alone=len(channels) == 1)
        for channel in channels
        if len(found[channel.name]) != 1
    ]
    if faults and len(channels) == 1:
        return _Scan(series=tuple(any_of_it[:1]), fault=faults[0])
    if not faults:
        faults = _taken_twice({name: one for name, (one,) in found.items()})
    if faults:
        return _Scan(series=(any_of_it[0], *series), fault="; ".join(faults))
    return _Scan(series=tuple(any_of_it))


def _fitting(series: Sequence[_Series], rule: SeriesSection | None) -> list[_Series]:
    fitting = fitting_series([one.files for one in series], rule or SeriesSection())
    return [one for one in series if any(one.files is files for files in fitting)]


def _not_one(fitting: Sequence[_Series], series: Sequence[_Series], channel: ChannelPlan, *, alone: bool) -> str:
    """Why a channel has not its one series, what there is, and what to do."""
    shown = listing(one.files for one in fitting or series)
    if channel.series is None:
        return (
            f"channel {channel.name} has no rule, and the study has {len(series)} series, expected 1: {shown}; "
            "give infer.series a rule for it"
        )
    whose, asked = (
        ("the rule asks", "") if alone else (f"channel {channel.name}'s rule asks", f" ({said(channel.series)})")
    )
    if not fitting:
        return (
            f"none of the study's {len(series)} series is as {whose}{asked}: it has {shown}; change the rule, or leave the "
            "study out"
        )
    return (
        f"{len(fitting)} series of a study are as {whose}{asked}, expected 1: {shown}; say more in the rule, such as "
        "description or most_slices"
    )


def _taken_twice(chosen: dict[str, _Series]) -> list[str]:
    taken: dict[str, str] = {}
    faults = []
    for name, one in chosen.items():
        other = taken.setdefault(one.files[0].series_uid, name)
        if other != name:
            faults.append(
                f"the rules of channels {other} and {name} take the same series, {listing([one.files])}, expected one "
                "each; say more in the rules"
            )
    return faults
