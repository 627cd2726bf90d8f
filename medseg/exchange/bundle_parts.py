"""What a MONAI bundle of ours is made of: ``configs/inference.json`` names these by their dotted path.

They call the code that ``medseg infer`` runs, so that the bundle's voxels are infer's. A grid travels from ``PrepareScand`` to
``RestoreMaskd`` as text among the image's metadata, which survives MONAI's collating.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import nn

from medseg.adapters.reader import MedsegReader, Refused
from medseg.config.sections import InferSection
from medseg.config.series import SeriesSection
from medseg.errors import MedsegError
from medseg.evaluation.postprocessing import steps_from_plain
from medseg.imaging import LabelMap, Volume, read_header, write_label_map
from medseg.inference.cases import find_cases
from medseg.inference.engine import Engine
from medseg.inference.model import Model
from medseg.inference.scores import score_channels
from medseg.networks.build import build_network
from medseg.preparation.case import load_case, prepare_image
from medseg.preparation.grid import Grid
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import read_plan

GRID = "medseg_grid"
"""Key of the grid's text among an image's metadata."""


class AveragedNetworks(nn.Module):
    """The networks of an ensemble as one module.

    Args:
        architectures: plain values per member.

    ``forward`` gives the mean of their logits. ``WindowInferer`` takes the members one by one, as ``medseg infer`` does.
    """

    def __init__(self, architectures: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(build_network(architecture) for architecture in architectures)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) to (B, K, ...)."""
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


def find_scans(folder: str | PathLike[str], plan_file: str | PathLike[str]) -> list[dict[str, Any]]:
    """The scans below a folder, as ``medseg infer FOLDER`` finds and names them.

    Returns:
        Per case ``image`` (its files), ``case`` (its name), ``source`` (the file whose header the mask takes) and
        ``source_series`` (of a DICOM folder the series that was chosen, else "").
    """
    cases = find_cases([Path(folder)], channels=read_plan(Path(plan_file)).channels)
    return [
        {
            "image": [str(path) for path in case.images],
            "case": case.id,
            "source": str(case.images[0]),
            "source_series": case.series[0] if case.series else "",
        }
        for case in cases
    ]


class CaseReader(MedsegReader):
    """Reads all files of a case and joins their channels as ``medseg infer`` does; for ``LoadImaged(reader=...)``."""

    def __init__(self, plan_file: str | PathLike[str]) -> None:
        super().__init__()
        self._channels = read_plan(Path(plan_file)).channels

    def read(  # noqa: D102 - as its parent
        self,
        data: Sequence[PathLike[str] | str] | PathLike[str] | str,
        **kwargs: Any,  # noqa: ARG002 - MONAI's interface
    ) -> list[Any]:
        names = [data] if isinstance(data, (str, PathLike)) else list(data)
        try:
            return [load_case([Path(name) for name in names], self._channels)]
        except MedsegError as error:
            return [Refused(error)]


