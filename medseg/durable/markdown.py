"""Markdown of text from outside: names of cases and classes stay text, whatever they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# An underscore between letters or digits emphasises nothing, and case_01 is easier to read than case\_01.
_MARKUP = re.compile(r"[&<>]|[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def plain(text: str) -> str:
    """``text`` on one line, with everything escaped that could become markup: links, pictures, elements, cells, code."""
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), " ".join(text.split()))


def code(text: str) -> str:
    """``text`` on one line as code. No escape holds in there, so what would end it, or a table's cell, is replaced."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '/')}`"


def fenced(text: str) -> list[str]:
    """The lines of a block of code that nothing in ``text`` can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, text, fence]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, gap: str = "") -> list[str]:
    """The lines of a table; cells are markup already (see `plain` and `code`).

    Args:
        heads: one a column.
        rows: of cells.
        gap: behind every cell, for readers that leave no space between columns.
    """
    return [_row(heads, gap), _row(["---"] * len(heads), ""), *(_row(row, gap) for row in rows)]


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table of words and numbers; a bar, which would end a cell, becomes a slash."""
    return table(_without_bars(heads), map(_without_bars, rows))


def _without_bars(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "/") for cell in cells]


def _row(cells: Sequence[str], gap: str) -> str:
    return "| " + " | ".join(f"{cell}{gap}" for cell in cells) + " |"
