"""What several runs have in common: cases of one reference, classes of one meaning, metrics of one definition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.errors import InputError
from medseg.evaluation.policy import POLICIES
from medseg.evaluation.registry import find_metric, known_metrics
from medseg.evaluation.runs import ScoredRun

MEAN = "mean"
"""Stands where a class's name does, for each case's mean over the classes it has a value of."""

FloatArray = npt.NDArray[np.float64]


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
        table[np.isnan(table) & absent & alarm] = 1.0 if known_metrics([metric])[0].better == "higher" else 0.0
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
    if len({run.content["identity"]["code_sha256"] for run in runs}) > 1:
        notes.append("scored by different versions of the metrics' code, whose definitions agree")
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
    raters = {run.name: run.content.get("raters", {}).get("policy", "first") for run in runs}
    if len(set(raters.values())) > 1:
        words = ", ".join(f"{name} {policy}" for name, policy in raters.items())
        raise InputError(
            f"compare: what cases with several references were scored against differs ({words}), expected one; run medseg "
            "evaluate again with the same evaluate.raters"
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
    metric = find_metric(name)
    if metric is None or metric.better is None:
        known = ", ".join(one for one in runs[0].values if all(one in run.values for run in runs))
        return f"is no metric that can be compared, expected one of {known}"
    if missing := [run.name for run in runs if name not in run.values]:
        return f"is not in the scores of {', '.join(missing)}; run medseg evaluate again with it in evaluate.metrics"
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
