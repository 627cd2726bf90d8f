"""nnU-Net's raw layout: ``imagesTr/CASE_0000.nii.gz`` per channel, ``labelsTr/CASE.nii.gz`` and ``dataset.json``."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.durable import read_json
from medseg.errors import ManifestError
from medseg.manifest.builders.decathlon import labels_by_name, numbered_names
from medseg.manifest.builders.draft import Built, Draft, LabelValues, case_id, with_splits

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def build_from_nnunet(
    root: Path,
    *,
    splits: Path | None = None,
    name: str | None = None,
    licence: str | None = None,
    labels: LabelValues | None = None,
    skip_missing: bool = False,
) -> Built:
    """A manifest from a raw folder of nnU-Net (``DatasetXXX_Name``).

    Args:
        root: the folder that holds ``dataset.json``; the manifest's paths start there.
        splits: nnU-Net's ``splits_final.json`` (it lies in its preprocessed folder); None takes one in ``root``, if any.
        name: replaces the folder's.
        licence: replaces the one in ``dataset.json``.
        labels: replaces those of ``dataset.json``, where they are regions that overlap.
        skip_missing: leave out cases whose files are not there.

    Returns:
        The manifest, with the folds of ``splits`` if there are any.

    Raises:
        InputError: ``dataset.json`` or ``splits`` is missing or no JSON.
        ManifestError: every fault; labels that overlap (regions) are one.
    """
    raw = read_json(root / "dataset.json")
    if not isinstance(raw, dict) or not isinstance(raw.get("file_ending", ".nii.gz"), str):
        raise ManifestError(["dataset.json: is no description of a data set, expected nnU-Net's"])
    draft = Draft(root=root, name=name or re.sub(r"^Dataset\d+_", "", root.resolve().name))
    stated = raw.get("licence") or raw.get("license")
    draft.licence = licence or (str(stated) if stated else None)
    draft.channels = numbered_names(raw.get("channel_names") or raw.get("modality") or {})
    _take_labels(raw.get("labels") or {}, labels, draft)
    ending = raw.get("file_ending", ".nii.gz")
    if isinstance(raw.get("dataset"), dict):
        _listed_cases(raw["dataset"], draft)
    else:
        draft.training += _folder_cases(draft, "imagesTr", "labelsTr", ending)
    draft.testing += _folder_cases(draft, "imagesTs", "labelsTs", ending)
    built = draft.finish(skip_missing=skip_missing)
    return with_splits(built, root, splits)


def _take_labels(raw: Mapping[str, Any], given: LabelValues | None, draft: Draft) -> None:
    named = labels_by_name(raw, draft)
    ignore = named.pop("ignore", None)
    draft.ignore = ignore if isinstance(ignore, int) else None
    draft.labels = given if given is not None else named
    values = [v for value in named.values() for v in (value if isinstance(value, list) else [value])]
    if given is None and len(set(map(str, values))) < len(values):
        draft.faults.append(
            "labels overlap (nnU-Net's regions), expected each value in one; name the values themselves with --labels"
        )
        draft.labels = {f"value_{v}": v for v in sorted({v for v in values if isinstance(v, int) and v > 0})}


def _folder_cases(draft: Draft, images: str, labels: str, ending: str) -> list[dict[str, Any]]:
    folder = draft.root / images
    if not folder.is_dir():
        if images == "imagesTr":
            draft.faults.append(f"{images} is missing, expected a folder of images")
        return []
    found: dict[str, dict[int, str]] = defaultdict(dict)
    unnumbered: list[str] = []
    for file in sorted(os.listdir(folder)):  # noqa: PTH208 - names are wanted, not paths
        match = _CHANNEL.fullmatch(file.removesuffix(ending))
        if file.startswith(".") or not file.endswith(ending):
            continue
        if match is None:
            unnumbered.append(file)
        else:
            found[match["case"]][int(match["channel"])] = f"{images}/{file}"
    if unnumbered:
        what = f"{unnumbered[0]!r}" + (f" and {len(unnumbered) - 1} others have" if unnumbered[1:] else " has")
        draft.faults.append(f"{images}: {what} no channel number, expected CASE_0000{ending}")
    return _numbered_cases(draft, found, images, labels, ending)


def _numbered_cases(
    draft: Draft, found: Mapping[str, Mapping[int, str]], images: str, labels: str, ending: str
) -> list[dict[str, Any]]:
    count = len(draft.channels)
    cases = []
    for case, channels in found.items():
        if sorted(channels) != list(range(count)):
            draft.faults.append(f"{case}: {images} has channels {sorted(channels)}, expected 0 to {count - 1}")
            continue
        label = f"{labels}/{case}{ending}"
        values: dict[str, Any] = {"id": case_id(case), "image": _one_or_all([channels[c] for c in range(count)])}
        if images == "imagesTr" or (draft.root / label).exists():
            values["label"] = label
        cases.append(values)
    return cases


def _listed_cases(raw: Mapping[str, Any], draft: Draft) -> None:
    for case, files in raw.items():
        if not isinstance(files, dict) or not isinstance(files.get("images"), list):
            draft.faults.append(f"{case}: dataset.json has no images for it, expected a list of paths")
            continue
        values = {"id": case_id(case), "image": _one_or_all([str(path) for path in files["images"]])}
        draft.training.append(values | ({"label": str(files["label"])} if files.get("label") else {}))


def _one_or_all(paths: list[str]) -> Any:
    return paths[0] if len(paths) == 1 else paths
