"""Manifests as JSON, which MONAI's ``load_decathlon_datalist`` reads too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.durable import read_json, write_text
from medseg.errors import InputError, ManifestError
from medseg.manifest.case_schema import RawCase
from medseg.manifest.cases import Case, Manifest
from medseg.manifest.faults import Faults
from medseg.manifest.schema import FORMAT, parse_manifest


def read_json_manifest(path: Path) -> Manifest:
    """Reads a JSON manifest; ``path`` and ``sha256`` of the result are left empty.

    Raises:
        ManifestError: the file is no JSON (one fault) or no manifest (every fault).
    """
    try:
        raw = read_json(path)
    except InputError as error:
        raise ManifestError([str(error)]) from error
    faults = Faults(path.name)
    if not isinstance(raw, dict):
        faults.add("", f"holds a {type(raw).__name__}, expected an object with format, name, training ...")
        faults.raise_any()
    lists = {key: _raw_cases(raw.get(key), key, faults) for key in ("training", "testing")}
    top = {key: value for key, value in raw.items() if key not in lists}
    return parse_manifest(top, lists["training"], lists["testing"], faults)


def _raw_cases(value: Any, key: str, faults: Faults) -> list[RawCase]:
    if value is None:
        return []
    if not isinstance(value, list):
        faults.add("", f"{key} is {value!r:.60}, expected a list of cases")
        return []
    cases = []
    for position, item in enumerate(value):
        if isinstance(item, dict):
            cases.append(RawCase(values=item, where=f"{key}[{position}]"))
        else:
            faults.add(f"{key}[{position}]", f"is {item!r:.60}, expected an object with id, image, label ...")
    return cases


def _one_or_list(items: tuple[Any, ...]) -> Any:
    return items[0] if len(items) == 1 else list(items)


def case_values(case: Case) -> dict[str, Any]:
    """A case as the plain values of a JSON manifest; ``patient`` is left out where it is the id."""
    values: dict[str, Any] = {"id": case.id}
    if case.patient != case.id:
        values["patient"] = case.patient
    values["image"] = _one_or_list(case.images)
    if case.labels:
        values["label"] = _one_or_list(case.labels)
    if case.fold is not None:
        values["fold"] = case.fold
    if case.labelled is not None:
        values["labelled"] = list(case.labelled)
    return values | dict(case.extra)


def write_json_manifest(manifest: Manifest, path: Path) -> None:
    """Writes ``manifest`` as JSON, one case a line, so that a change of a case is a change of a line."""
    top: dict[str, Any] = {
        "format": FORMAT,
        "name": manifest.name,
        "licence": manifest.licence,
        "channels": [c.name if c.unit is None else {"name": c.name, "unit": c.unit} for c in manifest.channels],
        "labels": {name: _one_or_list(values) for name, values in manifest.labels.items()},
    }
    if manifest.label_table:
        top["label_table"] = {name: dict(entry) for name, entry in manifest.label_table.items()}
    if manifest.ignore is not None:
        top["ignore"] = manifest.ignore
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in top.items()]
    lines.append(_list_text("training", manifest.training))
    if manifest.testing:
        lines.append(_list_text("testing", manifest.testing))
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _list_text(key: str, cases: tuple[Case, ...]) -> str:
    if not cases:
        return f'  "{key}": []'
    rows = ",\n".join(f"    {json.dumps(case_values(case), ensure_ascii=False)}" for case in cases)
    return f'  "{key}": [\n{rows}\n  ]'
