"""What out-of-fold evidence decides: the configuration, and post-processing per class.

Every decision is a function of the cases it is given. The model's are made on all of them; the reported scores' are made
once per fold, on the other folds, so that no score counts that was chosen on its own fold (:func:`nested`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from medseg.crossvalidation.tables import CaseTable, Treatment, treated_dice
from medseg.evaluation.bootstrap import Effect, paired_effect
from medseg.evaluation.postprocessing import Kind, Step

LEVEL = 0.95
_SIZE_QUANTILES = (0.5, 0.75, 0.9, 1.0)

T = TypeVar("T")


Dices = Mapping[str, float]
"""Case id to Dice."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The cases a decision may look at.

    Attributes:
        tables: case id to its table.
        class_names: all but the background.
        patients: case id to its patient.
        seed: of the bootstrap.
    """

    tables: Mapping[str, CaseTable]
    class_names: tuple[str, ...]
    patients: Mapping[str, str]
    seed: int

    def dice(self, name: str, treatment: Treatment) -> dict[str, float]:
        """Of a class, of the cases that were labelled for it."""
        return {case: treated_dice(table[name], treatment) for case, table in self.tables.items() if name in table}

    def mean_dice(self, treatment: Treatment) -> dict[str, float]:
        """Of each case, the mean over the classes that it was labelled for."""
        return {
            case: _mean([treated_dice(one, treatment) for one in table.values()])
            for case, table in self.tables.items()
            if table
        }

    def effect(self, before: Dices, after: Dices, *, level: float) -> Effect:
        """The paired effect of a change on the cases of ``before``."""
        differences = [after[case] - before[case] for case in before]
        return paired_effect(differences, [self.patients[case] for case in before], level=level, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was considered.

    Attributes:
        what: a step's words, or a configuration's name.
        adopted: whether it was.
        before, after: mean Dice over the cases that decided, an absent structure that is left absent counting 1.
        effect: their paired difference; None where nothing was compared.
        step: of post-processing.
        note: why it was not adopted although its interval lies above 0, or what it was compared with.
    """

    what: str
    adopted: bool
    before: float
    after: float
    effect: Effect | None
    step: Step | None = None
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "what": self.what,
            "adopted": self.adopted,
            "dice_before": self.before,
            "dice_after": self.after,
            "effect": None if self.effect is None else self.effect.plain(),
            "step": None if self.step is None else self.step.plain(),
            "note": self.note,
        }


# --- post-processing --------------------------------------------------------------------------------------------------


def decide_steps(evidence: Evidence) -> tuple[Finding, ...]:
    """Which steps of post-processing are worth it, in the order in which they are applied.

    First the largest component of all classes together, as nnU-Net does (where there are several), which no class may pay
    for; then, class by class, the best of the largest component and some least sizes; then holes. A step is adopted if the
    paired bootstrap's interval of its effect on Dice lies above 0. Where several candidates compete for a class, each is
    held to a level that keeps the error of all of them at 5 % (Bonferroni).

    Least sizes are taken from the cases: they lie just above quantiles of the sizes of components that are wholly wrong.
    """
    findings: list[Finding] = []
    names = tuple(name for name in evidence.class_names if any(name in table for table in evidence.tables.values()))
    treatments = dict.fromkeys(names, Treatment())
    if len(names) > 1:
        together = _together(evidence)
        findings.append(together)
        if together.adopted:
            treatments = dict.fromkeys(names, Treatment(main_only=True))
    for name in names:
        found, treatments[name] = _removal(evidence, name, treatments[name])
        findings += found
    for name in names:
        filled = replace(treatments[name], fill=True)
        step = Step(kind="fill_holes", class_name=name)
        findings.append(_considered(evidence, name, step, treatments[name], filled, level=LEVEL))
    return tuple(findings)


def adopted_steps(findings: Iterable[Finding]) -> tuple[Step, ...]:
    """The steps among them that were adopted, in their order."""
    return tuple(finding.step for finding in findings if finding.adopted and finding.step is not None)


def _together(evidence: Evidence) -> Finding:
    changed, step = Treatment(main_only=True), Step(kind="largest_component", class_name=None)
    before, after = evidence.mean_dice(Treatment()), evidence.mean_dice(changed)
    effect = evidence.effect(before, after, level=LEVEL)
    losers = [
        name
        for name in evidence.class_names
        if math.fsum(evidence.dice(name, changed).values()) < math.fsum(evidence.dice(name, Treatment()).values())
    ]
    return Finding(
        what=str(step),
        adopted=effect.certain and not losers,
        before=_mean(before.values()),
        after=_mean(after.values()),
        effect=effect,
        step=step,
        note=f"lowers {', '.join(losers)}" if losers else "",
    )


