"""Faults of one manifest file, collected so that they can be told together, and guesses at what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from medseg.errors import ManifestError

_MAX_FAULTS_SHOWN = 500
# What other tools call the same thing. Taken for a further column, `subject` would let one person into two folds.
OTHER_NAMES = {
    "case": "id",
    "case_id": "id",
    "subject": "patient",
    "subject_id": "patient",
    "patientid": "patient",
    "img": "image",
    "scan": "image",
    "volume": "image",
    "mask": "label",
    "seg": "label",
    "segmentation": "label",
    "target": "label",
    "license": "licence",
    "test": "testing",
    "train": "training",
    "cases": "training",
    "modality": "channels",
    "channel_names": "channels",
    "classes": "labels",
    "title": "name",
    "version": "format",
}
PLAIN_NAME = re.compile(r"[^\x00-\x1f\x7f,;=|\"]{1,100}")
PLAIN_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,1000}")


@dataclass
class Faults:
    """Collects the faults of one file so that they can be raised together."""

    file: str
    lines: list[str] = field(default_factory=list)

    def add(self, where: str, text: str) -> None:
        """Notes that at ``where`` (empty for the file as a whole) ``text`` is wrong."""
        self.lines.append(f"{self.file}: {where}: {text}" if where else f"{self.file}: {text}")

    def raise_any(self) -> None:
        """Raises ManifestError with what was noted, if anything was; of very many, the first 500 and their number."""
        if not self.lines:
            return
        shown = self.lines[:_MAX_FAULTS_SHOWN]
        if len(self.lines) > len(shown):
            shown.append(
                f"{self.file}: {len(self.lines) - len(shown):,} further faults are not shown; correct these first"
            )
        raise ManifestError(shown)


def suggestion(key: str, known: Iterable[str]) -> str:
    """``, did you mean 'label'?`` where ``key`` looks like one of ``known``, else nothing."""
    names = list(known)
    meant = OTHER_NAMES.get(key.lower())
    if meant not in names:
        close = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.7)
        meant = close[0] if close else None
    return f", did you mean {meant!r}?" if meant else ""
