"""How often 95 % intervals of a mean and a median hold it, and how often tests of equal models refuse equality.

    python benchmarks/bench_coverage.py [--replicates 20000] > coverage.md

Everything is drawn from stated distributions with a fixed seed; true means and medians are known in closed form. Intervals and
the sign-flip test are medseg's own functions; Student's t, the bootstraps and the other tests are written here, or scipy's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri, stdtrit

from medseg.evaluation.intervals import mean_interval, median_interval
from medseg.evaluation.signflip import sign_flip

SIZES = (3, 4, 5, 10, 20, 50, 100, 200)
TEST_SIZES = (10, 20, 50)
RESAMPLES = 2000
MISSED = 0.05
DIAGONAL_MM = 300.0
_CHUNK = 500
_BETA = stats.beta(9, 1)
_LOGNORMAL = stats.lognorm(s=0.8, scale=math.e)


@dataclass(frozen=True)
class Distribution:
    """``draw(generator, shape)`` gives (values, failed); the true mean and median; what an unseen failure counts, if any."""

    name: str
    words: str
    draw: Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, np.ndarray]]
    mean: float
    median: float
    worst: float | None = 0.0


def _gaussian(generator, shape):
    return generator.normal(0.85, 0.05, shape), np.zeros(shape, bool)


def _skewed(generator, shape):
    return generator.beta(9, 1, shape), np.zeros(shape, bool)


def _missed(generator, shape):
    failed = generator.random(shape) < MISSED
    return np.where(failed, 0.0, generator.beta(9, 1, shape)), failed


def _distance(generator, shape):
    return generator.lognormal(1.0, 0.8, shape), np.zeros(shape, bool)


def _missed_distance(generator, shape):
    failed = generator.random(shape) < MISSED
    return np.where(failed, DIAGONAL_MM, generator.lognormal(1.0, 0.8, shape)), failed


_SCORES = ("Gaussian", "skewed", "skewed, 5 % missed")
_MID = (0.5 - MISSED) / (1 - MISSED)
DISTRIBUTIONS = (
    Distribution("Gaussian", "Normal(0.85, SD 0.05)", _gaussian, 0.85, 0.85),
    Distribution("skewed", "Beta(9, 1): mean 0.9, SD 0.09, skewness -1.5", _skewed, 0.9, float(_BETA.ppf(0.5))),
    Distribution(
        "skewed, 5 % missed", "Beta(9, 1), and 0 with chance 0.05", _missed, 0.9 * (1 - MISSED), float(_BETA.ppf(_MID))
    ),
    Distribution(
        "distance", "lognormal(1, 0.8): mean 3.7 mm, SD 3.5 mm, skewness 3.7; no failures are counted", _distance,
        float(_LOGNORMAL.mean()), math.e, None,
    ),
    Distribution(
        "distance, 5 % missed", "the same, and 300 mm (the image's diagonal) with chance 0.05", _missed_distance,
        (1 - MISSED) * float(_LOGNORMAL.mean()) + MISSED * DIAGONAL_MM, float(_LOGNORMAL.ppf(0.5 / (1 - MISSED))),
        DIAGONAL_MM,
    ),
)  # fmt: skip


# --- methods: (R, n) values -> (R,) low, (R,) high ---------------------------------------------------------------------


def t_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = values.shape[1]
    half = stdtrit(n - 1, 0.975) * values.std(axis=1, ddof=1) / math.sqrt(n)
    return values.mean(axis=1) - half, values.mean(axis=1) + half


def t_median(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median ± t times sqrt(pi / 2) SD / sqrt(n), the error of a median of normal values."""
    n = values.shape[1]
    half = stdtrit(n - 1, 0.975) * math.sqrt(math.pi / 2 / n) * values.std(axis=1, ddof=1)
    return np.median(values, axis=1) - half, np.median(values, axis=1) + half


