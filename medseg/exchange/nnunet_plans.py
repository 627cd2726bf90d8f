"""nnU-Net's ``plans.json`` and ``dataset.json`` as a `Plan` and a network, or the reason why they can't be.

nnU-Net's arrays run (z, y, x), then ``transpose_forward``; ours (x, y, z). Axis i of theirs is our axis ``order[i]``, so a
list of theirs comes out as ours by writing its entries to those places. Nothing is guessed: a name that is not known here
(a normalisation, a resampling, a label manager, a layer) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from medseg.durable import sha256_bytes
from medseg.errors import ModelError
from medseg.exchange.nnunet_labels import previous_inputs, read_labels, refused
from medseg.exchange.nnunet_network import NETWORKS, features_of, network_values, per_stage, refuse_layers
from medseg.imaging.regions import index_labels, regions_of
from medseg.preparation.plan import ChannelPlan, Plan

_SCHEMES: dict[str, Literal["ct", "zscore", "range", "rgb", "none"]] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "range",
    "RGBTo01Normalization": "rgb",
    "NoNormalization": "none",
}
_READERS: dict[str, Literal["native", "RAS"]] = {
    "SimpleITKIO": "native",
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIO": "native",
    "NibabelIOWithReorient": "RAS",
    "NaturalImage2DIO": "native",
}
# The function's keyword arguments by which our resampling is the same; anything else is refused.
_RESAMPLING = "resample_data_or_seg_to_shape"
_KWARGS = {
    "data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "seg": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "probabilities": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}
_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
# A network has one stage per halving of its patch. What a file says beyond that would only cost memory before it is refused.
_MOST_STAGES = 24
_MOST_BLOCKS = 1000
_MOST_SHOWN = 200


@dataclass(frozen=True)
class Described:
    """What nnU-Net's files say, in our terms.

    Attributes:
        name: of the configuration.
        plan: how scans become arrays.
        architecture: for ``build_network``; computes on nnU-Net's axis order.
        order: axis i of nnU-Net's arrays is our axis ``order[i]``.
        previous: configuration of the cascade's first stage.
        previous_inputs: which of nnU-Net's one-hot channels is our first, second, ... of the first stage's mask.
    """

    name: str
    plan: Plan
    architecture: Mapping[str, Any]
    order: tuple[int, int, int]
    previous: str | None
    previous_inputs: tuple[int, ...]

    def mirror_axes_xyz(self, axes: Sequence[int]) -> tuple[int, ...]:
        """A checkpoint's ``inference_allowed_mirroring_axes`` as axes of ours.

        Raises:
            ModelError: the network has no such axis.
        """
        seen = self.order if self.plan.dimensions == 3 else self.order[1:]
        if not set(axes) <= set(range(len(seen))):
            raise refused("inference_allowed_mirroring_axes", list(axes), f"some of 0 to {len(seen) - 1}")
        return tuple(sorted({seen[axis] for axis in axes}))


def describe(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str, *, norm: Literal["instance", "batch"]
) -> Described:
    """Reads both files for one configuration.

    Args:
        plans: content of ``plans.json``.
        dataset: content of ``dataset.json``.
        configuration: name of the configuration.
        norm: "batch" where the trainer swaps instance norm for it.

    Raises:
        ModelError: something in them medseg can't do exactly, which is named.
    """
    try:
        return _Reader(plans, dataset, configuration, norm).described()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"plans.json or dataset.json: is not as nnU-Net v2 writes it ({_reason(error)}), expected the files beside the "
            "folds; copy the folder again"
        ) from error


def _reason(error: Exception) -> str:
    """A fault of the files' content in a few words on one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(f"{type(error).__name__} {error}".split())[:_MOST_SHOWN]


