"""Scores read back from a folder, for comparing them with others."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.durable import read_json, sha256_bytes
from medseg.errors import DamagedFileError, InputError, UsageError
from medseg.evaluation.policy import POLICIES, EmptyPolicy, counted_value
from medseg.evaluation.registry import find_metric

NEWEST_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One folder of scores.

    Attributes:
        name: what tables call it.
        values: metric to class to case to the value that counts under the policy; NaN-free, a case without one is left out.
        absent: class to the cases in which neither mask has it.
        patients: case id to a name of its patient; the case itself where the file doesn't tell.
        references: case id to the sha256 of its reference; empty for files of format 1.
        labels: class name to file values, background first.
        content: of ``metrics.json``.
    """

    name: str
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    absent: Mapping[str, frozenset[str]]
    patients: Mapping[str, str]
    references: Mapping[str, str]
    labels: Mapping[str, list[int]]
    content: Mapping[str, Any]

    @property
    def cases(self) -> frozenset[str]:
        """Scored cases."""
        return frozenset(self.patients)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Without background."""
        return tuple(self.labels)[1:]

    @property
    def policy(self) -> EmptyPolicy:
        """For empty masks."""
        return POLICIES[self.content["definitions"]["empty_masks"]["policy"]]


def scores_folder(folder: Path) -> Path:
    """The folder with ``metrics.json`` that is meant: itself, a cross-validation's reported scores, a work folder's only set.

    Raises:
        InputError: there is none.
        UsageError: there are several; the message names them.
    """
    for place in (folder, folder / "scores" / "reported", folder / "crossvalidation" / "scores" / "reported"):
        if (place / "metrics.json").is_file():
            return place
    sets = sorted(path.parent for path in folder.glob("scores/*/metrics.json"))
    if len(sets) > 1:
        names = ", ".join(f"{folder.name}/scores/{path.name}" for path in sets)
        raise UsageError(f"{folder.name}: has {len(sets)} sets of scores, expected one; name it: {names}")
    if not sets:
        raise InputError(
            f"{folder.name}: holds no metrics.json, expected a folder of scores, a work folder or a cross-validation; "
            "run medseg evaluate first"
        )
    return sets[0]


def read_run(folder: Path, *, name: str | None = None) -> ScoredRun:
    """Reads ``metrics.json`` and ``cases.csv`` of a folder of scores; see :func:`scores_folder` for what may be given.

    Raises:
        InputError: there are no scores, or they are of a newer format.
        DamagedFileError: ``cases.csv`` is not the one that ``metrics.json`` was made with.
    """
    place = scores_folder(folder)
    content = read_json(place / "metrics.json")
    shown = name or folder.name
    if not isinstance(content, dict) or content.get("format") not in range(1, NEWEST_FORMAT + 1):
        found = content.get("format") if isinstance(content, dict) else None
        raise InputError(
            f"{shown}: metrics.json has format {found!r}, expected 1 to {NEWEST_FORMAT}; use the medseg that wrote it"
        )
    try:
        raw = (place / "cases.csv").read_bytes()
    except OSError as error:
        raise InputError(f"{shown}: cases.csv can't be read ({error.strerror}); run medseg evaluate again") from error
    if sha256_bytes(raw) != content["identity"]["cases_csv_sha256"]:
        raise DamagedFileError(f"{shown}: cases.csv is not the one of metrics.json; run medseg evaluate again")
    rows = list(csv.DictReader(io.StringIO(raw.decode())))
    return ScoredRun(
        name=shown,
        values=_values(rows, content),
        absent={
            name: frozenset(row["case"] for row in rows if row["class"] == name and row["situation"] == "both_empty")
            for name in content["classes"]
        },
        patients={row["case"]: row.get("patient") or row["case"] for row in rows},
        references=content["identity"].get("references", {}),
        labels=content["labels"],
        content=content,
    )


def _values(rows: list[dict[str, str]], content: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    policy = POLICIES[content["definitions"]["empty_masks"]["policy"]]
    metrics = [one for name in (rows[0] if rows else ()) if (one := find_metric(name)) and one.better is not None]
    found: dict[str, dict[str, dict[str, float]]] = {metric.name: {} for metric in metrics}
    for row in rows:
        diagonal = float(row["image_diagonal_mm"])
        for metric in metrics:
            raw = float(row[metric.name]) if row[metric.name] else math.nan
            value = counted_value(raw, metric.worst_value(diagonal), row["situation"], policy)  # type: ignore[arg-type]
            if not math.isnan(value):
                found[metric.name].setdefault(row["class"], {})[row["case"]] = value
    return found
