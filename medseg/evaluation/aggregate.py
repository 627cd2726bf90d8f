"""From rows (one class of one case) to one set of numbers per class and metric, and then over the classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from medseg.evaluation.case import ClassScores
from medseg.evaluation.intervals import Interval, mean_interval, median_interval
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


@dataclass(frozen=True)
class Counted:
    """A value that enters a mean: whose it is, and whether it is the worst because one of the masks is empty."""

    value: float
    patient: str
    failed: bool = False
    worst: float = math.nan


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class over the cases: how often which mask was empty, and each metric's summary, and the values it is of."""

    class_name: str
    counts: Mapping[str, int]
    metrics: Mapping[str, Summary]
    counted: Mapping[str, Sequence[Counted]] = field(default_factory=dict, repr=False)


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
    metrics = known_metrics(scores[0][1].values) if scores else METRICS  # also of a class that no case was labelled for
    return tuple(
        _summarise_class(name, [one for one in scores if one[1].class_name == name], metrics, policy)
        for name in class_names
    )


def _summarise_class(
    name: str, rows: Sequence[tuple[str, ClassScores]], metrics: Sequence[Metric], policy: EmptyPolicy
) -> ClassSummary:
    situations = [row.situation for _, row in rows]
    counts = {
        "cases": len(rows),
        **{situation: situations.count(situation) for situation in ("present", "missed", "spurious", "both_empty")},
    }
    counted = {metric.name: _counted(metric, rows, policy) for metric in metrics}
    return ClassSummary(
        class_name=name,
        counts=counts,
        metrics={metric.name: _summarise_metric(counted[metric.name], rows, metric, policy) for metric in metrics},
        counted=counted,
    )


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
            Counted(value, (patients or {}).get(case_id, case_id))
            for case_id in sorted(values)
            if (value := values[case_id][metric.name]) is not None
        ]
        found[metric.name] = _summary(
            own, [one.value for one in own], _mean_interval(own, (0.0, 1.0), fails=False) if own else None
        ).plain()
    return found


def _counted(metric: Metric, rows: Sequence[tuple[str, ClassScores]], policy: EmptyPolicy) -> tuple[Counted, ...]:
    """What enters the metric's mean, without the undefined."""
    found = []
    for patient, row in rows:
        worst = metric.worst_value(row.diagonal_mm)
        value = counted_value(_defined(row, metric), worst, row.situation, policy)
        if not math.isnan(value):
            failed = row.situation in ("missed", "spurious") and value == worst
            found.append(Counted(value, patient, failed, worst))
    return tuple(found)


def _defined(row: ClassScores, metric: Metric) -> float:
    raw = row.values[metric.name]
    return math.nan if raw is None else raw


def _summarise_metric(
    counted: Sequence[Counted], rows: Sequence[tuple[str, ClassScores]], metric: Metric, policy: EmptyPolicy
) -> Summary:
    defined = [value for _, row in rows if not math.isnan(value := _defined(row, metric))]
    fails = bool(counted) and _counts_failures(metric.name, policy)
    return _summary(counted, defined, _mean_interval(counted, metric.bounds, fails=fails) if counted else None)


def _summary(counted: Sequence[Counted], defined: Sequence[float], mean: Interval | None) -> Summary:
    n = len(counted)
    if mean is None:
        return Summary(n=0, n_imputed=0)
    values = [one.value for one in counted]
    median = median_interval(values, [one.patient for one in counted])
    q1, middle, q3 = (float(q) for q in np.percentile(values, (25.0, 50.0, 75.0)))
    return Summary(
        n=n,
        n_imputed=n - len(defined),
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
        n_defined=len(defined),
        mean_defined=_mean(defined) if defined else None,
    )


def _mean_interval(counted: Sequence[Counted], bounds: tuple[float, float], *, fails: bool) -> Interval:
    return mean_interval(
        [one.value for one in counted],
        [one.patient for one in counted],
        failed=[one.failed for one in counted] if fails else None,
        worst=_mean([one.worst for one in counted]) if fails else None,
        bounds=bounds,
    )


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
    if min(values) == max(values):
        return 0.0  # the mean of equal values is rounded, and may lie beside them
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mean_of_classes(summaries: Sequence[ClassSummary]) -> dict[str, dict[str, object]]:
    """Each metric's mean over the classes' means, with the classes that had one; volumes, which have no better, left out.

    Its interval is that of the mean over all cases and classes together, in which a patient's scores of all classes are one
    cluster, moved to the mean of the classes; where all classes have the same cases the two means are one.

    Returns:
        Metric name to ``mean`` (None if no class has one), ``mean_low``, ``mean_high`` (None where there are too few patients),
        ``interval`` (method, patients and so on), ``mean_defined`` and ``classes``.
    """
    result: dict[str, dict[str, object]] = {}
    for metric in known_metrics(dict.fromkeys(name for summary in summaries for name in summary.metrics)):
        if metric.better is None:
            continue
        found = {s.class_name: s.metrics[metric.name] for s in summaries if metric.name in s.metrics}
        means = {name: summary.mean for name, summary in found.items() if summary.mean is not None}
        defined = [summary.mean_defined for summary in found.values() if summary.mean_defined is not None]
        mean = _mean(list(means.values())) if means else None
        low, high, interval = _interval_of_classes(summaries, metric, mean)
        result[metric.name] = {
            "mean": mean,
            "mean_low": low,
            "mean_high": high,
            "interval": interval,
            "mean_defined": _mean(defined) if defined else None,
            "classes": list(means),
        }
    return result


def _interval_of_classes(
    summaries: Sequence[ClassSummary], metric: Metric, mean: float | None
) -> tuple[float | None, float | None, dict[str, Any]]:
    counted = [one for summary in summaries for one in summary.counted.get(metric.name, ())]
    if mean is None or not counted:
        return None, None, {}
    methods = [
        one.intervals["mean"]["method"] for s in summaries if (one := s.metrics.get(metric.name)) and one.intervals
    ]
    found = _mean_interval(counted, metric.bounds, fails=any("failures" in method for method in methods))
    if found.low is None or found.high is None:
        return None, None, found.stated()
    shift, (least, most) = mean - _mean([one.value for one in counted]), metric.bounds

    def moved(end: float) -> float:
        return min(most, max(least, end + shift))

    low, high, without = moved(found.low), moved(found.high), found.if_none_fails
    found = replace(found, if_none_fails=None if without is None else (moved(without[0]), moved(without[1])))
    return low, high, found.stated()
