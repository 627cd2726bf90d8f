"""Labels that overlap: a value of the label files that belongs to several of them, such as a tumour and its core.

A voxel then is not of one class but in a combination of regions. Everywhere an array holds one number a voxel (the prepared
data, patches, masks in memory) it is the index of that combination, 0 for none; labels that do not overlap are the
combinations of one, in their own order, so nothing else needs to know the difference. A network has an output per region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Labels = Mapping[str, tuple[int, ...]]
MOST_REGIONS = 16


def overlap(labels: Labels) -> bool:
    """Whether a value belongs to more than one label."""
    values = [value for own in labels.values() for value in set(own)]
    return len(values) > len(set(values))


def index_labels(labels: Labels) -> dict[str, tuple[int, ...]]:
    """The values that each stored index stands for, background's 0 first: the labels themselves where none overlap.

    Combinations of overlapping labels are called after their members (``tumour+core``) and come, as do their values, in
    the order in which the labels list them. Each is written with its first value.
    """
    if not overlap(labels):
        return dict(labels)
    background, *names = labels
    found: dict[tuple[str, ...], list[int]] = {}
    for value in dict.fromkeys(value for name in names for value in labels[name]):
        found.setdefault(tuple(name for name in names if value in labels[name]), []).append(value)
    return {background: tuple(labels[background])} | {"+".join(own): tuple(found[own]) for own in found}


@dataclass(frozen=True)
class Regions:
    """Overlapping labels.

    Attributes:
        labels: name to file values, background first.
    """

    labels: Labels

    @property
    def names(self) -> tuple[str, ...]:
        """Of the regions, without background."""
        return tuple(self.labels)[1:]

    @cached_property
    def members(self) -> tuple[tuple[bool, ...], ...]:
        """(R, A): of each region, which of the A stored indices belong to it."""
        indices = list(index_labels(self.labels).values())
        return tuple(tuple(values[0] in self.labels[name] for values in indices) for name in self.names)

    def indices_of(self, name: str) -> tuple[int, ...]:
        """The stored indices that belong to a region."""
        return tuple(int(i) for i in np.flatnonzero(self.members[self.names.index(name)]))

    @cached_property
    def _index_of_code(self) -> npt.NDArray[np.uint8]:
        """Stored index per set of regions (bit r: the r-th)."""
        # A set that the labels know is that combination. Of any other, the last region is written, as if regions were
        # painted one over the other (nnU-Net's regions_class_order); its own first value says which combination that is.
        count = len(self.names)
        matrix = np.array(self.members)
        own = [int(np.flatnonzero(_holding(self.labels, name))[0]) for name in self.names]
        table = np.zeros(1 << count, np.uint8)
        for region in range(count):
            table[1 << region : 2 << region] = own[region]
        for index in range(matrix.shape[1] - 1, 0, -1):
            table[int((matrix[:, index] * (1 << np.arange(count))).sum())] = index
        return table

    def join(self, codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
        """Stored indices of sets of regions.

        Args:
            codes: any shape; bit r is set where the voxel is in the r-th region.
        """
        return self._index_of_code[codes]

    def decide(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """Stored indices of (R, ...) logits: a voxel is in the regions whose logit is above 0."""
        codes = np.zeros(scores.shape[1:], np.uint16)
        for region, channel in enumerate(scores):
            codes |= (channel > 0).astype(np.uint16) << np.uint16(region)
        return self.join(codes)


def _holding(labels: Labels, name: str) -> npt.NDArray[np.bool_]:
    """Which stored index holds the label's first value."""
    return np.array([labels[name][0] in values for values in index_labels(labels).values()])


def regions_of(labels: Labels) -> Regions | None:
    """The regions, or None where no labels overlap."""
    return Regions(labels) if overlap(labels) else None
