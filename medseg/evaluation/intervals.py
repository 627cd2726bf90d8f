"""95 % intervals of the mean and the median over patients, by the methods that covered best where it was measured.

Scores of masks are skewed, and now and then a structure is missed, which counts as the worst there is. With 20 patients and
one miss in 20, the sample often holds none, and an interval made of what was seen can't know of it: Student's t and BCa
covered the true mean 80 % of the time (docs/statistics.md has the table, ``benchmarks/bench_coverage.py`` makes it). So the
mean is taken apart into how often the structure fails and how good it is where it does not. Each gets the interval that suits
it, and the two are put together:

- the share of failures: the Jeffreys interval (Brown, Cai and DasGupta 2001); where nothing failed, up to 1 - 0.05^(1/n), the
  rule of three (Hanley and Lippman-Hand 1983). That allowance fades out between 60 and 100 patients, by when a failure in 20
  would have shown;
- the mean of the others: Student's t with Hall's transformation for skewness (Hall 1992), no resampling;
- together: the margins add as squares on either side (Zou and Donner 2008, MOVER).

Cases of one patient are one cluster. All of it is closed form: equal values give equal numbers, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
LEAST_COVERAGE = 0.93
"""An interval of a method that covered less in the simulation says so."""
FADE_PATIENTS = (60, 100)
"""Between these the allowance for failures that were not seen goes from whole to none."""
SIMULATED: Mapping[str, Mapping[int, float]] = {
    "failures + hall": {3: 0.975, 4: 0.973, 5: 0.975, 10: 0.961, 20: 0.961, 50: 0.956, 100: 0.935, 200: 0.947},
    "hall": {3: 0.901, 4: 0.899, 5: 0.905, 10: 0.919, 20: 0.929, 50: 0.936, 100: 0.94, 200: 0.951},
    "order statistics": {3: 0.744, 4: 0.868, 5: 0.935, 10: 0.945, 20: 0.947, 50: 0.946, 100: 0.949, 200: 0.945},
}
"""Method to number of patients to the least coverage over the simulated distributions (of ``hall``, lognormal distances);
benchmarks/results/coverage_2026-11-28.md has all of it."""
_SMALL = 1e-9


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval and how far it can be trusted.

    Attributes:
        low, high: its ends; None where there are too few patients.
        method: ``hall`` or ``failures + hall`` for a mean, ``order statistics`` for a median.
        patients: that it is over.
        coverage: least share of simulated samples of as many patients (or the next smaller number that was simulated) whose
            interval held the true value, over the distributions of docs/statistics.md; None where it was not simulated.
        note: what a reader must know; empty where there is nothing.
        if_none_fails: its ends if no structure is ever missed or spurious, where none was and they might be; else None.
    """

    low: float | None
    high: float | None
    method: str
    patients: int
    coverage: float | None = None
    note: str = ""
    if_none_fails: tuple[float, float] | None = None

    def stated(self) -> dict[str, Any]:
        """What stands beside the ends, as JSON-able values."""
        return {
            "method": self.method,
            "patients": self.patients,
            "coverage": self.coverage,
            "note": self.note,
            "if_none_fails": None if self.if_none_fails is None else list(self.if_none_fails),
        }


# --- the mean ---------------------------------------------------------------------------------------------------------


