"""Two or more runs on the same cases: which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import InputError
from medseg.evaluation.bootstrap import paired_effect
from medseg.evaluation.common_ground import MEAN, Field, FloatArray, comparable
from medseg.evaluation.registry import known_metrics
from medseg.evaluation.runs import read_run
from medseg.evaluation.signflip import sign_flip

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
BOOTSTRAP_SEED = 1979


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a challenger may take a champion's place.

    Attributes:
        better: its mean is better, the test refuses equality at 5 %, and no case or class of the champion's was left out.
        difference: mean over cases of challenger minus champion, in the metric's unit (for a distance, below 0 is better).
        low, high: 95 % interval of it, by the same test; None where there are too few patients for one.
        p_value: two-sided, of the sign-flip test over patients.
        n: patients that were compared.
        reason: one sentence, with the figures.
    """

    better: bool
    difference: float
    low: float | None
    high: float | None
    p_value: float
    n: int
    reason: str


def judge(champion_folder: Path, challenger_folder: Path, *, metric: str = "dice") -> Verdict:
    """Whether the challenger is better than the champion on the same cases, by each case's mean over classes.

    Args:
        champion_folder: of scores (``cases.csv``, ``metrics.json``), or a work or cross-validation folder that has one set.
        challenger_folder: the same.
        metric: a metric for which one way is better.

    Raises:
        InputError: the scores can't be read or compared (other references, policy or classes, no case in common), or have no
            such metric; the message says why.
    """
    champion = read_run(champion_folder, name="champion")
    challenger = read_run(challenger_folder, name="challenger")
    field = comparable((champion, challenger), metrics=(metric,))
    found = next((one for one in compare_pairs(field) if one.class_name == MEAN), None)
    if found is None:
        raise InputError(
            f"compare: no case has a {metric} in both runs, expected one at least; look at their cases.csv"
        )
    unseen, lost = len(champion.cases - set(field.cases)), set(champion.class_names) - set(field.class_names)
    better = found.p_value <= ALPHA and found.favours == 1 and not unseen and not lost
    word = "better" if better else "not shown to be better"
    reason = (
        f"{metric} {found.difference:+.4f} ({interval_words(found.low, found.high)}, p = {found.p_value:.3g}, "
        f"{found.patients} patients): the challenger is {word}"
    )
    if unseen:
        reason += f"; {unseen} of the champion's {len(champion.cases)} cases were not compared, and all must be"
    if lost:
        reason += f"; of the champion's classes {', '.join(sorted(lost))} could not be compared, and all must be"
    if field.notes:
        reason += "; " + "; ".join(field.notes)
    return Verdict(
        better=better,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        n=found.patients,
        reason=reason,
    )


def interval_words(low: float | None, high: float | None) -> str:
    """The interval for people."""
    if low is None or high is None:
        return "too few patients for a 95 % interval"
    return f"95 % interval {low:+.4f} to {high:+.4f}"


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PairDifference:
    """One metric of one class, of one pair of runs, over the cases for which both have a value.

    Attributes:
        first, second: names of the runs; differences are second minus first.
        metric, class_name: ``mean`` is each case's mean over classes.
        cases, patients: how many.
        mean_first, mean_second, difference: over cases.
        low, high: 95 % interval of the difference by the sign-flip test, None where the patients are too few for one.
        p_value: of that test, two-sided.
        p_holm: corrected over the family that the comparison states; None before.
        p_wilcoxon: of Wilcoxon's signed-rank test on the patients' mean differences.
        bootstrap_low, bootstrap_high: percentile interval over resampled patients.
        wins, ties, losses: cases in which the second is better, alike within the margin, worse.
        tie_margin: in the metric's unit.
        detectable: smallest true difference that this many patients show with 80 % power at 5 %; None below two patients.
        favours: 1 where the second's mean is better, -1 where the first's is, 0 where they are equal.
    """

    first: str
    second: str
    metric: str
    class_name: str
    cases: int
    patients: int
    mean_first: float
    mean_second: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    p_wilcoxon: float | None
    bootstrap_low: float
    bootstrap_high: float
    wins: int
    ties: int
    losses: int
    tie_margin: float
    detectable: float | None
    favours: int
    p_holm: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def tie_margin(metric: str) -> float:
    """Differences of a case that count as a tie: 0.5 mm of a distance, 0.1 ml, 1 percent, 0.01 of a share."""
    units = {"mm": 0.5, "ml": 0.1, "percent": 1.0}
    return units.get(metric.rpartition("_")[2], 0.01)