class PrepareScand(MapTransform):  # type: ignore[misc] # MONAI is untyped
    """A scan (C, X, Y, Z) as read to the array the network sees: oriented, cropped, normalised, resampled.

    Args:
        keys: of MetaTensors with an affine to RAS+ mm.
        plan_file: the bundle's ``plan.yaml``.
    """

    def __init__(self, keys: Sequence[str], plan_file: str | PathLike[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._plan = read_plan(Path(plan_file))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with the prepared arrays in place of the scans."""
        result = dict(data)
        for key in self.key_iterator(result):
            scan = result[key]
            array = scan.as_tensor().cpu().numpy().astype(np.float32, copy=False)
            prepared, grid = prepare_image(Volume(array, scan.affine.cpu().numpy().astype(np.float64)), self._plan)
            meta = dict(scan.meta) | {GRID: json.dumps(grid.plain())}
            result[key] = MetaTensor(torch.from_numpy(prepared), affine=torch.tensor(grid.prepared_affine), meta=meta)
        return result


class _Settings:
    """The plan and how it is applied, shared by the parts after the network."""

    def __init__(
        self,
        plan_file: str | PathLike[str],
        settings: Mapping[str, Any],
        mirror_axes_xyz: Sequence[int] = (),
        postprocessing: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.plan: Plan = read_plan(Path(plan_file))
        self.section = InferSection.model_validate_json(json.dumps(dict(settings)))
        self._axes = tuple(mirror_axes_xyz)
        self._steps = steps_from_plain([dict(step) for step in postprocessing], tuple(self.plan.labels))

    def engine(self, networks: Sequence[nn.Module], device: torch.device) -> Engine:
        models = [
            Model(network, self.plan, self._axes, "", Path("bundle"), {}, postprocessing=self._steps)
            for network in networks
        ]
        return Engine(models, self.section, device=device)


class WindowInferer(Inferer):  # type: ignore[misc] # MONAI is untyped
    """medseg's sliding window over whole prepared scans, with its mirrors and blending.

    Args:
        plan_file: the bundle's ``plan.yaml``.
        settings: values of a config's ``infer`` section.
        mirror_axes_xyz: axes that training mirrored.
    """

    def __init__(
        self, plan_file: str | PathLike[str], settings: Mapping[str, Any], mirror_axes_xyz: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self._settings = _Settings(plan_file, settings, mirror_axes_xyz)
        self._engine: Engine | None = None
        self._network: nn.Module | None = None

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Scores (B, K, X, Y, Z) float32 on the CPU of prepared scans (B, C, X, Y, Z)."""
        if self._engine is None or network is not self._network:
            members = list(network.members) if isinstance(network, AveragedNetworks) else [network]
            self._engine, self._network = self._settings.engine(members, inputs.device), network
        arrays = inputs.as_subclass(torch.Tensor).detach().cpu().numpy()
        # All classes, also where the engine would keep fewer features: what follows knows no other scores.
        found = [np.stack(list(score_channels(self._engine.scores(array)))) for array in arrays]
        return torch.from_numpy(np.stack(found))


class RestoreMaskd(MapTransform):  # type: ignore[misc] # MONAI is untyped
    """Scores (K, X, Y, Z) of a prepared scan to its mask (1, X, Y, Z), on the scan's own grid, with the manifest's values.

    Args:
        keys: of the scores.
        plan_file: the bundle's ``plan.yaml``.
        settings: values of a config's ``infer`` section.
        postprocessing: the clean-up that cross-validation adopted, as plain values.
        image_key: of the prepared scan, whose metadata hold the grid.
    """

    def __init__(
        self,
        keys: Sequence[str],
        plan_file: str | PathLike[str],
        settings: Mapping[str, Any],
        postprocessing: Sequence[Mapping[str, Any]] = (),
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self._settings, self._image_key = _Settings(plan_file, settings, (), postprocessing), image_key
        self._engine: Engine | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with masks in place of scores."""
        result = dict(data)
        self._engine = self._engine or self._settings.engine([nn.Identity()], torch.device("cpu"))
        meta = dict(result[self._image_key].meta)
        grid = Grid.from_plain(json.loads(meta.pop(GRID)))
        affine = np.array(grid.original_affine)
        for key in self.key_iterator(result):
            scores = torch.as_tensor(result[key]).as_subclass(torch.Tensor).cpu().numpy()
            classes = self._engine.classes(scores, grid)
            mask = self._engine.label_map(classes, affine=affine, header=None)
            array = torch.from_numpy(np.ascontiguousarray(mask.array))[None]
            result[key] = MetaTensor(array, affine=torch.from_numpy(affine), meta=meta)
        return result


class SaveMaskd(MapTransform):  # type: ignore[misc] # MONAI is untyped
    """Writes masks as ``medseg infer`` does: its names, its format and header, atomically, read back before they count.

    Args:
        keys: of masks (1, X, Y, Z).
        output_dir: folder; made where it is missing.
    """

    def __init__(self, keys: Sequence[str], output_dir: str | PathLike[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._folder = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data as they are."""
        result, source = dict(data), Path(str(data["source"]))
        code = str(data.get("source_series") or "")
        header = read_header(source, series=SeriesSection(code=code) if code else None)
        for key in self.key_iterator(result):
            mask = result[key]
            array = mask.as_tensor().cpu().numpy()[0]
            name = f"{data['case']}{'.png' if header.planar else '.nii.gz'}"
            label_map = LabelMap(array=array, affine=header.affine, header=header)
            write_label_map(label_map, self._folder / name, like=header)
        return result
