"""One scan through one model or an ensemble: prepare, class scores, and a label map on the scan's own grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import torch

from medseg.config.sections import InferSection
from medseg.durable import sha256_json
from medseg.errors import ModelError
from medseg.evaluation.postprocessing import Step, apply_steps
from medseg.imaging import Header, LabelMap, Volume, spacing_xyz_mm
from medseg.imaging.labels import from_classes
from medseg.imaging.volume import Affine
from medseg.inference.model import Model
from medseg.inference.sliding_window import FloatArray, predict_scores
from medseg.networks.precision import choose_precision, precision_name
from medseg.preparation.case import prepare_image, restore_classes
from medseg.preparation.grid import Grid
from medseg.preparation.plan import Plan

_LOG = logging.getLogger(__name__)

ClassArray = npt.NDArray[np.uint8]

# What the plan says about how a scan becomes the network's input and its answer a mask. Patch and network may differ.
SHARED_BY_AN_ENSEMBLE = ("dimensions", "through_plane_axis", "orientation", "spacing_xyz_mm", "channels", "labels")
_DEVICE_SHARE = 0.5


class Engine:
    """Models that answer together, and how they are applied.

    Args:
        models: one, or the members of an ensemble, whose class scores are averaged as nnU-Net does.
        section: overlap, mirrors, batch, precision.
        device: where the networks are.

    Raises:
        ModelError: there is none, or members prepare scans or name classes differently.
        EnvironmentFault: the section insists on a precision that the device lacks.
    """

    def __init__(self, models: Sequence[Model], section: InferSection, *, device: torch.device) -> None:
        if not models:
            raise ModelError("no model was given; name at least one model folder")
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
        section = self.section.model_dump(mode="json", exclude={"cases", "ensemble", "postprocess"})
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

    def scores(self, array: FloatArray) -> FloatArray:
        """(K, X, Y, Z) float32 class scores of a prepared scan, the mean over the models."""
        total = self._scores_of(self.models[0], array)
        for model in self.models[1:]:
            total += self._scores_of(model, array)
        if len(self.models) > 1:
            total /= np.float32(len(self.models))
        return total

    def _scores_of(self, model: Model, array: FloatArray) -> FloatArray:
        return predict_scores(
            array,
            model.ready(),
            patch_size_xyz=model.plan.patch_size_xyz,
            class_count=model.plan.output_count,
            overlap=self.section.overlap,
            mirror_axes_xyz=model.mirror_axes_xyz if self.section.mirror else (),
            batch_size=self.section.batch_size,
            slice_axis=model.plan.slice_axis,
            device=self.device,
            precision=self.precision,
            gather_on_device=self._fits_device(array, model.plan),
        )

    def _fits_device(self, array: FloatArray, plan: Plan) -> bool:
        """Whether image and scores may lie in the device's memory, with half of what is free left to the network."""
        if self.device.type != "cuda":
            return True
        needed = 4 * (array.size + plan.output_count * array[0].size)
        free, _ = torch.cuda.mem_get_info(self.device)
        fits = needed < _DEVICE_SHARE * free
        if not fits:
            _LOG.info(
                "scores need %.1f GiB, %.1f GiB are free on the device: kept in host memory",
                needed / 2**30,
                free / 2**30,
            )
        return bool(fits)

    def classes(self, scores: FloatArray, grid: Grid) -> ClassArray:
        """(X, Y, Z) uint8 class indices on the scan's own grid, after post-processing; background outside the crop."""
        classes = restore_classes(scores, grid, self.plan.regions)
        spacing = [float(size) for size in spacing_xyz_mm(np.array(grid.original_affine))]
        return apply_steps(classes, self.steps, class_names=self.class_names, spacing_xyz_mm=spacing)

    def label_map(self, classes: ClassArray, *, affine: Affine, header: Header | None) -> LabelMap:
        """The classes as the label values of the model's manifest, on the scan's grid."""
        return LabelMap(array=from_classes(classes, self.plan.labels), affine=affine, header=header)
