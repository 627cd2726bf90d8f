"""BIDS-like trees: ``sub-01[/ses-1]/anat/sub-01_T1w.nii.gz`` with masks beside the images or under ``derivatives``."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.durable import read_json
from medseg.errors import UsageError
from medseg.manifest.builders.draft import Built, Draft, LabelValues, case_id, channel_name, list_scans, without_suffix

_LABEL_SUFFIXES = ("dseg", "mask", "seg", "roi")
_KEY_ENTITIES = ("sub", "ses", "run")


@dataclass(frozen=True)
class _Scan:
    path: str
    key: tuple[str, ...]  # values of sub, ses, run; empty where the name has none
    suffix: str


def build_from_bids(
    root: Path,
    *,
    channels: Sequence[str] = (),
    label_values: LabelValues | None = None,
    only: str = "",
    label_only: str = "",
    name: str | None = None,
    licence: str | None = None,
    skip_missing: bool = False,
) -> Built:
    """A manifest from a BIDS-like tree.

    A case is a subject, or a session or run of one; its patient is the subject. The columns of ``participants.tsv`` become
    further columns, ``dseg.tsv`` (index, name) names the labels.

    Args:
        root: the folder of the data set.
        channels: BIDS suffixes in the order wanted (T1w, FLAIR, ...); empty takes every suffix that all subjects have.
        label_values: class names with their values; None reads ``dseg.tsv``.
        only: images must have this text in their path.
        label_only: labels must have this text in their path (``desc-tumor``, ``derivatives/experts``).
        name: replaces that of ``dataset_description.json``.
        licence: replaces that of ``dataset_description.json``.
        skip_missing: leave out cases that lack a channel.

    Raises:
        UsageError: no labels are named anywhere.
        InputError: the folder is missing.
        ManifestError: every fault; two images of one suffix for one case is one.
    """
    scans = [scan for path in list_scans(root) if (scan := _scan(path))]
    images = [s for s in scans if s.suffix not in _LABEL_SUFFIXES and "derivatives/" not in s.path and only in s.path]
    labels = [s for s in scans if s.suffix in _LABEL_SUFFIXES and label_only in s.path]
    description = read_json(root / "dataset_description.json") if (root / "dataset_description.json").exists() else {}
    wanted = tuple(channels) or _common_suffixes(images)
    draft = Draft(root=root, name=name or str(description.get("Name") or root.resolve().name))
    draft.licence = licence or description.get("License") or None
    draft.channels = [channel_name(suffix) for suffix in wanted]
    if not channels:
        draft.notes.append(f"channels are the suffixes that every subject has: {', '.join(wanted) or 'none'}")
    values = label_values if label_values is not None else _lookup_table(root)
    if not values:
        raise UsageError("labels are named nowhere; give --labels name=value,... or a dseg.tsv with index and name")
    draft.labels = values
    _add_cases(draft, images, labels, wanted, skip_missing=skip_missing)
    return draft.finish(skip_missing=skip_missing)


def _scan(path: str) -> _Scan | None:
    parts = without_suffix(PurePosixPath(path).name).split("_")
    entities = dict(part.split("-", 1) for part in parts[:-1] if "-" in part)
    if "sub" not in entities:
        return None
    return _Scan(path, tuple(entities.get(entity, "") for entity in _KEY_ENTITIES), parts[-1])


def _common_suffixes(images: Sequence[_Scan]) -> tuple[str, ...]:
    subjects = {scan.key[0] for scan in images}
    having: dict[str, set[str]] = defaultdict(set)
    for scan in images:
        having[scan.suffix].add(scan.key[0])
    return tuple(sorted(suffix for suffix, own in having.items() if own == subjects))


def _fits(label: tuple[str, ...], image: tuple[str, ...]) -> bool:
    """Whether a label's entities name this image: those that the label leaves out may be anything."""
    return all(mine in ("", its) for mine, its in zip(label, image, strict=True))


def _add_cases(
    draft: Draft, images: Sequence[_Scan], labels: Sequence[_Scan], channels: Sequence[str], *, skip_missing: bool
) -> None:
    grouped: dict[tuple[str, ...], list[_Scan]] = defaultdict(list)
    by_subject: dict[str, list[_Scan]] = defaultdict(list)
    for image in images:
        if image.suffix in channels:
            grouped[image.key].append(image)
    for label in labels:
        by_subject[label.key[0]].append(label)
    if not grouped:
        draft.faults.append("no image of a subject was found, expected sub-*/**/sub-*_<suffix>.nii.gz")
    complain = draft.notes if skip_missing else draft.faults
    # By session, not by run: a functional run beside the scans wanted is no case that lacks them.
    for session in sorted({image.key[:2] for image in images} - {key[:2] for key in grouped}):
        complain.append(f"{_name(session)}: has no {', '.join(channels)}, expected it of every session")
    people = _participants(draft.root)
    for key, own in sorted(grouped.items()):
        case_name = _name(key)
        counts = Counter(scan.suffix for scan in own)
        missing = [suffix for suffix in channels if not counts[suffix]]
        drawn = [label for label in by_subject[key[0]] if _fits(label.key, key)]
        if missing:
            complain.append(f"{case_name}: has no {', '.join(missing)}, expected {', '.join(channels)}")
        elif max(counts.values()) > 1:
            draft.faults.append(
                f"{case_name}: has several {counts.most_common(1)[0][0]}, expected one; narrow with --only"
            )
        elif len(drawn) > 1:
            draft.faults.append(f"{case_name}: has {len(drawn)} masks, expected one; narrow with --label-only TEXT")
        else:
            paths = [scan.path for suffix in channels for scan in own if scan.suffix == suffix]
            case: dict[str, Any] = {"id": case_id(case_name), "image": paths if len(paths) > 1 else paths[0]}
            case["patient"] = f"sub-{key[0]}" if case_name != f"sub-{key[0]}" else None
            draft.add(people.get(f"sub-{key[0]}", {}) | case | {"label": "".join(label.path for label in drawn)})


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", restkey=""))


def _name(key: Sequence[str]) -> str:
    return "_".join(f"{entity}-{value}" for entity, value in zip(_KEY_ENTITIES, key, strict=False) if value)


def _participants(root: Path) -> dict[str, dict[str, str]]:
    path = root / "participants.tsv"
    people = {}
    for row in _table(path) if path.exists() else []:
        person = row.pop("participant_id", "")
        people[person] = {key: value for key, value in row.items() if key and value and value != "n/a"}
    return people


def _lookup_table(root: Path) -> dict[str, tuple[int, ...]]:
    for path in sorted(
        [*root.glob("*dseg.tsv"), *root.glob("derivatives/*dseg.tsv"), *root.glob("derivatives/*/*dseg.tsv")]
    ):
        rows = [(row.get("name"), row.get("index") or "") for row in _table(path)]
        return {"background" if i == "0" else name: (int(i),) for name, i in rows if name and i.isdigit()}
    return {}
