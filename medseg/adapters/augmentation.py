"""medseg's augmentation as MONAI's dictionary transforms, for pipelines that are built of those."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from medseg.augmentation.affine import Box, box_around, resample_box
from medseg.augmentation.drawing import draw_intensity, draw_spatial, largest_rotation, mirror_axes
from medseg.augmentation.intensity import change_intensities
from medseg.config.train_sections import AugmentationSection

Triple = tuple[int, int, int]


class NnunetSpatiald(Randomizable, MapTransform):  # type: ignore[misc] # MONAI is untyped
    """nnU-Net's rotation, scaling and mirroring as one resampling; labels by the largest trilinear share.

    It takes the place of ``RandRotated``, ``RandZoomd`` and ``RandFlipd``, of which each resamples on its own. All keys of a
    sample turn alike and keep their shape; beyond the border image and labels are 0. Repeats with ``set_random_state``.

    Args:
        image_keys: entries (C, X, Y) or (C, X, Y, Z), of any floating type; come out float32.
        label_keys: entries (1, X, Y) or (1, X, Y, Z) of whole numbers from 0 to 255; keep their type.
        section: probabilities, ranges and axes to mirror, as the config's ``train.augmentation``; its axes x, y, z are the
            entries' spatial axes in their order.
        only_axis: the axis to rotate about and not to scale, for thin stacks; None for all. 2D needs none.
        spacing: of the voxels per axis, so that rotations are rigid; None means equal.
        allow_missing_keys: pass over keys that a sample lacks.
    """

    def __init__(
        self,
        image_keys: KeysCollection,
        label_keys: KeysCollection = (),
        *,
        section: AugmentationSection | None = None,
        only_axis: int | None = None,
        spacing: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        self.image_keys, self.label_keys = _names(image_keys), _names(label_keys)
        MapTransform.__init__(self, (*self.image_keys, *self.label_keys), allow_missing_keys)
        self.section = section or AugmentationSection()
        self.only_axis, self.spacing = only_axis, spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its entries turned.

        Raises:
            ValueError: entries have different shapes, or not two or three spatial axes.
        """
        found = dict(data)
        keys = list(self.key_iterator(found))
        if not keys:
            return found
        size, planar = _size(found, keys)
        slice_axis = 2 if planar else None
        only_axis = 2 if planar else self.only_axis
        spacing = (1.0, 1.0, 1.0) if self.spacing is None else (*self.spacing, *[1.0] * planar)
        draw = draw_spatial(
            np.random.default_rng(self.R.randint(2**31)),
            self.section,
            axes=mirror_axes(self.section, slice_axis),
            only_axis=only_axis,
            spacing_xyz_mm=(spacing[0], spacing[1], spacing[2]),
            largest_degrees=largest_rotation(size, only_axis, slice_axis),
        )
        box = box_around(draw.with_mirrors, (0, 0, 0), size)
        for key in keys:
            values = torch.as_tensor(found[key])
            image = key in self.image_keys
            result = _turned_image(values, box, size) if image else _turned_labels(values, box, size)
            found[key] = _like(values, result, draw.with_mirrors, size)
        return found


class NnunetIntensityd(Randomizable, MapTransform):  # type: ignore[misc] # MONAI is untyped
    """nnU-Net's noise, blur, brightness, contrast, low resolution and gamma, with its ranges and, by default, probabilities.

    Args:
        keys: entries (C, X, Y) or (C, X, Y, Z), normalised, of any floating type; come out float32, unchanged in shape.
        section: probabilities, as the config's ``train.augmentation``.
        masked: zeros stay zero (images that were normalised inside a mask).
        only_axis: the axis that low resolution leaves, for thin stacks.
        allow_missing_keys: pass over keys that a sample lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        section: AugmentationSection | None = None,
        masked: bool = False,
        only_axis: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.section = section or AugmentationSection()
        self.masked, self.only_axis = masked, only_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its images changed, each on its own; the entries passed in stay as they are."""
        found = dict(data)
        for key in self.key_iterator(found):
            values = torch.as_tensor(found[key])
            draw = draw_intensity(np.random.default_rng(self.R.randint(2**31)), self.section, len(values))
            image = values.as_subclass(Tensor).float().clone(memory_format=torch.contiguous_format)
            whole = image if image.ndim == 4 else image[..., None]
            masked = tuple(range(len(values))) if self.masked else ()
            only_axis = 2 if image.ndim == 3 else self.only_axis
            change_intensities(whole[None], [draw], masked_channels=masked, only_axis=only_axis)
            found[key] = _like(values, image)
        return found


def _names(keys: KeysCollection) -> tuple[Hashable, ...]:
    return (keys,) if isinstance(keys, str) or not isinstance(keys, Sequence) else tuple(keys)


def _size(data: Mapping[Hashable, Any], keys: Sequence[Hashable]) -> tuple[Triple, bool]:
    shapes = {tuple(data[key].shape[1:]) for key in keys}
    if len(shapes) != 1 or len(next(iter(shapes))) not in (2, 3):
        raise ValueError(f"entries have the spatial shapes {sorted(shapes)}, expected one of two or three axes")
    shape = shapes.pop()
    return (shape[0], shape[1], shape[2] if len(shape) == 3 else 1), len(shape) == 2


def _inside(values: Tensor, box: Box, size: Triple) -> Tensor:
    """``values`` (C, *size) in a box of zeros."""
    result = values.new_zeros((len(values), *box.shape_xyz))
    here, there = [], []
    for start, length, n in zip(box.start_xyz, box.shape_xyz, size, strict=True):
        first, last = max(start, 0), min(start + length, n)
        here.append(slice(first, last))
        there.append(slice(first - start, last - start))
    result[(slice(None), *there)] = values[(slice(None), *here)]
    return result


def _turned_image(values: Tensor, box: Box, size: Triple) -> Tensor:
    image = values.as_subclass(Tensor).float().reshape(-1, *size).cpu()
    out = torch.empty((len(image), *size))
    nothing = torch.zeros(box.shape_xyz, dtype=torch.uint8)
    resample_box(
        box, _inside(image, box, size), nothing, out_image=out, out_labels=torch.empty(size, dtype=torch.uint8)
    )
    return out.view(values.shape).to(values.device)


def _turned_labels(values: Tensor, box: Box, size: Triple) -> Tensor:
    labels = values.as_subclass(Tensor).reshape(-1, *size).cpu()
    out = torch.empty((len(labels), *size), dtype=torch.uint8)
    for target, plane in zip(out, _inside(labels.to(torch.uint8), box, size), strict=True):
        resample_box(box, torch.empty(0, *box.shape_xyz), plane, out_image=torch.empty(0, *size), out_labels=target)
    return out.view(values.shape).to(dtype=values.dtype, device=values.device)


def _like(
    values: Tensor, result: Tensor, matrix: npt.NDArray[np.float64] | None = None, size: Triple = (1, 1, 1)
) -> Tensor:
    """``result`` with the metadata of ``values``, its affine turned along."""
    if not isinstance(values, MetaTensor):
        return result
    affine = torch.as_tensor(values.affine).double()
    if matrix is not None:
        centre = (np.asarray(size) - 1) / 2
        voxels = np.eye(4)
        voxels[:3, :3], voxels[:3, 3] = matrix, centre - matrix @ centre
        kept = [*range(len(affine) - 1), 3]
        affine = affine @ torch.as_tensor(voxels[np.ix_(kept, kept)])
    with_meta: Tensor = MetaTensor(result, meta=dict(values.meta) | {"affine": affine})
    return with_meta
