"""A whole comparison of runs: pairs, ranking, the cases that differ most; as JSON, Markdown and a terminal's table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.durable import FolderLock, write_json, write_text
from medseg.durable.markdown import text_table
from medseg.errors import InputError
from medseg.evaluation.bootstrap import RESAMPLES as PAIR_RESAMPLES
from medseg.evaluation.common_ground import MEAN, Field, comparable
from medseg.evaluation.comparing import (
    ALPHA,
    LEVEL,
    POWER,
    PairDifference,
    compare_pairs,
    holm,
    interval_words,
    tie_margin,
)
from medseg.evaluation.ranking import RESAMPLES, Ranking, metric_agreement, rank_runs
from medseg.evaluation.runs import ScoredRun

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1
DEFAULT_METRICS = ("dice", "nsd", "hd95_mm")
MOST_DIFFERENT = 5
_FAMILIES = (
    "p-values are corrected in two families: the means over classes (pairs x metrics), and the single classes "
    "(pairs x metrics x classes)"
)
_TEST = (
    "sign-flip permutation test of the mean paired difference, patients flipped with all their cases; the interval holds the "
    "differences that it does not refuse"
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison found.

    Attributes:
        field: what was compared.
        pairs: per pair of runs, metric and class, with Holm's p.
        rankings: metric to the runs' ranking.
        different: (first, second, metric) to the cases that differ most: case, the two values, second minus first.
    """

    field: Field
    pairs: Sequence[PairDifference]
    rankings: Mapping[str, Ranking]
    different: Mapping[tuple[str, str, str], Sequence[tuple[str, float, float, float]]]


def compare_runs(runs: Sequence[ScoredRun], *, metrics: Sequence[str] = DEFAULT_METRICS) -> Comparison:
    """Compares two or more runs on the cases, classes and metrics that they share.

    Raises:
        InputError: they can't be compared; the message says why.
    """
    field = comparable(runs, metrics=metrics)
    rankings = {metric: found for metric in field.metrics if (found := rank_runs(field, metric)) is not None}
    if without := [metric for metric in field.metrics if metric not in rankings]:
        words = f"no case has {', '.join(without)} in every run"
        if not rankings:
            raise InputError(f"compare: {words}, expected one at least; look at their cases.csv")
        field = replace(field, notes=(*field.notes, words))
    return Comparison(
        field=field, pairs=_corrected(compare_pairs(field)), rankings=rankings, different=_different(field)
    )


def _corrected(pairs: Sequence[PairDifference]) -> tuple[PairDifference, ...]:
    found = list(pairs)
    for wanted in (True, False):
        family = [k for k, one in enumerate(found) if (one.class_name == MEAN) is wanted]
        for k, p_value in zip(family, holm([found[k].p_value for k in family]), strict=True):
            found[k] = replace(found[k], p_holm=p_value)
    return tuple(found)


