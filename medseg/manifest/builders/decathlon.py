"""The layout of the Medical Segmentation Decathlon: ``dataset.json`` with lists of image and label files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.durable import read_json
from medseg.errors import ManifestError
from medseg.manifest.builders.draft import Built, Draft, case_id, channel_name, with_splits, without_suffix


def build_from_decathlon(
    root: Path,
    *,
    splits: Path | None = None,
    name: str | None = None,
    licence: str | None = None,
    skip_missing: bool = False,
) -> Built:
    """A manifest from ``root/dataset.json``.

    Args:
        root: the folder that holds ``dataset.json``; the manifest's paths start there.
        splits: nnU-Net's ``splits_final.json`` for these cases; None takes one in ``root``, if any.
        name: replaces that of the file.
        licence: replaces that of the file.
        skip_missing: leave out cases whose files are not there.

    Raises:
        InputError: ``dataset.json`` is missing or no JSON.
        ManifestError: every fault of what it says.
    """
    raw = read_json(root / "dataset.json")
    if not isinstance(raw, dict) or not isinstance(raw.get("training"), list):
        raise ManifestError(["dataset.json: has no list 'training', expected the Decathlon's layout"])
    draft = Draft(root=root, name=name or str(raw.get("name") or root.name))
    draft.licence = licence or _text(raw.get("licence") or raw.get("license"))
    draft.channels = numbered_names(raw.get("modality") or {})
    draft.labels = labels_by_name(raw.get("labels") or {}, draft)
    draft.training = [_case(item, position, draft) for position, item in enumerate(raw["training"])]
    tests = raw.get("test") or []
    draft.testing = [_case(item, position, draft) for position, item in enumerate(tests)]
    return with_splits(draft.finish(skip_missing=skip_missing), root, splits)


def _text(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def numbered_names(raw: Any) -> list[str]:
    """Channel names in the order of their numbers, from ``{"0": "MRI"}`` (or a list); MRI becomes MR."""
    if isinstance(raw, Mapping):
        raw = [raw[key] for key in sorted(raw, key=lambda key: (len(str(key)), str(key)))]
    return [channel_name(str(item)) for item in raw]


def labels_by_name(raw: Mapping[str, Any], draft: Draft) -> dict[str, Any]:
    """Class names with values from either direction: ``{"1": "liver"}`` as in 2018, ``{"liver": 1}`` as since."""
    labels: dict[str, Any] = {}
    for key, value in raw.items():
        name, number = (value, int(key)) if isinstance(value, str) and key.isdigit() else (key, value)
        if number == 0 and name != "background":
            draft.notes.append(f"value 0 was called {name!r}; it is background here")
            name = "background"
        if name in labels:
            draft.faults.append(f"labels name {name!r} twice, expected each once; correct dataset.json")
        labels[name] = number
    return labels


def _case(item: Any, position: int, draft: Draft) -> dict[str, Any]:
    values = {"image": item} if isinstance(item, str) else item
    if not isinstance(values, dict) or not isinstance(values.get("image"), str):
        draft.faults.append(f"dataset.json: case {position} is {item!r:.60}, expected an image path")
        return {}
    image = str(PurePosixPath(values["image"]))
    case: dict[str, Any] = {"id": case_id(without_suffix(PurePosixPath(image).name)), "image": image}
    if isinstance(values.get("label"), str):
        case["label"] = str(PurePosixPath(values["label"]))
    return case
