"""nnU-Net's labels and regions as ours, and the one-hot channels of a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from medseg.errors import ModelError
from medseg.imaging.regions import MOST_REGIONS, Regions, index_labels, regions_of

_MOST_LABELS = 255
_LONGEST_NAME = 200


def refused(what: str, got: object, expected: str) -> ModelError:
    """The error for something that medseg would do otherwise than nnU-Net."""
    shown = str(got)
    shown = f"{shown[:117]}..." if len(shown) > 120 else shown
    return ModelError(
        f"nnU-Net model: {what} is {shown}, expected {expected}; medseg can't do exactly this, predict with nnU-Net itself"
    )


def read_labels(dataset: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Our labels and the ignore value from ``dataset.json``.

    Classes come in the order of their values, which is that of nnU-Net's outputs; regions in the order of the file.

    Raises:
        ModelError: the values are not 0, 1, 2 ..., or regions are painted in a way that our masks can't follow.
    """
    own = dict(dataset["labels"])
    ignore = own.pop("ignore", None)
    for name in own:
        if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise refused("labels", repr(name), f"names of 1 to {_LONGEST_NAME} characters that can be printed")
    values = {name: tuple(map(int, v)) if isinstance(v, list | tuple) else (int(v),) for name, v in own.items()}
    known = sorted({value for group in values.values() for value in group})
    if values.get("background") != (0,) or any(b - a != 1 for a, b in pairwise(known)):
        raise refused("labels", own, "background 0 and values without gaps")
    if known[-1] >= _MOST_LABELS:
        raise refused("labels", f"{len(known)} values", f"at most {_MOST_LABELS}")
    if all(len(group) == 1 for group in values.values()):
        if len(known) != len(values):
            raise refused("labels", own, "one name per value")
        return dict(sorted(values.items(), key=lambda item: item[1])), None if ignore is None else int(ignore)
    names = [name for name, group in values.items() if set(group) != {0}]
    painted = [int(value) for value in dataset["regions_class_order"]]
    return _regions(values, names, painted), None if ignore is None else int(ignore)


def _regions(
    values: Mapping[str, tuple[int, ...]], names: Sequence[str], painted: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Regions with the value first that nnU-Net paints them with, if every set of regions then gives nnU-Net's value."""
    if len(names) != len(painted):
        raise refused("regions_class_order", list(painted), f"one value for each of {len(names)} regions")
    if len(names) > MOST_REGIONS:
        raise refused("labels", f"{len(names)} regions", f"at most {MOST_REGIONS}")
    labels: dict[str, tuple[int, ...]] = {"background": (0,)}
    for name, value in zip(names, painted, strict=True):
        if value not in values[name] or 0 in values[name]:
            raise refused("regions_class_order", list(painted), f"a value of {name} for that region")
        # A combination is written with the first of its values that any region lists: those that nnU-Net paints.
        rest = sorted((v for v in values[name] if v != value), key=lambda v: (v not in painted, v))
        labels[name] = (value, *rest)
    regions = regions_of(labels)
    if regions is None:
        raise refused("labels", dict(values), "regions that overlap, or labels that are numbers")
    codes = np.arange(1 << len(names), dtype=np.uint16)
    theirs = np.zeros(len(codes), np.int64)
    for region, value in enumerate(painted):
        theirs[(codes >> region) & 1 == 1] = value
    if not np.array_equal(_written(regions)[regions.join(codes)], theirs):
        raise refused("regions_class_order", list(painted), "an order in which a region comes after those that hold it")
    return labels


def _written(regions: Regions) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The value that each stored index is written with."""
    return np.array([own[0] for own in index_labels(regions.labels).values()], np.int64)


def previous_inputs(labels: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Per one-hot channel of ours (one a stored index but 0), the channel of nnU-Net's: one a value, rising."""
    ours = list(index_labels(labels).values())[1:]
    if any(len(own) != 1 for own in ours):
        raise refused(
            "labels", {name: list(own) for name, own in labels.items()}, "one value per combination in a cascade"
        )
    ranked = sorted(own[0] for own in ours)
    return tuple(ranked.index(own[0]) for own in ours)
