"""Fits what predicts a mask's Dice without its truth, on masks of networks that did not see their cases, and tests it.

Everything is fitted with whole folds left out: the residuals that make the conformal margin are those of a fold's cases under
a model fitted on the other folds, and the reported figures come from a calibration, margin and all, of the other folds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.inference.appearance import APPEARANCE
from medseg.inference.calibration import FLOOR, Calibration, ClassCalibration, Structures, describe
from medseg.inference.uncertainty import doubt_centres

COVERAGE = 0.9
_FEW = ("doubt", "unusual")
_SIZE = ("doubt", "others", "volume", "unusual")
_MASK = ("doubt", "others", "entropy", "volume", "unusual", "compactness", "contact", "x", "y", "z")
FEATURES = (_FEW, _MASK, (*_FEW, *APPEARANCE), (*_SIZE, *APPEARANCE), (*_MASK, *APPEARANCE))
"""Sets of features, of which the one with the least error on left-out groups is taken: few tell more of few masks."""
_CASES_PER_FEATURE = 10
_LEAST_CASES = 8
_RIDGES = (1.0, 10.0, 100.0, 1000.0)
"""The one with the least error on left-out groups is taken; the last all but says the mean, where nothing can be told."""
_HOTTEST = 8.0
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class JudgedCase:
    """A mask, what it says of itself, and how good it is.

    Attributes:
        id: of the case.
        group: what is left out together: the fold that held it out.
        structures, inside, outside, voxel_ml: of its `uncertainty.Evidence`.
        dice: per class; classes that neither mask has, or that nobody looked for, are left out.
        wrong_ml: volume of voxels that a structure has too much or too little, over all structures.
    """

    id: str
    group: int
    structures: Structures
    inside: tuple[int, ...]
    outside: tuple[int, ...]
    voxel_ml: float
    dice: Mapping[str, float]
    wrong_ml: float

    def has(self, name: str) -> bool:
        """Whether a class can be calibrated on it: drawn, and with a Dice."""
        return name in self.dice and self.structures.get(name, {}).get("volume_ml", 0) > 0


def fit_calibration(
    cases: Sequence[JudgedCase],
    class_names: Sequence[str],
    *,
    model_sha256: str,
    coverage: float = COVERAGE,
    evidence: Mapping[str, Any] | None = None,
) -> Calibration:
    """A calibration of all these cases.

    Args:
        cases: with out-of-fold masks; with two groups or more, residuals are those of left-out groups, else of left-out cases.
        class_names: without background.
        model_sha256: of the model that it will be used with.
        coverage: share of masks whose Dice is to lie above the bound, in (0, 1).
        evidence: kept with it.

    Returns:
        Classes with fewer than 8 cases are left out of it. With fewer than coverage / (1 - coverage) cases a bound can't be
        given, and is 0.
    """
    typical = {name: _median_ml(cases, name) for name in class_names}
    typical_ml = {name: volume for name, volume in typical.items() if volume is not None}
    classes = {
        name: _fit_class([case for case in cases if case.has(name)], name, typical_ml, coverage) for name in typical_ml
    }
    return Calibration(
        model_sha256=model_sha256,
        coverage=coverage,
        classes={name: own for name, own in classes.items() if own is not None},
        typical_ml=typical_ml,
        temperature=fit_temperature(cases),
        evidence=dict(evidence or {}),
    )


def _median_ml(cases: Sequence[JudgedCase], name: str) -> float | None:
    volumes = [case.structures[name]["volume_ml"] for case in cases if case.has(name)]
    return float(f"{np.median(volumes):.6g}") if volumes else None


def _fit_class(
    cases: Sequence[JudgedCase], name: str, typical_ml: Mapping[str, float], coverage: float
) -> ClassCalibration | None:
    if len(cases) < _LEAST_CASES:
        return None
    described = [describe(case.structures, name, typical_ml=typical_ml) for case in cases]
    errors = np.log([1 - case.dice[name] + FLOOR for case in cases])
    groups = [case.group for case in cases]
    if len(set(groups)) < 2:
        groups = list(range(len(cases)))
    residuals = {
        (names, ridge): _left_out_residuals(_rows(described, names), errors, groups, ridge)
        for names in _usable(described)
        for ridge in _RIDGES
    }
    names, ridge = min(residuals, key=lambda one: float(np.square(residuals[one]).mean()))
    left_out, rows = residuals[names, ridge], _rows(described, names)
    centres, scales, weights, intercept = _ridge(rows, errors, ridge)
    return ClassCalibration(
        names=names,
        centres=_plain(centres),
        scales=_plain(scales),
        weights=_plain(weights),
        intercept=round(intercept, 6),
        smear=round(float(np.exp(left_out).mean()), 6),
        margin=conformal_margin(left_out, coverage),
        cases=len(cases),
    )


def _left_out_residuals(rows: Matrix, errors: Matrix, groups: Sequence[int], ridge: float) -> Matrix:
    """What each case's log error exceeds that which the other groups predict by, (cases,)."""
    result = np.empty(len(errors))
    for group in set(groups):
        out = np.array([one == group for one in groups])
        centres, scales, weights, intercept = _ridge(rows[~out], errors[~out], ridge)
        result[out] = errors[out] - (intercept + np.arcsinh((rows[out] - centres) / scales) @ weights)
    return result