def _different(field: Field) -> dict[tuple[str, str, str], list[tuple[str, float, float, float]]]:
    found = {}
    for metric in field.metrics:
        table = field.table(metric, MEAN)
        for first, second in combinations(range(len(field.runs)), 2):
            difference = table[second] - table[first]
            order = sorted(
                (k for k in range(len(field.cases)) if abs(difference[k]) > 0),
                key=lambda k, by=difference: (-abs(by[k]), field.cases[k]),  # type: ignore[misc]
            )
            found[field.runs[first].name, field.runs[second].name, metric] = [
                (field.cases[k], float(table[first, k]), float(table[second, k]), float(difference[k]))
                for k in order[:MOST_DIFFERENT]
            ]
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Writes ``comparison.md`` and ``comparison.json``, each atomically; equal runs give equal bytes."""
    with FolderLock(folder):
        write_text(folder / "comparison.md", comparison_text(comparison))
        write_json(folder / "comparison.json", comparison_json(comparison))


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The content of ``comparison.json``; docs/statistics.md describes it."""
    field = comparison.field
    return {
        "format": FORMAT,
        "runs": {
            run.name: {
                "set": run.content["name"],
                "predictions_sha256": run.content["identity"]["predictions_sha256"],
                "cases_csv_sha256": run.content["identity"]["cases_csv_sha256"],
            }
            for run in field.runs
        },
        "cases": list(field.cases),
        "patients": len(set(field.patients.values())),
        "metrics": list(field.metrics),
        "classes": list(field.class_names),
        "empty_masks": field.runs[0].policy.name,
        "notes": list(field.notes),
        "method": {
            "test": _TEST,
            "correction": _FAMILIES,
            "level": LEVEL,
            "power": POWER,
            "bootstrap": {"resamples": PAIR_RESAMPLES, "unit": "patient"},
            "ranking": {"resamples": RESAMPLES, "unit": "patient"},
            "tie_margin": {metric: tie_margin(metric) for metric in field.metrics},
            "differences": "second minus first",
        },
        "pairs": [one.plain() for one in comparison.pairs],
        "ranking": {metric: ranking.plain() for metric, ranking in comparison.rankings.items()},
        "metric_agreement": metric_agreement(comparison.rankings),
        "most_different": [
            {
                "first": first,
                "second": second,
                "metric": metric,
                "case": case,
                "value_first": one,
                "value_second": other,
            }
            for (first, second, metric), cases in comparison.different.items()
            for case, one, other, _ in cases
        ],
    }


def comparison_text(comparison: Comparison) -> str:
    """The content of ``comparison.md``."""
    field = comparison.field
    heads = (
        "pair",
        "metric",
        "class",
        "first",
        "second",
        "difference",
        "p",
        "p, Holm",
        "p, Wilcoxon",
        "w / t / l",
        "shown",
    )
    lines = [
        f"# {', '.join(run.name for run in field.runs)} compared",
        "",
        _summary(field),
        "",
        *(f"- {note}." for note in field.notes),
        *([""] if field.notes else []),
        "## Differences",
        "",
        *text_table(heads, (_pair_cells(one) for one in comparison.pairs)),
        "",
        _explanation(field),
        "",
        "## Ranking",
        "",
        *text_table(("metric", "run", "mean", "rank", "rank, 95 %", "first in"), _ranking_cells(comparison)),
        "",
        *_stability_lines(comparison),
        "## Cases that differ most",
        "",
        *text_table(("pair", "metric", "case", "first", "second", "difference"), _different_cells(comparison)),
    ]
    return "\n".join(lines) + "\n"


def _summary(field: Field) -> str:
    patients = len(set(field.patients.values()))
    return (
        f"{len(field.cases)} cases of {patients} patients, scored against the same references; empty masks: "
        f"{field.runs[0].policy.name}. Differences are second minus first."
    )


def _explanation(field: Field) -> str:
    return (
        f"Test: {_TEST}. By Holm, {_FAMILIES}. Won, tied and lost count cases of the second; a tie is a difference of at most "
        f'{_margins(field)}. "Shown" is the smallest true difference that this many patients of this spread show with '
        f"{100 * POWER:.0f} % power. A structure that one mask rightly leaves out and another draws counts the best value for "
        "the first."
    )


def _different_cells(comparison: Comparison) -> Iterable[tuple[str, ...]]:
    for (first, second, metric), cases in comparison.different.items():
        for case, one, other, gap in cases:
            yield f"{first}, {second}", metric, case, f"{one:.4f}", f"{other:.4f}", f"{gap:+.4f}"


def _pair_cells(one: PairDifference) -> tuple[str, ...]:
    return (
        f"{one.first}, {one.second}",
        one.metric,
        one.class_name,
        f"{one.mean_first:.4f}",
        f"{one.mean_second:.4f}",
        f"{one.difference:+.4f} ({interval_words(one.low, one.high)})",
        f"{one.p_value:.3g}",
        _p_words(one.p_holm),
        _p_words(one.p_wilcoxon),
        f"{one.wins} / {one.ties} / {one.losses}",
        "-" if one.detectable is None else f"{one.detectable:.4f}",
    )