def mean_interval(
    values: Sequence[float] | FloatArray,
    patients: Sequence[str] | None = None,
    *,
    failed: Sequence[bool] | npt.NDArray[np.bool_] | None = None,
    worst: float | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """The interval of the mean over cases.

    Args:
        values: one per case, none of them NaN.
        patients: whose case it is; None where each is another's.
        failed: cases that count the worst value because one of the masks was empty; None where the metric has no such cases,
            and no allowance for them is made then.
        worst: what an unseen failure would count.
        bounds: what a mean can't leave; the interval is cut there.
    """
    if failed is None or worst is None:
        found = _part(np.asarray(values, np.float64), None if patients is None else np.asarray(patients))
        low, high = _found_interval(found)
        return _judged(_cut(low, bounds), _cut(high, bounds), "hall", found.patients)
    array, fails = np.asarray(values, np.float64), np.asarray(failed, np.bool_)
    names = None if patients is None else np.asarray(patients)
    everything, failures = _part(array, names), _part(fails.astype(np.float64), names)
    found = _part(array[~fails], None if names is None else names[~fails])
    inner = _found_interval(found)
    if inner[0] is None or inner[1] is None:
        return _judged(None, None, "failures + hall", everything.patients)
    share, least, most = _failure_share(failures)
    if fails.any():
        worst = math.fsum(array[fails]) / int(fails.sum())
    mean = everything.mean
    reach = worst - found.mean
    ends = sorted((reach * (least - share), reach * (most - share)))
    low = mean - math.hypot((1 - share) * (found.mean - inner[0]), ends[0])
    high = mean + math.hypot((1 - share) * (inner[1] - found.mean), ends[1])
    found_interval = _judged(_cut(low, bounds), _cut(high, bounds), "failures + hall", everything.patients)
    if share or most < _SMALL:
        return found_interval
    count = everything.patients
    unseen = f"nothing failed in {count} patients, which does not rule out a failure in {100 * most:.2g} % of them"
    return replace(
        found_interval,
        note="; ".join(filter(None, (found_interval.note, unseen))),
        if_none_fails=(max(inner[0], bounds[0]), min(inner[1], bounds[1])),
    )


@dataclass(frozen=True)
class _Part:
    """A mean over cases that come in patients: its residual per patient, in the unit of the mean."""

    mean: float
    residuals: FloatArray
    cases: int

    @property
    def patients(self) -> int:
        return len(self.residuals)

    @property
    def error(self) -> float:
        """Standard error of the mean, of patients drawn with all their cases; plain SD / sqrt(n) for one case each."""
        n = self.patients
        return math.sqrt(math.fsum(self.residuals**2) / (n * (n - 1)))


def _part(values: FloatArray, patients: npt.NDArray[Any] | None) -> _Part:
    if not len(values):
        return _Part(math.nan, values, 0)
    mean = math.fsum(values) / len(values)  # exactly rounded, so the order of cases can't show
    if patients is None:
        return _Part(mean, values - mean, len(values))
    names, index = np.unique(patients, return_inverse=True)
    order = np.lexsort((values, index))
    sums = np.bincount(index[order], (values - mean)[order], len(names))
    residuals = (sums * (len(names) / len(values))).astype(np.float64)
    return _Part(mean, residuals, len(values))


def _found_interval(part: _Part) -> tuple[float, float] | tuple[None, None]:
    """Hall's (1992) monotone cubic transformation of Student's t; (None, None) below two patients."""
    from scipy.special import stdtrit

    n = part.patients
    if n < 2:
        return None, None
    error = part.error
    if error < _SMALL * (abs(part.mean) + _SMALL):
        return part.mean, part.mean
    moment = math.fsum(part.residuals**2) / n
    skewness = math.fsum(part.residuals**3) / n / moment**1.5
    quantile = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    return (
        part.mean - error * _untransformed(quantile, skewness, n),
        part.mean - error * _untransformed(-quantile, skewness, n),
    )


def _untransformed(quantile: float, skewness: float, n: int) -> float:
    """The t whose transform t + a t^2/3 + a^2 t^3/27 + a/6, with a = skewness / sqrt(n), is the quantile."""
    a = skewness / math.sqrt(n)
    if abs(a) < 1e-6:
        return quantile
    return 3 / a * (math.cbrt(1 + a * (quantile - a / 6)) - 1)


def _failure_share(part: _Part) -> tuple[float, float, float]:
    """The share of cases that failed and its Jeffreys interval, of as many independent cases as the clusters are worth."""
    from scipy.special import betaincinv

    share, size = part.mean, _effective_size(part)
    failed = share * size
    tail = (1 - CONFIDENCE) / 2
    least = float(betaincinv(failed + 0.5, size - failed + 0.5, tail)) if share > 0 else 0.0
    most = float(betaincinv(failed + 0.5, size - failed + 0.5, 1 - tail)) if share < 1 else 1.0
    if share == 0:
        start, end = FADE_PATIENTS
        most = 1 - (1 - CONFIDENCE) ** (1 / size)
        most *= min(1.0, max(0.0, (end - part.patients) / (end - start)))
    return share, least, most


def _effective_size(part: _Part) -> float:
    """Cases over the design effect (Kish 1965) of a share; patients where it is 0 or 1 and nothing can be told."""
    spread = part.mean * (1 - part.mean)
    if part.cases == part.patients:
        return float(part.cases)
    if spread < _SMALL or part.patients < 2 or part.error < _SMALL:
        return float(part.patients)
    return min(float(part.cases), max(1.0, spread / part.error**2 + 1))


# --- the median -------------------------------------------------------------------------------------------------------


def median_interval(values: Sequence[float] | FloatArray, patients: Sequence[str] | None = None) -> Interval:
    """The interval of the median over cases: order statistics, interpolated (Hettmansperger and Sheather 1986).

    Free of any distribution. With five patients or fewer it is the smallest and the largest, and its chance to hold the median,
    1 - 2^(1 - n), is below 95 %.

    Args:
        values: one per case, none of them NaN.
        patients: whose case it is; None where each is another's.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    names = n if patients is None else len(set(patients))
    if names < 2:
        return _judged(None, None, "order statistics", names)
    size = n
    if names < n:
        assert patients is not None
        below = (np.asarray(values) <= np.median(ordered)).astype(np.float64)
        size = max(2, round(_effective_size(_part(below, np.asarray(patients))) * _few(names)))
    rank = _median_rank(size)
    if rank > 1:  # else even the outermost of so few do not hold it with 95 %
        rank = (rank - 0.5) * n / size + 0.5
    positions = np.arange(1, n + 1)
    low, high = (float(np.interp(place, positions, ordered)) for place in (rank, n + 1 - rank))
    return _judged(low, high, "order statistics", names)


def _few(patients: int) -> float:
    """What an effective size is worth that was itself found from so few patients: Student's t in the normal's place."""
    from scipy.special import ndtri, stdtrit

    quantile = 0.5 + CONFIDENCE / 2
    return float(ndtri(quantile) / stdtrit(patients - 1, quantile)) ** 2


def _median_rank(n: int) -> float:
    """The fractional rank, from 1, of the lower end; the upper is as far from the other side."""
    from scipy.special import bdtr

    k = 1
    while k + 1 <= n // 2 and 1 - 2 * float(bdtr(k, n, 0.5)) >= CONFIDENCE:
        k += 1
    outer, inner = (1 - 2 * float(bdtr(at - 1, n, 0.5)) for at in (k, k + 1))
    if outer <= CONFIDENCE:
        return 1.0
    share = (outer - CONFIDENCE) / (outer - inner)
    return k + (n - k) * share / (k + (n - 2 * k) * share)


# --- how far to trust it ----------------------------------------------------------------------------------------------


def _cut(value: float | None, bounds: tuple[float, float]) -> float | None:
    return None if value is None else min(max(value, bounds[0]), bounds[1])


def _judged(low: float | None, high: float | None, method: str, patients: int) -> Interval:
    if low is None or high is None:
        few = "fewer than two patients with a value" if patients < 2 else "fewer than two patients where nothing failed"
        return Interval(low=None, high=None, method=method, patients=patients, note=few)
    tried = [n for n in SIMULATED[method] if n <= patients]
    coverage = SIMULATED[method][max(tried)] if tried else None
    note = ""
    if coverage is None or coverage < LEAST_COVERAGE:
        known = "was not simulated for so few" if coverage is None else f"{100 * coverage:.1f} % only"
        note = f"{patients} patients: coverage {known}"
    return Interval(low=low, high=high, method=method, patients=patients, coverage=coverage, note=note)
