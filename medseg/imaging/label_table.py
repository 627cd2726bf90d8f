"""What a structure is called, looks like and means in the files that other programs read: colours and coded terms.

The manifest's and the plan's ``label_table`` may say it per label; what is left out has a default: colours of a fixed
palette in the order of the labels, and the coded term "Tissue" (SNOMED CT 85756007), which claims nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Colour = tuple[int, int, int]

# Okabe and Ito's eight (told apart by colour-blind eyes) without black, then a wheel of darker and lighter ones.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


class Code(NamedTuple):
    """A coded term: ``value`` in ``scheme`` (SCT, SRT, DCM, ...) with its ``meaning`` in words."""

    value: str
    scheme: str
    meaning: str


TISSUE = Code("85756007", "SCT", "Tissue")


@dataclass(frozen=True, kw_only=True)
class LabelEntry:
    """One structure of a label map.

    Attributes:
        values: of the label map's voxels that belong to it; its own first. Of overlapping labels several have a value.
        colour: red, green and blue, 0 to 255.
        category: what kind of thing it is (DICOM's Segmented Property Category).
        type: what it is (Segmented Property Type).
        aliases: other names that files give it, e.g. a contour's.
    """

    values: tuple[int, ...]
    colour: Colour
    category: Code = TISSUE
    type: Code = TISSUE
    aliases: tuple[str, ...] = ()


LabelTable = Mapping[str, LabelEntry]


def label_table(
    labels: Mapping[str, Iterable[int]], given: Mapping[str, Mapping[str, Any]] | None = None
) -> LabelTable:
    """The table of ``labels`` without background.

    Args:
        labels: name to file values, background first, as in a manifest or plan.
        given: per name any of ``colour`` ([r, g, b]), ``code``, ``scheme``, ``meaning``, ``category`` (three texts like
            the type's: [code, scheme, meaning]) and ``aliases``; checked where it was read. None or {} gives defaults.

    Returns:
        Name to entry in the order of the labels.
    """
    table = {}
    for number, (name, values) in enumerate(list(labels.items())[1:]):
        own = (given or {}).get(name, {})
        kind = Code(own["code"], own.get("scheme") or "SCT", own.get("meaning") or name) if own.get("code") else TISSUE
        colour = tuple(own.get("colour") or default_colour(number))
        table[name] = LabelEntry(
            values=tuple(int(value) for value in values),
            colour=(int(colour[0]), int(colour[1]), int(colour[2])),
            category=Code(*own["category"]) if own.get("category") else TISSUE,
            type=kind,
            aliases=tuple(own.get("aliases") or ()),
        )
    return table


def default_colour(number: int) -> Colour:
    """The colour of the ``number``-th structure (from 0): seven that are told apart well, then darker ones of them."""
    dimmed = 1.0 / (1.0 + 0.4 * (number // len(_PALETTE)))
    red, green, blue = _PALETTE[number % len(_PALETTE)]
    return round(red * dimmed), round(green * dimmed), round(blue * dimmed)


def structure_file_names(names: Sequence[str]) -> tuple[str, ...]:
    """File names of structures: other characters than letters, digits, ``.``, ``_``, ``-`` become ``_``; no two alike.

    Names that would fall together (also where only upper and lower case differ) get their number, from 1.
    """
    plain = [re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-") or "structure" for name in names]
    lowered = [name.lower() for name in plain]
    return tuple(
        name if lowered.count(name.lower()) == 1 else f"{name}_{number}" for number, name in enumerate(plain, start=1)
    )


def itk_snap_text(table: LabelTable) -> str:
    """ITK-SNAP's label descriptions of ``table``: one line a value, background first.

    A value that several structures have is called by all of them and coloured as the last.
    """
    lines = ["# ITK-SnAP Label Description File", _itk_snap_line(0, (0, 0, 0), 0, "Clear Label")]
    named: dict[int, tuple[Colour, str]] = {}
    for name, entry in table.items():
        for value in entry.values:
            named[value] = (entry.colour, f"{named[value][1]}+{name}" if value in named else name)
    lines += [_itk_snap_line(value, colour, 1, name) for value, (colour, name) in sorted(named.items())]
    return "\n".join(lines) + "\n"


def _itk_snap_line(value: int, colour: Colour, shown: int, name: str) -> str:
    red, green, blue = colour
    quoted = name.replace('"', "'")
    return f'{value:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "{quoted}"'
