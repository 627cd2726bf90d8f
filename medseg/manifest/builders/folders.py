"""Any tidy folder, described by one pattern for images and one for labels, such as ``images/{id}.png``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.manifest.builders.draft import Built, Draft, LabelValues, case_id, list_scans

_HOLDER = re.compile(r"\{([a-z_]+)\}|(\*)")
_KEYS = ("id", "patient")
_OWN = ("id", "patient", "channel", "rater")


def build_from_folders(
    root: Path,
    *,
    images: str,
    labels: str | None = None,
    channels: Sequence[str],
    label_values: LabelValues,
    name: str | None = None,
    licence: str | None = None,
    ignore: int | None = None,
    skip_missing: bool = False,
) -> Built:
    """A manifest from two patterns.

    In a pattern, ``{id}`` stands for the case, ``{patient}`` for the person (whose cases stay in one fold),
    ``{channel}`` for one of ``channels``, ``{rater}`` for who drew the label, any other ``{word}`` for a further column
    of that name, and ``*`` for anything. None of them reaches over a slash. Without ``{id}`` a patient is one case.

    Args:
        root: the folder that both patterns and the manifest's paths start from.
        images: for example ``{patient}/{patient}_{channel}.nii.gz``.
        labels: for example ``{patient}/{patient}_mask.nii.gz``; None for cases without labels.
        channels: names in the order wanted; what ``{channel}`` may be.
        label_values: class names with their values.
        name: of the data set; the folder's by default.
        licence: of the data set.
        ignore: value of voxels that nobody labelled.
        skip_missing: leave out cases that lack a channel, and labels that have no image.

    Returns:
        The manifest; cases without label are its testing cases.

    Raises:
        UsageError: a pattern has no ``{id}`` or ``{patient}``.
        InputError: the folder is missing.
        ManifestError: every fault; no match at all is one.
    """
    draft = Draft(root=root, name=name or root.resolve().name, licence=licence, channels=channels, labels=label_values)
    draft.ignore = ignore
    files = list_scans(root)
    image_groups = _grouped(images, files, channels, "image-pattern")
    # A broad pattern for images may take in the labels too; what the labels' pattern matches is a label.
    label_groups = _grouped(labels, files, channels, "label-pattern") if labels else {}
    taken = {path for group in label_groups.values() for path, _ in group}
    if not image_groups:
        draft.faults.append(f"no file matches {images!r}, expected at least one; check the pattern")
    for key in sorted(set(label_groups) - set(image_groups)):
        line = f"{key}: label {label_groups[key][0][0]!r} has no image"
        (draft.notes if skip_missing else draft.faults).append(line)
    for key, group in image_groups.items():
        own = [(path, words) for path, words in group if path not in taken]
        if own:
            _add_case(draft, key, own, label_groups.get(key, []), channels, skip_missing=skip_missing)
    return draft.finish(skip_missing=skip_missing)


def compile_pattern(pattern: str, channels: Sequence[str] = ()) -> re.Pattern[str]:
    """A pattern with ``{word}`` and ``*`` as a regular expression over a relative path."""
    parts, start, seen = [], 0, set[str]()
    for match in _HOLDER.finditer(pattern):
        parts.append(re.escape(pattern[start : match.start()]))
        start = match.end()
        word = match[1]
        if word is None:
            parts.append("[^/]*")
        elif word in seen:
            parts.append(f"(?P={word})")
        else:
            seen.add(word)
            known = "|".join(re.escape(c) for c in sorted(channels, key=len, reverse=True))
            parts.append(f"(?P<{word}>{known if word == 'channel' and known else '[^/]+'})")
    parts.append(re.escape(pattern[start:]))
    return re.compile("".join(parts))


_Group = list[tuple[str, Mapping[str, str]]]


def _grouped(pattern: str, files: Sequence[str], channels: Sequence[str], what: str) -> dict[str, _Group]:
    expression = compile_pattern(pattern.removeprefix("./"), channels)
    if not set(_KEYS) & set(expression.groupindex):
        raise UsageError(f"--{what} is {pattern!r}, expected {{id}} or {{patient}} in it")
    groups: dict[str, _Group] = defaultdict(list)
    for path in files:
        if match := expression.fullmatch(path):
            words = match.groupdict()
            groups[words.get("id") or words["patient"]].append((path, words))
    return dict(groups)


def _add_case(
    draft: Draft, key: str, images: _Group, labels: _Group, channels: Sequence[str], *, skip_missing: bool
) -> None:
    complain = draft.notes if skip_missing else draft.faults
    by_channel: dict[str | None, list[str]] = defaultdict(list)
    for path, words in images:
        by_channel[words.get("channel")].append(path)
    twice = [paths for paths in by_channel.values() if len(paths) > 1]
    if twice:
        draft.faults.append(f"{key}: {twice[0][0]!r} and {twice[0][1]!r} are the same channel of it, expected one file")
        return
    if None in by_channel:
        paths = by_channel[None]
    elif missing := [channel for channel in channels if channel not in by_channel]:
        complain.append(f"{key}: has no image for {', '.join(missing)}, expected {', '.join(channels)}")
        return
    else:
        paths = [by_channel[channel][0] for channel in channels]
    if len(labels) > 1 and not all("rater" in words for _, words in labels):
        draft.faults.append(f"{key}: has {len(labels)} labels, expected one, or {{rater}} in the pattern")
        return
    words = images[0][1]
    case: dict[str, Any] = {"id": case_id(key), "image": paths if len(paths) > 1 else paths[0]}
    case |= {word: text for word, text in words.items() if word not in _OWN}
    if words.get("patient") and words["patient"] != key:
        case["patient"] = words["patient"]
    drawn = [path for path, _ in labels]
    draft.add(case | {"label": drawn if len(drawn) > 1 else "".join(drawn)})