def compare_pairs(field: Field) -> list[PairDifference]:
    """Every pair of runs, metric and class, the mean over classes first; combinations that no case has are left out."""
    columns = [(metric, name) for metric in field.metrics for name in (MEAN, *field.class_names)]
    tables = [field.table(*column) for column in columns]
    found: list[PairDifference] = []
    for first, second in combinations(range(len(field.runs)), 2):
        names = field.runs[first].name, field.runs[second].name
        found += _compare_columns(field, names, columns, [(table[first], table[second]) for table in tables])
    return found


def _compare_columns(
    field: Field,
    names: tuple[str, str],
    columns: Sequence[tuple[str, str]],
    values: Sequence[tuple[FloatArray, FloatArray]],
) -> Iterable[PairDifference]:
    patient_names = [field.patients[case] for case in field.cases]
    patients, index = np.unique(np.asarray(patient_names), return_inverse=True)
    differences = np.stack([second - first for first, second in values], axis=1)
    known = ~np.isnan(differences)
    sums, counts = (
        np.stack([np.bincount(index, column, len(patients)) for column in table.T], axis=1, dtype=np.float64)
        for table in (np.where(known, differences, 0.0), known)
    )
    flips = sign_flip(sums, counts, level=LEVEL)
    for k, (metric, class_name) in enumerate(columns):
        own = known[:, k]
        if not own.any():
            continue
        first, second = (side[own] for side in values[k])
        yield _difference(
            names,
            (metric, class_name),
            (first, second),
            [name for name, is_known in zip(patient_names, own, strict=True) if is_known],
            interval=(_finite(flips.low[k]), _finite(flips.high[k])),
            p_value=float(flips.p_value[k]),
        )


def _difference(
    names: tuple[str, str],
    column: tuple[str, str],
    sides: tuple[FloatArray, FloatArray],
    patients: list[str],
    *,
    interval: tuple[float | None, float | None],
    p_value: float,
) -> PairDifference:
    first, second = sides
    effect = paired_effect((second - first).tolist(), patients, level=LEVEL, seed=BOOTSTRAP_SEED)
    sign = 1 if known_metrics([column[0]])[0].better == "higher" else -1
    margin = tie_margin(column[0])
    gains = sign * (second - first)
    wins, losses = int((gains > margin).sum()), int((gains < -margin).sum())
    own = _patient_means(second - first, patients)
    return PairDifference(
        first=names[0],
        second=names[1],
        metric=column[0],
        class_name=column[1],
        cases=len(first),
        patients=len(own),
        mean_first=math.fsum(first) / len(first),
        mean_second=math.fsum(second) / len(second),
        difference=effect.mean,
        low=interval[0],
        high=interval[1],
        p_value=p_value,
        p_wilcoxon=wilcoxon_p(own),
        bootstrap_low=effect.low,
        bootstrap_high=effect.high,
        wins=wins,
        ties=len(first) - wins - losses,
        losses=losses,
        tie_margin=margin,
        detectable=detectable_difference(own),
        favours=int(np.sign(sign * effect.mean)),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _patient_means(differences: FloatArray, patients: Sequence[str]) -> FloatArray:
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    means: FloatArray = np.bincount(index, differences, len(names)) / np.bincount(index, minlength=len(names))
    return means


def wilcoxon_p(differences: FloatArray) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (exact where scipy can, zeros dropped); 1 where nothing differs.

    Args:
        differences: (P,), one per patient.

    Returns:
        None below two patients.
    """
    from scipy.stats import wilcoxon

    if len(differences) < 2:
        return None
    kept = differences[differences != 0]
    return float(wilcoxon(kept).pvalue) if len(kept) else 1.0


def detectable_difference(differences: FloatArray) -> float | None:
    """The true mean difference that as many patients with this spread show with 80 % power in a two-sided test at 5 %.

    (t_{0.975} + t_{0.8}) SD / sqrt(n) with n - 1 degrees of freedom, the usual approximation of the noncentral t's.

    Args:
        differences: (P,), one per patient.

    Returns:
        None below two patients.
    """
    from scipy.special import stdtrit

    n = len(differences)
    if n < 2:
        return None
    quantiles = float(stdtrit(n - 1, 0.5 + LEVEL / 2) + stdtrit(n - 1, POWER))
    return quantiles * float(differences.std(ddof=1)) / math.sqrt(n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false claim in the family stays at the level that is tested.

    Args:
        p_values: of one family.

    Returns:
        Corrected, in the same order, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = highest
    return corrected