def _usable(described: Sequence[Mapping[str, float]]) -> list[tuple[str, ...]]:
    """The sets of features that every mask has and that there are enough masks for; always the smallest."""
    known = set.intersection(*(set(one) for one in described))
    return [
        names
        for names in FEATURES
        if names == _FEW or (set(names) <= known and len(described) >= _CASES_PER_FEATURE * len(names))
    ]


def _rows(described: Sequence[Mapping[str, float]], names: Sequence[str]) -> Matrix:
    return np.array([[one[feature] for feature in names] for one in described])


def _ridge(rows: Matrix, errors: Matrix, ridge: float) -> tuple[Matrix, Matrix, Matrix, float]:
    """(centres, scales, weights, intercept) of a ridge regression on asinh of standardised columns."""
    centres, scales = rows.mean(axis=0), rows.std(axis=0)
    scales = np.where(scales > 1e-5, scales, 1.0)  # a column that says nothing
    columns = np.arcsinh((rows - centres) / scales)
    middles, mean = columns.mean(axis=0), float(errors.mean())
    centred = columns - middles
    weights = np.linalg.solve(centred.T @ centred + ridge * np.eye(len(scales)), centred.T @ (errors - mean))
    return centres, scales, weights, mean - float(middles @ weights)


def _plain(values: Matrix) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


def conformal_margin(residuals: Sequence[float] | Matrix, coverage: float) -> float | None:
    """What a new residual stays below with probability ``coverage`` at least, if it is exchangeable with these.

    The ceil((n + 1) coverage)-th smallest of n residuals (Vovk et al. 2005; Lei et al. 2018); None where that is more than n.
    """
    place = math.ceil((len(residuals) + 1) * coverage - 1e-9)
    return round(float(np.sort(residuals)[place - 1]), 6) if place <= len(residuals) else None


def fit_temperature(cases: Sequence[JudgedCase]) -> float:
    """The temperature at which the probabilities promise as much wrong volume as there is: mass outside plus lack inside.

    Between 1/8 and 8, by bisection; 1 where there is no evidence.
    """
    inside, outside = (
        np.sum([np.multiply(getattr(case, what), case.voxel_ml) for case in cases], axis=0)
        for what in ("inside", "outside")
    )
    wrong, doubtful = sum(case.wrong_ml for case in cases), inside + outside
    if not np.any(doubtful) or wrong <= 0:
        return 1.0
    low, high = math.log(1 / _HOTTEST), math.log(_HOTTEST)
    for _ in range(40):
        middle = (low + high) / 2
        if promised_errors_ml(doubtful, math.exp(middle)) < wrong:
            low = middle
        else:
            high = middle
    return round(math.exp((low + high) / 2), 4)


def promised_errors_ml(doubtful: Matrix, temperature: float) -> float:
    """Wrong volume that a histogram of doubts (ml per bin) promises at a temperature."""
    doubts = doubt_centres()
    some = doubts > 0
    logits = np.log(doubts[some]) - np.log1p(-doubts[some])
    return float((doubtful[some] / (1 + np.exp(-logits / temperature))).sum())


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a calibration that did not see a case's fold says of a structure of it, and the truth."""

    case: str
    name: str
    expected: float
    bound: float
    dice: float


