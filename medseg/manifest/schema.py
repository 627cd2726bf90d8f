"""What a manifest may say: plain values in, a ``Manifest`` or every fault at once out.

JSON and CSV files are turned into the same plain values and judged here, so both follow one set of rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.manifest.case_schema import CaseParser, RawCase
from medseg.manifest.cases import Channel, Manifest
from medseg.manifest.faults import PLAIN_NAME, PLAIN_TEXT, Faults, suggestion
from medseg.manifest.label_tables import parse_label_table

FORMAT = 1
TOP_KEYS = ("format", "name", "licence", "channels", "labels", "label_table", "ignore", "training", "testing")
_MAX_LABEL_VALUE = 65535
_MAX_OVERLAPPING = 16  # a voxel's set of regions is a 16-bit number
_MAX_CLASSES = 254  # class indices are uint8 and 255 is what nobody labelled


def parse_manifest(
    top: Mapping[str, Any], training: Sequence[RawCase], testing: Sequence[RawCase], faults: Faults
) -> Manifest:
    """Judges plain values and makes a ``Manifest`` of them.

    Args:
        top: everything but the two lists of cases.
        training: cases that take part in folds.
        testing: cases that never train.
        faults: collects; it may already hold faults of reading.

    Returns:
        The manifest, without ``path`` and ``sha256``.

    Raises:
        ManifestError: every fault of the file.
    """
    _check_format(top, faults)
    for key in sorted(set(top) - set(TOP_KEYS)):
        faults.add("", f"key {key!r} is unknown, expected one of {', '.join(TOP_KEYS)}{suggestion(key, TOP_KEYS)}")
    name = _required_text(top, "name", faults)
    licence = _required_text(top, "licence", faults)
    channels = _channels(top, faults)
    labels = _labels(top, faults)
    table = parse_label_table(top.get("label_table"), labels, faults)
    ignore = _ignore(top, labels, faults)
    if not training and not testing:
        faults.add("", "training is empty, expected at least one case")
    cases = CaseParser(faults=faults, channel_count=len(channels), class_names=tuple(labels))
    trained = tuple(case for raw in training if (case := cases.parse(raw, testing=False)))
    tested = tuple(case for raw in testing if (case := cases.parse(raw, testing=True)))
    faults.raise_any()
    return Manifest(
        name=name,
        licence=licence,
        channels=channels,
        labels=labels,
        label_table=table,
        ignore=ignore,
        training=trained,
        testing=tested,
    )


def _check_format(top: Mapping[str, Any], faults: Faults) -> None:
    version = top.get("format")
    if version is None:
        faults.add("", f"format is missing, expected {FORMAT}")
    elif isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        faults.add("", f"format is {version}, expected at most {FORMAT}; this file is for a newer medseg")
    elif version != FORMAT or isinstance(version, bool):
        faults.add("", f"format is {version!r}, expected {FORMAT}")


def _required_text(top: Mapping[str, Any], key: str, faults: Faults) -> str:
    value = top.get(key)
    if isinstance(value, str) and value.strip() and PLAIN_TEXT.fullmatch(value):
        return value
    got = "missing" if value is None else repr(value)[:60]
    faults.add("", f"{key} is {got}, expected text of one line")
    return ""


def _channels(top: Mapping[str, Any], faults: Faults) -> tuple[Channel, ...]:
    raw = top.get("channels")
    if not isinstance(raw, list) or not raw:
        got = "missing" if raw is None else repr(raw)[:60]
        faults.add(
            "", f'channels is {got}, expected a list of names such as ["CT"] or [{{"name": "PET", "unit": "SUV"}}]'
        )
        return ()
    channels = tuple(c for position, item in enumerate(raw) if (c := _channel(item, f"channels[{position}]", faults)))
    names = [channel.name for channel in channels]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.add("", f"channels name {name!r} more than once, expected each once")
    return channels


def _channel(item: Any, where: str, faults: Faults) -> Channel | None:
    values = item if isinstance(item, dict) else {"name": item}
    for key in sorted(set(values) - {"name", "unit"}):
        faults.add(where, f"key {key!r} is unknown, expected name or unit{suggestion(key, ('name', 'unit'))}")
    name, unit = values.get("name"), values.get("unit")
    if not (isinstance(name, str) and name.strip() and PLAIN_NAME.fullmatch(name)):
        faults.add(where, f"name is {name!r}, expected text such as CT, MR, PET or RGB, without , ; = |")
        return None
    if unit is not None and not (isinstance(unit, str) and PLAIN_NAME.fullmatch(unit)):
        faults.add(where, f"unit is {unit!r}, expected text such as SUV")
        return None
    return Channel(name=name, unit=unit)


def _labels(top: Mapping[str, Any], faults: Faults) -> dict[str, tuple[int, ...]]:
    raw = top.get("labels")
    if not isinstance(raw, dict) or not raw:
        got = "missing" if raw is None else repr(raw)[:60]
        faults.add("", f'labels is {got}, expected names with values such as {{"liver": 1, "tumour": [2, 3]}}')
        return {}
    if all(isinstance(value, str) and str(key).isdigit() for key, value in raw.items()):
        faults.add("", "labels go from value to name, expected from name to value; turn each pair round")
        return {}
    labels: dict[str, tuple[int, ...]] = {"background": (0,)}
    for name, value in raw.items():
        if not PLAIN_NAME.fullmatch(name) or not name.strip():
            faults.add(f"labels.{name!r}", "name is empty, too long or holds one of , ; = |, expected plain text")
        elif values := _label_values(name, value, faults):
            labels[name] = values
    _check_values_apart(labels, faults)
    if len(labels) > _MAX_CLASSES:
        faults.add("", f"labels are {len(labels)}, expected at most {_MAX_CLASSES} with background")
    elif len(labels) == 1:
        faults.add("", "labels name only background, expected at least one more")
    return labels


def _label_values(name: str, value: Any, faults: Faults) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    good = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _MAX_LABEL_VALUE]
    if not values or len(good) < len(values):
        faults.add(
            f"labels.{name}", f"is {value!r:.60}, expected a whole number of 0 to {_MAX_LABEL_VALUE} or a list of them"
        )
        return ()
    if name == "background" and good[0] != 0:
        faults.add("labels.background", f"begins with {good[0]}, expected 0, the value that background is written with")
        return ()
    return tuple(good)


def _check_values_apart(labels: Mapping[str, Sequence[int]], faults: Faults) -> None:
    owner: dict[int, str] = {}
    for name, values in labels.items():
        for value in values:
            if value in owner and value == 0:
                faults.add(
                    f"labels.{name}", "has the value 0, which is background's; call it background or change the value"
                )
            elif value in owner:
                _check_overlap(name, owner[value], value, labels, faults)
            owner.setdefault(value, name)
    overlapping = sum(len(set(values)) for values in labels.values()) > len(owner)
    if overlapping and len(labels) - 1 > _MAX_OVERLAPPING:
        faults.add("", f"labels are {len(labels) - 1} and overlap, expected at most {_MAX_OVERLAPPING} then")


def _check_overlap(name: str, other: str, value: int, labels: Mapping[str, Sequence[int]], faults: Faults) -> None:
    """Labels may overlap as regions do, one of them having more values than the other; anything else is a slip."""
    if name == other:
        faults.add(f"labels.{name}", f"has the value {value} twice, expected each value of a label once")
    elif "background" in (name, other):
        faults.add(f"labels.{name}", f"has the value {value}, which {other} has too; background overlaps nothing")
    elif set(labels[name]) == set(labels[other]):
        faults.add(
            f"labels.{name}", f"has the value {value}, which {other} has too, and no other; expected other values"
        )


def _ignore(top: Mapping[str, Any], labels: Mapping[str, Sequence[int]], faults: Faults) -> int | None:
    value = top.get("ignore")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _MAX_LABEL_VALUE:
        faults.add("", f"ignore is {value!r:.60}, expected one whole number that voxels without a label have")
        return None
    for name, values in labels.items():
        if value in values:
            faults.add("", f"ignore is {value}, which the label {name} has; expected a value of its own")
    return value