def bootstrap_mean(values: np.ndarray, generator: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    n = values.shape[1]
    weights = generator.multinomial(n, np.full(n, 1 / n), RESAMPLES).T / n
    residuals = values - values.mean(axis=1, keepdims=True)
    moment = np.maximum((residuals**2).sum(axis=1), 1e-300)
    acceleration = (residuals**3).sum(axis=1) / moment**1.5 / 6  # of the mean's jackknife: skewness / (6 sqrt(n))
    return _bootstrap(values.mean(axis=1), [rows @ weights for rows in _chunks(values)], acceleration)


def bootstrap_median(values: np.ndarray, generator: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The median of a resample is one or two order statistics of n uniform ranks, which are Beta: no resample is made."""
    ordered, n = np.sort(values, axis=1), values.shape[1]
    lower = generator.beta((n + 1) // 2, n - (n + 1) // 2 + 1, RESAMPLES)
    upper = lower if n % 2 else lower + (1 - lower) * generator.beta(1, n // 2, RESAMPLES)
    first, second = (np.minimum((rank * n).astype(int), n - 1) for rank in (lower, upper))
    medians = [(rows[:, first] + rows[:, second]) / 2 for rows in _chunks(ordered)]
    return _bootstrap(np.median(values, axis=1), medians, np.zeros(len(values)))  # its jackknife has no skewness


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def _bootstrap(found: np.ndarray, resampled: list[np.ndarray], acceleration: np.ndarray) -> dict:
    ends: dict[str, list] = {"percentile": [], "BCa": []}
    start = 0
    for table in resampled:
        own = slice(start, start + len(table))
        start += len(table)
        table.sort(axis=1)
        below = (table < found[own, None]).mean(axis=1) + (table == found[own, None]).mean(axis=1) / 2
        bias = ndtri(np.clip(below, 0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES))
        plain, corrected = [], []
        for tail in (0.025, 0.975):
            z = bias + ndtri(tail)
            share = ndtr(bias + z / (1 - acceleration[own] * z))
            plain.append(_quantile(table, np.full(len(table), tail)))
            corrected.append(_quantile(table, share))
        ends["percentile"].append(plain)
        ends["BCa"].append(corrected)
    return {
        name: tuple(np.concatenate([part[side] for part in parts]) for side in (0, 1)) for name, parts in ends.items()
    }


def _quantile(ordered: np.ndarray, share: np.ndarray) -> np.ndarray:
    index = np.clip((share * ordered.shape[1]).astype(int), 0, ordered.shape[1] - 1)
    return ordered[np.arange(len(ordered)), index]


def ours(values: np.ndarray, failed: np.ndarray, worst: float | None, *, median: bool, patients=None):
    rows = []
    for row, fails in zip(values, failed, strict=True):
        if median:
            found = median_interval(row, patients)
        elif worst is None:
            found = mean_interval(row, patients)
        else:
            found = mean_interval(row, patients, failed=fails, worst=worst)
        rows.append((math.nan, math.nan) if found.low is None else (found.low, found.high))
    low, high = np.array(rows).T
    return low, high


def coverage_rows(
    distribution: Distribution, n: int, replicates: int, *, median: bool
) -> dict[str, tuple[float, float]]:
    """Method to (coverage, mean width)."""
    generator = np.random.default_rng([20, n, [d.name for d in DISTRIBUTIONS].index(distribution.name), median])
    values, failed = distribution.draw(generator, (replicates, n))
    if median:
        found = {"t": t_median(values), **bootstrap_median(values, generator)}
    else:
        found = {"t": t_mean(values), **bootstrap_mean(values, generator)}
    found["medseg"] = ours(values, failed, distribution.worst, median=median)
    truth = distribution.median if median else distribution.mean
    return {
        name: (float(((low <= truth) & (truth <= high)).mean()), float(np.nanmean(high - low)))
        for name, (low, high) in found.items()
    }


def coverage_table(replicates: int, *, median: bool) -> None:
    what = "median" if median else "mean"
    print(f"\n## The {what}'s interval: coverage in %, mean width in brackets\n")
    methods = ("t", "percentile", "BCa", "medseg")
    print("| scores | n | " + " | ".join(methods) + " |\n| --- | --- | " + " | ".join("---" for _ in methods) + " |")
    least: dict[tuple[bool, int], float] = {}
    for distribution in DISTRIBUTIONS:
        for n in SIZES:
            repeats = replicates if distribution.name in _SCORES else replicates // 2
            rows = coverage_rows(distribution, n, repeats, median=median)
            cells = (f"{100 * rows[name][0]:.1f} ({rows[name][1]:.3g})" for name in methods)
            print(f"| {distribution.name} | {n} | " + " | ".join(cells) + " |", flush=True)
            key = (distribution.worst is None, n)
            least[key] = min(least.get(key, 1.0), rows["medseg"][0])
    for without in (False, True):
        found = {n: round(least[without, n], 3) for n in SIZES}
        print(f"\nLeast of medseg's, {'no failures counted' if without else 'failures counted'}: {found}")


def cluster_table(replicates: int) -> None:
    """Patients with one to four scans; a patient's level has 70 % of the logit's variance and one in 20 patients fails."""
    print(
        "\n## Several scans a patient\n\n| patients (scans) | mean, by case | mean, by patient | median, by patient |"
    )
    print("| --- | --- | --- | --- |")
    for n in (10, 20, 50, 100, 200):
        generator = np.random.default_rng([21, n])
        counts = 1 + np.arange(n) % 4
        patients = [str(k) for k in np.repeat(np.arange(n), counts)]
        values, failed = _clustered(generator, counts, replicates)
        large, _ = _clustered(np.random.default_rng(22), counts, 400_000 // n)
        truth, middle = float(large.mean()), float(np.median(large))
        cells = []
        for names, median, goal in ((None, False, truth), (patients, False, truth), (patients, True, middle)):
            low, high = ours(values, failed, 0.0, median=median, patients=names)
            cells.append(f"{100 * ((low <= goal) & (goal <= high)).mean():.1f}")
        print(f"| {n} ({len(patients)}) | " + " | ".join(cells) + " |", flush=True)


def _clustered(generator, counts, replicates):
    n = len(counts)
    level = generator.normal(0, math.sqrt(0.7), (replicates, n)).repeat(counts, axis=1)
    logit = 2 + level + generator.normal(0, math.sqrt(0.3), (replicates, counts.sum()))
    failed = (generator.random((replicates, n)) < MISSED).repeat(counts, axis=1)
    return np.where(failed, 0.0, 1 / (1 + np.exp(-logit))), failed


# --- tests ------------------------------------------------------------------------------------------------------------


def _pairs(name: str, generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Differences of two models that are alike: a case's difficulty is shared, what is left is each model's own."""
    if name == "Gaussian":
        return generator.normal(0, 0.03, shape)
    difficulty = generator.normal(2.2, 1.0, shape)
    sides = [1 / (1 + np.exp(-(difficulty + generator.normal(0, 0.5, shape)))) for _ in range(2)]
    if name == "skewed, 5 % missed":
        sides = [np.where(generator.random(shape) < MISSED, 0.0, side) for side in sides]
    return sides[1] - sides[0]


def size_table(replicates: int) -> None:
    print("\n## Tests of two models that are alike: share refused at 5 %, in %\n")
    print("| scores | n | t | paired bootstrap | Wilcoxon | sign flips |\n| --- | --- | --- | --- | --- | --- |")
    for name in _SCORES:
        for n in TEST_SIZES:
            generator = np.random.default_rng([23, n, len(name)])
            differences = _pairs(name, generator, (replicates, n))
            low, high = bootstrap_mean(differences, generator)["percentile"]
            shares = (
                (stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean(),
                ((low > 0) | (high < 0)).mean(),
                _wilcoxon_size(differences),
                _flip_size(differences),
            )
            print(f"| {name} | {n} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |", flush=True)


def _wilcoxon_size(differences: np.ndarray) -> float:
    """The exact signed-rank test; differences of 0 (both missed, one case in 400) take the lowest ranks."""
    n = differences.shape[1]
    ranks = np.abs(differences).argsort(axis=1).argsort(axis=1) + 1
    found = (ranks * (differences > 0)).sum(axis=1)
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1.0
    for rank in range(1, n + 1):
        counts[rank:] = counts[rank:] + counts[: len(counts) - rank]
    tail = np.cumsum(counts / 2.0**n)
    return float((2 * tail[np.minimum(found, len(counts) - 1 - found)] <= 0.05).mean())


def _flip_size(differences: np.ndarray) -> float:
    refused = 0
    for rows in _chunks(differences):
        found = sign_flip(np.ascontiguousarray(rows.T), np.ones(rows.T.shape))
        disagree = ((found.low > 0) | (found.high < 0)) != (found.p_value <= 0.05)
        assert not disagree.any(), "the test and its interval disagree"
        refused += int((found.p_value <= 0.05).sum())
    return refused / len(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicates", type=int, default=20_000)
    replicates = parser.parse_args().replicates
    started = time.process_time()
    error = 100 * math.sqrt(0.95 * 0.05 / replicates)
    print(
        f"{replicates:,} replicates a line (half for distances, 4,000 for several scans a patient); one SE of 95 % is "
        f"{error:.2f} points. {RESAMPLES:,} resamples.\n"
    )
    for distribution in DISTRIBUTIONS:
        print(
            f"- {distribution.name}: {distribution.words}; true mean {distribution.mean:.4f}, median {distribution.median:.4f}"
        )
    coverage_table(replicates, median=False)
    size_table(replicates)
    coverage_table(replicates, median=True)
    cluster_table(4000)
    print(f"\n{time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
