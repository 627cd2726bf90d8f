"""One scan through one model or an ensemble: prepare, class scores, and a label map on the scan's own grid."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medseg.config.sections import InferSection
from medseg.durable import sha256_json
from medseg.errors import ModelError, ScanError
from medseg.evaluation.postprocessing import Step, apply_steps
from medseg.imaging import (
    Header,
    LabelMap,
    Volume,
    resample_labels,
    scores_to_classes,
    scores_to_sets,
    spacing_xyz_mm,
)
from medseg.imaging.labels import from_classes
from medseg.imaging.resampling import resampled_scores
from medseg.imaging.volume import Affine
from medseg.inference.memory import (
    SHARE_OF_FREE,
    MemoryPrediction,
    Need,
    Way,
    free_main_bytes,
    is_out_of_memory,
    ladder,
    refusal,
    rolling_axis,
)
from medseg.inference.model import Model
from medseg.inference.scores import Features, ScoreFile, features_only, last_layer, mean_of
from medseg.inference.sliding_window import FloatArray, predict_scores
from medseg.networks.blending import Sink
from medseg.networks.precision import choose_precision, precision_name
from medseg.networks.quick_norms import quick_norms
from medseg.networks.quick_unet import is_quick, quick_unet
from medseg.networks.windows import Tally, window_count
from medseg.preparation.case import full_grid, prepare_image, restore_classes, restored
from medseg.preparation.grid import Grid, Shape
from medseg.preparation.plan import Plan
from medseg.preparation.previous import prepare_previous

_LOG = logging.getLogger(__name__)

ClassArray = npt.NDArray[np.uint8]

# What the plan says about how a scan becomes the network's input and its answer a mask. Patch and network may differ.
SHARED_BY_AN_ENSEMBLE = (
    "dimensions", "through_plane_axis", "orientation", "spacing_xyz_mm", "channels", "previous_channels", "labels",
)  # fmt: skip
NO_PART_OF_A_MASK = {
    "cases", "ensemble", "postprocess", "output", "contract", "quality", "probabilities", "uncertainty",
}  # fmt: skip
"""Fields of the section that a mask does not depend on, or that its sidecar names by themselves."""
Scores = FloatArray | ScoreFile | Features


class Engine:
    """Models that answer together, and how they are applied.

    Args:
        models: one, or the members of an ensemble, whose class scores are averaged as nnU-Net does.
        section: overlap, mirrors, batch, precision.
        device: where the networks are.
        memory_bytes: host memory that a scan may take; None is three quarters of what is free.
        scratch: folder for scores that do not fit in memory; None is the system's temporary folder.

    Raises:
        ModelError: there is none, or members prepare scans or name classes differently.
        EnvironmentFault: the section insists on a precision that the device lacks.
    """

    def __init__(
        self,
        models: Sequence[Model],
        section: InferSection,
        *,
        device: torch.device,
        memory_bytes: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        if not models:
            raise ModelError("no model was given; name at least one model folder")
        self.memory_bytes, self.scratch = memory_bytes, scratch
        self._effort: dict[str, Any] = {}
        self._stated: Way | None = None
        self._out_of_memory: dict[Way, int] = {}  # a way, and the voxels of the scan that it failed with
        self.models, self.section, self.device = tuple(models), section, device
        self.precision = choose_precision(device, section.precision)
        self._refuse_strangers()
        _LOG.info("%d model(s) on %s in %s", len(models), device.type, precision_name(self.precision))

    @property
    def plan(self) -> Plan:
        """The first model's; members agree in everything that concerns scans and classes."""
        return self.models[0].plan

    @property
    def steps(self) -> tuple[Step, ...]:
        """The post-processing that the models bring along; none where the section says so."""
        return self.models[0].postprocessing if self.section.postprocess else ()

    def _refuse_strangers(self) -> None:
        for model in self.models[1:]:
            for name in SHARED_BY_AN_ENSEMBLE:
                own, first = getattr(model.plan, name), getattr(self.plan, name)
                if own != first:
                    raise ModelError(
                        f"{model.folder.name}: {name} of its plan is {own}, expected {first} "
                        f"as in {self.models[0].folder.name}; average only models that were prepared alike"
                    )
            if self.section.postprocess and model.postprocessing != self.models[0].postprocessing:
                raise ModelError(
                    f"{model.folder.name}: has other post-processing than {self.models[0].folder.name}, expected the same; "
                    "set infer.postprocess=false, or average members of one ensemble"
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return tuple(self.plan.labels)

    def settings(self) -> dict[str, str]:
        """All that a mask depends on beside the scan, as checksums and short texts."""
        section = self.section.model_dump(mode="json", exclude=NO_PART_OF_A_MASK)
        steps = {"postprocessing": sha256_json([step.plain() for step in self.steps])} if self.steps else {}
        return steps | {
            "models": " ".join(model.sha256 for model in self.models),
            "infer": sha256_json(section),
            "medseg": version("medseg"),
            "torch": str(torch.__version__),
        }

    def model_sha256s(self) -> dict[str, str]:
        """Checksum per model, numbered in their order."""
        return {f"model_{number}": model.sha256 for number, model in enumerate(self.models)}

    def versions(self) -> dict[str, str]:
        """What computed, for the record; masks of the same settings are kept whatever it was."""
        return {"numpy": np.__version__, "device": self.device.type, "precision": precision_name(self.precision)}

    def prepare(self, volume: Volume) -> tuple[FloatArray, Grid]:
        """(C, X, Y, Z) float32 as the networks expect it, and the way back.

        Raises:
            ScanError: the scan has another number of channels than the model.
            GeometryError: the model is for pictures and the scan has several slices.
        """
        return prepare_image(volume, self.plan)

    def previous_mask(self, classes: ClassArray, grid: Grid) -> ClassArray:
        """A cascade's first mask (X, Y, Z) on the scan's own grid, as class indices on the prepared grid."""
        return prepare_previous(classes, grid)

    def scores(self, array: FloatArray) -> Scores:
        """Class scores of a prepared scan, the mean over the models: only for `classes` and `slabs` of this engine.

        Steps down the ladder (see ``medseg.inference.memory``) where memory runs out.

        Args:
            array: (C, X, Y, Z) from ``prepare``.

        Returns:
            (K, X, Y, Z) float32; where that does not fit in memory a file of it; where the networks have fewer features
            than classes, the features.

        Raises:
            ScanError: the scan does not fit in memory.
            EnvironmentFault: the disk has no room for the file.
        """
        shape = array.shape[1:]
        need = self._need(shape)
        ways = [way for way in self._ways(need) if math.prod(shape) < self._out_of_memory.get(way, math.inf)]
        for number, way in enumerate(ways):
            if way != self._stated:
                _LOG.info("%s", way)
                self._stated = way
            try:
                return self._scores_by(way, array)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._out_of_memory[way] = math.prod(shape)
            _LOG.warning("memory ran out; %s", f"next: {ways[number + 1]}" if ways[number + 1 :] else "no step is left")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise ScanError(refusal(need, shape, self._host_limit()))

    def _need(self, prepared_xyz: Sequence[int], scan_voxels: int | None = None) -> Need:
        return Need.of(
            scan_voxels=math.prod(prepared_xyz) if scan_voxels is None else scan_voxels,
            prepared_xyz=prepared_xyz,
            patch_xyz=self.plan.patch_size_xyz,
            channels=self.plan.input_count,
            carried=self._features or self.plan.output_count,
            features=self.plan.features,
            strides=self.plan.strides,
        )

    @cached_property
    def _features(self) -> int:
        """Planes to blend in place of classes, where all networks have features to give and fewer of them; else 0."""
        layers = [last_layer(model.network) for model in self.models]
        count = sum(layer[0].shape[1] for layer in layers if layer is not None)
        return count if None not in layers and count < self.plan.output_count else 0

    def _host_limit(self) -> int:
        return int(SHARE_OF_FREE * free_main_bytes()) if self.memory_bytes is None else self.memory_bytes

    def _ways(self, need: Need) -> tuple[Way, ...]:
        cuda = self.device.type == "cuda"
        return ladder(
            need,
            device=self.device,
            patch_xyz=self.plan.patch_size_xyz,
            batch_size=self.section.batch_size,
            host_free=self._host_limit(),
            device_free=torch.cuda.mem_get_info(self.device)[0] if cuda else 0,
        )

    def _scores_by(self, way: Way, array: FloatArray) -> Scores:
        parts: list[FloatArray | ScoreFile] = []
        files: list[ScoreFile] = []
        layers, tally = [], Tally()
        for model in self.models:
            network, file = model.ready(), None
            if way.gather == "file":
                file = files[0] if files and not self._features else self._new_file(model, array.shape[1:])
                files.append(file)
            part = self._blended(way, model, array, sink=file, tally=tally)
            if file is not None:
                file.models += 1
            if self._features:
                layers.append(last_layer(network))
            if self._features or not parts:
                parts.append(part if file is None else file)
            elif file is None:
                parts[0] += part  # type: ignore[operator]
        self._effort = {"windows": tally.windows, "skipped_windows": tally.skipped, "way": way.gather}
        if self._features:
            return Features.of(parts, [layer for layer in layers if layer is not None])
        return mean_of(parts[0], len(self.models))

    def _new_file(self, model: Model, shape: tuple[int, ...]) -> ScoreFile:
        planes = self._features_of(model) or self.plan.output_count
        return ScoreFile((planes, *shape), axis=rolling_axis(shape), folder=self.scratch)

    def _blended(self, way: Way, model: Model, array: FloatArray, *, sink: Sink | None, tally: Tally) -> FloatArray:
        """One model's scores or features; empty where a sink takes them."""
        elsewhere, one = way.device.type != self.device.type, Tally()
        network = model.network.to(way.device) if elsewhere else model.network
        with ExitStack() as stack:
            if elsewhere:
                stack.callback(network.to, self.device)
            precision = choose_precision(way.device) if elsewhere and self.precision else self.precision
            if way.device.type == "cpu":
                stack.enter_context(quick_unet(network, precision) if is_quick(network) else quick_norms(network))
            if self._features:
                stack.enter_context(features_only(network))
            scores = predict_scores(
                array,
                network,
                patch_size_xyz=model.plan.patch_size_xyz,
                class_count=self._features_of(model) or model.plan.output_count,
                overlap=self.section.overlap,
                mirror_axes_xyz=model.mirror_axes_xyz if self.section.mirror else (),
                batch_size=way.batch_size,
                slice_axis=model.plan.slice_axis,
                device=way.device,
                precision=precision,
                gather_on_device=way.gather == "device",
                skip_background=self.section.skip_background,
                sink=sink,
                tally=one,
            )
        tally.windows, tally.skipped = tally.windows + one.windows, tally.skipped + one.skipped
        return scores

    def _features_of(self, model: Model) -> int:
        layer = last_layer(model.network) if self._features else None
        return 0 if layer is None else layer[0].shape[1]

    def classes(self, scores: Scores, grid: Grid) -> ClassArray:
        """(X, Y, Z) uint8 class indices on the scan's own grid, after post-processing; background outside the crop."""
        if self.section.resampling == "labels":
            own = self._decided(scores, grid.prepared_shape, None)
            cropped = resample_labels(own, grid.cropped_shape, separate_axis=grid.separate_axis_back)
            classes = restored(cropped, grid)
        elif isinstance(scores, Features):
            classes = restored(self._decided(scores, grid.cropped_shape, grid.separate_axis_back), grid)
        else:
            classes = restore_classes(scores, grid, self.plan.regions)
        spacing = [float(size) for size in spacing_xyz_mm(np.array(grid.original_affine))]
        names, regions = self.class_names, self.plan.regions
        return apply_steps(classes, self.steps, class_names=names, spacing_xyz_mm=spacing, regions=regions)

    def _decided(self, scores: Scores, shape: Shape, separate: int | None) -> ClassArray:
        """(X, Y, Z) uint8 class indices of scores that are resampled to ``shape`` and reduced slab by slab."""
        regions = self.plan.regions
        if not isinstance(scores, Features):
            if regions is None:
                return scores_to_classes(scores, shape, separate_axis=separate)
            return regions.join(scores_to_sets(scores, shape, separate_axis=separate))
        result, start = np.empty(shape, np.uint8), 0
        for slab in resampled_scores(scores.array, shape, separate_axis=separate):
            decided = scores.winners(slab) if regions is None else regions.decide(scores.scores(slab))
            result[start : start + slab.shape[1]] = decided
            start += slab.shape[1]
        return result

    def slabs(self, scores: Scores, grid: Grid, *, prepared: bool = False) -> Iterator[tuple[slice, FloatArray]]:
        """Probabilities on the scan's turned, cropped grid, slab by slab, resampled as `classes` does it.

        Args:
            scores: of this engine.
            grid: of the scan.
            prepared: stay on the network's grid, where nothing has to be resampled.

        Yields:
            (slice along axis 0 of ``grid.cropped_shape``, (K, n, Y, Z) float32): softmax over the classes, or the sigmoid of
            each of R regions. New memory each time; C volumes of the full size never exist.
        """
        activate, start = softmax if self.plan.regions is None else sigmoid, 0
        rows = scores.array if isinstance(scores, Features) else scores
        shape, separate = (grid.prepared_shape, None) if prepared else (grid.cropped_shape, grid.separate_axis_back)
        for slab in resampled_scores(rows, shape, separate_axis=separate):
            yield (
                slice(start, start + slab.shape[1]),
                activate(scores.scores(slab) if isinstance(scores, Features) else slab),
            )
            start += slab.shape[1]

    def peak_bytes(self, shape_xyz: Sequence[int], affine: Affine) -> MemoryPrediction:
        """What a scan of this grid would take at most, whatever is cropped off; nothing is read or computed.

        Args:
            shape_xyz: of the scan as its file has it.
            affine: likewise, RAS+ mm.

        Raises:
            ScanError: the prepared array would be too large for any machine.
        """
        prepared = full_grid(shape_xyz, affine, self.plan).prepared_shape
        need, windows = self._need(prepared, math.prod(shape_xyz)), 0
        for model in self.models:
            mirrors = set(model.mirror_axes_xyz) - {model.plan.slice_axis} if self.section.mirror else set()
            windows += window_count(prepared, model.plan.patch_size_xyz, self.section.overlap) << len(mirrors)
        ways = self._ways(need)
        if not ways:
            reason = refusal(need, prepared, self._host_limit())
            return MemoryPrediction(host_bytes=need.least(), windows=windows, refused=reason)
        return MemoryPrediction(
            host_bytes=need.host_bytes(ways[0]),
            device_bytes=need.device_bytes(ways[0]),
            file_bytes=need.scores if ways[0].gather == "file" else 0,
            windows=windows,
            way=ways[0].gather,
        )

    def effort(self) -> dict[str, Any]:
        """What the last ``scores`` did, as plain values: ``windows``, ``skipped_windows``, ``way``."""
        return dict(self._effort)

    def label_map(self, classes: ClassArray, *, affine: Affine, header: Header | None) -> LabelMap:
        """The classes as the label values of the model's manifest, on the scan's grid."""
        return LabelMap(array=from_classes(classes, self.plan.labels), affine=affine, header=header)


def softmax(scores: FloatArray) -> FloatArray:
    """Probabilities of (K, ...) class scores, float32."""
    powers = np.exp(scores - scores.max(axis=0))
    powers /= powers.sum(axis=0)
    return np.asarray(powers, np.float32)


def sigmoid(scores: FloatArray) -> FloatArray:
    """Probabilities of (R, ...) logits of regions, float32; no overflow whatever the logits."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * scores)), np.float32)
