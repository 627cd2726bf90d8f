"""PET values to the standardised uptake value by body weight (SUVbw, g/ml).

The rules are those of the QIBA FDG-PET/CT profile's vendor-neutral pseudo-code for SUV ("Standardized Uptake Value
(SUV)", QIBA wiki, "happy path"; RSNA/QIBA profile "FDG-PET/CT as an imaging biomarker", appendix on SUV):

    SUVbw = (stored * slope + intercept) * weight_kg * 1000 / dose_bq

where the dose is the injected one, decayed to the start of the scan for ``DecayCorrection`` START (the values are
corrected to that moment) and taken as injected for ADMIN. The scan starts at the series' time; if that lies after an
acquisition (the series was processed later and stamped anew), at GE's private scan time, else at the earliest
acquisition. Philips counts (CNTS) carry their own factor. GML is SUV already, by body weight unless ``SUVType`` says
otherwise. An enhanced multi-frame file says which moment its values are corrected to (``DecayCorrectionDateTime``) and
what they are in (the units of its real-world value mapping). A tag that is missing refuses the series by the tag's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import TypeVar

from medseg.errors import ScanError
from medseg.imaging.dicom_headers import FileHeader
from medseg.imaging.dicom_planes import Plane
from medseg.imaging.dicom_tags import Tags

_T = TypeVar("_T")
_SERIES_TAGS = (
    "Units",
    "DecayCorrection",
    "SUVType",
    "PatientWeight",
    "SeriesDate",
    "SeriesTime",
    "AttenuationCorrected",
    "DecayCorrected",
    "DecayCorrectionDateTime",
)
_DATE = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})")
_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2})?(?:\.(\d{1,6}))?")
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")
# After this many half-lives nothing is left to see: the times can't be those of this scan.
_MOST_HALF_LIVES = 10.0
# Less than the dose of any mouse: written in MBq, where DICOM asks for Bq.
_LEAST_DOSE_BQ = 1e5
_HALF_DAY_S = 43200.0


def suv_scale(label: str, planes: Sequence[Plane]) -> tuple[float, tuple[str, ...]]:
    """The factor from a PET series' rescaled values to SUVbw, and sentences about how it was found.

    Args:
        label: the series' name, for messages.
        planes: the series, at least one plane.

    Raises:
        ScanError: not PET, a tag is missing or makes no sense, or the values are no activity and no SUV.
    """
    files = list({plane.file.path: plane.file for plane in planes}.values())
    first = files[0].tags
    if files[0].modality != "PT":
        raise ScanError(
            f"{label}: unit SUV asked of Modality {files[0].modality or 'none'}, expected PT; correct the manifest"
        )
    for keyword in _SERIES_TAGS:
        _one_value(label, files, keyword)
    if "PerFrameFunctionalGroupsSequence" in first:
        return _enhanced_factor(label, files, {plane.units for plane in planes}), ()
    units = first.text("Units")
    if units == "GML":
        kind = first.text("SUVType")
        if kind not in ("", "BW"):
            raise ScanError(f"{label}: SUVType is not BW, expected SUV by body weight; export the series in BQML")
        return 1.0, ()
    if units == "CNTS":
        return _philips_factor(label, files)
    if units != "BQML":
        raise ScanError(
            f"{label}: Units are {'missing' if not units else 'of another kind'}, expected BQML, CNTS or GML"
        )
    return _factor_from_activity(label, files)


def _one_value(label: str, files: Sequence[FileHeader], keyword: str) -> None:
    count = len({header.tags.text(keyword) for header in files})
    if count > 1:
        raise ScanError(f"{label}: {keyword} has {count} values within one series, expected 1; export the series again")


def _philips_factor(label: str, files: Sequence[FileHeader]) -> tuple[float, tuple[str, ...]]:
    tags = files[0].tags
    if not tags.text("PhilipsPrivateCreator").upper().startswith("PHILIPS PET PRIVATE"):
        raise ScanError(f"{label}: Units are CNTS without Philips' factor (7053,1000); export the series in BQML")
    for keyword in ("PhilipsSUVFactor", "PhilipsActivityFactor"):
        _one_value(label, files, keyword)
    direct = tags.number("PhilipsSUVFactor")
    if direct:
        return direct, ("SUV by the maker's factor (7053,1000)",)
    activity = tags.number("PhilipsActivityFactor")
    if not activity:
        raise ScanError(f"{label}: (7053,1000) and (7053,1009) are missing, so CNTS can't become SUV; export in BQML")
    factor, notes = _factor_from_activity(label, files)
    return activity * factor, (*notes, "activity by the maker's factor (7053,1009)")


def _factor_from_activity(label: str, files: Sequence[FileHeader]) -> tuple[float, tuple[str, ...]]:
    tags = files[0].tags
    corrected = tags.texts("CorrectedImage")
    for needed, names in (("ATTN", ("ATTN",)), ("DECY", ("DECY", "DECAY"))):
        if not any(name in corrected for name in names):
            raise ScanError(
                f"{label}: CorrectedImage lacks {needed}, expected values corrected for it; SUV is undefined"
            )
    correction = tags.text("DecayCorrection")
    if correction == "ADMIN":
        return _factor(label, tags, None), ()
    if correction != "START":
        state = "missing" if not correction else "neither"
        raise ScanError(f"{label}: DecayCorrection is {state}, expected START or ADMIN; SUV is undefined")
    scan, notes = _scan_start(label, files)
    return _factor(label, tags, scan), notes


def _enhanced_factor(label: str, files: Sequence[FileHeader], units: set[str]) -> float:
    tags = files[0].tags
    if units in ({"g/ml{SUVbw}"}, {"{SUVbw}g/ml"}):
        return 1.0
    if units != {"Bq/ml"}:
        raise ScanError(
            f"{label}: units of RealWorldValueMappingSequence are missing or of another kind, expected Bq/ml or "
            "g/ml{SUVbw} in every frame; SUV is undefined"
        )
    for keyword in ("AttenuationCorrected", "DecayCorrected"):
        if tags.text(keyword) != "YES":
            raise ScanError(f"{label}: {keyword} is not YES, expected values corrected for it; SUV is undefined")
    moment = _parse_date_time(tags.text("DecayCorrectionDateTime"))
    if moment is None:
        raise ScanError(f"{label}: DecayCorrectionDateTime is missing or malformed, which SUV needs; add it")
    return _factor(label, tags, _in_local_time(moment, tags))


def _factor(label: str, tags: Tags, corrected_to: datetime | None) -> float:
    """SUVbw per Bq/ml for values decay-corrected to a moment in local time; None is the injection."""
    weight_kg = _positive(label, tags, "PatientWeight")
    tracer = _tracer(label, tags)
    dose_bq = _positive(label, tracer, "RadionuclideTotalDose")
    if dose_bq < _LEAST_DOSE_BQ:
        raise ScanError(f"{label}: RadionuclideTotalDose is below 1e5 Bq, expected Bq; it may be in MBq, correct it")
    if corrected_to is None:
        return weight_kg * 1000 / dose_bq
    half_life_s = _positive(label, tracer, "RadionuclideHalfLife")
    decay_s = _seconds_since_injection(label, tags, tracer, corrected_to)
    if decay_s > _MOST_HALF_LIVES * half_life_s:
        raise ScanError(
            f"{label}: scan starts {decay_s / half_life_s:.0f} half-lives after the injection, "
            f"expected at most {_MOST_HALF_LIVES:.0f}; the times or RadionuclideHalfLife are wrong"
        )
    return weight_kg * 1000 / (dose_bq * math.pow(2.0, -decay_s / half_life_s))


def _tracer(label: str, tags: Tags) -> Tags:
    items = tags.items("RadiopharmaceuticalInformationSequence")
    if len(items) != 1:
        state = "missing" if not items else f"of {len(items)} items"
        raise ScanError(
            f"{label}: RadiopharmaceuticalInformationSequence is {state}, expected one item; SUV is undefined"
        )
    return items[0]


def _positive(label: str, tags: Tags, keyword: str) -> float:
    value = tags.number(keyword)
    if value is None or value <= 0:
        state = "missing" if value is None else "not above 0"
        raise ScanError(f"{label}: {keyword} is {state}, which SUV needs; add it to the headers or drop unit SUV")
    return value


def _scan_start(label: str, files: Sequence[FileHeader]) -> tuple[datetime, tuple[str, ...]]:
    """When the scan began, local time: the moment to which START corrects the values."""
    tags = files[0].tags
    series = _date_time(tags, "SeriesDate", "SeriesTime")
    if series is None:
        raise ScanError(_missing_time(label, tags, "SeriesDate", "SeriesTime"))
    acquired = [(header, _acquired(header.tags)) for header in files]
    unknown = next((header for header, moment in acquired if moment is None), None)
    if unknown is not None:
        raise ScanError(_missing_time(unknown.label, unknown.tags, "AcquisitionDate", "AcquisitionTime"))
    earliest = min(moment for _, moment in acquired if moment is not None)
    if series <= earliest:
        return series, ()
    if tags.text("GEPrivateCreator") == "GEMS_PETD_01":
        private = _parse_date_time(tags.text("GEScanDateTime"))
        if private is not None:
            return _naive(private), ("series was stamped after its acquisition; GE's private scan time is used",)
    return earliest, ("series was stamped after its acquisition; the earliest acquisition is taken as its start",)


def _missing_time(label: str, tags: Tags, date: str, time: str) -> str:
    absent = [keyword for keyword in (date, time) if not tags.text(keyword)]
    what = f"{absent[0]} is missing" if absent else f"{date} or {time} is malformed"
    return f"{label}: {what}, which SUV needs; add it to the headers or drop unit SUV"


def _acquired(tags: Tags) -> datetime | None:
    whole = _parse_date_time(tags.text("AcquisitionDateTime"))
    return _date_time(tags, "AcquisitionDate", "AcquisitionTime") or (None if whole is None else _naive(whole))


def _seconds_since_injection(label: str, tags: Tags, tracer: Tags, scan: datetime) -> float:
    injected = _parse_date_time(tracer.text("RadiopharmaceuticalStartDateTime"))
    if injected is not None:
        seconds = (scan - _in_local_time(injected, tags)).total_seconds()
    else:
        time = _parse_time(tracer.text("RadiopharmaceuticalStartTime"))
        if time is None:
            raise ScanError(
                f"{label}: RadiopharmaceuticalStartDateTime and RadiopharmaceuticalStartTime are missing or malformed, "
                "one of which SUV needs; add it or drop unit SUV"
            )
        midnight = scan.replace(hour=0, minute=0, second=0, microsecond=0)
        # The day is not given: the scan's own, or the one before where the scan is just past midnight.
        seconds = (scan - (midnight + time)).total_seconds()
        seconds += 86400 if seconds < -_HALF_DAY_S else 0
    if seconds < 0:
        raise ScanError(f"{label}: injection lies {-seconds:.0f} s after the scan's start; correct the times")
    return seconds


def _in_local_time(moment: datetime, tags: Tags) -> datetime:
    """A moment with an offset from UTC in the series' own local time; one without is in local time already."""
    local = _parse_offset(tags.text("TimezoneOffsetFromUTC"))
    if moment.tzinfo is None or local is None:
        return _naive(moment)
    return _naive(moment.astimezone(local))


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _date_time(tags: Tags, date: str, time: str) -> datetime | None:
    return _either(lambda: _joined(tags.text(date), tags.text(time)))


