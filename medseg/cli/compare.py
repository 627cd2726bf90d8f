"""``medseg compare``: which differences between runs on the same cases are more than chance."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.cli.entry import Context, run_verb
from medseg.errors import UsageError

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})=(?P<folder>.+)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb; returns its exit code."""
    return run_verb(
        "compare",
        argv,
        body=_compare,
        add_arguments=_arguments,
        description="Compare runs scored on the same cases: paired differences, ranking, the cases that differ most.",
        needs_config=False,
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of scores, work folder or cross-validation, or NAME=FOLDER; two or more",
    )
    parser.add_argument("--metric", action="append", metavar="NAME", help="may be repeated [dice, nsd, hd95_mm]")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for comparison.md and comparison.json")


def _compare(context: Context) -> int:
    from rich.console import Console

    from medseg.evaluation.comparison import (
        DEFAULT_METRICS,
        compare_runs,
        comparison_table,
        unique_names,
        write_comparison,
    )
    from medseg.evaluation.runs import read_run

    args = context.args
    if len(args.runs) < 2:
        raise UsageError(f"compare: was given {len(args.runs)} run, expected two or more")
    given = [_split(text) for text in args.runs]
    names = unique_names([name for name, _ in given])
    runs = [read_run(folder, name=name) for name, (_, folder) in zip(names, given, strict=True)]
    comparison = compare_runs(runs, metrics=tuple(args.metric or DEFAULT_METRICS))
    for note in comparison.field.notes:
        sys.stderr.write(f"compare: {note}\n")
    Console().print(comparison_table(comparison))
    if args.output is not None:
        write_comparison(comparison, args.output)
        sys.stdout.write(f"{args.output}: comparison.md and comparison.json written\n")
    return 0


def _split(text: str) -> tuple[str, Path]:
    """Name and folder of ``NAME=FOLDER`` or ``FOLDER``, whose name is its own, or that of the work folder it lies in."""
    named = _NAMED.fullmatch(text)
    if named and not Path(text).exists():
        return named["name"], Path(named["folder"])
    folder = Path(text)
    parts = folder.resolve().parts
    for room in ("crossvalidation", "scores"):
        # The last: a folder far above may be called so too.
        if places := [place for place, part in enumerate(parts) if part == room and place > 1]:
            return parts[places[-1] - 1], folder
    return folder.resolve().name, folder


if __name__ == "__main__":
    sys.exit(main())
