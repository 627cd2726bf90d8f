"""Which patch sample k is: a pure function of (seed, k), so the whole state of the loader is one integer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Triple = tuple[int, int, int]


class PatchSource(Protocol):
    """A case that patches can be read from; ``StoredCase`` is one."""

    @property
    def id(self) -> str:
        """Case id."""

    @property
    def shape_xyz(self) -> Triple:
        """Voxels per axis."""

    @property
    def classes_present(self) -> Sequence[int]:
        """Class indices of which ``locations`` has voxels."""

    def locations(self, class_index: int) -> npt.NDArray[np.integer]:
        """(N, 3) voxels of a class."""

    def read_patch(self, start_xyz: Triple, size_xyz: Triple) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Image (C, *size) and labels (*size); zeros beyond the border."""


@runtime_checkable
class PreviousSource(Protocol):
    """A case of a cascade's second stage."""

    def read_previous(self, start_xyz: Triple, size_xyz: Triple) -> npt.NDArray[np.uint8]:
        """The first stage's mask (*size); zeros beyond the border."""


@dataclass(frozen=True)
class PatchDraw:
    """Sample k: which case, where its patch starts (may be negative), and the generator for everything drawn after."""

    case: int
    start_xyz: Triple
    rng: np.random.Generator


def sample_rng(seed: int, k: int, stream: int = 0) -> np.random.Generator:
    """The generator of sample ``k``; ``stream`` parts independent uses of the same pair."""
    # Philox is counter-based: any (seed, k) is reached at once, without drawing what lies before it.
    return np.random.Generator(np.random.Philox(key=np.array([seed, k * 4 + stream], dtype=np.uint64)))


def case_of_sample(seed: int, k: int, count: int) -> int:
    """Case of sample ``k``: each round of ``count`` samples visits every case once, in an order of its own."""
    return int(_order(seed, k // count, count)[k % count])


@lru_cache(maxsize=8)
def _order(seed: int, number: int, count: int) -> npt.NDArray[np.int64]:
    return sample_rng(seed, number, stream=1).permutation(count)


def start_range(shape: Triple, size: Triple) -> tuple[Triple, Triple]:
    """Lowest and highest start of a patch; where the scan is smaller than the patch it is centred, as inference pads it."""
    low = tuple(min(0, -((p - s) // 2)) for s, p in zip(shape, size, strict=True))
    high = tuple(max(lo, s - p) for s, p, lo in zip(shape, size, low, strict=True))
    return low, high  # type: ignore[return-value]


def draw_patch(
    sources: Sequence[PatchSource], *, seed: int, k: int, size_xyz: Triple, batch_size: int, foreground_share: float
) -> PatchDraw:
    """Draws sample ``k``.

    The last ``round(batch_size * foreground_share)`` samples of each batch (at least one where the share is above 0) are
    centred on a voxel of a class chosen uniformly among those the case has; a case without any is drawn uniformly.
    """
    case = case_of_sample(seed, k, len(sources))
    rng = sample_rng(seed, k)
    source = sources[case]
    low, high = start_range(source.shape_xyz, size_xyz)
    forced = max(round(batch_size * foreground_share), 1) if foreground_share > 0 else 0
    classes = source.classes_present if k % batch_size >= batch_size - forced else ()
    if len(classes) > 0:
        locations = source.locations(classes[int(rng.integers(len(classes)))])
        centre = locations[rng.integers(len(locations))]
        start = tuple(
            int(np.clip(c - p // 2, lo, hi)) for c, p, lo, hi in zip(centre, size_xyz, low, high, strict=True)
        )
    else:
        start = tuple(int(rng.integers(lo, hi + 1)) for lo, hi in zip(low, high, strict=True))
    return PatchDraw(case=case, start_xyz=start, rng=rng)  # type: ignore[arg-type]
