"""Lists of scans without the rest of a manifest: a text file, a table, or a JSON list, with a scan a line.

::

    a.nii.gz                               .txt: a path a line, a tab between the files of several channels
    id,image                               .csv: a header row; id may be left out; image_1, image_2 ... or image_<channel>
    p1,a.nii.gz                                  for the files of several channels
    ["a.nii.gz", {"id": "p2", "image": ["b_t1.nii", "b_t2.nii"]}]      .json

Paths start at the list's folder.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.imaging.opening import display_name
from medseg.inference.infer_case import InferCase, case_name, exists, file_name
from medseg.preparation.plan import ChannelPlan

_BLANKS = b"\xef\xbb\xbf \t\r\n"
_DELIMITERS = ",;\t"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One line: its place for messages, the id that it gives ("" for none) and its files as written."""

    where: str
    id: str
    files: tuple[str, ...]


def is_list(path: Path) -> bool:
    """Whether a file lists scans: by its suffix, and of those that manifests have by its first character.

    A JSON manifest is an object and a list is none; a CSV manifest begins with rows whose first cell begins with ``#``.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv"):
        return suffix == ".txt"
    try:
        with path.open("rb") as file:
            first = file.read(4096).lstrip(_BLANKS)[:2].lstrip(b'"')[:1]
    except OSError:
        return False
    return first == b"[" if suffix == ".json" else first not in (b"#", b"")


def listed_cases(path: Path, channels: Sequence[ChannelPlan] = ()) -> Iterator[InferCase]:
    """The cases of a list, in its order. A line that names no scan is a case with that as its fault.

    Args:
        path: of the list.
        channels: of the model, whose names columns ``image_<channel>`` may have.

    Raises:
        UsageError: the file is no such list.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is no UTF-8 text, expected a list with a scan a line; save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror}); check its permissions") from error
    suffix = path.suffix.lower()
    read = {".json": _json_entries, ".csv": _table_entries}.get(suffix, _line_entries)
    for entry in read(text, path, [channel.name for channel in channels]):
        yield _case(entry, path.parent)


def _case(entry: _Entry, folder: Path) -> InferCase:
    images = tuple(folder / file for file in entry.files)
    fault, name = None, images[0].name
    try:
        missing = [image for image in images if not exists(image)]
        if missing:
            fault = f"{entry.where}: {display_name(missing[0])}: no such file; check the list"
        elif not os.path.isdir(images[0]):  # noqa: PTH112  (False where it can't be told)
            name = file_name(images[0])
    except UsageError as error:
        fault = f"{entry.where}: {display_name(images[0])}: {str(error).partition(': ')[2]}"
    return InferCase(id=case_name(entry.id or name), images=images, fault=fault)


def _line_entries(text: str, path: Path, _names: Sequence[str]) -> Iterator[_Entry]:
    for number, line in enumerate(text.splitlines(), start=1):
        files = tuple(part.strip() for part in line.split("\t") if part.strip())
        if files and not line.startswith("#"):
            yield _Entry(where=f"{display_name(path)}:{number}", id="", files=files)


def _table_entries(text: str, path: Path, names: Sequence[str]) -> Iterator[_Entry]:
    rows = _rows(text, path)
    line, header = next(rows, (1, [""]))
    header = [cell.lower() for cell in header]
    columns = _image_columns(header, path, names)
    for line, cells in rows:
        files = tuple(cells[column] for column in columns if column < len(cells) and cells[column])
        if not files:
            raise UsageError(
                f"{display_name(path)}:{line}: image is empty, expected a path; fill the cell or take the row out"
            )
        place = header.index("id") if "id" in header else len(cells)
        yield _Entry(where=f"{display_name(path)}:{line}", id=cells[place] if place < len(cells) else "", files=files)


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty."""
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=first.count))
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UsageError(f"{path}: is no table ({error}), expected CSV; save it again") from error


def _image_columns(header: Sequence[str], path: Path, names: Sequence[str]) -> list[int]:
    """Places of the image columns: in the order of the model's channels where they are called so, else as they stand."""
    found = [place for place, cell in enumerate(header) if cell == "image" or cell.startswith("image_")]
    if not found:
        raise UsageError(
            f"{path}: line 1 names no column image, expected id,image (or image_<channel> each); add a header row, "
            "or give a manifest"
        )
    wanted = [f"image_{name.lower()}" for name in names]
    if sorted(header[place] for place in found) == sorted(wanted):
        found.sort(key=lambda place: wanted.index(header[place]))
    return found


def _json_entries(text: str, path: Path, _names: Sequence[str]) -> Iterator[_Entry]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no valid JSON, expected a list of scans; correct it") from error
    for number, item in enumerate(items, start=1):
        where = f"{display_name(path)}: entry {number}"
        case_id, files = (
            (item.get("id", ""), item.get("image", item.get("images"))) if isinstance(item, dict) else ("", item)
        )
        files = _paths(files)
        if not files or not isinstance(case_id, str | int):
            raise UsageError(
                f'{where}: is no scan, expected a path, a list of paths, or {{"id": ..., "image": ...}}; correct it'
            )
        yield _Entry(where=where, id=str(case_id), files=files)


def _paths(value: Any) -> tuple[str, ...]:
    """One path or a list of paths; () for anything else."""
    items = value if isinstance(value, list) else [value]
    return tuple(items) if all(isinstance(item, str) and item.strip() for item in items) else ()
