"""The maps of one scan: per class and method the mean over the networks that made its mask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from medseg.durable import sha256_file
from medseg.errors import GeometryError, ModelError
from medseg.explain.layers import choose_layer
from medseg.explain.members import Member, channel_of, members_of, region_of_class
from medseg.explain.sanity import rank_correlation, shuffled
from medseg.explain.scan_maps import onto_scan
from medseg.explain.windows import BoolArray, FloatArray, voxels_of
from medseg.imaging import Volume, grid_difference, read_label_map
from medseg.inference.ensemble import MaskMaker
from medseg.networks.windows import default_batch_size

_LOG = logging.getLogger(__name__)

EXPLAIN_FORMAT = 1
METHODS = ("gradcam", "occlusion")
_BOXES_PER_PATCH = 6


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """What is asked for.

    Attributes:
        classes: names; empty takes all but the background.
        methods: of ``METHODS``.
        layer: for Grad-CAM; None takes the deepest stage of the encoder.
        region: label map on the scan's grid, or a folder of them by case; None takes the predicted mask of each class.
        region_values: of ``region`` that are the region; empty takes all that are not 0.
        box_mm: side of an occluded box; None is a sixth of the patch's longest side.
        stride_mm: from box to box; None is half a box.
        fill: what a box shows: each channel's "mean" or its "lowest" value.
        sanity: compare each map with that of shuffled weights.
        png: write a picture of each map.
        overwrite: make every map anew.
    """

    classes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("gradcam",)
    layer: str | None = None
    region: Path | None = None
    region_values: tuple[int, ...] = ()
    box_mm: float | None = None
    stride_mm: float | None = None
    fill: str = "mean"
    sanity: bool = False
    png: bool = False
    overwrite: bool = False

    def settings(self, name: str, method: str) -> dict[str, Any]:
        """All that a map depends on beside scan, region and models, as plain values."""
        plain: dict[str, Any] = {"format": EXPLAIN_FORMAT, "class": name, "method": method, "sanity": self.sanity}
        plain["region"] = "predicted" if self.region is None else list(self.region_values)
        if method == "gradcam":
            return plain | {"layer": self.layer}
        return plain | {"box_mm": self.box_mm, "stride_mm": self.stride_mm, "fill": self.fill}


@dataclass(kw_only=True, eq=False)
class MapSum:
    """One class' map by one method, while it is added up over the networks.

    Attributes:
        values: (X, Y, Z) on the scan's own grid.
        random: the same of shuffled weights, where asked for.
        scores: of each network: the region's mean logit (Grad-CAM) or mean probability (occlusion).
        facts: what was done: layer, box, stride.
    """

    values: FloatArray
    random: FloatArray | None = None
    scores: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def row(self, region: BoolArray) -> dict[str, Any]:
        """Numbers for the sidecar and ``explain.csv``."""
        positive = np.clip(self.values, 0, None)
        mass = float(positive.sum(dtype=np.float64))
        correlation = None if self.random is None else rank_correlation(self.values, self.random)
        return {
            "region_voxels": int(np.count_nonzero(region)),
            "score": _digits(float(np.mean(self.scores))),
            "highest": _digits(float(self.values.max())),
            "inside": _digits(float(positive[region].sum(dtype=np.float64)) / mass) if mass > 0 else None,
            "shuffled_correlation": None if correlation is None else _digits(correlation),
            **self.facts,
        }


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def explain_volume(
    maker: MaskMaker,
    volume: Volume,
    options: ExplainOptions,
    wanted: Sequence[tuple[str, str]],
    *,
    region_file: Path | None,
) -> dict[tuple[str, str], tuple[MapSum, BoolArray]]:
    """The maps of a scan.

    Args:
        maker: the models.
        volume: the scan.
        options: what is asked for.
        wanted: (class, method) pairs.
        region_file: the label map of the region; None takes the predicted mask.

    Returns:
        Per pair its map and region, both (X, Y, Z) on the scan's own grid; a pair whose region is empty is left out.

    Raises:
        UsageError: there is no such layer.
        GeometryError: the region's file lies on another grid.
        ModelError: Grad-CAM is asked of a network without gradients.
    """
    array, grid = maker.prepare(volume)
    names = {name for name, _ in wanted}
    if region_file is None:
        classes = maker.classes(maker.scores(array), grid)
        found = {name: region_of_class(classes, name, maker.class_names, maker.plan.regions) for name in names}
    else:
        found = dict.fromkeys(names, read_region(region_file, volume, options.region_values))
    there = [(name, method) for name, method in wanted if found[name].any()]
    sums = {pair: MapSum(values=np.zeros(volume.shape, np.float32)) for pair in there}
    members = members_of(maker, array, grid) if there else ()
    for member in members:
        network = member.model.ready()
        random = shuffled(network) if options.sanity else None
        for (name, method), total in sums.items():
            _add(total, member, network, found[name], options, name=name, method=method, share=1 / len(members))
            if random is not None:
                own = MapSum(values=np.zeros(volume.shape, np.float32) if total.random is None else total.random)
                _add(own, member, random, found[name], options, name=name, method=method, share=1 / len(members))
                total.random = own.values
    return {(name, method): (total, found[name]) for (name, method), total in sums.items()}


def _add(
    total: MapSum,
    member: Member,
    network: nn.Module,
    region: BoolArray,
    options: ExplainOptions,
    *,
    name: str,
    method: str,
    share: float,
) -> None:
    """Adds one network's map, brought to the scan's own grid. Grad-CAM's units are each network's own: its highest is 1."""
    make = _gradcam if method == "gradcam" else _occlusion
    values, score, facts = make(member, network, region, options, name)
    highest = float(values.max()) if method == "gradcam" else 1.0
    if highest > 0:
        total.values += np.float32(share / highest) * onto_scan(values, member.grid)
    total.scores.append(score)
    total.facts |= facts


def _gradcam(
    member: Member, network: nn.Module, region: BoolArray, options: ExplainOptions, name: str
) -> tuple[FloatArray, float, dict[str, Any]]:
    from medseg.explain.gradcam import gradcam

    if next(network.parameters(), None) is None:
        raise ModelError(
            f"{member.model.folder.name}: its network has no gradients (an ONNX file), expected one of torch; take "
            "--method occlusion"
        )
    views, plan = member.views(region), member.model.plan
    first = views.inputs([views.image[(slice(None), *views.views[0].where)]])
    layer = choose_layer(network, first, options.layer)
    channel = channel_of(name, tuple(plan.labels), plan.regions)
    values, score = gradcam(views, network, channel=channel, layer=layer)
    return values, score, {"layer": layer}


def _occlusion(
    member: Member, network: nn.Module, region: BoolArray, options: ExplainOptions, name: str
) -> tuple[FloatArray, float, dict[str, Any]]:
    from medseg.explain.occlusion import box_count, occlusion

    views, plan = member.views(region), member.model.plan
    spacing = member.grid.prepared_spacing_xyz_mm
    sides = [size * own for size, own in zip(plan.patch_size_xyz, spacing, strict=True)]
    box_mm = options.box_mm or max(sides) / _BOXES_PER_PATCH
    stride_mm = options.stride_mm or box_mm / 2
    box, stride = voxels_of(box_mm, spacing, plan.slice_axis), voxels_of(stride_mm, spacing, plan.slice_axis)
    _LOG.info("%s: %d boxes of %s voxels, %d windows", name, box_count(views, box, stride), box, len(views.views))
    values, score = occlusion(
        views,
        network,
        channel=channel_of(name, tuple(plan.labels), plan.regions),
        overlapping=plan.regions is not None,
        box_xyz=box,
        stride_xyz=stride,
        fill=member.filling(options.fill),
        batch_size=member.engine.section.batch_size or default_batch_size(plan.patch_size_xyz, member.engine.device),
    )
    return values, score, {"box_mm": _digits(box_mm), "stride_mm": _digits(stride_mm)}


def region_file_of(region: Path | None, case_id: str) -> Path | None:
    """The file that names a case's region: ``region`` itself, or the label map of the case's name in it."""
    if region is None or not region.is_dir():
        return region
    from medseg.evaluation.matching import label_files

    found = label_files(region).get(case_id)
    if found is None:
        raise GeometryError(f"{case_id}: has no label map in {region.name}, expected one of its name; see --region")
    return found


def read_region(path: Path, volume: Volume, values: Sequence[int]) -> BoolArray:
    """(X, Y, Z) bool of a label map on the scan's grid: its voxels of ``values``, or all that are not 0.

    Raises:
        GeometryError: it lies on another grid.
        ScanError: it can't be read.
    """
    label_map = read_label_map(path)
    difference = grid_difference(label_map.shape, label_map.affine, volume.shape, volume.affine)
    if difference is not None:
        raise GeometryError(f"{path.name}: lies on another grid than the scan ({difference}), expected the scan's")
    return np.isin(label_map.array, values) if values else np.asarray(label_map.array != 0, bool)


def region_sha256(path: Path | None) -> dict[str, str]:
    """For the origin of a map: the region's file."""
    return {} if path is None else {"region": sha256_file(path)}
