"""Numbers as the report writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "\N{EN DASH}"


def number(value: object) -> str:
    """Four digits that matter; a dash for None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    digits = 3 if size < 10 else 2 if size < 100 else 1
    text = f"{value:,.{digits}f}" if size >= 0.0005 or value == 0 else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(summary: Mapping[str, Any], low: str, high: str) -> str:
    """``[low, high]``, empty where there is none."""
    if summary.get(low) is None or summary.get(high) is None:
        return ""
    return f"[{number(summary[low])}, {number(summary[high])}]"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
