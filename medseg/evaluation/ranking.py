"""How firmly runs are ranked: over resampled patients, and from one metric to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.evaluation.common_ground import MEAN, Field, FloatArray
from medseg.evaluation.comparing import BOOTSTRAP_SEED
from medseg.evaluation.registry import known_metrics

RESAMPLES = 2000
_CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Runs ranked by one metric's mean over cases (of each case's mean over classes).

    Attributes:
        means: run to its mean.
        ranks: run to its rank, 1 the best; runs of equal means share the mean of their ranks.
        first: run to the share of resamples in which it is the best; a draw is divided.
        rank_low, rank_high: run to the 2.5 and 97.5 % quantile of its rank.
        tau: mean Kendall tau between this ranking and a resample's; 1 where the order never changes. None where all are equal.
    """

    means: Mapping[str, float]
    ranks: Mapping[str, float]
    first: Mapping[str, float]
    rank_low: Mapping[str, float]
    rank_high: Mapping[str, float]
    tau: float | None

    def plain(self) -> dict[str, Any]:
        """As JSON-able values: one entry a run, and tau."""
        runs = {
            name: {
                "mean": self.means[name],
                "rank": self.ranks[name],
                "first": self.first[name],
                "rank_low": self.rank_low[name],
                "rank_high": self.rank_high[name],
            }
            for name in self.means
        }
        return {"runs": runs, "tau": self.tau}


def rank_runs(field: Field, metric: str) -> Ranking | None:
    """The ranking by ``metric`` and how it fares when patients are drawn anew, 2000 times; None where no case has a value."""
    table = field.table(metric, MEAN)
    known = ~np.isnan(table[0])
    if not known.any():
        return None
    sign = 1.0 if known_metrics([metric])[0].better == "higher" else -1.0
    patients = np.array([field.patients[case] for case in field.cases])[known]
    means = table[:, known].mean(axis=1)
    drawn = _resampled(table[:, known], patients)
    ranks, drawn_ranks = _ranks(sign * means[None])[0], _ranks(sign * drawn)
    best = drawn_ranks == drawn_ranks.min(axis=1, keepdims=True)
    first = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    low, high = np.quantile(drawn_ranks, [0.025, 0.975], axis=0)
    names = [run.name for run in field.runs]
    taus = [(tau, n) for row, n in _distinct(drawn_ranks) if (tau := kendall_tau(ranks, row)) is not None]
    return Ranking(
        means=dict(zip(names, means.tolist(), strict=True)),
        ranks=dict(zip(names, ranks.tolist(), strict=True)),
        first=dict(zip(names, first.tolist(), strict=True)),
        rank_low=dict(zip(names, low.tolist(), strict=True)),
        rank_high=dict(zip(names, high.tolist(), strict=True)),
        tau=sum(tau * n for tau, n in taus) / sum(n for _, n in taus) if taus else None,
    )


def _resampled(table: FloatArray, patients: Sequence[str] | Any) -> FloatArray:
    """(resamples, runs) means over patients drawn with replacement, each with all its cases; the same draw for every run."""
    names, index = np.unique(patients, return_inverse=True)
    sums = np.stack([np.bincount(index, row, len(names)) for row in table], axis=1)
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    parts = []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_CHUNK)
        parts.append((drawn @ sums) / (drawn @ counts)[:, None])
    return np.concatenate(parts)


def _ranks(goodness: FloatArray) -> FloatArray:
    """(B, runs): 1 for the greatest of each row, equal ones share the mean of their ranks."""
    better = (goodness[:, None, :] > goodness[:, :, None]).sum(axis=2)
    alike = (goodness[:, None, :] == goodness[:, :, None]).sum(axis=2)
    ranks: FloatArray = better + (alike + 1) / 2
    return ranks


def _distinct(ranks: FloatArray) -> list[tuple[FloatArray, int]]:
    """The orders that occur, and how often: few runs have few."""
    rows, counts = np.unique(ranks, axis=0, return_counts=True)
    return list(zip(rows, counts.tolist(), strict=True))


def kendall_tau(first: FloatArray, second: FloatArray) -> float | None:
    """Kendall's tau-b of two rankings of the same runs; None where either has all of them equal."""
    upper = np.triu_indices(len(first), 1)
    one, other = (np.sign(ranks[:, None] - ranks[None, :])[upper] for ranks in (first, second))
    scale = float(np.abs(one).sum() * np.abs(other).sum()) ** 0.5
    return float((one * other).sum()) / scale if scale else None


def metric_agreement(rankings: Mapping[str, Ranking]) -> dict[str, dict[str, float | None]]:
    """Kendall's tau between the rankings of every two metrics."""
    ranks = {metric: np.array(list(ranking.ranks.values())) for metric, ranking in rankings.items()}
    return {
        one: {other: kendall_tau(ranks[one], ranks[other]) for other in ranks if other != one}
        for one in ranks
        if len(ranks) > 1
    }
