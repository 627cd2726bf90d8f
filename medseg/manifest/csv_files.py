"""Manifests as CSV, for people who live in spreadsheets.

Rows whose first cell begins with ``#`` come first and say what JSON says outside its lists, a cell each::

    #format,1
    #name,Liver
    #licence,CC-BY-SA 4.0
    #channel,CT
    #label,liver,1
    #label,tumour,2,3
    #ignore,255
    id,patient,image,label,fold,split,site
    liver_001,p01,images/001.nii.gz,labels/001.nii.gz,0,training,A

Then one header row and one row a case. Images are in the column ``image`` (one file with all channels, named by
``#channel`` rows) or in one column ``image_<channel>`` a channel; labels in ``label`` or, for several raters, in
``label_<rater>``. ``labelled`` names the classes that were looked for, with ``|`` between. ``split`` is ``training`` (also
when empty) or ``testing``. Every cell is text: 001 stays 001.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.durable import write_text
from medseg.errors import ManifestError
from medseg.manifest.case_schema import CASE_KEYS, RawCase
from medseg.manifest.cases import Case, Manifest
from medseg.manifest.faults import Faults, suggestion
from medseg.manifest.schema import FORMAT, parse_manifest

_MAX_BYTES = 1 << 30
_TOP_ROWS = ("#format", "#name", "#licence", "#channel", "#label", "#ignore")
_SPLITS = ("training", "testing")
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class _Row:
    line: int
    cells: list[str]


@dataclass
class _Table:
    """A CSV file taken apart: rows that begin with ``#``, the header row and the rows below it."""

    top: list[_Row] = field(default_factory=list)
    header: _Row | None = None
    rows: list[_Row] = field(default_factory=list)


def read_csv_manifest(path: Path) -> Manifest:
    """Reads a CSV manifest; ``path`` and ``sha256`` of the result are left empty.

    A byte order mark, CRLF, semicolons or tabs instead of commas, cells of blanks at the end of a row and empty rows at
    the end of the file are what spreadsheets leave behind, and pass.

    Raises:
        ManifestError: every fault of the file, with its line.
    """
    faults = Faults(path.name)
    table = _take_apart(_decode(path, faults), faults)
    top = _top_values(table.top, faults)
    if table.header is None:
        faults.add("", "has no header row, expected one with id, image and label columns")
        faults.raise_any()
        raise AssertionError
    columns = table.header.cells
    top["channels"] = _channel_values(top.pop("channels"), columns, table.header.line, faults)
    _check_header(columns, table.header.line, faults)
    cases: dict[str, list[RawCase]] = {split: [] for split in _SPLITS}
    for row in table.rows:
        _add_case(row, columns, cases, faults)
    return parse_manifest(top, cases["training"], cases["testing"], faults)


