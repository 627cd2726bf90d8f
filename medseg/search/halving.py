"""Successive halving (Jamieson and Talwalkar 2016): many candidates for a short time, the better ones again for longer.

Every round gets an equal share of the minutes. A candidate starts anew in each round, because a schedule that falls to 0 at
the end of its budget can't be compared in its middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medseg.errors import UsageError

FACTOR = 3
"""Each round keeps one candidate in so many."""
DEFAULT = 0
"""The candidate that changes nothing; it takes part in every round, so that the winner is compared with it on equal terms."""
_LEAST_MINUTES = 0.02


@dataclass(frozen=True)
class Round:
    """How many candidates, the default among them, train for how many minutes each."""

    candidates: int
    minutes: float


def plan_rounds(candidates: int, minutes: float) -> tuple[Round, ...]:
    """The rounds of a search.

    Args:
        candidates: at the start, the default among them; at least 2.
        minutes: of training in all.

    Returns:
        Rounds of falling size; the last is between the default and the best other candidate.

    Raises:
        UsageError: there is nothing to compare, or too little time.
    """
    if candidates < 2:
        raise UsageError(
            f"tune: has {candidates} candidate, expected at least 2, the default and another; raise --candidates"
        )
    sizes = [candidates]
    while sizes[-1] > 2:
        sizes.append(max(2, 1 + -(-(sizes[-1] - 1) // FACTOR)))  # the default stays beside a third of the others
    share = minutes / len(sizes)
    if share / candidates < _LEAST_MINUTES:
        raise UsageError(
            f"tune: {minutes:g} minutes leave {60 * share / candidates:.1f} s for each of {candidates} candidates, expected "
            f"{60 * _LEAST_MINUTES:.1f} s or more; give more --minutes or fewer --candidates"
        )
    return tuple(Round(size, share / size) for size in sizes)


def promoted(scores: Mapping[int, float | None], count: int) -> tuple[int, ...]:
    """The candidates of the next round: the default and the best others, lower numbers first where scores are equal.

    Args:
        scores: of this round, by candidate; None for one that failed, which goes no further (the default always does).
        count: candidates of the next round.
    """
    others = [(-score, k) for k, score in scores.items() if score is not None and k != DEFAULT]
    return (DEFAULT, *(k for _, k in sorted(others)[: count - 1]))


def winner(scores: Mapping[int, float | None], order: Sequence[int] = ()) -> int:
    """The best of the last round; the default where nothing is better than it."""
    best, value = DEFAULT, scores.get(DEFAULT)
    for k in order or sorted(scores):
        score = scores[k]
        if score is not None and (value is None or score > value):
            best, value = k, score
    return best
