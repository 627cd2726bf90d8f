"""From rows (one class of one case) to one set of numbers per class and metric, and then over the classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from medseg.evaluation.case import ClassScores
from medseg.evaluation.policy import EmptyPolicy, counted_value
from medseg.evaluation.registry import CASE_METRICS, METRICS, Metric, known_metrics

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric of one class over the cases. None where too few cases have a value.

    Attributes:
        n: cases whose value counts under the policy.
        n_imputed: how many of these are the worst value, standing in for an undefined one.
        mean, sd, median, q1, q3, minimum, maximum: over those n; SD with n - 1; quartiles interpolated linearly.
        mean_low, mean_high: 95 % interval of the mean by Student's t over cases; None below two cases.
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
    n_defined: int = 0
    mean_defined: float | None = None

    def plain(self) -> dict[str, float | int | None]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class over the cases: how often which mask was empty, and each metric's summary."""

    class_name: str
    counts: Mapping[str, int]
    metrics: Mapping[str, Summary]


def summarise(
    rows: Mapping[str, Sequence[ClassScores]], class_names: Sequence[str], policy: EmptyPolicy
) -> tuple[ClassSummary, ...]:
    """One summary per class.

    Args:
        rows: case id to its rows; the order of cases does not matter.
        class_names: without background.
        policy: what undefined values count.
    """
    scores = [row for case_id in sorted(rows) for row in rows[case_id]]
    return tuple(
        _summarise_class(name, [row for row in scores if row.class_name == name], policy) for name in class_names
    )


def _summarise_class(name: str, rows: Sequence[ClassScores], policy: EmptyPolicy) -> ClassSummary:
    situations = [row.situation for row in rows]
    counts = {
        "cases": len(rows),
        **{situation: situations.count(situation) for situation in ("present", "missed", "spurious", "both_empty")},
    }
    metrics = known_metrics(rows[0].values) if rows else METRICS
    return ClassSummary(
        class_name=name,
        counts=counts,
        metrics={metric.name: _summarise_metric(metric, rows, policy) for metric in metrics},
    )


def summarise_whole(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """Over the cases, the metrics of all classes together: metric name to a summary's plain values.

    Args:
        values: case id to metric name to its value, None where it is undefined.
    """
    found: dict[str, dict[str, float | int | None]] = {}
    for metric in CASE_METRICS:
        own = [value for case_id in sorted(values) if (value := values[case_id][metric.name]) is not None]
        found[metric.name] = _summary(own, own).plain()
    return found


def _summarise_metric(metric: Metric, rows: Sequence[ClassScores], policy: EmptyPolicy) -> Summary:
    counted, defined = [], []
    for row in rows:
        raw = row.values[metric.name]
        value = math.nan if raw is None else raw
        counted.append(counted_value(value, metric.worst_value(row.diagonal_mm), row.situation, policy))
        defined.append(value)
    return _summary(_without_nan(counted), _without_nan(defined))


def _without_nan(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _summary(values: list[float], defined: list[float]) -> Summary:
    n, n_defined = len(values), len(defined)
    if not n:
        return Summary(n=0, n_imputed=0)
    mean, sd = _mean(values), _sd(values)
    low, high = mean_interval(values)
    q1, median, q3 = (float(q) for q in np.percentile(values, (25.0, 50.0, 75.0)))
    return Summary(
        n=n,
        n_imputed=n - n_defined,
        mean=mean,
        sd=sd,
        median=median,
        q1=q1,
        q3=q3,
        minimum=min(values),
        maximum=max(values),
        mean_low=low,
        mean_high=high,
        n_defined=n_defined,
        mean_defined=_mean(defined) if defined else None,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # exactly rounded, so the order of cases can't show


def _sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % confidence interval of the mean by Student's t; (None, None) below two values.

    It treats cases as independent, and is too short for few cases of a skewed metric; docs/metrics.md says more.
    """
    from scipy.special import stdtrit

    sd = _sd(values)
    if sd is None:
        return None, None
    half = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * sd / math.sqrt(len(values))
    return _mean(values) - half, _mean(values) + half


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
