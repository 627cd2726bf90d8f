"""The manifest's ``label_table``: how each label is called, coloured and coded in the files of other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.manifest.faults import PLAIN_TEXT, Faults, suggestion

KEYS = ("colour", "code", "scheme", "meaning", "category", "aliases")
_MAX_TEXT = {"code": 16, "scheme": 16, "meaning": 64}  # DICOM's own bounds


def parse_label_table(raw: Any, labels: Mapping[str, Sequence[int]], faults: Faults) -> dict[str, dict[str, Any]]:
    """The checked table: label to what is given of it, lists as they were.

    Args:
        raw: the manifest's value; None is no table.
        labels: background first.
        faults: collects.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        faults.add(
            "", f'label_table is {raw!r:.60}, expected an object such as {{"liver": {{"colour": [200, 90, 60]}}}}'
        )
        return {}
    table = {}
    names = list(labels)[1:]
    for name, entry in raw.items():
        where = f"label_table.{name!s:.60}"
        if name not in names:
            faults.add(where, f"is no label, expected one of {', '.join(names)}{suggestion(name, names)}")
        elif not isinstance(entry, dict):
            faults.add(where, f"is {entry!r:.60}, expected an object with any of {', '.join(KEYS)}")
        else:
            _check_entry(entry, where, faults)
            table[name] = entry
    return table


def _check_entry(entry: Mapping[str, Any], where: str, faults: Faults) -> None:
    for key in sorted(set(entry) - set(KEYS)):
        faults.add(where, f"key {key!r} is unknown, expected one of {', '.join(KEYS)}{suggestion(key, KEYS)}")
    colour = entry.get("colour")
    if colour is not None and not (isinstance(colour, list) and len(colour) == 3 and all(map(_is_byte, colour))):
        faults.add(where, f"colour is {colour!r:.60}, expected [red, green, blue], each 0 to 255")
    for key, longest in _MAX_TEXT.items():
        if key in entry and not _is_text(entry[key], longest):
            faults.add(where, f"{key} is {entry[key]!r:.80}, expected text of 1 to {longest} characters")
    if {"scheme", "meaning"} & set(entry) and "code" not in entry:
        faults.add(
            where, "has a scheme or meaning without a code, expected a code such as 10200004 (SNOMED CT's liver)"
        )
    category = entry.get("category")
    bounds = tuple(_MAX_TEXT.values())
    if category is not None and not (
        isinstance(category, list)
        and len(category) == len(bounds)
        and all(_is_text(text, longest) for text, longest in zip(category, bounds, strict=True))
    ):
        faults.add(where, f"category is {category!r:.80}, expected [code, scheme, meaning]")
    aliases = entry.get("aliases", [])
    if not isinstance(aliases, list) or not all(_is_text(alias, 64) for alias in aliases):
        faults.add(where, f"aliases is {aliases!r:.60}, expected a list of names")


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_text(value: Any, longest: int) -> bool:
    plain = isinstance(value, str) and bool(value.strip()) and PLAIN_TEXT.fullmatch(value) is not None
    return plain and len(value) <= longest
