"""Telling the layout of a data folder by looking at it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from medseg.durable import read_json
from medseg.errors import InputError
from medseg.manifest.builders.dicom import dicom_folders
from medseg.manifest.builders.draft import list_scans, without_suffix

Kind = Literal["decathlon", "nnunet", "bids", "dicom", "folders"]

_LABEL_WORDS = frozenset(
    {
        "label",
        "labels",
        "labelstr",
        "labelsts",
        "mask",
        "masks",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "gt",
        "groundtruth",
        "annotation",
        "annotations",
        "roi",
        "rois",
        "target",
        "targets",
        "dseg",
    }
)
_IMAGE_WORDS = frozenset(
    {
        "image",
        "images",
        "imagestr",
        "imagests",
        "img",
        "imgs",
        "scan",
        "scans",
        "volume",
        "volumes",
        "picture",
        "pictures",
    }
)
_OTHER_WORDS = frozenset({"train", "training", "test", "testing", "val", "validation", "data", "raw"})
_TOKEN = re.compile(r"[A-Za-z]+|\d+")
_MAX_FILES_PER_CASE = 20
_MODALITIES = {"pet": "PET", "pt": "PET", "ct": "CT", "mr": "MR", "mri": "MR", "t1": "MR", "t2": "MR", "flair": "MR"}


@dataclass(frozen=True)
class FolderGuess:
    """Patterns for ``build_from_folders`` that fit what was found.

    Attributes:
        images, labels: patterns with ``{id}`` and perhaps ``{channel}``; ``labels`` is None where none look like labels.
        channels: what ``{channel}`` stands for; empty where there is one image a case.
        others: patterns of files that were not taken, with how many there are.
    """

    images: str
    labels: str | None
    channels: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def detect_layout(root: Path) -> Kind:
    """Which builder fits ``root``: nnU-Net's raw folder, a Decathlon, BIDS, DICOM or plain folders.

    Raises:
        InputError: ``root`` is no folder or holds no scan.
    """
    if not root.is_dir():
        raise InputError(f"{root.name}: no such folder; check the path")
    if (root / "dataset.json").is_file():
        raw = read_json(root / "dataset.json")
        if isinstance(raw, dict) and "channel_names" in raw:
            return "nnunet"
        if isinstance(raw, dict) and isinstance(raw.get("training"), list):
            return "decathlon"
    scans = list_scans(root)
    if (root / "dataset_description.json").is_file() or any(path.startswith("sub-") for path in scans):
        return "bids"
    if not scans:
        if next(dicom_folders(root), None) is None:
            raise InputError(
                f"{root.name}: holds no scan, expected NIfTI, NRRD, MHA, DICOM, PNG or TIFF; check the path"
            )
        return "dicom"
    return "folders"


def guess_patterns(scans: Sequence[str]) -> FolderGuess:
    """Patterns that tell images from labels in a list of relative paths, by their names alone.

    A folder a case (``p01/image.nii.gz``, ``p01/p01-t1.nii.gz``) and a folder a kind (``images/a.png``,
    ``masks/a_mask.png``) are both known; files beside each other that differ by a word like ``seg`` are too.

    Args:
        scans: at least one path.
    """
    by_pattern: dict[str, set[str]] = defaultdict(set)
    per_case = _case_folders(scans)
    for path in scans:
        case, pattern = _pattern(path, per_case)
        by_pattern[pattern].add(case)
    labels = {pattern: ids for pattern, ids in by_pattern.items() if _words(pattern) & _LABEL_WORDS}
    images = {pattern: ids for pattern, ids in by_pattern.items() if pattern not in labels}
    if not images:  # every name holds a label word: then the words say nothing
        images, labels = by_pattern, {}
    twins = {_bare(pattern): ids for pattern, ids in images.items()}
    best_label = max(
        labels, key=lambda p: (len(labels[p] & twins.get(_bare(p), set())), len(labels[p]), p), default=None
    )
    chosen = _image_patterns(images, best_label, labels.get(best_label or "", set()))
    pattern, channels = _joined(chosen)
    others = tuple(f"{p} ({len(ids)})" for p, ids in sorted(by_pattern.items()) if p not in (*chosen, best_label))
    return FolderGuess(pattern, best_label, channels, others)


def guess_channel(pattern: str) -> str | None:
    """A modality that the words of a pattern name (``PET_image`` is PET), or None."""
    found = {_MODALITIES[word] for word in _modality_words(pattern) if word in _MODALITIES}
    return found.pop() if len(found) == 1 else None


def _words(pattern: str) -> set[str]:
    return {word.lower() for word in _TOKEN.findall(pattern.replace("{id}", " "))}


def _modality_words(pattern: str) -> set[str]:
    return {word.lower() for word in re.split(r"[^A-Za-z0-9]+", pattern)}


def _case_folders(scans: Sequence[str]) -> set[str]:
    """Topmost folders that are a case each: several of them, few files in each, and no name such as ``images``."""
    counts: dict[str, int] = defaultdict(int)
    for path in scans:
        if "/" in path:
            counts[path.split("/", 1)[0]] += 1
    roles = _LABEL_WORDS | _IMAGE_WORDS | _OTHER_WORDS
    cases = {name for name, count in counts.items() if count <= _MAX_FILES_PER_CASE and name.lower() not in roles}
    return cases if len(cases) > 1 else set()


def _pattern(path: str, per_case: set[str]) -> tuple[str, str]:
    """The case that ``path`` is of and the path with ``{id}`` in its place."""
    top = path.split("/", 1)[0]
    if top in per_case:
        return top, path.replace(top, "{id}")
    name = PurePosixPath(path).name
    stem = without_suffix(name)
    words = [
        match.span() for match in re.finditer(r"[A-Za-z]+", stem) if match[0].lower() in _LABEL_WORDS | _IMAGE_WORDS
    ]
    case, before, after = stem, "", ""
    if words and words[-1][1] == len(stem) and words[-1][0] > 0:  # a_mask, a-seg
        start = len(stem[: words[-1][0]].rstrip("_-. "))
        case, after = stem[:start], stem[start:]
    elif words and words[0][0] == 0 and words[0][1] < len(stem):  # mask_a
        end = len(stem) - len(stem[words[0][1] :].lstrip("_-. "))
        case, before = stem[end:], stem[:end]
    return case, f"{path[: len(path) - len(name)]}{before}{{id}}{after}{name[len(stem) :]}"


def _image_patterns(images: dict[str, set[str]], label: str | None, labelled: set[str]) -> list[str]:
    if label is None:
        return [max(images, key=lambda p: (len(images[p]), p))]
    bare = _bare(label)
    twins = [pattern for pattern in images if _bare(pattern) == bare]
    if twins:
        return [max(twins, key=lambda p: (len(images[p] & labelled), p))]
    common = sorted(pattern for pattern, ids in images.items() if len(ids & labelled) >= 0.9 * len(labelled))
    return common or [max(images, key=lambda p: (len(images[p] & labelled), p))]


def _bare(pattern: str) -> tuple[str, ...]:
    """The words of a pattern without those that say whether it is an image or a label, and without the suffix."""
    stem = without_suffix(pattern)
    return tuple(w for w in re.findall(r"\{id\}|[A-Za-z0-9]+", stem) if w.lower() not in _LABEL_WORDS | _IMAGE_WORDS)


def _joined(patterns: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Several patterns as one with ``{channel}`` where they differ, cut at word borders."""
    if len(patterns) == 1:
        return patterns[0], ()
    start = re.sub(r"[A-Za-z0-9]+$", "", _common_start(patterns))
    reverse = _common_start([pattern[len(start) :][::-1] for pattern in patterns])[::-1]
    end = re.sub(r"^[A-Za-z0-9]+", "", reverse)
    channels = tuple(pattern[len(start) : len(pattern) - len(end)] for pattern in patterns)
    return f"{start}{{channel}}{end}", channels


def _common_start(texts: Sequence[str]) -> str:
    """The characters that all of ``texts`` begin with."""
    first, last = min(texts), max(texts)
    length = next((i for i, letter in enumerate(first) if last[i : i + 1] != letter), len(first))
    return first[:length]
