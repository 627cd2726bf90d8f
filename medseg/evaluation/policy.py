"""What empty masks count for. Named, because the choice moves the mean, and stated beside every mean.

A metric can be undefined (0/0, or a distance to nothing). Then:

=============  =====================================  ==================================================
situation      standard                               exclude
=============  =====================================  ==================================================
both_empty     left out, counted                      left out, counted
missed         the worst value: 0 for a share, the    left out, counted
spurious       image's diagonal for a distance        left out, counted
=============  =====================================  ==================================================

A value that is defined is never changed: Dice of a missed structure is 0 under both, and so is the volume of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.evaluation.pair import MaskPair, Situation
from medseg.evaluation.registry import METRICS, Metric
from medseg.evaluation.reliability import ProbabilityMap


@dataclass(frozen=True)
class EmptyPolicy:
    """A named rule for undefined values.

    Attributes:
        name: as in the config.
        imputes: whether the worst value stands in for an undefined one where exactly one mask is empty.
        description: one sentence for reports.
    """

    name: str
    imputes: bool
    description: str


POLICIES = {
    "standard": EmptyPolicy(
        "standard",
        imputes=True,
        description="undefined where one mask is empty: the worst value (0, or the image's diagonal for a distance); "
        "undefined where both are empty: left out; always counted",
    ),
    "exclude": EmptyPolicy(
        "exclude", imputes=False, description="undefined values are left out, whichever mask is empty; always counted"
    ),
}


def counted_value(value: float, worst: float, situation: Situation, policy: EmptyPolicy) -> float:
    """The number that enters the mean, NaN for none.

    Args:
        value: as computed, NaN where undefined.
        worst: the metric's worst value for this case, NaN where it has none.
        situation: which masks are empty.
        policy: the rule.
    """
    if math.isnan(value) and policy.imputes and situation in ("missed", "spurious"):
        return worst
    return value


def policy_table(policy: EmptyPolicy, metrics: Sequence[Metric] = METRICS) -> dict[str, dict[str, str]]:
    """What each metric counts in each situation, found by computing it there: metric name to situation to words."""
    empty, full = np.zeros((4, 4), dtype=np.bool_), np.zeros((4, 4), dtype=np.bool_)
    full[1:3, 1:3] = True
    pairs = {
        name: MaskPair(
            prediction,
            reference,
            spacing_mm=(1.0, 1.0),
            probability=ProbabilityMap(np.full((4, 4), 0.5), (slice(None), slice(None))),
        )
        for name, prediction, reference in (
            ("both_empty", empty, empty),
            ("missed", empty, full),
            ("spurious", full, empty),
        )
    }
    return {metric.name: {name: _words(metric, pair, policy) for name, pair in pairs.items()} for metric in metrics}


def _words(metric: Metric, pair: MaskPair, policy: EmptyPolicy) -> str:
    value = metric.compute(pair)
    if not math.isnan(value):
        return "0" if value == 0 else "its value"
    counted = counted_value(value, metric.worst_value(pair.diagonal_mm), pair.situation, policy)
    if math.isnan(counted):
        return "left out"
    return "image diagonal, imputed" if metric.worst == "diagonal" else f"{counted:g}, imputed"
