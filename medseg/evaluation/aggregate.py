"""From rows (one class of one case) to one set of numbers per class and metric, and then over the classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np

from medseg.evaluation.case import ClassScores
from medseg.evaluation.intervals import mean_interval, median_interval
from medseg.evaluation.policy import EmptyPolicy, counted_value, policy_table
from medseg.evaluation.registry import CASE_METRICS, METRICS, Metric, known_metrics


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric of one class over the cases. None where too few cases have a value.

    Attributes:
        n: cases whose value counts under the policy.
        n_imputed: how many of these are the worst value, standing in for an undefined one.
        mean, sd, median, q1, q3, minimum, maximum: over those n; SD with n - 1; quartiles interpolated linearly.
        mean_low, mean_high, median_low, median_high: 95 % intervals over patients (``medseg.evaluation.intervals``); None
            where there are too few patients.
        intervals: "mean" and "median" to the interval's method, number of patients, coverage in simulations of as many, and a
            note that belongs beside it.
        n_defined, mean_defined: without any imputation.
    """

    n: int
    n_imputed: int
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    mean_low: float | None = None
    mean_high: float | None = None
    median_low: float | None = None
    median_high: float | None = None
    intervals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n_defined: int = 0
    mean_defined: float | None = None

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class over the cases: how often which mask was empty, and each metric's summary."""

    class_name: str
    counts: Mapping[str, int]
    metrics: Mapping[str, Summary]


def summarise(
    rows: Mapping[str, Sequence[ClassScores]],
    class_names: Sequence[str],
    policy: EmptyPolicy,
    patients: Mapping[str, str] | None = None,
) -> tuple[ClassSummary, ...]:
    """One summary per class.

    Args:
        rows: case id to its rows; the order of cases does not matter.
        class_names: without background.
        policy: what undefined values count.
        patients: case id to its patient, whose cases are one cluster for the intervals; a case that is not named, and every
            case without it, is its own patient.
    """
    scores = [((patients or {}).get(case_id, case_id), row) for case_id in sorted(rows) for row in rows[case_id]]
    return tuple(
        _summarise_class(name, [one for one in scores if one[1].class_name == name], policy) for name in class_names
    )


def _summarise_class(name: str, rows: Sequence[tuple[str, ClassScores]], policy: EmptyPolicy) -> ClassSummary:
    situations = [row.situation for _, row in rows]
    counts = {
        "cases": len(rows),
        **{situation: situations.count(situation) for situation in ("present", "missed", "spurious", "both_empty")},
    }
    metrics = known_metrics(rows[0][1].values) if rows else METRICS
    return ClassSummary(
        class_name=name,
        counts=counts,
        metrics={metric.name: _summarise_metric(metric, rows, policy) for metric in metrics},
    )


@dataclass(frozen=True)
class _Counted:
    """A value that enters a mean: whose it is, and whether it is the worst because one of the masks is empty."""

    value: float
    patient: str
    failed: bool = False
    worst: float = math.nan


def summarise_whole(
    values: Mapping[str, Mapping[str, float | None]], patients: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Over the cases, the metrics of all classes together: metric name to a summary's plain values.

    Args:
        values: case id to metric name to its value, None where it is undefined.
        patients: as in :func:`summarise`.
    """
    found: dict[str, dict[str, Any]] = {}
    for metric in CASE_METRICS:
        own = [
            _Counted(value, (patients or {}).get(case_id, case_id))
            for case_id in sorted(values)
            if (value := values[case_id][metric.name]) is not None
        ]
        found[metric.name] = _summary(own, [one.value for one in own], fails=False, bounds=(0.0, 1.0)).plain()
    return found


def _summarise_metric(metric: Metric, rows: Sequence[tuple[str, ClassScores]], policy: EmptyPolicy) -> Summary:
    counted, defined = [], []
    for patient, row in rows:
        raw = row.values[metric.name]
        value = math.nan if raw is None else raw
        worst = metric.worst_value(row.diagonal_mm)
        counts = counted_value(value, worst, row.situation, policy)
        failed = row.situation in ("missed", "spurious") and counts == worst
        counted.append(_Counted(counts, patient, failed, worst))
        defined.append(value)
    kept = [one for one in counted if not math.isnan(one.value)]
    return _summary(
        kept,
        [value for value in defined if not math.isnan(value)],
        fails=_counts_failures(metric.name, policy),
        bounds=_BOUNDS.get(metric.worst or "", (-math.inf, math.inf)),
    )


def _summary(counted: list[_Counted], defined: list[float], *, fails: bool, bounds: tuple[float, float]) -> Summary:
    n, n_defined = len(counted), len(defined)
    if not n:
        return Summary(n=0, n_imputed=0)
    values, patients = [one.value for one in counted], [one.patient for one in counted]
    mean = mean_interval(
        values,
        patients,
        failed=[one.failed for one in counted] if fails else None,
        worst=_mean([one.worst for one in counted]) if fails else None,
        bounds=bounds,
    )
    median = median_interval(values, patients)
    q1, middle, q3 = (float(q) for q in np.percentile(values, (25.0, 50.0, 75.0)))
    return Summary(
        n=n,
        n_imputed=n - n_defined,
        mean=_mean(values),
        sd=_sd(values),
        median=middle,
        q1=q1,
        q3=q3,
        minimum=min(values),
        maximum=max(values),
        mean_low=mean.low,
        mean_high=mean.high,
        median_low=median.low,
        median_high=median.high,
        intervals={"mean": mean.stated(), "median": median.stated()},
        n_defined=n_defined,
        mean_defined=_mean(defined) if defined else None,
    )


_BOUNDS = {"zero": (0.0, 1.0), "diagonal": (0.0, math.inf)}
"""What no mean of a metric can leave, by its worst value: shares, and distances."""


@cache
def _counts_failures(name: str, policy: EmptyPolicy) -> bool:
    """Whether a structure that one mask alone has counts the metric's worst value, so that one not seen yet would too."""
    metric = known_metrics([name])
    words = policy_table(policy, metric)[name]
    return metric[0].worst is not None and any(words[situation] != "left out" for situation in ("missed", "spurious"))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # exactly rounded, so the order of cases can't show


def _sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mean_of_classes(summaries: Sequence[ClassSummary]) -> dict[str, dict[str, object]]:
    """Each metric's mean over the classes' means, with the classes that had one; volumes, which have no better, left out.

    Returns:
        Metric name to ``mean`` (None if no class has one), ``mean_defined`` and ``classes``.
    """
    result: dict[str, dict[str, object]] = {}
    for metric in known_metrics(dict.fromkeys(name for summary in summaries for name in summary.metrics)):
        if metric.better is None:
            continue
        found = {s.class_name: s.metrics[metric.name] for s in summaries if metric.name in s.metrics}
        means = {name: summary.mean for name, summary in found.items() if summary.mean is not None}
        defined = [summary.mean_defined for summary in found.values() if summary.mean_defined is not None]
        result[metric.name] = {
            "mean": _mean(list(means.values())) if means else None,
            "mean_defined": _mean(defined) if defined else None,
            "classes": list(means),
        }
    return result
