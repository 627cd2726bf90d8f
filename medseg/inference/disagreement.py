"""Where the members of an ensemble draw different masks: a map of it, and a number per structure.

Entropy says how sure the averaged answer is, disagreement how much it hangs on which cases a member was trained on. Only
winners are kept, a byte a voxel and member, so that five folds cost little more memory than one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.config.sections import InferSection
from medseg.errors import ScanError, UsageError
from medseg.imaging import Regions
from medseg.imaging.resampling import resampled_scores
from medseg.inference.engine import ClassArray, Engine, Scores
from medseg.inference.model import Model
from medseg.inference.scores import Features, ScoreFile, stacked
from medseg.inference.sliding_window import FloatArray
from medseg.preparation.grid import Grid


@dataclass(frozen=True, eq=False)
class Voted:
    """Class scores of an ensemble, and what each member would have drawn.

    Attributes:
        mean: as `Engine.scores` gives them.
        votes: per member (X, Y, Z) uint8 class indices on the prepared grid.
    """

    mean: Scores
    votes: tuple[ClassArray, ...]


class VotingEngine(Engine):
    """An `Engine` that keeps its members' winners; its masks are the same, byte for byte.

    Raises:
        UsageError: there is only one model.
        ModelError: as `Engine`.
    """

    def __init__(self, models: Sequence[Model], section: InferSection, **room: Any) -> None:
        if len(models) < 2:
            raise UsageError(
                "infer.uncertainty: is disagreement with one model, expected an ensemble; take entropy, or name several models"
            )
        super().__init__(models, section, **room)
        self._members = [Engine([model], section, **room) for model in models]

    def scores(self, array: FloatArray) -> Voted:  # type: ignore[override]
        """The mean over the members, and their winners.

        Raises:
            ScanError: the scan does not fit in memory, or only with its scores in a file, where members can't be told apart.
        """
        parts: list[Scores] = []
        votes: list[ClassArray] = []
        for member in self._members:
            own = member.scores(array)
            if isinstance(own, ScoreFile):
                raise ScanError(
                    "scan: its class scores do not fit in memory, expected that of disagreement between models; take "
                    "--uncertainty entropy, or a larger machine"
                )
            votes.append(winners(own, self.plan.regions))
            if isinstance(own, Features) or not parts:
                parts.append(own)
            else:
                parts[0] += own  # type: ignore[operator]
        efforts = [member.effort() for member in self._members]
        counts = {name: sum(one[name] for one in efforts) for name in ("windows", "skipped_windows")}
        self._effort = {**counts, "way": efforts[-1]["way"]}
        first = parts[0]
        if isinstance(first, Features):
            return Voted(stacked([part for part in parts if isinstance(part, Features)]), tuple(votes))
        first /= np.float32(len(votes))  # type: ignore[operator]
        return Voted(first, tuple(votes))

    def classes(self, scores: Any, grid: Grid) -> ClassArray:
        """See `Engine.classes`."""
        return super().classes(scores.mean, grid)

    def slabs(self, scores: Any, grid: Grid, *, prepared: bool = False) -> Iterator[tuple[slice, FloatArray]]:
        """See `Engine.slabs`."""
        return super().slabs(scores.mean, grid, prepared=prepared)

    def disagreement_slabs(self, scores: Voted, grid: Grid) -> Iterator[tuple[slice, FloatArray]]:
        """The map on the scan's turned, cropped grid, slab by slab, as `Engine.slabs` gives probabilities.

        Yields:
            (slice along axis 0, (1, n, Y, Z) float32): the share of members that would have drawn something else there than the
            ensemble did, 0 to 1.
        """
        share = np.zeros(scores.votes[0].shape, np.float32)
        drawn = winners(scores.mean, self.plan.regions)
        for vote in scores.votes:
            share += vote != drawn
        share /= np.float32(len(scores.votes))
        start = 0
        for slab in resampled_scores(share[None], grid.cropped_shape, separate_axis=grid.separate_axis_back):
            yield slice(start, start + slab.shape[1]), slab
            start += slab.shape[1]

    def disagreements(self, scores: Voted) -> dict[str, float | None]:
        """See `disagreement_of_structures`; per class name without background."""
        return disagreement_of_structures(scores.votes, self.class_names, self.plan.regions)


def winners(scores: Any, regions: Regions | None) -> ClassArray:
    """(X, Y, Z) uint8 class indices on the scores' own grid."""
    rows = scores.array if isinstance(scores, Features) else scores
    result = np.empty(rows.shape[1:], np.uint8)
    for x in range(result.shape[0]):
        slab = np.stack([np.asarray(channel[x : x + 1], np.float32) for channel in rows])
        slab = scores.scores(slab) if isinstance(scores, Features) else slab
        result[x] = (slab.argmax(axis=0) if regions is None else regions.decide(slab))[0]
    return result


def disagreement_of_structures(
    votes: Sequence[npt.NDArray[np.uint8]], class_names: Sequence[str], regions: Regions | None = None
) -> dict[str, float | None]:
    """How unlike the members' masks of each structure are.

    Args:
        votes: one array of class indices per member, of one shape.
        class_names: background first.
        regions: where classes overlap.

    Returns:
        Per class without background 1 minus the mean Dice over all pairs of members (Roy et al. 2019 take the Dice of samples
        likewise): 0 all alike, 1 nothing in common; None where no member has it. A pair without it in both does not count.
    """
    count = 1 + max(int(vote.max(initial=0)) for vote in votes)
    names = class_names[1:]
    members = {
        name: np.isin(np.arange(count), (index,) if regions is None else regions.indices_of(name))
        for index, name in enumerate(names, start=1)
    }
    dices: dict[str, list[float]] = {name: [] for name in names}
    for one, other in itertools.combinations(votes, 2):
        joint = np.bincount((one.astype(np.intp) * count + other).ravel(), minlength=count * count).reshape(
            count, count
        )
        for name, own in members.items():
            sizes = int(joint[own].sum()) + int(joint[:, own].sum())
            if sizes:
                dices[name].append(2 * int(joint[np.ix_(own, own)].sum()) / sizes)
    return {name: float(f"{1 - np.mean(own):.6g}") if own else None for name, own in dices.items()}
