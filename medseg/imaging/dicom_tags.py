"""DICOM header values from their raw bytes, without pydicom's value classes.

Those warn and raise with header text in the message, and header text (names, dates, identifiers) must reach no message of
ours.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

from medseg.errors import MedsegError, ScanError

# What is read of a header; everything else is skipped in the file, so a header costs about a millisecond.
_KEYWORDS = [
    "ImageType",
    "SOPClassUID",
    "SeriesDate",
    "AcquisitionDate",
    "AcquisitionDateTime",
    "SeriesTime",
    "AcquisitionTime",
    "Modality",
    "TimezoneOffsetFromUTC",
    "PatientID",
    "PatientWeight",
    "ConvolutionKernel",
    "SliceThickness",
    "EchoTime",
    "EchoNumbers",
    "SpacingBetweenSlices",
    "TriggerTime",
    "DiffusionBValue",
    "AttenuationCorrected",
    "DecayCorrected",
    "DecayCorrectionDateTime",
    "SeriesDescription",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "TemporalPositionIdentifier",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "CorrectedImage",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "LossyImageCompression",
    "ModalityLUTSequence",
    "Units",
    "DecayCorrection",
    "SUVType",
    "RadiopharmaceuticalInformationSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_PRIVATE = {
    "GEPrivateCreator": 0x00090010,
    "GEScanDateTime": 0x0009100D,
    "PhilipsPrivateCreator": 0x70530010,
    "PhilipsSUVFactor": 0x70531000,
    "PhilipsActivityFactor": 0x70531009,
}
_BINARY_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
# How implicit VR files spell these; a file that names the VR itself is believed.
_IMPLICIT_VR = {
    "SamplesPerPixel": "US",
    "Rows": "US",
    "Columns": "US",
    "BitsAllocated": "US",
    "BitsStored": "US",
    "HighBit": "US",
    "PixelRepresentation": "US",
    "TemporalPositionIndex": "UL",
    "EffectiveEchoTime": "FD",
    "DiffusionBValue": "FD",
    "RealWorldValueSlope": "FD",
    "RealWorldValueIntercept": "FD",
    "SegmentNumber": "US",
    "ReferencedSegmentNumber": "US",
    "MaximumFractionalValue": "US",
}
_QUIET = threading.RLock()


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings and log lines, which quote header text, from everybody.

    The lock makes the process-wide filter state safe among our own threads.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg", "libjpeg")]
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def parsing(label: str, what: str = "header can't be parsed") -> Iterator[None]:
    """Turn whatever pydicom raises on a damaged file into a refusal that quotes none of it.

    Raises:
        ScanError: ``<label>: <what> (<type of the fault>)``.
    """
    try:
        with quiet_pydicom():
            yield
    except MedsegError:
        raise
    except RecursionError:
        raise ScanError(f"{label}: sequences are nested too deep; the file is damaged or hostile") from None
    except Exception as error:  # noqa: BLE001 - a foreign parser on damaged bytes raises anything
        if isinstance(error, OSError) and error.errno:
            raise ScanError(f"{label}: can't be read ({os.strerror(error.errno)})") from None
        raise ScanError(f"{label}: {what} ({type(error).__name__}); copy or export it again") from None


@cache
def _tag_of(keyword: str) -> int:
    from pydicom.datadict import tag_for_keyword

    tag = _PRIVATE.get(keyword) or tag_for_keyword(keyword)
    assert tag is not None, keyword
    return int(tag)


@cache
def wanted_tags(also: tuple[str, ...] = ()) -> list[int]:
    """Numbers of every tag that is read, and of those of ``also``; the rest of a header is skipped."""
    return [_tag_of(keyword) for keyword in (*_KEYWORDS, *_PRIVATE, *also)]


class Tags:
    """Values of a header (or of a sequence's item) by keyword, parsed from the raw bytes on demand.

    An absent tag and an empty value are the same: ``None``, ``""`` or ``()``.

    Args:
        dataset: pydicom's Dataset.
        label: the file's name, for messages.
    """

    def __init__(self, dataset: Any, label: str) -> None:
        self._dataset = dataset
        self.label = label

    def __contains__(self, keyword: str) -> bool:
        return _tag_of(keyword) in self._dataset

    def _element(self, keyword: str) -> Any:
        tag = _tag_of(keyword)
        return self._dataset.get_item(tag) if tag in self._dataset else None

    def text(self, keyword: str) -> str:
        """The value as text, without padding; "" when absent."""
        element = self._element(keyword)
        value = getattr(element, "value", None)
        if isinstance(value, bytes):
            return value.decode("latin-1").strip(" \0\t\r\n")
        return "" if value is None else str(value).strip()

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The backslash-separated values as text."""
        text = self.text(keyword)
        return tuple(part.strip() for part in text.split("\\")) if text else ()

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Exactly ``count`` finite numbers, or None when the tag is absent or empty.

        Raises:
            ScanError: another count, not a number, or not finite.
        """
        values = self.all_numbers(keyword)
        if values is None:
            return None
        if len(values) != count or not all(math.isfinite(value) for value in values):
            rule = "a finite number" if count == 1 else f"{count} finite numbers"
            raise ScanError(f"{self.label}: {keyword} is malformed, expected {rule}; repair or export the file again")
        return values

    def all_numbers(self, keyword: str) -> tuple[float, ...] | None:
        """However many numbers there are, or None when the tag is absent or empty; () where they can't be read."""
        element = self._element(keyword)
        # Looking into a sequence, pydicom turns PixelRepresentation from bytes into a number, which may be 0.
        if element is None or not (element.value or isinstance(element.value, int)):
            return None
        return self._binary_or_text_numbers(keyword, element) or ()

    def _binary_or_text_numbers(self, keyword: str, element: Any) -> tuple[float, ...] | None:
        vr = element.VR if element.VR not in (None, "UN") else _IMPLICIT_VR.get(keyword)
        code = _BINARY_NUMBERS.get(str(vr))
        try:
            if code and isinstance(element.value, bytes):
                order = "<" if element.is_little_endian else ">"
                return tuple(float(value[0]) for value in struct.iter_unpack(order + code, element.value))
            return tuple(float(text) for text in self.texts(keyword))
        except (ValueError, struct.error):
            return None

    def number(self, keyword: str) -> float | None:
        """One finite number, or None when the tag is absent or empty."""
        values = self.numbers(keyword, 1)
        return None if values is None else values[0]

    def integer(self, keyword: str) -> int | None:
        """One whole number, or None when the tag is absent or empty."""
        value = self.number(keyword)
        if value is None:
            return None
        if value != int(value):
            raise ScanError(f"{self.label}: {keyword} is malformed, expected a whole number; export the file again")
        return int(value)

    def items(self, keyword: str) -> tuple[Tags, ...]:
        """The items of a sequence; () when absent."""
        if keyword not in self:
            return ()
        with parsing(self.label, f"{keyword} can't be parsed"):
            items = self._dataset[_tag_of(keyword)].value
            return tuple(Tags(item, self.label) for item in (items or ()))
