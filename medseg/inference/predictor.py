"""The public face of inference: a loaded model that turns one scan into one label map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from medseg.config.sections import InferSection
from medseg.errors import UsageError
from medseg.imaging import LabelMap, Volume, write_label_map
from medseg.inference.ensemble import build_engine
from medseg.inference.experiment import own_section
from medseg.inference.model import Model, load_models
from medseg.networks.precision import choose_device
from medseg.preparation.case import load_case

Scan = Volume | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Predictor:
    """A model ready for scans. It is loaded once and used as often as one likes, by one thread at a time.

    Args:
        models: from ``load_models``: one, or the members of an ensemble.
        device: where the model's network is.
        section: overlap, mirrors, precision; None takes those of the config that the model was trained with.
    """

    def __init__(
        self, models: Model | Sequence[Model], *, device: torch.device, section: InferSection | None = None
    ) -> None:
        self.models = (models,) if isinstance(models, Model) else tuple(models)
        self._engine = build_engine(self.models, section or own_section(self.models[0]), device=device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return self._engine.class_names

    def predict(self, scan: Scan, output: str | os.PathLike[str] | None = None) -> LabelMap:
        """The label map of a scan, on the scan's own grid, with the label values of the model's manifest.

        Args:
            scan: a file, a folder of DICOM slices, one of these per channel, or a :class:`~medseg.imaging.Volume` with
                array (C, X, Y, Z) float32 and an affine to RAS+ mm.
            output: file to write the label map to as well (.nii.gz, .nrrd, .mha, .png ...), atomically; None writes none.

        Returns:
            A LabelMap (X, Y, Z) with the scan's affine and header. Outside what is not 0 in the scan it is background.

        Raises:
            ScanError: the scan can't be read, or has another number of channels than the model.
            GeometryError: the scan's grid can't be used.
            EnvironmentFault: the output can't be written.
        """
        volume = scan if isinstance(scan, Volume) else load_case(_paths(scan), self._engine.plan.channels)
        array, grid = self._engine.prepare(volume)
        classes = self._engine.classes(self._engine.scores(array), grid)
        label_map = self._engine.label_map(classes, affine=volume.affine, header=volume.header)
        if output is not None:
            write_label_map(label_map, Path(output), like=volume.header)
        return label_map


def _paths(scan: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    if isinstance(scan, str | os.PathLike):
        return (Path(scan),)
    paths = tuple(Path(part) for part in scan)
    if not paths:
        raise UsageError("scan: is an empty list, expected a path per channel")
    return paths


def load_predictor(model_folder: str | os.PathLike[str], device: str | None = "cpu") -> Predictor:
    """Loads a model folder; see ``medseg.load``."""
    chosen = choose_device(device)
    return Predictor(load_models(Path(model_folder), device=chosen), device=chosen)