def resolved(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with what it inherits.

    Raises:
        ModelError: it is not there, or inherits from itself.
    """
    values: dict[str, Any] = {}
    seen: list[str] = []
    name: str | None = configuration
    while name is not None:
        if name not in plans["configurations"] or name in seen:
            raise ModelError(f"plans.json: has no configuration {name} of its own; copy the folder again")
        seen.append(name)
        values = {**plans["configurations"][name], **values}
        name = plans["configurations"][name].get("inherits_from")
    return values


class _Reader:
    def __init__(
        self,
        plans: Mapping[str, Any],
        dataset: Mapping[str, Any],
        configuration: str,
        norm: Literal["instance", "batch"],
    ) -> None:
        self.plans, self.dataset, self.name, self.norm = plans, dataset, configuration, norm
        self.values = resolved(plans, configuration)
        forward = [int(axis) for axis in plans["transpose_forward"]]
        if sorted(forward) != [0, 1, 2]:
            raise refused("transpose_forward", forward, "the axes 0, 1 and 2")
        first, second, third = (2 - axis for axis in forward)
        self.order = (first, second, third)
        self.flat = len(self.values["patch_size"]) == 2
        shape, spacing = plans["original_median_shape_after_transp"], plans["original_median_spacing_after_transp"]
        # A 2D picture is one slice whose thickness nnU-Net makes up: 999, or 999 times its voxel size.
        self.picture = (
            self.flat and float(shape[0]) == 1 and float(spacing[0]) >= 999 * min(1, *map(float, spacing[1:]))
        )

    def described(self) -> Described:
        self._refuse_others()
        labels, ignore = read_labels(self.dataset)
        previous = self.values.get("previous_stage")
        architecture = self._architecture(labels, previous=previous is not None)
        inputs = () if previous is None else previous_inputs(labels)
        plan = self._plan(labels, ignore, architecture, previous)
        return Described(self.name, plan, architecture, self.order, previous, inputs)

    def _refuse_others(self) -> None:
        for key, expected in (("preprocessor_name", "DefaultPreprocessor"),):
            if self.values.get(key, expected) != expected:
                raise refused(key, self.values[key], expected)
        if self.plans.get("label_manager", "LabelManager") != "LabelManager":
            raise refused("label_manager", self.plans["label_manager"], "LabelManager")
        for kind, expected_kwargs in _KWARGS.items():
            function = self.values.get(f"resampling_fn_{kind}", _RESAMPLING)
            if function != _RESAMPLING:
                raise refused(f"resampling_fn_{kind}", function, _RESAMPLING)
            for key, value in self.values.get(f"resampling_fn_{kind}_kwargs", {}).items():
                if key not in expected_kwargs or value != expected_kwargs[key]:
                    raise refused(f"resampling_fn_{kind}_kwargs", {key: value}, f"nnU-Net's {expected_kwargs}")

    # --- the plan ---------------------------------------------------------------------------------------------------

    def _ours(self, values: Sequence[Any], across: Any) -> tuple[Any, Any, Any]:
        """A list of theirs in (x, y, z) order; ``across`` stands for the slice axis where the list leaves it out."""
        full = [across, *values] if len(values) == 2 else list(values)
        result: list[Any] = [None] * 3
        for place, value in zip(self.order, full, strict=True):
            result[place] = value
        return result[0], result[1], result[2]

    def _plan(
        self, labels: dict[str, tuple[int, ...]], ignore: int | None, network: Mapping[str, Any], previous: str | None
    ) -> Plan:
        theirs, median = self.plans["original_median_spacing_after_transp"], self.values["median_image_size_in_voxels"]
        sizes = {name: tuple(self._unseen(size) for size in network[name]) for name in ("strides", "kernel_sizes")}
        return Plan.model_validate(
            {
                "configuration": self.name if self.name in _CONFIGURATIONS else "2d" if self.flat else "3d_fullres",
                "dimensions": 2 if self.flat else 3,
                "through_plane_axis": self.order[0] if self.flat and not self.picture else None,
                "orientation": self._orientation(),
                "spacing_xyz_mm": self._ours(
                    [float(s) for s in self.values["spacing"]], self._across(float(theirs[0]))
                ),
                "median_shape_xyz": self._ours([max(1, round(float(n))) for n in median], 1),
                "patch_size_xyz": self._ours([int(n) for n in self.values["patch_size"]], 1),
                "batch_size": int(self.values["batch_size"]),
                "channels": self._channels(),
                "labels": labels,
                "ignore": ignore,
                "features": tuple(network["features"]),
                **sizes,
                "residual": network["residual"],
                "convolutions": tuple(network["convolutions"]),
                "decoder_convolutions": tuple(network["decoder_convolutions"]),
                "previous_channels": len(index_labels(labels)) - 1 if previous is not None else 0,
                "batch_dice": bool(self.values.get("batch_dice", True)),
                "stored_dtype": "float32",
                "fingerprint_sha256": sha256_plain(self.plans),
                "reasons": {
                    "configuration": f"nnU-Net's {self.name} of {_name(self.plans.get('plans_name'))}, imported"
                },
            }
        )

    def _across(self, spacing: float) -> float:
        return 1.0 if self.picture else spacing

    def _unseen(self, size: Sequence[int]) -> tuple[int, ...]:
        """A size of the network's, whose slice axis is its last entry, in (x, y, z) order of the scan."""
        if not self.flat:
            return tuple(size)
        result = [1, 1, 1]
        for axis, value in zip(sorted(self.order[1:]), size[:2], strict=True):
            result[axis] = value
        return tuple(result)

    def _orientation(self) -> Literal["native", "RAS"]:
        reader = self.plans["image_reader_writer"]
        if reader not in _READERS:
            raise refused("image_reader_writer", reader, f"one of {', '.join(_READERS)}")
        return _READERS[reader]

    def _channels(self) -> tuple[ChannelPlan, ...]:
        names = self.dataset.get("channel_names", self.dataset.get("modality"))
        if not isinstance(names, Mapping):
            raise TypeError("channel_names")
        facts = self.plans.get("foreground_intensity_properties_per_channel")
        if facts is None:
            facts = self.plans["foreground_intensity_properties_by_modality"]
        schemes, masks = self.values["normalization_schemes"], self.values["use_mask_for_norm"]
        if not len(names) == len(schemes) == len(masks):
            raise refused("normalization_schemes", schemes, f"one per channel of dataset.json ({len(names)})")
        rgb = [str(names[str(n)]).casefold() for n in range(len(names))] in (["r", "g", "b"], ["red", "green", "blue"])
        shown = ("red", "green", "blue") if rgb else tuple(str(names[str(n)]) for n in range(len(names)))
        return tuple(
            self._channel(name, scheme, mask=bool(mask), facts=facts.get(str(n), {}))
            for n, (name, scheme, mask) in enumerate(zip(shown, schemes, masks, strict=True))
        )

    @staticmethod
    def _channel(name: str, scheme: str, *, mask: bool, facts: Mapping[str, Any]) -> ChannelPlan:
        if scheme not in _SCHEMES:
            raise refused("normalization_schemes", scheme, f"one of {', '.join(_SCHEMES)}")
        kind = _SCHEMES[scheme]
        if kind != "ct":
            return ChannelPlan(name=name, scheme=kind, use_mask=mask and kind == "zscore")
        return ChannelPlan(
            name=name,
            unit="HU" if name.casefold() == "ct" else None,
            scheme=kind,
            low=float(facts["percentile_00_5"]),
            high=float(facts["percentile_99_5"]),
            mean=float(facts["mean"]),
            std=float(facts["std"]),
        )

    # --- the network ------------------------------------------------------------------------------------------------

    def _architecture(self, labels: Mapping[str, tuple[int, ...]], *, previous: bool) -> dict[str, Any]:
        name, values = network_values(self.values)
        if name not in NETWORKS:
            raise refused("network_class_name", name, " or ".join(NETWORKS))
        refuse_layers(values)
        stages, residual = int(values["n_stages"]), NETWORKS[name]
        if not 2 <= stages <= _MOST_STAGES:
            raise refused("n_stages", stages, f"2 to {_MOST_STAGES}")
        blocks = per_stage(values["n_blocks_per_stage" if residual else "n_conv_per_stage"], stages)
        # nnU-Net lists decoder stages from the bottleneck up, ours go from the top down.
        decoder = per_stage(values["n_conv_per_stage_decoder"], stages - 1)[::-1]
        if not all(1 <= int(count) <= _MOST_BLOCKS for count in (*blocks, *decoder)):
            raise refused("n_conv_per_stage", [*blocks, *decoder], f"1 to {_MOST_BLOCKS} each")
        ranks = sorted(self.order[1:]) if self.flat else [0, 1, 2]
        strides = [self._seen(size) for size in per_stage(values["strides"], stages)]
        if set(strides[0]) != {1}:
            raise refused("strides", values["strides"], "1 in the first stage")
        regions = regions_of(labels)
        return {
            "kind": "unet",
            "dimensions": 2 if self.flat else 3,
            "channels": len(self.values["normalization_schemes"]) + (len(index_labels(labels)) - 1) * previous,
            "classes": len(labels) - (regions is not None),
            "features": features_of(values["features_per_stage"], stages),
            "strides": strides,
            "kernel_sizes": [self._seen(size) for size in per_stage(values["kernel_sizes"], stages)],
            "convolutions": blocks,
            "decoder_convolutions": decoder,
            "residual": residual,
            "norm": self.norm,
            "order": [ranks.index(axis) for axis in (self.order[1:] if self.flat else self.order)],
        }

    def _seen(self, size: int | Sequence[int]) -> list[int]:
        """A stride or kernel as our network takes it: (x, y, z), or the two axes it sees in their order, then 1."""
        own = [size] * (2 if self.flat else 3) if isinstance(size, int) else [int(n) for n in size]
        full = self._ours(own, 1)
        return [full[axis] for axis in sorted(self.order[1:])] + [1] if self.flat else list(full)


def sha256_plain(value: Mapping[str, Any]) -> str:
    """As `medseg.durable.sha256_json`, of nnU-Net's JSON files, in which Python may have left a NaN."""
    text = json.dumps(dict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))


def _name(value: object) -> str:
    return str(value)[:60]
