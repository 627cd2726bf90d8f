"""A manifest in the making: what a builder has found so far, judged by the same rules as a file when it is done."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.durable import read_json
from medseg.errors import InputError, ManifestError
from medseg.manifest.case_schema import RawCase
from medseg.manifest.cases import Manifest
from medseg.manifest.faults import Faults
from medseg.manifest.schema import FORMAT, parse_manifest
from medseg.manifest.splits import folds_from_splits, with_folds

LabelValues = Mapping[str, tuple[int, ...]]

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
UNKNOWN_LICENCE = "not stated; ask whoever gave you the data"
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._-]+")
# MONAI and others write the modality as MSD does; normalisation and reports here go by the short name.
_CHANNEL_NAMES = {"MRI": "MR", "PT": "PET", "PET": "PET", "CT": "CT", "MR": "MR", "RGB": "RGB"}


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a builder made.

    Attributes:
        manifest: without folds, unless the layout brought its own.
        notes: one line for everything that was guessed, changed or left out.
    """

    manifest: Manifest
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Draft:
    """Cases and metadata as they are found; :meth:`finish` judges them."""

    root: Path
    name: str
    licence: str | None = None
    channels: Sequence[Any] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    ignore: int | None = None
    training: list[dict[str, Any]] = field(default_factory=list)
    testing: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, case: Mapping[str, Any]) -> None:
        """Adds a case to training, or to testing where it has no label (nothing can be learnt from it)."""
        values = {key: value for key, value in case.items() if value not in (None, "", [], ())}
        (self.training if "label" in values else self.testing).append(values)

    def finish(self, *, skip_missing: bool = False) -> Built:
        """The manifest, once every file of every case was found.

        Args:
            skip_missing: leave out cases with missing files (said in a note) instead of refusing.

        Raises:
            ManifestError: every fault.
        """
        faults = Faults(self.root.name or "data")
        for line in self.faults:
            faults.add("", line)
        training = self._present("training", self.training, faults, skip_missing=skip_missing)
        testing = self._present("testing", self.testing, faults, skip_missing=skip_missing)
        if self.licence is None:
            self.notes.append("the licence is stated nowhere; write it into the manifest")
        top: dict[str, Any] = {"format": FORMAT, "name": self.name, "licence": self.licence or UNKNOWN_LICENCE}
        top |= {"channels": list(self.channels), "labels": _plain_labels(self.labels)}
        if self.ignore is not None:
            top["ignore"] = self.ignore
        manifest = parse_manifest(top, training, testing, faults)
        unlabelled = sum("label" not in case for case in self.testing)
        if unlabelled and training:
            self.notes.append(f"{_count(unlabelled, 'case')} without label went to testing")
        return Built(manifest=manifest, notes=tuple(self.notes))

    def _present(
        self, key: str, cases: Sequence[dict[str, Any]], faults: Faults, *, skip_missing: bool
    ) -> list[RawCase]:
        kept, missing = [], list[tuple[str, str]]()
        for position, case in enumerate(sorted(cases, key=lambda c: str(c.get("id", "")))):
            absent = [p for k in ("image", "label") for p in _listed(case.get(k)) if not os.path.exists(self.root / p)]  # noqa: PTH110
            missing += [(str(case.get("id")), path) for path in absent]
            if not absent:
                kept.append(RawCase(values=case, where=f"{key}[{position}]"))
        if missing and skip_missing:
            cases_missing = len({case_id for case_id, _ in missing})
            self.notes.append(
                f"left out {_count(cases_missing, 'case')} of {key} with {_count(len(missing), 'missing file')}"
            )
        else:
            for case_id, path in missing:
                faults.add(case_id, f"{path!r} is missing, expected a file; get it or give --skip-missing")
        return kept


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else [v for v in value if isinstance(v, str)]


def _plain_labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(values) if isinstance(values, tuple) else values for name, values in labels.items()}


def case_id(text: str) -> str:
    """``text`` as a case id: what may not be in one becomes a dash, and dots and dashes in front go."""
    return _NOT_IN_IDS.sub("-", text).lstrip(".-")[:100]


def without_suffix(name: str) -> str:
    """A scan's file name without ``.nii.gz``, ``.png`` and so on; other names are returned as they are."""
    lower = name.lower()
    for suffix in SCAN_SUFFIXES:
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def channel_name(text: str) -> str:
    """The short name of a modality (MRI is MR, PT is PET); any other text as it is."""
    return _CHANNEL_NAMES.get(text.strip().upper(), text.strip())


def list_scans(root: Path) -> list[str]:
    """Relative POSIX paths of all scan files below ``root``, sorted; hidden files and folders are left out.

    Raises:
        InputError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"{root.name}: no such folder; check the path")
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        start = os.path.relpath(folder, root)
        prefix = "" if start == "." else f"{start}/"
        found += [f"{prefix}{f}" for f in files if not f.startswith(".") and f.lower().endswith(SCAN_SUFFIXES)]
    return sorted(found)


def with_splits(built: Built, root: Path, splits: Path | None) -> Built:
    """``built`` with the folds of nnU-Net's split ``splits``, or of ``root/splits_final.json`` where that is there.

    Raises:
        InputError: ``splits`` is missing or no JSON.
        ManifestError: it is no such split, or names other cases.
    """
    path = splits or root / "splits_final.json"
    if splits is None and not path.exists():
        return built
    raw = read_json(path)
    if not isinstance(raw, list) or not all(isinstance(s, dict) and isinstance(s.get("val"), list) for s in raw):
        raise ManifestError([f"{path.name}: is no list of train and val cases, expected nnU-Net's splits_final.json"])
    clean = [{"val": [case_id(str(name)) for name in split["val"]]} for split in raw]
    folds = folds_from_splits(clean, (case.id for case in built.manifest.training))
    note = f"the {len(raw)} folds are those of {path.name}"
    return replace(built, manifest=with_folds(built.manifest, folds), notes=(*built.notes, note))