def _decode(path: Path, faults: Faults) -> str:
    if not path.is_file():
        raise ManifestError([f"{path.name}: no such file; check the path"])
    if path.stat().st_size > _MAX_BYTES:
        raise ManifestError([f"{path.name}: has more than {_MAX_BYTES:,} bytes, too much for a manifest; split it"])
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError([f"{path.name}: is UTF-16 text, expected UTF-8; save it as 'CSV UTF-8'"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        faults.add(f"line {line}", "holds a byte that is no UTF-8, expected UTF-8 text; save it as 'CSV UTF-8'")
        return data.decode("utf-8-sig", errors="replace")


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")


def _delimiter(lines: Sequence[str]) -> str:
    """The delimiter that the header row (the first without ``#``) has most of; a comma where it has none."""
    header = next((line for line in lines if line.strip() and not line.lstrip('"').startswith("#")), "")
    return max(_DELIMITERS, key=header.count)


def _take_apart(text: str, faults: Faults) -> _Table:
    table = _Table()
    for row in _without_empty_end(list(_parsed(_lines(text), faults))):
        if table.header is None and row.cells[0].startswith("#"):
            table.top.append(row)
        elif table.header is None and any(row.cells):
            while row.cells and not row.cells[-1]:
                row.cells.pop()
            table.header = row
        elif table.header is not None:
            table.rows.append(row)
    return table


def _without_empty_end(rows: list[_Row]) -> list[_Row]:
    while rows and not any(rows[-1].cells):
        rows.pop()
    return rows


def _parsed(lines: Sequence[str], faults: Faults) -> Iterator[_Row]:
    # Line by line, so that one quote left open spoils one row and not all the rows below it.
    delimiter = _delimiter(lines)
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            faults.add(f"line {number}", "holds a NUL character, expected text")
            continue
        try:
            cells = next(csv.reader([line], delimiter=delimiter, strict=True), [""])
        except csv.Error:
            faults.add(f"line {number}", "has a quote that is not closed on its line, expected one row a line")
            continue
        yield _Row(number, [cell.strip() for cell in cells] or [""])


def _number(text: str) -> Any:
    """A cell as a whole number where it is written like one, else as it is: the schema judges both."""
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19 else text


def _top_values(rows: Sequence[_Row], faults: Faults) -> dict[str, Any]:
    top: dict[str, Any] = {"channels": []}
    labels: dict[str, Any] = {}
    for row in rows:
        while len(row.cells) > 1 and not row.cells[-1]:
            row.cells.pop()
        key, values, where = row.cells[0], row.cells[1:], f"line {row.line}"
        if key not in _TOP_ROWS:
            faults.add(where, f"{key!r} is unknown, expected one of {', '.join(_TOP_ROWS)}{_meant(key)}")
        elif key == "#label":
            _add_label(values, labels, where, faults)
        elif key == "#channel":
            top["channels"].append((where, values))
        elif len(values) != 1:
            faults.add(where, f"{key} has {len(values)} cells after it, expected 1; put quotes round text with commas")
        elif key[1:] in top:
            faults.add(where, f"{key} is given twice, expected once")
        else:
            top[key[1:]] = _number(values[0]) if key in ("#format", "#ignore") else values[0]
    if labels:
        top["labels"] = labels
    return top


def _meant(key: str) -> str:
    found = suggestion(key.lstrip("#").strip(), [row[1:] for row in _TOP_ROWS])
    return found.replace("'", "'#", 1)


def _add_label(values: Sequence[str], labels: dict[str, Any], where: str, faults: Faults) -> None:
    if len(values) < 2:
        faults.add(where, "#label has too few cells, expected a name and one or more values, such as #label,liver,1")
    elif values[0] in labels:
        faults.add(where, f"#label names {values[0]!r} twice, expected one row a label with all its values")
    else:
        numbers = [_number(value) for value in values[1:]]
        labels[values[0]] = numbers[0] if len(numbers) == 1 else numbers


def _channel_values(
    rows: Sequence[tuple[str, Sequence[str]]], columns: Sequence[str], header_line: int, faults: Faults
) -> list[Any]:
    given: list[Any] = []
    for where, values in rows:
        if not 1 <= len(values) <= 2:
            faults.add(where, f"#channel has {len(values)} cells after it, expected a name and perhaps a unit")
        else:
            given.append(values[0] if len(values) == 1 else {"name": values[0], "unit": values[1]})
    named = [column.removeprefix("image_") for column in columns if column.startswith("image_")]
    if not named:
        if not rows:
            faults.add(
                "", "has no #channel row, expected one a channel, such as #channel,CT (or columns image_<channel>)"
            )
        return given or ["?"]
    names = [item if isinstance(item, str) else item["name"] for item in given]
    if given and names != named:
        faults.add(
            f"line {header_line}",
            f"image columns are for {', '.join(named)}, expected those of #channel: {', '.join(names)}",
        )
    return given or list(named)


def _check_header(columns: Sequence[str], line: int, faults: Faults) -> None:
    where = f"line {line}"
    for column in sorted({c for c in columns if columns.count(c) > 1}):
        faults.add(where, f"column {column!r} is there more than once, expected each once")
    if "" in columns:
        faults.add(where, f"column {columns.index('') + 1} has no name, expected one")
    if "id" not in columns:
        faults.add(where, f"column 'id' is missing, expected it{_closest('id', columns)}")
    images = [column for column in columns if column == "image" or column.startswith("image_")]
    if not images:
        faults.add(where, f"image column is missing, expected 'image' or 'image_<channel>'{_closest('image', columns)}")
    for one, many in (("image", "image_"), ("label", "label_")):
        if one in columns and any(column.startswith(many) for column in columns):
            faults.add(where, f"columns {one!r} and '{many}...' are both there, expected one kind")


def _closest(key: str, columns: Sequence[str]) -> str:
    meant = next((column for column in columns if f"{key!r}" in suggestion(column, [key])), None)
    return f"; is it {meant!r}?" if meant else ""


def _add_case(row: _Row, columns: Sequence[str], cases: Mapping[str, list[RawCase]], faults: Faults) -> None:
    where = f"line {row.line}"
    cells = row.cells
    while len(cells) > len(columns) and not cells[-1]:
        cells.pop()
    if not any(cells):
        faults.add(where, "is empty, expected a case; remove it")
        return
    if len(cells) != len(columns):
        faults.add(where, f"has {len(cells)} cells, expected {len(columns)} as in the header row")
        return
    values = dict(zip(columns, cells, strict=True))
    split = values.pop("split", "") or "training"
    if split not in _SPLITS:
        faults.add(where, f"split is {split!r}, expected training or testing")
        return
    cases[split].append(RawCase(values=_case_values(values, where, faults), where=where))


def _case_values(cells: Mapping[str, str], where: str, faults: Faults) -> dict[str, Any]:
    values: dict[str, Any] = {}
    images = [cell for column, cell in cells.items() if column.startswith("image_")]
    if images:
        missing = [column for column, cell in cells.items() if column.startswith("image_") and not cell]
        for column in missing:
            faults.add(where, f"{column} is empty, expected a path")
        values["image"] = [cell for cell in images if cell] or None
    raters = [cell for column, cell in cells.items() if column.startswith("label_") and cell]
    if raters:
        values["label"] = raters
    for column, cell in cells.items():
        if cell and not column.startswith(("image_", "label_")):
            values[column] = _cell_value(column, cell)
    return values


def _cell_value(column: str, cell: str) -> Any:
    if column == "labelled":
        return [name.strip() for name in cell.split("|")]
    return _number(cell) if column == "fold" else cell


def write_csv_manifest(manifest: Manifest, path: Path) -> None:
    """Writes ``manifest`` as CSV.

    Raises:
        ManifestError: some cases have one image file for all channels and others one each, or a further column has a
            name that CSV gives another meaning; save it as JSON.
    """
    if manifest.label_table:
        raise ManifestError([f"{path.name}: has a label_table, which CSV can't hold; save it as .json"])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["#format", FORMAT])
    writer.writerow(["#name", manifest.name])
    writer.writerow(["#licence", manifest.licence])
    writer.writerows(["#channel", c.name, *([c.unit] if c.unit else [])] for c in manifest.channels)
    writer.writerows(["#label", name, *values] for name, values in manifest.labels.items())
    if manifest.ignore is not None:
        writer.writerow(["#ignore", manifest.ignore])
    columns = _written_columns(manifest, path)
    writer.writerow(columns)
    for split, cases in (("training", manifest.training), ("testing", manifest.testing)):
        for case in cases:
            values = _written_values(case, columns, split)
            writer.writerow([values.get(column, "") for column in columns])
    write_text(path, stream.getvalue())


def _written_columns(manifest: Manifest, path: Path) -> list[str]:
    cases = (*manifest.training, *manifest.testing)
    counts = {len(case.images) for case in cases}
    if len(counts) > 1:
        raise ManifestError(
            [f"{path.name}: cases have {sorted(counts)} image files, CSV can hold one kind; save as .json"]
        )
    raters = max((len(case.labels) for case in cases), default=0)
    images = ["image"] if counts <= {1} else [f"image_{channel.name}" for channel in manifest.channels]
    labels = ["label"] if raters <= 1 else [f"label_{rater + 1}" for rater in range(raters)]
    extra = list(dict.fromkeys(key for case in cases for key in case.extra))
    for key in extra:
        if key == "split" or key.startswith(("#", "image_", "label_")) or key != key.strip():
            raise ManifestError([f"{path.name}: column {key!r} has another meaning in CSV; rename it or save as .json"])
    partial = ["labelled"] if any(case.labelled is not None for case in cases) else []
    return ["id", "patient", *images, *labels, "fold", *partial, *(["split"] if manifest.testing else []), *extra]


def _written_values(case: Case, columns: Sequence[str], split: str) -> dict[str, Any]:
    image_columns = [column for column in columns if column == "image" or column.startswith("image_")]
    label_columns = [column for column in columns if column == "label" or column.startswith("label_")]
    values: dict[str, Any] = {"id": case.id, "patient": case.patient, "split": split}
    values |= dict(zip(image_columns, case.images, strict=True))
    values |= dict(zip(label_columns, case.labels, strict=False))
    values["fold"] = "" if case.fold is None else case.fold
    values["labelled"] = "" if case.labelled is None else "|".join(case.labelled)
    return values | {key: value for key, value in case.extra.items() if key not in CASE_KEYS}
