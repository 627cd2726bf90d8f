"""Which series of a DICOM folder is meant: by a rule over modality, description and number of slices, never by chance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from medseg.errors import ScanError
from medseg.imaging.dicom_headers import FileHeader
from medseg.imaging.dicom_series import Found, series_code

Files = tuple[FileHeader, ...]


class SeriesRule(Protocol):
    """What a config says of the series that it means; None and False say nothing.

    All that is said must hold of a series; where several are left, ``most_slices`` takes the one with the most.
    """

    @property
    def modality(self) -> str | None:
        """DICOM's code: CT, MR, PT ..."""

    @property
    def description(self) -> str | None:
        """A regular expression that is found somewhere in SeriesDescription, whatever the case of letters."""

    @property
    def most_slices(self) -> bool:
        """Of several, the one with the most slices."""

    @property
    def code(self) -> str | None:
        """The short code of one series, as messages and reports show it."""


def choose_by_rule(found: Found, rule: SeriesRule) -> tuple[Files, str]:
    """The one series of a folder that a rule means.

    Args:
        found: the folder's image series, at least one.
        rule: what to take.

    Returns:
        (its files, a sentence for the report, "" where the folder has only one series).

    Raises:
        ScanError: no series fits, or several do and the rule does not say which.
    """
    fitting = fitting_series(found.series.values(), rule)
    if not fitting:
        raise ScanError(
            f"{found.label}: none of its {len(found.series)} series is as series asks ({said(rule)}): it has "
            f"{listing(found.series.values())}; change the rule, or leave the folder out"
        )
    if len(fitting) > 1:
        raise ScanError(
            f"{found.label}: {len(fitting)} series are as series asks ({said(rule)}), expected 1: "
            f"{listing(fitting)}; say more in the rule, such as description or most_slices"
        )
    files = fitting[0]
    if len(found.series) == 1:
        return files, ""
    return files, f"series {_shown(files)} was chosen of {len(found.series)}"


def fitting_series(series: Iterable[Files], rule: SeriesRule) -> list[Files]:
    """The series that a rule leaves: one, none, or several that it can't tell apart."""
    fitting = [files for files in series if _fits(files, rule)]
    if rule.most_slices and len(fitting) > 1:
        most = max(map(slice_count, fitting))
        fitting = [files for files in fitting if slice_count(files) == most]
    return fitting


def slice_count(files: Sequence[FileHeader]) -> int:
    """Planes of a series: frames of multi-frame files, else files."""
    return sum(file.tags.integer("NumberOfFrames") or 1 for file in files)


def _fits(files: Files, rule: SeriesRule) -> bool:
    first = files[0]
    if rule.code is not None and rule.code not in (first.series_uid, series_code(first.series_uid)):
        return False
    if rule.modality is not None and first.modality != rule.modality.upper():
        return False
    return rule.description is None or bool(
        re.search(rule.description, first.tags.text("SeriesDescription"), re.IGNORECASE)
    )


def said(rule: SeriesRule) -> str:
    """A rule in words, for messages."""
    said = [f"{name} {value}" for name in ("modality", "description", "code") if (value := getattr(rule, name))]
    return ", ".join([*said, *(["most slices"] if rule.most_slices else [])]) or "nothing"


def listing(series: Iterable[Files]) -> str:
    """Series by code, modality and slices, for messages: without header text."""
    return ", ".join(sorted(_shown(files) for files in series))


def _shown(files: Files) -> str:
    count = slice_count(files)
    return (
        f"{series_code(files[0].series_uid)} ({files[0].modality or 'no modality'}, {count} slice{'s' * (count > 1)})"
    )
