"""A run's description: what was done to which data, with what result, where to look, and how to do it again.

MLflow shows it, as Markdown, at the head of a run's page. It is written at the beginning and again at the end of a stage.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.durable.markdown import fenced, plain, table

_GAP = "&nbsp;&nbsp;"  # MLflow draws no lines, leaves no space between columns, and trims plain spaces
_MOST_CHARACTERS = 7500  # MLflow's longest tag is 8000


def description(
    summary: str,
    facts: Mapping[str, str],
    *,
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
    look: Sequence[str] = (),
    again: str = "",
    above_command: str = "Again",
) -> str:
    """The description of a run in Markdown. Cells of tables are escaped; all else is Markdown already.

    Args:
        summary: one or two sentences: what this run is and how it ended.
        facts: name to Markdown, such as data, network, budget; those that are empty are left out.
        tables: title to rows, of which the first is the heads; one without further rows is left out, and the first one's
            title is not shown.
        look: sentences about where to look further.
        again: the command that repeats it.
        above_command: its title.
    """
    # MLflow shows the first six lines and hides the rest behind "Show more": what matters most comes first, without a title.
    lines = [summary, ""]
    filled = [(title, rows) for title, rows in (tables or {}).items() if len(rows) > 1]
    for number, (title, rows) in enumerate(filled):
        cells = [[plain(cell) for cell in row] for row in rows]
        lines += [*([f"**{title}**", ""] if number else []), *table(cells[0], cells[1:], gap=_GAP), ""]
    shown = [f"- **{name}**: {text}" for name, text in facts.items() if text]
    lines += [*shown, ""] if shown else []
    if look:
        lines += ["**Where to look**", "", *(f"- {sentence}" for sentence in look), ""]
    if again:
        lines += [f"**{above_command}**", "", *fenced(again), ""]
    return _cut("\n".join(lines))


def command(verb: str, config: Path, overrides: Sequence[str], *flags: str) -> str:
    """The command line of a stage, with ``DATA`` for the data root, which a description never names."""
    shown = config if not config.is_absolute() else Path(config.name)
    changed = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["medseg", verb, "--config", str(shown), "--data-root", "DATA", *changed, *flags])


def _cut(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return text[:_MOST_CHARACTERS].rpartition("\n")[0] + "\n\n(cut: it is too long for MLflow)\n"
