"""The mask of a cascade's first stage, as the second stage sees it: on its prepared grid, then one channel per class.

The first stage's mask of a scan always comes from a model that did not train on it, in training as in inference, and goes
the same way there: from the scan's own grid, by `prepare_previous` and `one_hot`, into the second network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import InputError
from medseg.imaging.mask_resampling import resample_mask
from medseg.preparation.case import FloatArray, cropped_labels
from medseg.preparation.grid import Grid

LabelArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PreviousMask:
    """One case's out-of-fold mask.

    Attributes:
        path: a label map with the manifest's values, on the scan's own grid.
        scan_sha256s: checksums of the images it was made of, in the order of the channels.
    """

    path: Path
    scan_sha256s: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PreviousStage:
    """What the first stage hands to ``prepare``.

    Attributes:
        masks: by case id.
        models: name of each fold (``fold_0``) to the SHA-256 of its model, which made that fold's masks.
    """

    masks: Mapping[str, PreviousMask]
    models: Mapping[str, str]


def prepare_previous(classes: LabelArray, grid: Grid) -> LabelArray:
    """The first stage's mask on the second's prepared grid, as nnU-Net resamples a label map.

    Args:
        classes: (X, Y, Z) uint8 class indices on the scan's own grid.
        grid: from `prepare_image` of the same scan with the second stage's plan.

    Returns:
        (X, Y, Z) uint8, C-contiguous.

    Raises:
        GeometryError: the mask has another shape than the scan.
    """
    cropped = cropped_labels(classes, grid)
    return resample_mask(cropped, grid.prepared_shape, separate_axis=grid.separate_axis)


def one_hot(mask: LabelArray, count: int) -> FloatArray:
    """(count, X, Y, Z) float32: channel k is 1 where ``mask`` is class k + 1, else 0."""
    return np.stack([mask == index for index in range(1, count + 1)]).astype(np.float32)


def with_previous(image: FloatArray, mask: LabelArray, count: int) -> FloatArray:
    """The second stage's input: (C, X, Y, Z) image, then `one_hot` of (X, Y, Z) ``mask``."""
    result = np.empty((len(image) + count, *image.shape[1:]), np.float32)
    result[: len(image)] = image
    for index in range(count):
        np.equal(mask, index + 1, out=result[len(image) + index], casting="unsafe")
    return result


def refuse_other_scans(stage: PreviousStage, scans: Mapping[str, Sequence[str]]) -> None:
    """Refuses a first stage whose masks are not of the scans as they are now.

    Args:
        stage: the first stage.
        scans: case id to the checksums of its images now.

    Raises:
        InputError: one line for the cases that have no mask, one for those whose scan is another.
    """
    lacking = [case for case in scans if case not in stage.masks]
    other = [
        case for case, now in scans.items() if case in stage.masks and stage.masks[case].scan_sha256s != tuple(now)
    ]
    faults = []
    if lacking:
        faults.append(
            f"prepare.previous_work: {_shown(lacking)} no out-of-fold mask, expected one per training case; run "
            "medseg train --fold all there with this manifest"
        )
    if other:
        faults.append(
            f"prepare.previous_work: {_shown(other)} masks of other scans than the manifest's, expected the same; run "
            "medseg crossval there again"
        )
    if faults:
        raise InputError("\n".join(faults))


def _shown(cases: Sequence[str]) -> str:
    listed = ", ".join(sorted(cases)[:5]) + (", ..." if len(cases) > 5 else "")
    return f"{len(cases)} case(s) ({listed}) have"