def predict_left_out(
    cases: Sequence[JudgedCase], class_names: Sequence[str], *, coverage: float = COVERAGE
) -> tuple[Prediction, ...]:
    """Each case's structures, judged by a calibration of all other groups; none with fewer than two groups."""
    found: list[Prediction] = []
    for group in sorted({case.group for case in cases}):
        others = [case for case in cases if case.group != group]
        if not others:
            return ()
        calibration = fit_calibration(others, class_names, model_sha256="", coverage=coverage)
        for case in (case for case in cases if case.group == group):
            for name in class_names:
                if case.has(name) and (estimate := calibration.estimate(case.structures, name)) is not None:
                    expected, bound = estimate
                    found.append(
                        Prediction(case=case.id, name=name, expected=expected, bound=bound, dice=case.dice[name])
                    )
    return tuple(found)


def figures(
    predictions: Sequence[Prediction], cases: Sequence[JudgedCase], *, coverage: float = COVERAGE
) -> dict[str, Any]:
    """How good predictions are, as plain values.

    Returns:
        ``coverage`` (promised and found, and per class), ``mean_absolute_error`` of the expected Dice beside that of always
        saying the mean, ``rank_correlation`` over cases, ``found`` (share of the worst tenth that the riskiest fifth holds),
        and ``risk_coverage`` (see `risk_coverage`).
    """
    if not predictions:
        return {}
    names = sorted({one.name for one in predictions})
    covered = {name: [one.dice >= one.bound for one in predictions if one.name == name] for name in names}
    dices, expected = np.array([one.dice for one in predictions]), np.array([one.expected for one in predictions])
    means = {name: float(np.mean([one.dice for one in predictions if one.name == name])) for name in names}
    always = np.array([means[one.name] for one in predictions])
    risk, quality = _per_case(predictions)
    return {
        "cases": len(risk),
        "coverage": {
            "promised": coverage,
            "found": round(float(np.mean([one.dice >= one.bound for one in predictions])), 4),
            "classes": {name: round(float(np.mean(own)), 4) for name, own in covered.items()},
        },
        "mean_absolute_error": {
            "expected_dice": round(float(np.abs(expected - dices).mean()), 4),
            "always_the_mean": round(float(np.abs(always - dices).mean()), 4),
        },
        "rank_correlation": round(_rank_correlation(-risk, quality), 4),
        "found_of_worst_tenth": round(found_share(risk, quality), 4),
        "wrong_ml": {
            "true": round(sum(case.wrong_ml for case in cases), 3),
            "promised": round(
                promised_errors_ml(
                    np.sum([np.multiply(np.add(c.inside, c.outside), c.voxel_ml) for c in cases], axis=0), 1.0
                ),
                3,
            ),
        },
        "risk_coverage": risk_coverage(risk, quality),
    }


def _per_case(predictions: Sequence[Prediction]) -> tuple[Matrix, Matrix]:
    """(risk, mean Dice) per case, in the order of their ids."""
    found: dict[str, list[Prediction]] = {}
    for one in predictions:
        found.setdefault(one.case, []).append(one)
    ordered = [found[case] for case in sorted(found)]
    return (
        np.array([1 - np.mean([one.expected for one in own]) for own in ordered]),
        np.array([np.mean([one.dice for one in own]) for own in ordered]),
    )


def found_share(risk: Matrix, quality: Matrix, *, reviewed: float = 0.2, worst: float = 0.1) -> float:
    """Share of the ``worst`` cases by quality that are among the ``reviewed`` ones by risk, both rounded, at least one."""
    look, bad = (max(1, round(share * len(risk))) for share in (reviewed, worst))
    riskiest = set(np.argsort(-risk, kind="stable")[:look].tolist())
    return len(riskiest & set(np.argsort(quality, kind="stable")[:bad].tolist())) / bad


def risk_coverage(risk: Matrix, quality: Matrix) -> list[dict[str, float]]:
    """Mean Dice of the masks that are left when the riskiest are reviewed, beside the best and the random order.

    Returns:
        For 0, 5 ... 95 % reviewed: ``reviewed``, ``dice`` of the others, ``best`` (reviewed by true Dice); random order is
        ``dice`` at 0.
    """
    by_risk, by_truth = quality[np.argsort(-risk, kind="stable")], np.sort(quality)
    points = []
    for percent in range(0, 100, 5):
        start = min(len(quality) - 1, round(percent / 100 * len(quality)))
        points.append(
            {
                "reviewed": percent / 100,
                "dice": round(float(by_risk[start:].mean()), 4),
                "best": round(float(by_truth[start:].mean()), 4),
            }
        )
    return points


def _rank_correlation(one: Matrix, other: Matrix) -> float:
    """Spearman's: the correlation of ranks, equals sharing theirs; 0 where it is undefined."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Matrix) -> Matrix:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Matrix = (last - (counts - 1) / 2)[places]
    return ranks
