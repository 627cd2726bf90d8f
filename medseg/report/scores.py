"""What ``evaluate`` wrote, read back: ``metrics.json`` and ``cases.csv``, tolerant of metrics and keys that are new."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseg.durable import read_json
from medseg.errors import InputError

NEWEST_FORMAT = 2
_TEXT_COLUMNS = ("case", "class", "situation")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One class of one case: ``situation`` as in docs/metrics.md, ``values`` with every number of its line, None if empty."""

    case: str
    class_name: str
    situation: str
    values: Mapping[str, float | None]

    @property
    def dice(self) -> float | None:
        """Dice, None where it is undefined."""
        return self.values.get("dice")


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The scores of one set.

    Attributes:
        metrics: ``metrics.json``.
        rows: of ``cases.csv``, in its order.
        columns: its columns of numbers.
    """

    metrics: Mapping[str, Any]
    rows: Sequence[Row]
    columns: Sequence[str]

    @property
    def name(self) -> str:
        """Of the set, such as ``fold_0``."""
        return str(self.metrics["name"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the scored classes, in the labels' order."""
        return tuple(self.metrics["classes"])

    def summary(self, class_name: str, metric: str) -> Mapping[str, Any]:
        """A metric's summary over the cases; empty where these scores lack it."""
        found: Mapping[str, Any] = self.metrics["classes"][class_name]["metrics"].get(metric) or {}
        return found

    def of_class(self, class_name: str) -> list[Row]:
        """The class's rows."""
        return self._by_class.get(class_name, [])

    @cached_property
    def _by_class(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.class_name, []).append(row)
        return found

    def values(self, class_name: str, metric: str) -> list[float]:
        """A metric's defined values over the class's cases."""
        found = (row.values.get(metric) for row in self.of_class(class_name))
        return [value for value in found if value is not None and math.isfinite(value)]

    @cached_property
    def mean_dice(self) -> dict[str, float]:
        """Case id to its mean Dice over the classes that have one, worst first; cases without any are left out."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row.dice is not None:
                found.setdefault(row.case, []).append(row.dice)
        means = {case: float(np.mean(values)) for case, values in found.items()}
        return dict(sorted(means.items(), key=lambda item: (item[1], item[0])))


def read_scores(folder: Path) -> ScoreTable:
    """Reads a folder of scores.

    Raises:
        InputError: a file is missing, damaged or of a newer format.
    """
    metrics = read_json(folder / "metrics.json")
    version = metrics.get("format") if isinstance(metrics, dict) else None
    if not isinstance(version, int) or not {"name", "classes", "cases", "labels"} <= set(metrics):
        raise InputError(f"{folder.name}/metrics.json: is none that evaluate wrote; run medseg evaluate first")
    if version > NEWEST_FORMAT:
        raise InputError(
            f"{folder.name}/metrics.json: has format {version}, expected at most {NEWEST_FORMAT}; use a newer medseg"
        )
    try:
        text = (folder / "cases.csv").read_text(encoding="utf-8")
        lines = csv.DictReader(io.StringIO(text))
        columns = [name for name in lines.fieldnames or () if name not in _TEXT_COLUMNS]
        rows = tuple(_row(line, columns) for line in lines)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder.name}/cases.csv: can't be read ({error}); run medseg evaluate again") from error
    return ScoreTable(metrics=metrics, rows=rows, columns=tuple(columns))


def _row(line: Mapping[str, str], columns: Sequence[str]) -> Row:
    values = {name: number_of(line[name]) for name in columns}
    return Row(case=line["case"], class_name=line["class"], situation=line["situation"], values=values)


def number_of(text: str) -> float | None:
    """The cell's number; None where it is empty or, in a column that is new, no number."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