def _p_words(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _margins(field: Field) -> str:
    return ", ".join(f"{tie_margin(metric):g} ({metric})" for metric in field.metrics)


def _ranking_cells(comparison: Comparison) -> Iterable[tuple[str, ...]]:
    for metric, ranking in comparison.rankings.items():
        for name in sorted(ranking.ranks, key=lambda run: (ranking.ranks[run], run)):
            span = f"{ranking.rank_low[name]:g} to {ranking.rank_high[name]:g}"
            yield (
                metric,
                name,
                f"{ranking.means[name]:.4f}",
                f"{ranking.ranks[name]:g}",
                span,
                f"{ranking.first[name]:.0%}",
            )


def _stability_lines(comparison: Comparison) -> list[str]:
    lines = [f"First in: share of {RESAMPLES:,} resamples of patients in which the run has the best mean.", ""]
    taus = {metric: ranking.tau for metric, ranking in comparison.rankings.items() if ranking.tau is not None}
    if taus:
        words = ", ".join(f"{metric} {tau:.2f}" for metric, tau in taus.items())
        lines += [f"Kendall's tau between the ranking and a resample's, on average: {words}.", ""]
    agreement = metric_agreement(comparison.rankings)
    pairs = [(one, other, tau) for one, own in agreement.items() for other, tau in own.items() if one < other]
    if pairs:
        words = ", ".join(f"{one} and {other} {'-' if tau is None else f'{tau:.2f}'}" for one, other, tau in pairs)
        lines += [f"Kendall's tau between metrics: {words}.", ""]
    return lines


def comparison_table(comparison: Comparison) -> Table:
    """For a terminal: a line per pair, metric and class."""
    from rich import box
    from rich.table import Table

    field = comparison.field
    table = Table(
        title=f"{len(field.cases)} cases of {len(set(field.patients.values()))} patients, second minus first",
        title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False,
    )  # fmt: skip
    table.add_column("metric, class", overflow="fold")
    for title in ("difference", "95 % interval", "p, Holm", "w/t/l"):
        table.add_column(title, justify="right", no_wrap=True)
    shown = None
    for one in comparison.pairs:
        if shown != (one.first, one.second):
            shown = (one.first, one.second)
            table.add_section()
            table.add_row(f"{one.first} -> {one.second}", style="bold")
        table.add_row(*_terminal_cells(one))
    firsts = (_first_words(metric, ranking) for metric, ranking in comparison.rankings.items())
    table.caption = (
        f"* p <= {ALPHA:g} after Holm. Ties: within {_margins(field)}. First in resamples: {'; '.join(firsts)}."
    )
    return table


def _terminal_cells(one: PairDifference) -> tuple[str, ...]:
    known = one.low is not None and one.high is not None
    star = "*" if one.p_holm is not None and one.p_holm <= ALPHA else ""
    return (
        f"{one.metric}, {one.class_name}",
        f"{one.difference:+.4f}",
        f"{one.low:+.4f} to {one.high:+.4f}" if known else "too few patients",
        f"{_p_words(one.p_holm)}{star}",
        f"{one.wins}/{one.ties}/{one.losses}",
    )


def _first_words(metric: str, ranking: Ranking) -> str:
    shares = sorted(ranking.first.items(), key=lambda item: (-item[1], item[0]))
    return f"{metric} " + ", ".join(f"{name} {share:.0%}" for name, share in shares)


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of runs, numbered where several are alike."""
    values, counts = np.unique(np.asarray(names), return_counts=True)
    several = {str(value) for value, count in zip(values, counts, strict=True) if count > 1}
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(f"{name}-{seen[name]}" if name in several else name)
    return result
