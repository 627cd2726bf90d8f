"""Scores per subgroup: site, scanner, sex, or any further column of the manifest, and the group that fares worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.aggregate import ClassSummary, summarise
from medseg.evaluation.case import ClassScores
from medseg.evaluation.policy import EmptyPolicy
from medseg.evaluation.registry import known_metrics
from medseg.manifest import Case

LEAST_PATIENTS = 5
"""A group of fewer is counted and not named: its mean says little, and its value may say who it is."""
MOST_VALUES = 20
"""A column of more values (an age, a date, a comment) makes no groups unless the config names it."""

Groups = Mapping[str, Mapping[str, str]]
"""Column to case id to its value; a case without one is left out."""


def manifest_groups(cases: Sequence[Case], wanted: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """The further columns by which ``cases`` fall into groups.

    Args:
        cases: of a manifest.
        wanted: names of columns; None takes every one that has 2 to 20 values.

    Raises:
        UsageError: no case has a wanted column.
    """
    columns: dict[str, dict[str, str]] = {}
    for case in cases:
        for column, value in case.extra.items():
            if value:
                columns.setdefault(column, {})[case.id] = value
    if wanted is None:
        return {name: columns[name] for name in sorted(columns) if 2 <= len(set(columns[name].values())) <= MOST_VALUES}
    if missing := [name for name in wanted if name not in columns]:
        known = ", ".join(sorted(columns)) or "none"
        raise UsageError(
            f"evaluate.subgroups: has {missing[0]!r}, expected further columns that the manifest's cases have ({known})"
        )
    return {name: columns[name] for name in wanted}


def summarise_groups(
    rows: Mapping[str, Sequence[ClassScores]],
    groups: Groups,
    class_names: Sequence[str],
    policy: EmptyPolicy,
    patients: Mapping[str, str],
) -> dict[str, Any]:
    """Summaries per column, value, class and metric, as plain values.

    Args:
        rows: case id to its rows.
        groups: of the cases; those that were not scored don't matter.
        class_names: without background.
        policy: what undefined values count.
        patients: case id to its patient.

    Returns:
        Column to ``values`` (value to ``cases``, ``patients`` and ``classes``: class to metric to summary), ``small`` (how many
        ``groups`` and ``cases`` there are in groups of fewer than five patients, which stay unnamed), ``without`` (cases that
        have no value) and ``worst`` (class to metric to ``value``, ``mean``, ``best``, ``best_mean``, where two have a mean).
    """
    return {
        column: _column(
            rows, {case: value for case, value in own.items() if case in rows}, class_names, policy, patients
        )
        for column, own in sorted(groups.items())
    }


def _column(
    rows: Mapping[str, Sequence[ClassScores]],
    own: Mapping[str, str],
    class_names: Sequence[str],
    policy: EmptyPolicy,
    patients: Mapping[str, str],
) -> dict[str, Any]:
    members: dict[str, list[str]] = {}
    for case, value in own.items():
        members.setdefault(value, []).append(case)
    people = {value: len({patients.get(case, case) for case in cases}) for value, cases in members.items()}
    named = sorted(value for value in members if people[value] >= LEAST_PATIENTS)
    small = [members[value] for value in members if people[value] < LEAST_PATIENTS]
    found = {
        value: summarise({case: rows[case] for case in members[value]}, class_names, policy, patients)
        for value in named
    }
    return {
        "values": {
            value: {
                "cases": len(members[value]),
                "patients": people[value],
                "classes": {
                    one.class_name: {
                        "counts": dict(one.counts),
                        "metrics": {name: summary.plain() for name, summary in one.metrics.items()},
                    }
                    for one in found[value]
                },
            }
            for value in named
        },
        "small": {"groups": len(small), "cases": sum(len(cases) for cases in small)},
        "without": len(rows) - len(own),
        "worst": _worst(found),
    }


def _worst(found: Mapping[str, Sequence[ClassSummary]]) -> dict[str, dict[str, Any]]:
    worst: dict[str, dict[str, Any]] = {}
    for position, summary in enumerate(next(iter(found.values()), ())):
        for metric in known_metrics(summary.metrics):
            if metric.better is None:
                continue
            means = ((own[position].metrics.get(metric.name), value) for value, own in found.items())
            order = sorted((one.mean, value) for one, value in means if one is not None and one.mean is not None)
            if len(order) < 2:
                continue
            low, high = order[0], order[-1]
            bad, good = (low, high) if metric.better == "higher" else (high, low)
            worst.setdefault(summary.class_name, {})[metric.name] = {
                "value": bad[1],
                "mean": bad[0],
                "best": good[1],
                "best_mean": good[0],
            }
    return worst
