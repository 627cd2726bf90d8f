"""The paired bootstrap: is a change of scores more than chance?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
_CHUNK = 500
_KEPT = 1000


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The mean difference of paired scores, and its interval.

    Attributes:
        mean: of the differences over cases.
        low, high: percentile interval of the mean over resampled patients.
        level: of that interval, e.g. 0.95.
        cases, patients: how many.
        better, worse: cases whose score rose or fell.
    """

    mean: float
    low: float
    high: float
    level: float
    cases: int
    patients: int
    better: int
    worse: int

    @property
    def certain(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.mean:+.4f} ({100 * self.level:.4g} % interval {self.low:+.4f} to {self.high:+.4f}; "
            f"{self.better} better, {self.worse} worse, {self.cases} cases)"
        )


def paired_effect(differences: Sequence[float], patients: Sequence[str], *, level: float, seed: int) -> Effect:
    """The mean of paired differences with a percentile bootstrap interval that resamples patients.

    Patients, not cases, are drawn with replacement, each with all its cases, for cases of one patient are alike (the
    cluster bootstrap; Davison and Hinkley 1997, section 3.8). A change that touches fewer than about four patients is
    never certain at 95 %: with that chance none of them is drawn and the resampled mean is 0.

    Args:
        differences: one per case, e.g. Dice after minus Dice before; at least one.
        patients: whose case it is, in the same order.
        level: of the interval, in (0, 1).
        seed: of the draws; the result is a function of the arguments alone.
    """
    values = np.asarray(differences, np.float64)
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.bincount(index, weights=values, minlength=len(names))
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    means = [
        (drawn @ sums) / (drawn @ counts) for drawn in (_draws if len(names) <= _KEPT else _draw)(len(names), seed)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Effect(
        mean=float(values.mean()),
        low=float(low),
        high=float(high),
        level=level,
        cases=len(values),
        patients=len(names),
        better=int((values > 0).sum()),
        worse=int((values < 0).sum()),
    )


def _draw(patients: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each patient is drawn, (500, patients) at a time."""
    generator = np.random.default_rng(seed)
    for _ in range(RESAMPLES // _CHUNK):
        yield generator.multinomial(patients, np.full(patients, 1 / patients), size=_CHUNK)


@lru_cache(maxsize=1)
def _draws(patients: int, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """The same, kept: a comparison has many differences of the same patients."""
    return tuple(_draw(patients, seed))