def _removal(evidence: Evidence, name: str, current: Treatment) -> tuple[list[Finding], Treatment]:
    kind: Kind = "largest_component"
    candidates = [(Step(kind=kind, class_name=name), replace(current, keep="largest"))]
    for size in _sizes(evidence, name, current):
        step = Step(kind="minimum_size", class_name=name, minimum_mm3=size)
        candidates.append((step, replace(current, keep="minimum", minimum_mm3=size)))
    level = 1 - (1 - LEVEL) / len(candidates)
    found = [_considered(evidence, name, step, current, changed, level=level) for step, changed in candidates]
    best = max((number for number, one in enumerate(found) if one.adopted), key=lambda n: found[n].after, default=None)
    if best is None:
        return found, current
    kept = [
        one if number == best or not one.adopted else replace(one, adopted=False, note=f"{found[best].what} gains more")
        for number, one in enumerate(found)
    ]
    return kept, candidates[best][1]


def _considered(
    evidence: Evidence, name: str, step: Step, current: Treatment, changed: Treatment, *, level: float
) -> Finding:
    before, after = evidence.dice(name, current), evidence.dice(name, changed)
    effect = evidence.effect(before, after, level=level)
    return Finding(
        what=str(step),
        adopted=effect.certain,
        before=_mean(before.values()),
        after=_mean(after.values()),
        effect=effect,
        step=step,
    )


def _sizes(evidence: Evidence, name: str, current: Treatment) -> list[float]:
    """Least sizes in mm³ that are worth trying, rising: just above quantiles of the wholly wrong components' sizes."""
    tables = [table[name] for table in evidence.tables.values() if name in table]
    wrong = [
        (part.size + 0.5) * table.voxel_mm3  # half a voxel on, so that no size is ever equal to it
        for table in tables
        for part in table.components
        if part.right == 0 and part.counted and (part.in_main or not current.main_only)
    ]
    if not wrong:
        return []
    return sorted({float(np.quantile(wrong, share, method="lower")) for share in _SIZE_QUANTILES})


# --- configurations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which candidate was chosen, and the evidence: one finding per candidate."""

    name: str
    findings: tuple[Finding, ...]


def choose(candidates: Mapping[str, Evidence], *, ensembles: Iterable[str] = ()) -> Choice:
    """The best configuration on these cases, by mean Dice over classes and cases.

    The best single configuration is the one with the highest mean (of equals the first). An ensemble, which costs the time
    of its members together, has to be better than that one by the paired bootstrap.

    Args:
        candidates: name to its cases; all have the same cases.
        ensembles: those that consist of others.
    """
    dices = {name: evidence.mean_dice(Treatment()) for name, evidence in candidates.items()}
    means = {name: _mean(values.values()) for name, values in dices.items()}
    mixed = [name for name in candidates if name in set(ensembles)]
    singles = [name for name in candidates if name not in mixed] or mixed
    best = max(singles, key=lambda name: means[name])
    level = 1 - (1 - LEVEL) / max(1, len(mixed))
    findings, chosen = [], best
    for name, evidence in candidates.items():
        effect = None if name == best else evidence.effect(dices[best], dices[name], level=level)
        findings.append(
            Finding(
                what=name,
                adopted=False,
                before=means[best],
                after=means[name],
                effect=effect,
                note="" if name == best else f"against {best}",
            )
        )
        better = name in mixed and effect is not None and effect.certain
        if better and (chosen == best or means[name] > means[chosen]):
            chosen = name
    marked = tuple(replace(finding, adopted=finding.what == chosen) for finding in findings)
    return Choice(name=chosen, findings=marked)


# --- nesting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A configuration and its post-processing, and what they were chosen by."""

    choice: Choice
    steps: tuple[Finding, ...]

    @property
    def adopted(self) -> tuple[Step, ...]:
        """Post-processing that was adopted."""
        return adopted_steps(self.steps)

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "configuration": self.choice.name,
            "configurations": [finding.plain() for finding in self.choice.findings],
            "post_processing": [finding.plain() for finding in self.steps],
        }


def decide(candidates: Mapping[str, Evidence], *, ensembles: Iterable[str] = (), clean: bool = True) -> Decision:
    """First the configuration, then its post-processing (none where not ``clean``), on the same cases."""
    choice = choose(candidates, ensembles=ensembles)
    return Decision(choice=choice, steps=decide_steps(candidates[choice.name]) if clean else ())


def nested(
    candidates: Mapping[str, Evidence], folds: Mapping[str, int], make: Callable[[Mapping[str, Evidence]], T]
) -> dict[int, T]:
    """For each fold, what ``make`` decides on the cases of all the others.

    Args:
        candidates: name to its cases.
        folds: case id to the fold that held it out; at least two.
        make: the decision.
    """
    return {
        fold: make({name: _without(evidence, fold, folds) for name, evidence in candidates.items()})
        for fold in sorted(set(folds.values()))
    }


def _without(evidence: Evidence, fold: int, folds: Mapping[str, int]) -> Evidence:
    return replace(evidence, tables={case: table for case, table in evidence.tables.items() if folds[case] != fold})


def _mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values)