def _joined(date: str, time: str) -> datetime | None:
    day, clock = _DATE.fullmatch(date), _parse_time(time)
    if day is None or clock is None:
        return None
    return datetime(int(day[1]), int(day[2]), int(day[3]), tzinfo=UTC).replace(tzinfo=None) + clock


def _parse_date_time(text: str) -> datetime | None:
    """DICOM's DT, e.g. 20060129135100.00+0100; None where it lacks a time of day or is malformed."""
    body, offset = (text[:-5], text[-5:]) if _OFFSET.fullmatch(text[-5:]) else (text, "")
    moment = _either(lambda: _joined(body[:8], body[8:]))
    zone = _parse_offset(offset)
    return moment if moment is None or zone is None else moment.replace(tzinfo=zone)


def _parse_time(text: str) -> timedelta | None:
    """DICOM's TM, e.g. 135100.25 or 1351; None where it is malformed."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    hours, minutes, seconds = (int(match[group] or 0) for group in (1, 2, 3))
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    return timedelta(hours=hours, minutes=minutes, seconds=seconds, microseconds=int((match[4] or "0").ljust(6, "0")))


def _parse_offset(text: str) -> timezone | None:
    match = _OFFSET.fullmatch(text)
    if match is None:
        return None
    return _either(
        lambda: timezone((1 if match[1] == "+" else -1) * timedelta(hours=int(match[2]), minutes=int(match[3])))
    )


def _either(build: Callable[[], _T | None]) -> _T | None:
    try:
        return build()
    except (ValueError, OverflowError):
        return None
