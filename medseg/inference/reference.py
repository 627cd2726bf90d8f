"""nnU-Net's inference, operation for operation: what ``infer.accumulate: fp16`` runs.

The other engines compute the same function faster and in float32. Their masks differ from nnU-Net's where two classes are
within its half-precision rounding of each other. Here no voxel differs, because every operation that rounds is nnU-Net's, on
arrays laid out as nnU-Net has them (v2.8: default_preprocessor.py, predict_from_raw_data.py, export_prediction.py):

- arrays are (z, y, x), turned as the plan's ``transpose_forward`` says, C-contiguous before crop and transposition;
- z-scores are of float32 sums in that layout; resampling is scipy's ``zoom`` in float64, as scikit-image's ``resize`` calls it;
- windows go one by one, mirror copies after each other; a window's mean is weighted by the Gaussian in fp16 with peak 10, added
  to fp16 sums, and divided by the fp16 sum of weights; folds are added and divided in fp16;
- scores go to the scan's grid in float64 and are rounded to fp16 before classes are compared.

On CPUs the network computes in float32, on CUDA under fp16 autocast: nnU-Net's own choice, which leaves none to the config.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medseg.config.sections import InferSection
from medseg.errors import ConfigError, ScanError
from medseg.evaluation.postprocessing import apply_steps
from medseg.imaging import AxisChange, Volume, index_labels, spacing_xyz_mm, undo_axes
from medseg.imaging.volume import Affine
from medseg.inference.engine import ClassArray, Engine
from medseg.inference.memory import MemoryPrediction
from medseg.inference.model import Model
from medseg.inference.reference_scan import (
    Order,
    from_nnunet,
    nonzero_mask,
    prepare_as_nnunet,
    resized,
    resized_labels,
    separate_in,
    shape_in,
    to_nnunet,
    turned_back,
)
from medseg.inference.reference_windows import WindowNetwork, blended
from medseg.inference.sliding_window import FloatArray
from medseg.preparation.case import cropped_labels, full_grid
from medseg.preparation.grid import Grid

HalfArray = npt.NDArray[np.float16]

_PEAK = 10
_SMALLEST_STD = 1e-8
_SLAB = 16
_HALF, _DOUBLE = 2, 8  # bytes


class ReferenceEngine(Engine):
    """See the module. Arrays and scores go in and out with axes (x, y, z), as views of nnU-Net's layout.

    Args:
        models: one, or folds of one configuration.
        section: overlap and mirrors count; batch and precision are nnU-Net's.
        device: where the networks are.
        places: as `Engine`.

    Raises:
        ConfigError: the section asks for bf16.
        ModelError: as `Engine`.
    """

    def __init__(self, models: Sequence[Model], section: InferSection, *, device: torch.device, **room: Any) -> None:
        super().__init__(models, section, device=device, **room)
        if section.precision == "bf16":
            raise ConfigError(
                [
                    "infer.precision: is bf16, expected auto or float32 beside accumulate fp16, which is nnU-Net's arithmetic"
                ]
            )
        self.precision = torch.float16 if device.type == "cuda" else None
        self.order = axis_order(models[0])

    def prepare(self, volume: Volume) -> tuple[FloatArray, Grid]:
        """As `Engine.prepare`, in nnU-Net's arithmetic."""
        array, grid = prepare_as_nnunet(volume, self.plan, self.order)
        needed, limit = self._host_bytes(grid, math.prod(volume.shape)), self._host_limit()
        if needed > limit:
            raise ScanError(_too_large(needed, limit))
        if not self.plan.previous_channels:
            return array, grid
        return array, _NonzeroGrid(**vars(grid), nonzero=nonzero_mask(volume, grid, self.order))

    def peak_bytes(self, shape_xyz: Sequence[int], affine: Affine) -> MemoryPrediction:
        """As `Engine.peak_bytes`: more than there, for the sake of float64 on the scan's grid."""
        grid = full_grid(shape_xyz, affine, self.plan)
        needed, limit = self._host_bytes(grid, math.prod(shape_xyz)), self._host_limit()
        refused = _too_large(needed, limit) if needed > limit else None
        cuda = self.device.type == "cuda"
        need = self._need(grid.prepared_shape, math.prod(shape_xyz))
        device = need.image + need.scores // 2 + need.one_pass if cuda else 0
        return replace(
            super().peak_bytes(shape_xyz, affine), host_bytes=needed, device_bytes=device, file_bytes=0,
            way="device" if cuda else "host", refused=refused,
        )  # fmt: skip

    def _host_bytes(self, grid: Grid, scan_voxels: int) -> int:
        need, cropped = self._need(grid.prepared_shape, scan_voxels), math.prod(grid.cropped_shape)
        prepared = math.prod(grid.prepared_shape)
        resampling = 2 * _DOUBLE * (cropped + prepared)
        half_scores = _HALF * (self.plan.output_count + 1) * prepared
        computing = half_scores + (need.one_pass if self.device.type == "cpu" else 0)
        comparing = half_scores + resampling + 3 * _HALF * cropped + need.mask
        return max(need.scan + need.image + resampling, 2 * need.image + computing, comparing)

    def previous_mask(self, classes: ClassArray, grid: Grid) -> ClassArray:
        """A cascade's first mask on the prepared grid, as `Engine.previous_mask`, in nnU-Net's arithmetic.

        Args:
            classes: (X, Y, Z) uint8 class indices on the scan's own grid.
            grid: from this engine's ``prepare`` of the scan.
        """
        assert isinstance(grid, _NonzeroGrid)
        values = np.array([own[0] for own in index_labels(self.plan.labels).values()], np.int16)
        own = to_nnunet(values[cropped_labels(classes, grid)][None], self.order)[0]
        own[(own == 0) & ~grid.nonzero] = -1  # nnU-Net's mark for what lies outside the body
        shape, separate = shape_in(grid.prepared_shape, self.order), separate_in(grid.separate_axis, self.order)
        if own.shape != shape:
            own = resized_labels(own, shape, separate)
        indices = np.zeros(values.max() + 2, np.uint8)  # the last entry, -1, is background too
        indices[values] = np.arange(len(values))
        return turned_back(indices[own], self.order)

    @torch.inference_mode()
    def scores(self, array: FloatArray) -> HalfArray:  # type: ignore[override]
        """(K, X, Y, Z) float16 class scores of a prepared scan, the folds' mean."""
        data = torch.from_numpy(to_nnunet(array, self.order))
        total = self._of_model(self.models[0], data)
        for model in self.models[1:]:
            total += self._of_model(model, data)
        if len(self.models) > 1:
            total /= len(self.models)
        return from_nnunet(total.numpy(), self.order)

    def _of_model(self, model: Model, data: torch.Tensor) -> torch.Tensor:
        mirrors = [self.order.index(axis) for axis in model.mirror_axes_xyz] if self.section.mirror else []
        places = [data.device, self.device] if self.device.type == "cpu" else [self.device, torch.device("cpu")]
        window = WindowNetwork(model, self.order, self.device, mirrors)
        try:
            return blended(data, window, self.section.overlap, places[0])
        except RuntimeError:
            if self.device.type == "cpu":
                raise
            # As nnU-Net: too large for the device's memory, so the sums are kept by the host.
            return blended(data, window, self.section.overlap, places[1])

    def classes(self, scores: Any, grid: Grid) -> ClassArray:
        """As `Engine.classes`: the comparison is between values rounded to fp16 on the scan's own grid."""
        oriented = np.zeros(grid.oriented_shape, np.uint8)
        box = tuple(map(slice, grid.crop_start, grid.crop_stop))
        oriented[box] = self._cropped_classes(scores, grid)
        classes = undo_axes(oriented, AxisChange(grid.permutation, grid.flips))
        spacing = [float(size) for size in spacing_xyz_mm(np.array(grid.original_affine))]
        names, regions = self.class_names, self.plan.regions
        return apply_steps(classes, self.steps, class_names=names, spacing_xyz_mm=spacing, regions=regions)

    def _cropped_classes(self, scores: Any, grid: Grid) -> ClassArray:
        channels, regions = self.on_crop(scores, grid), self.plan.regions
        if regions is None:
            best = next(channels)
            classes = np.zeros(best.shape, np.uint8)
            for number, channel in enumerate(channels, start=1):
                better = channel > best  # of equal scores the lowest class wins
                classes[better] = number
                best[better] = channel[better]
            return turned_back(classes, self.order)
        codes = np.zeros(1, np.uint16)
        for number, channel in enumerate(channels):
            inside = torch.sigmoid(torch.from_numpy(channel).float()) > 0.5
            codes = codes | (inside.numpy().astype(np.uint16) << np.uint16(number))
        return turned_back(regions.join(codes), self.order)

    def on_crop(self, scores: Any, grid: Grid) -> Iterator[HalfArray]:
        """Class scores rounded to float16 on the scan's cropped grid, in nnU-Net's layout: what it compares.

        Args:
            scores: of `scores`.
            grid: of the scan.

        Yields:
            One class, or region, after another; new memory each.
        """
        own = to_nnunet(np.asarray(scores), self.order)
        shape = shape_in(grid.cropped_shape, self.order)
        separate = separate_in(grid.separate_axis_back, self.order)
        for channel in own:
            yield channel.copy() if channel.shape == shape else resized(channel, shape, 1, separate).astype(np.float16)

    def slabs(self, scores: Any, grid: Grid, *, prepared: bool = False) -> Iterator[tuple[slice, FloatArray]]:
        """As `Engine.slabs`. All classes are kept in fp16 on the slabs' grid meanwhile, as nnU-Net keeps them."""
        every = np.asarray(scores) if prepared else from_nnunet(np.stack(list(self.on_crop(scores, grid))), self.order)
        regions = self.plan.regions is not None
        for start in range(0, every.shape[1], _SLAB):
            part = torch.from_numpy(np.ascontiguousarray(every[:, start : start + _SLAB])).float()
            activated = torch.sigmoid(part) if regions else torch.softmax(part, dim=0)
            yield slice(start, start + part.shape[1]), activated.numpy()


def _too_large(needed: int, limit: int) -> str:
    return (
        f"scan: takes {needed / 1e9:.1f} GB of memory as nnU-Net computes it, expected at most {limit / 1e9:.1f} GB; set "
        "infer.accumulate=fp32, which takes less"
    )


@dataclass(frozen=True, kw_only=True)
class _NonzeroGrid(Grid):
    """A grid that keeps where the scan's body is: (cropped shape) in nnU-Net's layout, holes filled."""

    nonzero: npt.NDArray[np.bool_]


def axis_order(model: Model) -> Order:
    """Which of our axes is the first, second and third of nnU-Net's arrays.

    The network's own order where it was imported with one, else (z, y, x) with slices first.
    """
    across = model.plan.slice_axis
    seen = [axis for axis in range(3) if axis != across]
    order = model.info.get("architecture", {}).get("order") or range(len(seen))[::-1]
    axes = [seen[int(n)] for n in order]
    first, second, third = axes if across is None else (across, *axes)
    return first, second, third
