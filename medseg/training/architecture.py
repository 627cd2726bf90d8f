"""Config and plan to the plain values that rebuild a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medseg.config.network_sections import (
    DeepLabSection,
    DynUNetSection,
    MonaiSection,
    NetworkSection,
    UNetSection,
)
from medseg.errors import InputError
from medseg.networks.checks import check_network
from medseg.networks.monai_networks import monai_arguments
from medseg.preparation.plan import Plan

Sizes = list[list[int]]

_RATES, _RATES_MADE_FOR = (6, 12, 18), 33  # Chen et al. 2018: on the 33 wide map of a 513 wide picture at stride 16


def architecture_of(section: NetworkSection, plan: Plan) -> dict[str, Any]:
    """Plain values that rebuild the network: the config's where it has them, the plan's elsewhere.

    Strides and kernels come out in the order of the axes that the network sees: in 2D those of the slice, then 1.

    Raises:
        InputError: the config's lists do not fit the plan's stages.
        ConfigError: the values make no network, or not one for the plan's patch.
    """
    values: dict[str, Any] = {
        "kind": section.kind,
        "dimensions": plan.dimensions,
        "channels": plan.input_count,
        "classes": plan.output_count,
    }
    strides, kernels = (
        [_seen_first(size, plan.slice_axis, name) for size in sizes] for name, sizes in _sizes(section, plan)
    )
    patch = _seen_first(plan.patch_size_xyz, plan.slice_axis, "patch")[: plan.dimensions]
    match section:
        case MonaiSection():
            values |= {"name": section.name} | _monai(section, plan, strides, kernels, patch)
        case UNetSection() | DynUNetSection():
            values |= _unet(section, plan, strides, kernels)
        case _:
            own = section.model_dump(mode="json", exclude={"kind"})
            values |= own | {"strides": strides, "kernel_sizes": kernels}
            if isinstance(section, DeepLabSection) and section.rates is None:
                values["rates"] = pyramid_rates(patch, strides)
    check_network(values, patch)
    return values


def pyramid_rates(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """DeepLab's dilations 6, 12, 18, scaled down to a patch whose smallest side at the encoder's end is less than 33.

    A dilated kernel wider than the map sees nothing but padding with its outer taps.
    """
    ends = list(patch_size)
    for stride in strides[:5]:
        ends = [max(1, n // s) for n, s in zip(ends, stride, strict=False)]
    share = min(1.0, min(ends) / _RATES_MADE_FOR)
    return sorted({max(1, round(rate * share)) for rate in _RATES})


def _sizes(section: NetworkSection, plan: Plan) -> tuple[tuple[str, Any], tuple[str, Any]]:
    own = section if isinstance(section, UNetSection) else None
    strides = plan.strides if own is None or own.strides is None else own.strides
    kernels = plan.kernel_sizes if own is None or own.kernel_sizes is None else own.kernel_sizes
    return ("strides", strides), ("kernel_sizes", kernels)


def _unet(section: UNetSection | DynUNetSection, plan: Plan, strides: Sizes, kernels: Sizes) -> dict[str, Any]:
    own = section.model_dump(mode="json", exclude={"kind", "strides", "kernel_sizes"}, exclude_none=True)
    values: dict[str, Any] = {"features": list(plan.features), "strides": strides, "kernel_sizes": kernels}
    as_planned = len(own.get("features", plan.features)) == len(plan.features)
    if isinstance(section, UNetSection):
        values |= {
            "residual": plan.residual,
            # The plan's lists fit its own stages; with another number of them the config is on its own.
            "convolutions": (as_planned and list(plan.convolutions)) or 2,
            "decoder_convolutions": (as_planned and list(plan.decoder_convolutions)) or 2,
        }
    values |= own
    stages = len(values["features"])
    if len(strides) != stages or len(kernels) != stages:
        raise InputError(
            f"network: features has {stages} stages, the plan {len(plan.strides)}; give strides and kernel_sizes too, or as "
            "many features as the plan has stages"
        )
    for name, expected in (("convolutions", stages), ("decoder_convolutions", stages - 1)):
        given = values.get(name)
        if isinstance(given, list) and len(given) != expected:
            raise InputError(
                f"network: {name} has {len(given)} entries, expected {expected} for {stages} stages; set network.{name}"
            )
    return values


def _monai(section: MonaiSection, plan: Plan, strides: Sizes, kernels: Sizes, patch: list[int]) -> dict[str, Any]:
    arguments = monai_arguments(
        section.name,
        section.arguments,
        dimensions=plan.dimensions,
        patch_size=patch,
        features=plan.features,
        strides=strides,
        kernel_sizes=kernels,
    )
    return {"arguments": arguments}


def _seen_first(size: Sequence[int], slice_axis: int | None, name: str) -> list[int]:
    """(x, y, z) as a network takes it: unchanged in 3D; in 2D the two axes it sees in their order, then 1."""
    if slice_axis is None:
        return list(size)
    if size[slice_axis] != 1:
        raise InputError(
            f"network: {name} has {list(size)}, expected 1 along {'xyz'[slice_axis]}; slices are stacked along it in 2D"
        )
    return [n for axis, n in enumerate(size) if axis != slice_axis] + [1]
