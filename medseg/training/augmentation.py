"""Reading a batch's patches on the host and changing them on the training device.

`read_samples` touches files and nothing else; `make_tensors` touches none, so that loader threads and the device share the
work as suits them. What happens to a sample is drawn in `medseg.augmentation.drawing` from the sample's own generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.augmentation.affine import Box, box_around, resample_box
from medseg.augmentation.drawing import IntensityDraw, SpatialDraw
from medseg.augmentation.gathering import Turned, resample_boxes
from medseg.augmentation.intensity import change_intensities
from medseg.augmentation.previous import PreviousDraw
from medseg.training.sampling import PatchSource, PreviousSource, Triple


@dataclass(frozen=True)
class Sample:
    """One patch as it was read.

    Attributes:
        case_id: where it comes from.
        image: (C, *shape) float32 and ``labels`` (*shape) uint8: the patch, or where it is turned the box it covers.
        spatial, intensity: what is still to be done to it.
        box: where the turned patch lies; None where it is neither turned nor scaled.
        previous: (*shape) uint8, the first stage's mask, and ``previous_draw``, what is still to be done to it; in a cascade.
    """

    case_id: str
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    spatial: SpatialDraw
    intensity: IntensityDraw
    box: Box | None
    previous: npt.NDArray[np.uint8] | None = None
    previous_draw: PreviousDraw | None = None


def read_sample(
    source: PatchSource,
    start_xyz: Triple,
    size_xyz: Triple,
    spatial: SpatialDraw,
    intensity: IntensityDraw,
    previous: PreviousDraw | None = None,
) -> Sample:
    """Reads the patch at ``start_xyz``, or the box that it covers when turned. Beyond the scan image and labels are 0.

    With ``previous`` the first stage's mask is read too; ``source`` is a ``StoredCase`` then.
    """
    box = None if spatial.matrix is None else box_around(spatial.with_mirrors, start_xyz, size_xyz)
    start, shape = (start_xyz, size_xyz) if box is None else (box.start_xyz, box.shape_xyz)
    image, labels = source.read_patch(start, shape)
    sample = Sample(source.id, image, labels, spatial, intensity, box)
    if previous is None:
        return sample
    assert isinstance(source, PreviousSource)
    return replace(sample, previous=source.read_previous(start, shape), previous_draw=previous)


def make_tensors(
    samples: Sequence[Sample],
    size_xyz: Triple,
    *,
    device: torch.device,
    masked_channels: tuple[int, ...] = (),
    only_axis: int | None = None,
    extra: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Does to each sample what was drawn for it.

    Args:
        samples: at least one, with the same number of channels.
        size_xyz: of a patch.
        device: where the tensors are wanted and the work is done.
        masked_channels: channels normalised inside a mask only; their zeros stay zero.
        only_axis: the axis slices are stacked along, in 2D and in thin stacks.
        extra: changes one sample's image and labels after all the rest, given a seed.

    Returns:
        Images (B, C, X, Y, Z) float32 and classes (B, X, Y, Z) uint8.
    """
    pinned = device.type == "cuda"
    shape = (len(samples), samples[0].image.shape[0], *size_xyz)
    images = torch.empty(shape, dtype=torch.float32, pin_memory=pinned)
    classes = torch.empty((shape[0], *size_xyz), dtype=torch.uint8, pin_memory=pinned)
    for image, labels, sample in zip(images, classes, samples, strict=True):
        if sample.box is None:
            _copy_mirrored(sample, image.numpy(), labels.numpy())
        elif not pinned:
            box_image, box_labels = torch.from_numpy(sample.image), torch.from_numpy(sample.labels)
            resample_box(sample.box, box_image, box_labels, out_image=image, out_labels=labels)
    if pinned:
        images, classes = images.to(device, non_blocking=True), classes.to(device, non_blocking=True)
        turned = [
            Turned(row, sample.box, sample.image, sample.labels) for row, sample in enumerate(samples) if sample.box
        ]
        resample_boxes(turned, images, classes)
    change_intensities(
        images, [sample.intensity for sample in samples], masked_channels=masked_channels, only_axis=only_axis
    )
    if extra is not None:
        for image, labels, sample in zip(images, classes, samples, strict=True):
            changed = extra(image, labels, sample.intensity.extra_seed)
            image.copy_(changed[0])
            labels.copy_(changed[1])
    return images, classes


def _copy_mirrored(sample: Sample, image: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> None:
    turned = tuple(slice(None, None, -1 if axis in sample.spatial.mirrored_axes else 1) for axis in range(3))
    np.copyto(image, sample.image[(slice(None), *turned)])
    np.copyto(labels, sample.labels[turned])


def side_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Those of ``names`` that look like one side of the body.

    A name counts with a word ``left`` or ``right`` in it, or with ``l``, ``r``, ``lt``, ``rt``, ``sin``, ``dex`` where the
    name of the other side is there too. Words end at any character that is no letter, and at a capital after a small one.
    """
    words = {name: _words(name) for name in names}
    others = {"l": "r", "lt": "rt", "sin": "dex"}
    others |= {right: left for left, right in others.items()}
    present = set(words.values())

    def sided(found: tuple[str, ...]) -> bool:
        if {"left", "right"} & set(found):
            return True
        return any(
            (*found[:i], others[word], *found[i + 1 :]) in present for i, word in enumerate(found) if word in others
        )

    return tuple(name for name, found in words.items() if sided(found))


def _words(name: str) -> tuple[str, ...]:
    words, before = [""], ""
    for letter in name:
        if letter.isupper() and before.islower():
            words.append("")
        words[-1] += letter.lower() if letter.isalpha() else " "
        before = letter
    return tuple(" ".join(words).split())
