"""A tree of DICOM series, one folder a series: each of the wanted modality is a case."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.manifest.builders.draft import Built, Draft, LabelValues, case_id, channel_name, list_scans
from medseg.manifest.builders.folders import compile_pattern

# Objects that lie beside scans and hold no scan of their own.
_NO_IMAGES = ("RTSTRUCT", "SEG", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")


@dataclass(frozen=True)
class SeriesFolder:
    """A folder with DICOM series of one patient: relative POSIX path and modality (CT, MR, PT ...).

    ``count`` is how many series it holds; several of them need the config's rule ``data.series``.
    """

    path: str
    modality: str
    patient: str = field(default="", repr=False)  # compared, never shown or stored
    count: int = 1


def build_from_dicom(
    root: Path,
    *,
    label_values: LabelValues,
    labels: str | None = None,
    modality: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    skip_missing: bool = False,
) -> Built:
    """A manifest from a tree of DICOM series.

    The id is the series' folder, the patient the topmost folder (of the first of them, where one patient has several):
    no text of a header enters the manifest. Mind that folders are often named after people.

    Args:
        root: the folder the tree and the manifest's paths start from.
        label_values: class names with their values.
        labels: pattern of label maps with ``{id}`` (``masks/{id}.nii.gz``) or ``{patient}``; None for scans without.
        modality: DICOM modality to take; None takes the commonest.
        name: of the data set; the folder's by default.
        licence: of the data set.
        skip_missing: leave out folders that hold no one readable series.

    Returns:
        The manifest; series without label are its testing cases. PET asks for SUV.

    Raises:
        InputError: the folder is missing.
        ManifestError: every fault; a folder with series of several patients is one.
    """
    draft = Draft(root=root, name=name or root.resolve().name, licence=licence, labels=label_values)
    series = [
        s for s in find_series(root, draft.notes if skip_missing else draft.faults) if s.modality not in _NO_IMAGES
    ]
    counts = Counter(s.modality for s in series)
    if not series:
        draft.faults.append("no DICOM series was found, expected at least one folder of slices")
    wanted = modality or (counts.most_common(1)[0][0] if counts else "")
    if len(counts) > 1 and modality is None:
        found = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        draft.notes.append(f"series are {found}; took {wanted}, --modality takes another")
    draft.channels = [{"name": "PET", "unit": "SUV"} if wanted == "PT" else channel_name(wanted or "unknown")]
    masks = _masks(root, labels) if labels else {}
    several = sum(one.count > 1 for one in series if one.modality == wanted)
    if several:
        draft.notes.append(
            f"{several} folders hold several series of a patient; set data.series in the config, such as "
            f"{{modality: {wanted}, most_slices: true}}; where a case is several of them, name their channels in the "
            "manifest and give each a rule, such as {T1: {description: t1}, FLAIR: {description: flair}}"
        )
    tops: dict[str, str] = {}
    for one in series:
        if one.modality == wanted:
            top = one.path.split("/")[0] if one.path != "." else root.resolve().name
            patient = tops.setdefault(one.patient, top) if one.patient else top
            draft.add(_case(one, root, patient, masks))
    return draft.finish(skip_missing=skip_missing)


def _case(series: SeriesFolder, root: Path, patient: str, masks: Mapping[str, str]) -> dict[str, Any]:
    parts = series.path.split("/") if series.path != "." else [root.resolve().name]
    own, patient = case_id("_".join(parts)), case_id(patient)
    case: dict[str, Any] = {"id": own, "patient": patient if patient != own else None, "image": series.path}
    return case | {"label": masks.get(own) or masks.get(patient)}


def _masks(root: Path, pattern: str) -> dict[str, str]:
    expression = compile_pattern(pattern)
    found = ((path, expression.fullmatch(path)) for path in list_scans(root))
    words = ((path, match.groupdict()) for path, match in found if match)
    return {names.get("id") or names.get("patient") or path: path for path, names in words}


def find_series(root: Path, faults: list[str]) -> Iterator[SeriesFolder]:
    """Folders below ``root`` (itself included) that hold DICOM files, in order of path, one for each modality in it.

    Args:
        root: where to look; hidden folders and files are passed over.
        faults: gets a line for every folder whose files can't be read or are of several patients.
    """
    from medseg.imaging.dicom import list_series

    for folder in dicom_folders(root):
        relative = folder.relative_to(root).as_posix()
        try:
            series = list_series(folder)
        except MedsegError as error:
            faults.append(f"{relative}: {error}")
            continue
        if len(series) == 1 and series[0].fault and series[0].modality not in _NO_IMAGES:
            faults.append(f"{relative}: {series[0].fault}")
        elif len(series) == 1:
            yield SeriesFolder(relative, series[0].modality, series[0].patient_id)
        elif len({one.patient_id for one in series}) > 1:
            faults.append(
                f"{relative}: holds series of several patients, expected one patient's; give each a folder of its own"
            )
        else:
            for modality in dict.fromkeys(one.modality for one in series):
                yield SeriesFolder(relative, modality, series[0].patient_id, len(series))


def dicom_folders(root: Path) -> Iterator[Path]:
    """Folders below ``root`` (itself included) with at least one DICOM file, sorted; only the files' first bytes are read."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        visible = sorted(file for file in files if not file.startswith("."))
        if any(_is_dicom(Path(folder) / file) for file in visible[:20]):
            yield Path(folder)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() not in (".dcm", ".ima", "") and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as stream:
            return path.is_file() and stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
