"""``review.csv``: the masks of a folder, those first that most need a human eye."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medseg.durable import write_text

REVIEW_NAME = "review.csv"


def review_rows(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The masks by risk, the highest first; at equal risk those with more flags, then by name.

    Masks of scans outside the input contract or with flags come before those without, whatever their risk: the estimate was
    made on scans and masks that are like those of training.

    Args:
        lines: of ``report.jsonl`` (``asdict`` of a ``CaseReport``).

    Returns:
        One row per mask that is there: rank from 1, case, output, risk, by (what the risk is made of), expected Dice and its
        bound (the smallest over the classes), contract, and the reasons and flags in words.
    """
    there = [line for line in lines if line.get("status") in ("ok", "kept")]
    there.sort(key=_urgency)
    return [{"rank": rank, **_row(line)} for rank, line in enumerate(there, start=1)]


def _urgency(line: Mapping[str, Any]) -> tuple[bool, float, int, str]:
    risk = (line.get("quality") or {}).get("risk")
    odd = len(line.get("flags") or ()) + len(line.get("contract_reasons") or ())
    return odd == 0, -(risk if risk is not None else 0.0), -odd, str(line["id"])


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    quality = line.get("quality") or {}
    expected = [value for value in (quality.get("expected_dice") or {}).values() if value is not None]
    bounds = [value for value in (quality.get("dice_bound") or {}).values() if value is not None]
    risk = quality.get("risk")
    return {
        "case": line["id"],
        "output": line.get("output") or "",
        "risk": "" if risk is None else risk,
        "by": "expected Dice" if expected else "" if risk is None else "entropy",
        "lowest_expected_dice": min(expected, default=""),
        "lowest_dice_bound": min(bounds, default=""),
        "contract": line.get("contract") or "",
        "reasons": "; ".join((*(line.get("contract_reasons") or ()), *(line.get("flags") or ()))),
    }


def write_review(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes ``review.csv`` into ``folder``, atomically; removes it where no mask can be ranked."""
    rows, path = review_rows(lines), folder / REVIEW_NAME
    if not any(row["risk"] != "" or row["reasons"] for row in rows):
        path.unlink(missing_ok=True)
        return
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())
