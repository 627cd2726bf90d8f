"""One scan to segment, and how its name follows from its file's."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.config.series import SeriesRules, SeriesSection, rules_of_channels
from medseg.errors import ScanError, UsageError
from medseg.imaging import suffix_of
from medseg.imaging.opening import describe_content, open_regular
from medseg.inference.folder_search import is_dicom_file
from medseg.inference.outputs import OutputSpec
from medseg.preparation.plan import ChannelPlan

_LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class InferCase:
    """One scan to segment.

    Attributes:
        id: the mask's name without suffix.
        images: one file or DICOM folder for all channels, or one per channel.
        fault: why it can't be read, where that was known beforehand; such a case is reported and passed over.
        series: short codes of the DICOM series that were chosen for it, one per image; empty leaves that to reading.
        files: names of the files that count in each image's folder; empty where whole folders do.
    """

    id: str
    images: tuple[Path, ...]
    fault: str | None = None
    series: tuple[str, ...] = ()
    files: tuple[tuple[str, ...], ...] = ()

    def channels(self, channels: Sequence[ChannelPlan], series: SeriesRules | None) -> tuple[ChannelPlan, ...]:
        """A model's channels with the series that they are read from: the chosen ones, else as `with_rules`."""
        if not self.series:
            return with_rules(channels, series)
        codes = self.series if len(self.series) == len(channels) else self.series[:1] * len(channels)
        return tuple(
            channel.model_copy(update={"series": SeriesSection(code=code)})
            for channel, code in zip(channels, codes, strict=True)
        )

    @property
    def output_name(self) -> str:
        """File name of its mask where nothing else is asked for: a picture's is a PNG, every other scan's a NIfTI file."""
        return f"{self.id}{OutputSpec().suffix(self.images)}"


def with_rules(channels: Sequence[ChannelPlan], series: SeriesRules | None) -> tuple[ChannelPlan, ...]:
    """A model's channels with the rules of ``infer.series`` in place of those that the model brings along.

    Raises:
        ConfigError: a rule is for a channel that the model has not.
    """
    rules = rules_of_channels(series, [channel.name for channel in channels], key="infer.series")
    return tuple(
        channel if rule is None else channel.model_copy(update={"series": rule})
        for channel, rule in zip(channels, rules, strict=True)
    )


def case_name(text: str) -> str:
    """``text`` as a case id.

    Accents fall off their letters, other characters become ``_``. Where that loses letters or digits, as it does all of a
    Chinese name, or the name is too long, it ends in a checksum of the whole, so that different names stay different.
    """
    parts = unicodedata.normalize("NFKD", text)
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    name = re.sub(r"[^A-Za-z0-9._-]", "_", plain).lstrip(".-") or "scan"
    # Bytes that are no UTF-8, as names from other systems have them, stand for letters too.
    lost = any(not part.isascii() and (part.isalnum() or "\udc80" <= part <= "\udcff") for part in plain)
    if lost or len(name) > _LONGEST_NAME:
        code = hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9]}-{code}"
    return name


def file_name(path: Path) -> str:
    """The case id of a scan file.

    Raises:
        UsageError: neither its name nor its content is that of a scan.
    """
    suffix = suffix_of(path)
    if suffix is not None:
        return case_name(path.name[: len(path.name) - len(suffix)])
    if is_dicom_file(path):
        return case_name(path.name)
    raise UsageError(
        f"{path}: is of no known kind ({_content(path)}), expected a scan, a folder, a list (.txt) or a manifest (.json, "
        ".csv); convert or unpack it"
    )


def _content(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return f"content is {describe_content(file.read(512))}"
    except ScanError as error:
        return str(error).partition(": ")[2].partition("; ")[0].partition(", ")[0]


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; False too for a name that none can have and behind a closed folder."""
    try:
        return path.exists()
    except OSError:
        return False
