"""Two or more runs on the same cases: which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import InputError
from medseg.evaluation.bootstrap import paired_effect
from medseg.evaluation.policy import POLICIES
from medseg.evaluation.registry import METRICS
from medseg.evaluation.runs import ScoredRun, read_run
from medseg.evaluation.signflip import sign_flip

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
MEAN = "mean"
"""Stands where a class's name does, for each case's mean over the classes it has a value of."""
BOOTSTRAP_SEED = 1979
_METRICS = {metric.name: metric for metric in METRICS}

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a challenger may take a champion's place.

    Attributes:
        better: its mean is better and the test refuses equality at 5 %.
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
    (found,) = [one for one in compare_pairs(field) if one.class_name == MEAN]
    better = found.p_value <= ALPHA and found.favours == 1
    word = "better" if better else "not shown to be better"
    reason = (
        f"{metric} {found.difference:+.4f} ({interval_words(found.low, found.high)}, p = {found.p_value:.3g}, "
        f"{found.patients} patients): the challenger is {word}"
    )
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


# --- what may be compared ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Field:
    """Runs restricted to what they have in common.

    Attributes:
        runs: two or more.
        cases: scored in all of them against the same reference, sorted.
        metrics: defined alike in all of them.
        class_names: of the same values in all of them.
        patients: case id to its patient.
        notes: what was left out, and why.
    """

    runs: tuple[ScoredRun, ...]
    cases: tuple[str, ...]
    metrics: tuple[str, ...]
    class_names: tuple[str, ...]
    patients: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def table(self, metric: str, class_name: str) -> FloatArray:
        """(runs, cases) values; NaN in a whole column where any run has none.

        A structure that is rightly absent from one mask and a false alarm in another counts the best value for the first, for
        otherwise the false alarm would cost nothing. Where no run has it, the case is left out. ``MEAN`` is the mean over the
        classes that count for a case, the same ones for every run.
        """
        if class_name == MEAN:
            tables = np.stack([self.table(metric, name) for name in self.class_names])
            known = ~np.isnan(tables)
            with np.errstate(invalid="ignore"):
                mean: FloatArray = np.where(known, tables, 0).sum(axis=0) / known.sum(axis=0)
            return mean
        found = [run.values[metric].get(class_name, {}) for run in self.runs]
        table = np.array([[own.get(case, math.nan) for case in self.cases] for own in found])
        absent = np.array([[case in run.absent.get(class_name, ()) for case in self.cases] for run in self.runs])
        alarm = ~np.isnan(table).all(axis=0)
        table[np.isnan(table) & absent & alarm] = 0.0 if _METRICS[metric].worst == "diagonal" else 1.0
        table[:, np.isnan(table).any(axis=0)] = math.nan
        return table


def comparable(runs: Sequence[ScoredRun], *, metrics: Sequence[str]) -> Field:
    """What may be compared: cases of one reference, classes of one meaning, metrics of one definition.

    Raises:
        InputError: the policies for empty masks differ, or nothing is left to compare; the message says why.
    """
    notes: list[str] = []
    _refuse_policies(runs)
    class_names = _shared_classes(runs, notes)
    cases = _shared_cases(runs, notes)
    kept = _shared_metrics(runs, metrics, class_names, notes)
    return Field(
        runs=tuple(runs),
        cases=cases,
        metrics=kept,
        class_names=class_names,
        patients=_shared_patients(runs, cases, notes),
        notes=tuple(notes),
    )


def _refuse_policies(runs: Sequence[ScoredRun]) -> None:
    named = {run.name: run.policy.name for run in runs}
    if len(set(named.values())) > 1:
        words = ", ".join(f"{name} {policy}" for name, policy in named.items())
        raise InputError(
            f"compare: policies for empty masks differ ({words}), expected one of {', '.join(POLICIES)} for all; "
            "run medseg evaluate again with the same evaluate.empty"
        )
    ignored = {run.name: run.content["ignore"] for run in runs}
    if len(set(ignored.values())) > 1:
        words = ", ".join(f"{name} {value}" for name, value in ignored.items())
        raise InputError(f"compare: ignored values differ ({words}), expected one; run medseg evaluate again")


def _shared_classes(runs: Sequence[ScoredRun], notes: list[str]) -> tuple[str, ...]:
    first = runs[0].labels
    shared = tuple(
        name
        for name in runs[0].class_names
        if all(sorted(run.labels.get(name, [])) == sorted(first[name]) for run in runs)
    )
    left_out = sorted({name for run in runs for name in run.class_names} - set(shared))
    if not shared:
        raise InputError(f"compare: no class is the same in all runs ({', '.join(left_out)}), expected one at least")
    if left_out:
        notes.append(f"left out as not every run has them with the same values: {', '.join(left_out)}")
    return shared


def _shared_cases(runs: Sequence[ScoredRun], notes: list[str]) -> tuple[str, ...]:
    common = frozenset.intersection(*(run.cases for run in runs))
    if all(run.references for run in runs):
        other = {case for case in common if len({run.references.get(case) for run in runs}) > 1}
    else:
        hashes = {run.content["identity"]["references_sha256"] for run in runs}
        if len(hashes) > 1 or any(run.cases != common for run in runs):
            old = ", ".join(run.name for run in runs if not run.references)
            raise InputError(
                f"compare: {old} tells no reference of a single case (an older format) and the sets differ, expected the "
                "same cases and references; run medseg evaluate again"
            )
        other = set()
    kept = tuple(sorted(common - other))
    if not kept:
        raise InputError(
            f"compare: {len(common)} cases are in all runs and {len(other)} of them have other references, expected one "
            "case at least with the same reference"
        )
    everywhere = frozenset.union(*(run.cases for run in runs))
    if len(common) < len(everywhere):
        notes.append(f"{len(everywhere) - len(common)} of {len(everywhere)} cases left out: not scored in every run")
    if other:
        notes.append(f"{len(other)} cases left out: their references differ between runs")
    return kept


def _shared_metrics(
    runs: Sequence[ScoredRun], metrics: Sequence[str], class_names: Sequence[str], notes: list[str]
) -> tuple[str, ...]:
    reasons = {name: reason for name in metrics if (reason := _metric_fault(runs, name, class_names))}
    kept = tuple(name for name in dict.fromkeys(metrics) if name not in reasons)
    if not kept:
        raise InputError("compare: " + "; ".join(f"{name} {reason}" for name, reason in reasons.items()))
    notes += [f"{name} left out: it {reason}" for name, reason in reasons.items()]
    return kept


def _metric_fault(runs: Sequence[ScoredRun], name: str, class_names: Sequence[str]) -> str | None:
    if name not in _METRICS or _METRICS[name].better is None:
        known = ", ".join(metric.name for metric in METRICS if metric.better)
        return f"is no metric that can be compared, expected one of {known}"
    if missing := [run.name for run in runs if name not in run.values]:
        return f"is not in the scores of {', '.join(missing)}; run medseg evaluate again"
    stated = [run.content["definitions"]["metrics"].get(name, {}).get("definition") for run in runs]
    if len(set(stated)) > 1:
        return "is defined differently in these runs; run medseg evaluate again"
    tolerances = {tuple(run.content["tolerance_mm"].get(one) for one in class_names) for run in runs}
    if "tolerance" in str(stated[0]) and len(tolerances) > 1:
        return "was computed with different tolerances; run medseg evaluate again with the same evaluate.tolerance_mm"
    return None


def _shared_patients(runs: Sequence[ScoredRun], cases: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Cases that any run knows to be of one patient are; an older file does not tell."""
    merged = {case: case for case in cases}

    def root(case: str) -> str:
        while merged[case] != case:
            case = merged[case]
        return case

    for run in runs:
        firsts: dict[str, str] = {}
        for case in cases:
            one, other = root(firsts.setdefault(run.patients[case], case)), root(case)
            merged[max(one, other)] = min(one, other)
    if any(run.content["format"] == 1 for run in runs):
        notes.append("an older file does not say which cases are one patient's, so each case may count as a patient")
    return {case: root(case) for case in cases}


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
    """Differences of a case that count as a tie: 0.01 of a share, 0.5 mm of a distance."""
    return 0.5 if metric.endswith("_mm") else 0.01


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
    sign = 1 if _METRICS[column[0]].better == "higher" else -1
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
