"""Skeletons: a mask thinned to its centre lines, with its topology kept.

Voxels are taken from six sides in turn (four in 2D) while they are simple, which means that neither a piece, nor a hole, nor a
tunnel appears or vanishes with them, and are no end of a line. A voxel is simple if its neighbours in the mask hang together
(by 26, in 2D by 8 neighbours) and those outside that share a face with it hang together (by faces, within the 18 nearest)
(Bertrand and Malandain 1994). The order is Lee's (Lee, Kashyap and Chu 1994), but within a side voxels go by the parity of
their coordinates: no two of one parity are neighbours, so that a whole array of them is decided at once and each decision
still holds when the others are carried out. Which of several equally good centre lines remains depends on the order;
skeletons of two programs differ by a voxel here and there, and so does what is computed from them.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
CodeArray = npt.NDArray[np.int64]
IndexArray = npt.NDArray[np.intp]


# What was found out about codes of so many neighbours: the same few come again and again.
_ANSWERS: dict[int, dict[int, bool]] = {}
_MOST_ANSWERS = 2**20


class _Neighbourhood(NamedTuple):
    """The 3^rank - 1 neighbours of a voxel, as bits of a code.

    ``near`` and ``faces`` are the codes of those up to 18 (two axes) and 6 (one axis); ``touching`` and ``beside`` say per
    neighbour which others are its neighbours by 26 and by faces.
    """

    steps: tuple[tuple[int, ...], ...]
    near: int
    faces: int
    touching: tuple[int, ...]
    beside: tuple[int, ...]


def skeletonise(mask: BoolArray) -> BoolArray:
    """The centre lines of a mask of rank 2 or 3, one voxel wide where that can be; of rank 1, its middle voxels.

    As many pieces, holes and tunnels as the mask; a hollow stays a hollow, and so a surface around it. Beyond the array is
    outside. An empty mask gives an empty one.
    """
    padded = np.pad(mask, 1)
    flat = padded.reshape(-1)
    about = _neighbourhood(mask.ndim)
    strides = np.array([int(np.prod(padded.shape[axis + 1 :])) for axis in range(mask.ndim)], np.intp)
    shifts = (np.array(about.steps, np.intp) @ strides).tolist()
    sides = [shift for shift, step in zip(shifts, about.steps, strict=True) if sum(map(abs, step)) == 1]
    voxels = np.flatnonzero(flat)
    parity = np.zeros(flat.size, np.uint8)
    parity[voxels] = sum((own & 1) << axis for axis, own in enumerate(np.unravel_index(voxels, padded.shape)))
    # Only voxels beside the outside can go; those inside are looked at once they lie open.
    known = np.zeros(flat.size, np.bool_)
    open_voxels = _newly_open(voxels, np.array([0]), flat, known, sides)
    while True:
        removed = 0
        for side in sides:
            # Decided once for the whole side, as it is before anything goes, so that lines are not eaten from their ends.
            border = open_voxels[~flat[open_voxels + side]]
            border = border[_removable(_codes(flat, border, shifts), about)]
            gone = []
            for own in range(2**mask.ndim):
                chosen = border[parity[border] == own]
                gone.append(chosen[_removable(_codes(flat, chosen, shifts), about)])
                flat[gone[-1]] = False
            taken = np.concatenate(gone)
            removed += taken.size
            new = _newly_open(taken, np.array(sides), flat, known, sides)
            open_voxels = np.concatenate([open_voxels[flat[open_voxels]], new])
        if not removed:
            return padded[(slice(1, -1),) * mask.ndim]


def _newly_open(
    around: IndexArray, steps: IndexArray, flat: BoolArray, known: BoolArray, sides: list[int]
) -> IndexArray:
    """Voxels of the mask at these steps from some places that have the outside beside them and are not known yet."""
    found = np.unique((around[:, None] + steps).reshape(-1))
    found = found[flat[found] & ~known[found]]
    is_open = np.zeros(found.size, np.bool_)
    for side in sides:
        is_open |= ~flat[found + side]
    found = found[is_open]
    known[found] = True
    return found


def _codes(flat: BoolArray, voxels: IndexArray, shifts: list[int]) -> CodeArray:
    """Which neighbours of each voxel are in the mask."""
    codes = np.zeros(voxels.size, np.int64)
    for bit, shift in enumerate(shifts):
        codes |= flat[voxels + shift].astype(np.int64) << bit
    return codes


def _removable(codes: CodeArray, about: _Neighbourhood) -> BoolArray:
    """Whether a voxel with these neighbours is simple, and no end of a line nor a single voxel."""
    few, inverse = np.unique(codes, return_inverse=True)
    answers = _ANSWERS.setdefault(len(about.steps), {})
    asked = few.tolist()
    new = np.array([code for code in asked if code not in answers], np.int64)
    if new.size:
        simple = (_pieces(new, new, about.touching) == 1) & (
            _pieces(~new & about.near, ~new & about.faces, about.beside) == 1
        )
        answers.update(zip(new.tolist(), (simple & (new & (new - 1) != 0)).tolist(), strict=True))
    found: BoolArray = np.array([answers[code] for code in asked], np.bool_)[inverse]
    if len(answers) > _MOST_ANSWERS:
        answers.clear()
    return found


def _pieces(codes: CodeArray, seeds: CodeArray, joined: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """How many pieces of the neighbours in ``codes``, joined as ``joined`` says, hold one of ``seeds``; counted up to 2."""
    count = np.zeros(codes.size, np.int64)
    left = seeds.copy()
    for _ in range(2):
        piece = left & -left  # the lowest bit
        count += piece != 0
        while True:
            grown = piece.copy()
            for bit, others in enumerate(joined):
                grown |= np.where(piece >> bit & 1, others, 0)
            grown &= codes
            grown |= piece
            if np.array_equal(grown, piece):
                break
            piece = grown
        left &= ~piece
    return count


@cache
def _neighbourhood(rank: int) -> _Neighbourhood:
    steps = tuple(step for step in itertools.product((-1, 0, 1), repeat=rank) if any(step))

    def bits(chosen: list[bool]) -> int:
        return sum(1 << bit for bit, own in enumerate(chosen) if own)

    def apart(one: tuple[int, ...], other: tuple[int, ...]) -> list[int]:
        return [abs(a - b) for a, b in zip(one, other, strict=True)]

    axes = [sum(map(abs, step)) for step in steps]
    return _Neighbourhood(
        steps=steps,
        near=bits([count <= 2 for count in axes]),
        faces=bits([count == 1 for count in axes]),
        touching=tuple(bits([max(apart(step, other)) == 1 for other in steps]) for step in steps),
        beside=tuple(bits([sum(apart(step, other)) == 1 for other in steps]) for step in steps),
    )
